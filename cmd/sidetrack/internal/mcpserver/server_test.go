// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// nowhere is a server that no cluster is behind.
func nowhere() *Server {
	return New(Options{Version: "test", Connect: func() (*cluster.Cluster, error) {
		return nil, &task.Failure{Message: "there is no cluster", Remedy: "set KUBECONFIG"}
	}})
}

// inMemory connects a client that speaks a version of the protocol; an empty one is
// the newest.
func inMemory(t *testing.T, s *Server, version string) *mcp.ClientSession {
	t.Helper()
	ours, theirs := mcp.NewInMemoryTransports()
	ss, err := s.server.Connect(t.Context(), ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ss.Close() })
	return connect(t, theirs, version)
}

// overStdio is a client's end of a session by pipes, as over standard input and output.
// The session ends with the test.
func overStdio(t *testing.T, s *Server) mcp.Transport {
	t.Helper()
	theirIn, ourOut := io.Pipe()
	ourIn, theirOut := io.Pipe()
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Stdio(ctx, theirIn, theirOut) }()
	t.Cleanup(func() {
		end()
		// What the server still writes is read by nobody.
		ourIn.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		ourOut.Close()
	})
	return &mcp.IOTransport{Reader: ourIn, Writer: ourOut}
}

func connect(t *testing.T, transport mcp.Transport, version string) *mcp.ClientSession {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	cs, err := client.Connect(t.Context(), transport, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cs.Close() })
	return cs
}

func toolsOf(t *testing.T, cs *mcp.ClientSession) []*mcp.Tool {
	t.Helper()
	r, err := cs.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.Tools
}

func textOf(r *mcp.CallToolResult) string {
	var all []string
	for _, c := range r.Content {
		if text, ok := c.(*mcp.TextContent); ok {
			all = append(all, text.Text)
		}
	}
	return strings.Join(all, "\n")
}

func TestAModelGetsFewToolsAndIsToldWhatEachIsFor(t *testing.T) {
	all := toolsOf(t, inMemory(t, nowhere(), ""))
	if len(all) > 10 {
		t.Errorf("there are %d tools, ten are what a model chooses well among", len(all))
	}
	if len(all) != len(tools()) {
		t.Errorf("%d tools are offered of %d", len(all), len(tools()))
	}
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	for _, tool := range all {
		if !name.MatchString(tool.Name) {
			t.Errorf("the name %s is not in snake case", tool.Name)
		}
		if tool.Title == "" || len(tool.Description) < 60 || len(tool.Description) > 900 {
			t.Errorf("%s: title %q, a description of %d bytes", tool.Name, tool.Title, len(tool.Description))
		}
		a := tool.Annotations
		if a == nil || a.DestructiveHint == nil || a.OpenWorldHint == nil {
			t.Errorf("%s says nothing of what it does to the world", tool.Name)
			continue
		}
		if a.ReadOnlyHint && *a.DestructiveHint {
			t.Errorf("%s is read-only and destructive", tool.Name)
		}
		if reading := regexp.MustCompile(`^(list_|sandbox_|explain)`).MatchString(tool.Name); reading != a.ReadOnlyHint {
			t.Errorf("%s: readOnlyHint is %t", tool.Name, a.ReadOnlyHint)
		}
		if (tool.Name == "delete_sandbox" || strings.HasPrefix(tool.Name, "send_") || strings.HasPrefix(tool.Name, "run_") || strings.HasPrefix(tool.Name, "compare_")) != *a.DestructiveHint {
			t.Errorf("%s: destructiveHint is %t", tool.Name, *a.DestructiveHint)
		}
	}
}

func TestSchemasAreValidAndDescribeEveryArgument(t *testing.T) {
	for _, tool := range toolsOf(t, inMemory(t, nowhere(), "")) {
		for what, raw := range map[string]any{"input": tool.InputSchema, "output": tool.OutputSchema} {
			b, err := json.Marshal(raw)
			if err != nil {
				t.Fatal(err)
			}
			var s jsonschema.Schema
			if err := json.Unmarshal(b, &s); err != nil {
				t.Errorf("%s: %s schema: %v", tool.Name, what, err)
				continue
			}
			// Defaults that do not fit their own schema are found as well.
			if _, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true}); err != nil {
				t.Errorf("%s: %s schema: %v", tool.Name, what, err)
			}
			if s.Type != "object" {
				t.Errorf("%s: the %s is of type %q", tool.Name, what, s.Type)
			}
			if strings.Contains(string(b), `"null"`) {
				t.Errorf("%s: the %s may be null somewhere: %s", tool.Name, what, b)
			}
			if what == "input" {
				described(t, tool.Name, &s)
			}
		}
	}
}

func described(t *testing.T, where string, s *jsonschema.Schema) {
	t.Helper()
	for name, p := range s.Properties {
		if p.Description == "" {
			t.Errorf("%s: %s is not described", where, name)
		}
		if p.Items != nil {
			described(t, where+"."+name, p.Items)
		}
	}
}

func TestEveryVersionOfTheProtocolIsSpokenOverStdio(t *testing.T) {
	versions := mcp.SupportedProtocolVersions()
	if !slices.Contains(versions, "2024-11-05") || !slices.Contains(versions, withoutSessions) {
		t.Fatalf("the library speaks %v", versions)
	}
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			cs := connect(t, overStdio(t, nowhere()), version)
			if got := cs.InitializeResult().ProtocolVersion; got != version {
				t.Errorf("version %s is spoken", got)
			}
			if got := cs.InitializeResult().Instructions; !strings.Contains(got, "list_workloads") || !strings.Contains(got, "create_sandbox") {
				t.Errorf("the instructions are %q", got)
			}
			if n := len(toolsOf(t, cs)); n != len(tools()) {
				t.Errorf("%d tools", n)
			}
			mustFail(t, cs, "list_workloads", nil, "list_workloads failed: there is no cluster", "next: set KUBECONFIG")
		})
	}
}

// mustFail wants a result that says what is wrong.
func mustFail(t *testing.T, cs *mcp.ClientSession, tool string, arguments any, words ...string) {
	t.Helper()
	r, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: arguments})
	if err != nil {
		t.Fatalf("%s: a failure of the task has become one of the protocol: %v", tool, err)
	}
	if !r.IsError {
		t.Fatalf("%s: no error: %s", tool, textOf(r))
	}
	for _, w := range words {
		if !strings.Contains(textOf(r), w) {
			t.Errorf("%s does not say %q: %s", tool, w, textOf(r))
		}
	}
}

func TestBadArgumentsAreNamedInTheResult(t *testing.T) {
	cs := inMemory(t, nowhere(), "")
	mustFail(t, cs, "list_workloads", map[string]any{"namspace": "shop"}, "namspace")
	mustFail(t, cs, "sandbox_status", nil, "sandbox")
	mustFail(t, cs, "sandbox_status", map[string]any{"sandbox": "a", "detail": "more"}, "detail")
	mustFail(t, cs, "create_sandbox", map[string]any{"sandbox": "a", "wait_seconds": -1}, "wait_seconds")
	mustFail(t, cs, "create_sandbox", map[string]any{"sandbox": "a", "forks": []any{map[string]any{"image": "x"}}}, "workload")
}

func TestARequestThatIsToBeProvedHasItsOwnTrace(t *testing.T) {
	cs := inMemory(t, New(Options{Connect: func() (*cluster.Cluster, error) { return &cluster.Cluster{Namespace: "shop"}, nil }}), "")
	mustFail(t, cs, "send_request", map[string]any{"sandbox": "a", "url": "http://front.shop",
		"headers": map[string]any{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}, "leave it out")
}

func TestNullStandsForNoArguments(t *testing.T) {
	cs := inMemory(t, nowhere(), "")
	mustFail(t, cs, "list_workloads", json.RawMessage("null"), "there is no cluster")
	mustFail(t, cs, "create_sandbox", json.RawMessage("null"), "sandbox")
	mustFail(t, cs, "create_sandbox", json.RawMessage(`{"sandbox":"a","forks":[null]}`), "forks")
	mustFail(t, cs, "create_sandbox", json.RawMessage(`{"sandbox":"a","forks":null}`), "forks")
}

func TestTheClusterIsLookedForAgainWhenItWasNotThere(t *testing.T) {
	asked := 0
	s := New(Options{Connect: func() (*cluster.Cluster, error) {
		asked++
		if asked == 1 {
			return nil, errors.New("not yet")
		}
		return &cluster.Cluster{Namespace: "shop"}, nil
	}})
	if _, err := s.reach(); err == nil {
		t.Error("the first time was no failure")
	}
	for range 2 {
		if c, err := s.reach(); err != nil || c.Namespace != "shop" {
			t.Errorf("%v, %v", c, err)
		}
	}
	if asked != 2 {
		t.Errorf("it was looked for %d times", asked)
	}
}

func TestAStdioSessionEndsWithItsInput(t *testing.T) {
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- nowhere().Stdio(t.Context(), in, io.Discard) }()
	if _, err := io.WriteString(out, `{"jsonrpc":"2.0","id":1,"method":"ping"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	in, _ = io.Pipe()
	go func() { done <- nowhere().Stdio(ctx, in, io.Discard) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAFailureIsToldInWordsForSomebodyWhoHasTools(t *testing.T) {
	e := &toolError{"create_sandbox", &task.Failure{
		Message: "sandbox a is not ready: no image",
		Details: []string{"pod x, container app: " + strings.Repeat("é", mostDetail)},
		Remedy:  "sidetrack logs a -n shop has the forks' logs; mend it with sidetrack sandbox create --update",
	}, strings.Clone}
	got := e.Error()
	for _, w := range []string{"create_sandbox failed: sandbox a is not ready: no image\npod x", "bytes)\nnext: ", "mend it with create_sandbox and update: true"} {
		if !strings.Contains(got, w) {
			t.Errorf("it does not say %q:\n%s", w, got)
		}
	}
	if len(got) > mostDetail+400 || !strings.Contains(got, "é… (") {
		t.Errorf("it has %d bytes: …%s", len(got), got[len(got)-200:])
	}
	if got := (&toolError{"x", context.Canceled, strings.Clone}).Error(); got != "x: cancelled" {
		t.Errorf("cancelled, it says %q", got)
	}
}

func TestAHandleIsANameOrANamespaceAndAName(t *testing.T) {
	for text, want := range map[string][2]string{"pr-42": {"", "pr-42"}, "shop/pr-42": {"shop", "pr-42"}} {
		if namespace, name, err := parseHandle(text); err != nil || namespace != want[0] || name != want[1] {
			t.Errorf("%s: %q, %q, %v", text, namespace, name, err)
		}
	}
	for _, text := range []string{"", "/", "shop/", "/a", "a/b/c"} {
		if _, _, err := parseHandle(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
