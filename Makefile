# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# How long each fuzz target runs in fuzz-short.
FUZZTIME ?= 20s
# Counts of tests are added to this file, when it is set; .ci/run sums them up.
TALLY ?=
# CI's rounds are shorter and their report is not kept.
BENCHFLAGS ?= -report bench/REPORT.md

# Programs that must get a signal themselves are not run by "go run".
tools = go build -o bin/ ./test/kernels ./test/tally ./test/demo ./test/cluster/cmd/cluster
tally = bin/tally $(if $(TALLY),-append $(TALLY))
build = CGO_ENABLED=0 go build -trimpath -ldflags "-s -w"
# Packages whose tests want a real API server or a whole cluster.
clustered = go list -f '{{$$p := .ImportPath}}{{range .TestImports}}{{if eq . "github.com/sidetrack-dev/sidetrack/test/cluster"}}{{$$p}}{{"\n"}}{{end}}{{end}}' ./... | grep .; \
	echo github.com/sidetrack-dev/sidetrack/test/cluster
scripts = $(shell git ls-files '*.sh' .ci/run)

.PHONY: help build generate test e2e demo kernels bench-quick image lint verify fuzz-short clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build static binaries into bin/
	@mkdir -p bin
	$(build) -o bin/ ./cmd/...
	@ln -sf sidetrack bin/kubectl-sidetrack; ln -sf sidetrack bin/kubectl_complete-sidetrack

generate: ## compile the BPF programs and write all generated code anew (needs clang-14, and npm for the page)
	@command -v clang-14 >/dev/null || { echo "generate: clang-14 is missing; install the packages clang-14 and llvm-14. Its version is fixed because the objects are committed."; exit 1; }
	go generate ./...

test: ## install what the tests need (as root, with apt), and run them all
	@test/setup.sh test
	@$(tools)
	@kernel=$$(bin/kernels -list); \
	pure=$$(go list ./... | grep -vxF "$$kernel" | grep -vxF "$$($(clustered))"); \
	{ go test -json -race $$pure || true; \
	go test -json -race -p 1 -timeout 30m $$kernel || true; } | \
	$(tally) -again 'go test -race -count=1 -timeout 10m -run "$$TESTS" "$$PKG"'

e2e: ## run Sidetrack in a real Kubernetes with two nodes; the first time builds that from Go modules (as root)
	@test/setup.sh e2e
	@$(tools)
	@echo "the cluster's programs: $$(bin/cluster programs)"
	@export SIDETRACK_E2E=1 SIDETRACK_E2E_FIGURES=$(CURDIR)/bin/e2e-figures; rm -f "$$SIDETRACK_E2E_FIGURES"; \
	{ go test -json -count=1 -p 1 -timeout 40m $$($(clustered)) || true; \
	[ ! -e "$$SIDETRACK_E2E_FIGURES" ] || cat "$$SIDETRACK_E2E_FIGURES" >&2; } | \
	$(tally) -again 'go test -count=1 -timeout 20m "$$PKG"'

image: ## pack container images into bin/sidetrack.tar, without Docker
	@mkdir -p bin
	go run ./deploy/image -o bin/sidetrack.tar

demo: build ## show both ways of routing with real requests between namespaces (as root)
	@$(tools)
	@bin/demo -sidetrackd bin/sidetrackd

kernels: ## run every test that touches the kernel on Debian's 6.1 and 6.12, in QEMU
	@test/setup.sh kernels
	@$(tools)
	@{ bin/kernels || [ $$? = 3 ]; } | $(tally) -again 'bin/kernels -kernels "$$SERIES" -packages "$$PKG" -run "$$TESTS"'

bench-quick: build ## compare direct, flow redirect, router and HAProxy: five minutes, rewrites bench/REPORT.md
	@test/setup.sh bench
	go run ./bench -sidetrackd bin/sidetrackd $(BENCHFLAGS)

lint: ## gofmt, go vet, staticcheck, shellcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	[ -z "$$unformatted" ] || { echo "gofmt -w these: $$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	shellcheck $(scripts)

verify: ## lint, look for known vulnerabilities, and see that what is generated is committed
	@test/setup.sh verify
	@$(MAKE) --no-print-directory lint
	@before=$$(git diff HEAD | sha256sum; git status --porcelain); \
	$(MAKE) --no-print-directory generate; \
	[ "$$before" = "$$(git diff HEAD | sha256sum; git status --porcelain)" ] || { \
		git status --short; git --no-pager diff --stat; \
		echo "verify: what is generated differs from what is committed: run make generate and commit"; exit 1; }
	@out=$$(go tool govulncheck ./... 2>&1) && echo "$$out" || { \
		echo "$$out"; \
		grep -q "^govulncheck: fetching vulnerabilities:" <<<"$$out" || exit 1; \
		echo "verify: the vulnerability database cannot be reached from here: not checked"; }

fuzz-short: ## run each fuzz target for FUZZTIME
	@for pkg in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

clean: ## remove what was built, and what killed tests have left behind
	rm -rf bin
	go run ./test/lab/sweep
	go run ./test/cluster/cmd/cluster sweep
