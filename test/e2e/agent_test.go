// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
	"github.com/sidetrack-dev/sidetrack/test/npm"
)

// agentSent is what send_request replies.
type agentSent struct {
	Sandbox      string
	Verified     bool
	NotVerified  []string `json:"not_verified"`
	Status       int
	Body         string
	TraceID      string     `json:"trace_id"`
	Hops         []agentHop `json:"hops"`
	ForksReached []string   `json:"forks_reached"`
}

type agentHop struct {
	From, Service, Went, Pod string
	Depth                    int
}

// agentStory is what testdata/agent.mjs tells of itself.
type agentStory struct {
	Error   string
	Tools   []string
	First   agentSent
	Strayed agentSent
	Second  agentSent
	Lost    agentSent
	Differs struct {
		Same        bool
		Verified    bool
		Differences []struct{ Where, Baseline, Fork string }
	}
	Why               struct{ Hops []agentHop }
	Tested, Elsewhere struct {
		Passed       bool
		ForksReached []string `json:"forks_reached"`
		NotVerified  []string `json:"not_verified"`
		Output       string
	}
	Listed struct {
		Sandboxes []struct{ Sandbox string }
	}
	Gone  struct{ Deleted bool }
	Heard int
	Story []struct {
		Tool    string
		Failed  bool
		Seconds float64
		Text    string
	}
}

// scriptedAgent closes the loop as a coding agent does, by MCP and a public client
// library: its first attempt has a bug that only the real database shows.
func scriptedAgent(t *testing.T) {
	packages, err := npm.Install(t.Context())
	if err != nil {
		if os.Getenv("SIDETRACK_REQUIRE_CLIENTS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	config, err := kube.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	deleteAfterwards(t, "-n", shop, "sandbox/agent")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd, err := packages.Script(ctx, t.TempDir(), "testdata/agent.mjs", sidetrackProgram(t), "mcp", "--kubeconfig="+config, "-n", shop)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	key := keyOf(ctx, "agent")
	began := time.Now()
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var s agentStory
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		t.Fatalf("the agent tells nothing: %v\n%s\n%s", err, out.String(), errs.String())
	}
	for _, c := range s.Story {
		t.Logf("%s, %.1f s, failed %t:\n%s", c.Tool, c.Seconds, c.Failed, c.Text)
	}
	if s.Error != "" || err != nil {
		t.Fatalf("the agent has failed: %s\n%s", s.Error, errs.String())
	}
	figure("an agent's loop: a fork with a bug, the bug found, mended, verified, cleaned up", "%.0f s", time.Since(began).Seconds())

	if len(s.Tools) > 10 || len(s.Tools) == 0 {
		t.Errorf("it is offered %q", s.Tools)
	}
	if s.Heard == 0 {
		t.Error("it has heard of no progress")
	}
	var calls []string
	for _, c := range s.Story {
		calls = append(calls, c.Tool)
	}
	// A verified answer, bad as it is, is the third call's.
	if !slices.Equal(calls[:3], []string{"list_workloads", "create_sandbox", "send_request"}) {
		t.Errorf("it has called %q", calls)
	}
	// No more is asked for than the fork: that its own traffic is looked at is enough.
	mustBeVerified(t, "the first attempt", &s.First, 502)
	mustSay(t, s.First.Body, "cluster_title")
	if d := s.Differs; d.Same || !d.Verified || len(d.Differences) == 0 || d.Differences[0].Where != "status" || !strings.HasPrefix(d.Differences[0].Baseline, "200") || !strings.HasPrefix(d.Differences[0].Fork, "502") {
		t.Errorf("the comparison says %+v", d)
	}
	if len(s.Why.Hops) != len(s.First.Hops) {
		t.Errorf("in a later session the trace has %d hops: %+v", len(s.Why.Hops), s.Why.Hops)
	}
	mustBeVerified(t, "the second attempt", &s.Second, 200)
	mustBeChain(t, "the second attempt", s.Second.Hops, "front", "cart", "route")
	visits, err := visit.Parse([]byte(s.Second.Body))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range visits {
		if want := map[string]string{"route": "pr-43-2"}[v.Service]; want != "" && v.Version != want {
			t.Errorf("%s was answered by version %s", v.Service, v.Version)
		}
		if v.Service == "route" && !slices.ContainsFunc(s.Second.Hops, func(h agentHop) bool { return h.Pod == v.Pod && h.Went == "fork" }) {
			t.Errorf("route says that its pod is %s; the hops are %+v", v.Pod, s.Second.Hops)
		}
	}
	// cart's connections may be those of an earlier sandbox that observed it; then it is named.
	if l := s.Strayed; l.Verified || l.Status != 200 || !strings.Contains(strings.Join(l.NotVerified, "; "), "without the routing key") {
		t.Errorf("cart, which nobody observes, has lost the key: verified %t, status %d, %q", l.Verified, l.Status, l.NotVerified)
	}
	if l := s.Lost; l.Verified || l.Status != 200 || !strings.Contains(strings.Join(l.NotVerified, "; "), "Deployment/cart called route.shop:80 without the routing key") {
		t.Errorf("cart has lost the key: verified %t, status %d, %q", l.Verified, l.Status, l.NotVerified)
	}
	if !s.Tested.Passed || !slices.Equal(s.Tested.ForksReached, []string{"route"}) || len(s.Tested.NotVerified) > 0 {
		t.Errorf("the tests: forks at %q, %q: %s", s.Tested.ForksReached, s.Tested.NotVerified, s.Tested.Output)
	}
	// The same, of a Service that no fork answers: as green, and nothing of the change.
	if e := s.Elsewhere; !e.Passed || len(e.ForksReached) > 0 || !strings.Contains(strings.Join(e.NotVerified, "; "), "no call to a fork is on record") {
		t.Errorf("tests of stock: passed %t, forks at %q, %q", e.Passed, e.ForksReached, e.NotVerified)
	}
	if len(s.Listed.Sandboxes) == 0 || !s.Gone.Deleted {
		t.Errorf("sandboxes %v, deleted %t", s.Listed.Sandboxes, s.Gone.Deleted)
	}
	noPodLeft(t)
	if _, err := getSandbox(t.Context(), "agent"); err == nil {
		t.Error("the sandbox is still there")
	}
	// Services of the shop repeat their baggage: the key is in no reply all the same.
	select {
	case k := <-key:
		if n := strings.Count(out.String(), k); n > 0 {
			t.Errorf("replies tell the routing key %d times", n)
		}
	default:
		t.Error("the sandbox never had a routing key")
	}
	if n := strings.Count(strings.ReplaceAll(out.String(), "sidetrack=[routing key]", ""), "sidetrack="); n > 0 {
		t.Errorf("replies tell %d keys", n)
	}
	mustSay(t, s.Second.Body, "sidetrack=[routing key]")
	runners(t)[0].mustGet(t, front, nil, untouched)
}

// keyOf looks, until the context ends, for the routing key that a sandbox gets.
func keyOf(ctx context.Context, name string) <-chan string {
	key := make(chan string, 1)
	go func() {
		for {
			if s, err := getSandbox(ctx, name); err == nil && s.Status.RoutingKey != "" {
				key <- s.Status.RoutingKey
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return key
}

func mustBeVerified(t *testing.T, what string, r *agentSent, status int) {
	t.Helper()
	if !r.Verified || r.Status != status || !slices.Equal(r.ForksReached, []string{"route"}) {
		t.Errorf("%s: verified %t (%q), status %d, forks at %q", what, r.Verified, r.NotVerified, r.Status, r.ForksReached)
	}
	i := slices.IndexFunc(r.Hops, func(h agentHop) bool { return h.Went == "fork" })
	// What the fork's image is, its pod's name does not tell; that it is no pod of the
	// baseline does.
	if i < 0 || !strings.HasPrefix(r.Hops[i].Service, "route."+shop) || !strings.Contains(r.Hops[i].Pod, "agent") {
		t.Errorf("%s: the hops are %+v", what, r.Hops)
	}
}

// mustBeChain looks at the first hops: each is below the one before. There are more
// when route gets as far as stock.
func mustBeChain(t *testing.T, what string, hops []agentHop, services ...string) {
	t.Helper()
	for i, service := range services {
		want := map[bool]string{true: "fork", false: "baseline"}[service == "route"]
		if i >= len(hops) || !strings.HasPrefix(hops[i].Service, service+"."+shop) || hops[i].Depth != i || hops[i].Went != want {
			t.Fatalf("%s: hop %d is not to the %s's %s: %+v", what, i, want, service, hops)
		}
	}
}
