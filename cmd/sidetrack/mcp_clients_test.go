// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/npm"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// The protocol's own test programs, against the program as it is built.

func packages(t *testing.T) *npm.Packages {
	t.Helper()
	p, err := npm.Install(t.Context())
	if err != nil && os.Getenv("SIDETRACK_REQUIRE_CLIENTS") == "1" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return p
}

func mcpArguments(t *testing.T, ns string, more ...string) []string {
	t.Helper()
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"mcp", "--kubeconfig=" + config, "--cache-dir=" + t.TempDir(), "-n", ns}, more...)
}

var servingAt = regexp.MustCompile(`serving at (http://\S+)\n`)

// serveHTTP runs the program with --http until the test ends, and returns its URL.
func serveHTTP(t *testing.T, ns string) string {
	t.Helper()
	var said transcript.Log
	cmd := exec.Command(builtProgram(t), mcpArguments(t, ns, "--http", "127.0.0.1:0")...)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("interrupted, it ends with %v: %s", err, said.String())
		}
	})
	var url string
	eventually(t, func() error {
		m := servingAt.FindStringSubmatch(said.String())
		if m == nil {
			return fmt.Errorf("it does not serve: %s", said.String())
		}
		url = m[1]
		return nil
	})
	return url
}

// suites are the conformance suites that the program is run against: the newest
// release, and the one in the making, which knows the protocol's versions without
// sessions. Both call tools, prompts and resources that their example server has and
// Sidetrack has not, and a suite fails when a scenario passes that is expected to fail.
// These scenarios are tried in internal/mcpserver, where the server has the fixtures.
var suites = []struct {
	file string
	args []string
	// passing are scenarios that are looked for, since a suite that has run nothing passes
	// as well.
	passing []string
	// failing is the list for the suite.
	failing string
}{
	{
		file:    "@modelcontextprotocol/conformance/dist/index.js",
		passing: []string{"server-initialize", "ping", "tools-list", "server-sse-multiple-streams", "dns-rebinding-protection"},
		failing: `server: # Each wants a fixture.
- completion-complete
- elicitation-sep1034-defaults
- elicitation-sep1330-enums
- prompts-get-embedded-resource
- prompts-get-simple
- prompts-get-with-args
- prompts-get-with-image
- resources-read-binary
- resources-read-text
- resources-subscribe
- resources-templates-read
- resources-unsubscribe
- tools-call-audio
- tools-call-elicitation
- tools-call-embedded-resource
- tools-call-error
- tools-call-image
- tools-call-mixed-content
- tools-call-sampling
- tools-call-simple-text
- tools-call-with-logging
- tools-call-with-progress
`,
	},
	{
		file:    "conformance-alpha/dist/index.js",
		args:    []string{"--requirements", "2026-07-28"},
		passing: []string{"tools-list", "caching", "server-sse-multiple-streams", "dns-rebinding-protection", "sep-2164-resource-not-found", "http-header-validation"},
		failing: `server: # Each wants a fixture; server-stateless wants several, and no answer to prompts/list where there are no prompts: the library's is an empty list.
- completion-complete
- input-required-result-basic-elicitation
- input-required-result-basic-list-roots
- input-required-result-basic-sampling
- input-required-result-capability-check
- input-required-result-ignore-extra-params
- input-required-result-missing-input-response
- input-required-result-multi-round
- input-required-result-multiple-input-requests
- input-required-result-non-tool-request
- input-required-result-request-state
- input-required-result-result-type
- input-required-result-tampered-state
- prompts-get-embedded-resource
- prompts-get-simple
- prompts-get-with-args
- prompts-get-with-image
- resources-read-binary
- resources-read-text
- resources-templates-read
- server-stateless
- tools-call-audio
- tools-call-embedded-resource
- tools-call-error
- tools-call-image
- tools-call-mixed-content
- tools-call-simple-text
- tools-call-with-progress
`,
	},
}

func TestTheConformanceSuitePasses(t *testing.T) {
	p := packages(t)
	url := serveHTTP(t, namespace(t))
	for _, suite := range suites {
		t.Run(suite.file, func(t *testing.T) {
			home := t.TempDir()
			expected := filepath.Join(home, "expected.yml")
			if err := os.WriteFile(expected, []byte(suite.failing), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			args := append([]string{"server", "--url", url, "--expected-failures", expected, "-o", filepath.Join(home, "results")}, suite.args...)
			out, err := p.Command(ctx, home, suite.file, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, scenario := range suite.passing {
				if !regexp.MustCompile(`✓ ` + scenario + `: [1-9]\d* passed, 0 failed`).Match(out) {
					t.Errorf("%s has not passed:\n%s", scenario, out)
				}
			}
		})
	}
}

// inspect runs the inspector's command line and returns its result.
func inspect(t *testing.T, p *npm.Packages, want int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := p.Command(ctx, t.TempDir(), "@modelcontextprotocol/inspector/clients/launcher/build/index.js", append([]string{"--cli"}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, _ := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Fatalf("inspector %q: exit status %d, want %d\n%s\n%s", args, got, want, out, said.String())
	}
	return string(out)
}

func TestTheInspectorFindsNoFaultWithTheTools(t *testing.T) {
	p := packages(t)
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	stdio := append([]string{"--", builtProgram(t)}, mcpArguments(t, ns)...)
	for how, target := range map[string][]string{"stdio": stdio, "http": {serveHTTP(t, ns), "--transport", "http"}} {
		with := func(args ...string) []string { return append(args, target...) }
		if how == "http" {
			with = func(args ...string) []string { return append(target[:len(target):len(target)], args...) }
		}
		t.Run(how, func(t *testing.T) {
			var list struct{ Tools []struct{ Name string } }
			// It looks for what some clients cannot do with a schema.
			out := inspect(t, p, 0, with("--method", "tools/list", "--strict")...)
			if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Tools) == 0 || len(list.Tools) > 10 {
				t.Fatalf("%v, %d tools: %s", err, len(list.Tools), out)
			}
			var called struct {
				IsError           bool
				StructuredContent struct {
					Workloads []struct{ Workload string }
				}
			}
			out = inspect(t, p, 0, with("--method", "tools/call", "--tool-name", "list_workloads", "--tool-arg", "namespace="+ns)...)
			if err := json.Unmarshal([]byte(out), &called); err != nil || called.IsError || len(called.StructuredContent.Workloads) != 1 || called.StructuredContent.Workloads[0].Workload != "Deployment/route" {
				t.Errorf("%v: %s", err, out)
			}
			// Its exit status for a tool that has failed is 5.
			out = inspect(t, p, 5, with("--method", "tools/call", "--tool-name", "sandbox_status", "--tool-arg", "sandbox=nobody")...)
			mustSay(t, out, `"isError": true`, "there is no sandbox nobody")
		})
	}
}
