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
	var said console
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

// fixtures are the suite's scenarios that want what its example server has: tools,
// prompts and resources by certain names, and capabilities that Sidetrack does not
// offer. The suite fails when one of them passes, and when any other does not.
const fixtures = `server:
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
`

func TestTheConformanceSuitePasses(t *testing.T) {
	p := packages(t)
	url := serveHTTP(t, namespace(t))
	home := t.TempDir()
	expected := filepath.Join(home, "expected.yml")
	if err := os.WriteFile(expected, []byte(fixtures), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := p.Command(ctx, home, "@modelcontextprotocol/conformance/dist/index.js", "server", "--url", url, "--expected-failures", expected, "-o", filepath.Join(home, "results")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A suite that has run nothing passes as well.
	for _, scenario := range []string{"server-initialize", "ping", "tools-list", "server-sse-multiple-streams", "dns-rebinding-protection"} {
		if !regexp.MustCompile(`✓ ` + scenario + `: [1-9]\d* passed, 0 failed`).Match(out) {
			t.Errorf("%s has not passed:\n%s", scenario, out)
		}
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
