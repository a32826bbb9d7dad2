// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// stage stands for kernel and router and writes down what happens to them.
type stage struct {
	mu     sync.Mutex
	events []string
	names  map[routing.Cookie]string
	// refuse makes Apply fail, deaf makes Listen fail.
	refuse, deaf error
	leases       int
}

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// take returns what has happened since the last call.
func (s *stage) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.events
	s.events = nil
	return out
}

func (s *stage) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *stage) Apply(t *routing.Table) error {
	s.mu.Lock()
	err := s.refuse
	s.mu.Unlock()
	if err != nil {
		s.note("kernel: refuse generation %d", t.Generation())
		return err
	}
	s.note("kernel: generation %d", t.Generation())
	return nil
}

func (s *stage) SetNamespaces(want map[routing.Cookie]loader.Listener) error {
	var names []string
	for c, l := range want {
		names = append(names, fmt.Sprintf("%s:%d", s.names[c], l.Port4))
	}
	slices.Sort(names)
	s.note("kernel: steer %v", names)
	return nil
}

func (s *stage) RenewLease(time.Duration) error {
	s.set(func() { s.leases++ })
	return nil
}

func (s *stage) DetachCapture() error { s.note("kernel: detach capture"); return nil }

func (s *stage) SetTable(t *routing.Table) { s.note("router: generation %d", t.Generation()) }

func (s *stage) Listen(ns router.Namespace) (router.Ports, error) {
	s.mu.Lock()
	err := s.deaf
	s.mu.Unlock()
	if err != nil {
		return router.Ports{}, err
	}
	s.note("router: listen in %s", s.names[ns.Cookie])
	return router.Ports{V4: 1, V6: 2}, nil
}

func (s *stage) Unlisten(c routing.Cookie) { s.note("router: unlisten in %s", s.names[c]) }

func (s *stage) Drain(context.Context) error { s.note("router: drain"); return nil }

// script is a Source that says what it is told to.
type script chan source.Snapshot

func (s script) Snapshots() <-chan source.Snapshot { return s }

// rehearsal is an agent on a stage, with two pods: client and runner.
type rehearsal struct {
	t      *testing.T
	stage  *stage
	script script
	agent  *Agent
	world  *lab.World
	client *lab.Pod
	runner *lab.Pod
	log    *logLines
	told   *told
	stop   func() error
}

// logLines keeps log lines.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), s)
}

func rehearse(t *testing.T) *rehearsal {
	t.Helper()
	return rehearseWith(t, func(*Config) {})
}

// rehearseWith is rehearse with other settings.
func rehearseWith(t *testing.T, change func(*Config)) *rehearsal {
	t.Helper()
	w := lab.New(t)
	r := &rehearsal{
		t: t, world: w, client: w.MustPod("client"), runner: w.MustPod("runner"),
		stage: &stage{names: map[routing.Cookie]string{}}, script: make(script), log: &logLines{}, told: &told{},
	}
	for _, p := range []*lab.Pod{r.client, r.runner} {
		c, err := p.Cookie()
		if err != nil {
			t.Fatal(err)
		}
		r.stage.names[routing.Cookie(c)] = p.Name
	}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	resolver := pods.NewResolver(log)
	cfg := Config{
		Source: r.script, Pods: resolver, Kernel: r.stage, Router: r.stage,
		Mark: 0x3053, Lease: time.Minute, DrainTimeout: time.Second, Logger: log,
		Reporter: r.told, Changed: r.told.changed,
	}
	change(&cfg)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, resolver.Close())
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var shopService = routing.Service{
	Name:      routing.Name{Namespace: "shop", Name: "route"},
	Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
	Ports:     []routing.ServicePort{{Port: 80, Protocol: routing.TCP}},
}

// sandbox redirects route to an address.
func sandbox(key string) routing.Sandbox {
	return routing.Sandbox{
		Name: routing.Name{Namespace: "shop", Name: "pr-42"}, Key: key, Existing: routing.Idle,
		Redirects: []routing.Redirect{{
			From: routing.ServiceRef{Service: "route"}, To: routing.Target{Address: netip.MustParseAddr("10.0.0.9")}, Field: "spec.redirects[0]",
		}},
	}
}

// say has the source say that there are these pods and sandboxes, and waits for
// it to be in force or refused. runner is "" for no runner, else "tagged",
// "inject" or "untagged".
func (r *rehearsal) say(runner string, sandboxes ...routing.Sandbox) {
	r.t.Helper()
	s := source.Snapshot{Input: routing.Input{Services: []routing.Service{shopService}, Sandboxes: sandboxes}}
	s.Pods = []pods.Pod{{Name: routing.Name{Namespace: "shop", Name: "client"}, Netns: r.client.Netns}}
	if runner != "" {
		p := pods.Pod{Name: routing.Name{Namespace: "shop", Name: "runner"}, Netns: r.runner.Netns}
		if runner != "untagged" {
			p.Sandbox, p.Inject = "pr-42", runner == "inject"
		}
		s.Pods = append(s.Pods, p)
	}
	was := r.agent.state.Load()
	r.script <- s
	r.sync(was)
}

// sync waits until something is in force, or refused, after was.
func (r *rehearsal) sync(was *metrics.State) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for r.agent.state.Load() == was {
		if time.Now().After(deadline) {
			r.t.Fatal("the agent does nothing")
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *rehearsal) want(events ...string) {
	r.t.Helper()
	if diff := cmp.Diff(events, r.stage.take()); diff != "" {
		r.t.Errorf("what happened (-want +got):\n%s", diff)
	}
}

// await waits for an event and takes all up to it.
func (r *rehearsal) await(event string) {
	r.t.Helper()
	found := func() (ok bool) {
		r.stage.set(func() {
			i := slices.Index(r.stage.events, event)
			if ok = i >= 0; ok {
				r.stage.events = r.stage.events[i+1:]
			}
		})
		return ok
	}
	deadline := time.Now().Add(time.Minute)
	for !found() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%q has not happened", event)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNothingIsOpenedWhileNothingIsCaptured(t *testing.T) {
	r := rehearse(t)
	if s := r.agent.State(); s.NotReady == "" {
		t.Error("ready before anything has been read")
	}
	r.say("")
	r.want("router: generation 1", "kernel: steer []", "kernel: generation 1", "kernel: steer []")
	if s := r.agent.State(); s.NotReady != "" || s.Table.Generation() != 1 {
		t.Errorf("state after the first table: %+v", s)
	}
	// Flows only: no key, so no request can be tagged.
	r.say("tagged", sandbox(""))
	r.want("router: generation 2", "kernel: steer []", "kernel: generation 2", "kernel: steer []")
}

func TestListenersAreThereBeforeSteeringAndUntilAfterIt(t *testing.T) {
	r := rehearse(t)
	r.say("tagged", sandbox("0123456789"))
	r.want("router: generation 1", "router: listen in client",
		"kernel: steer [client:1]", "kernel: generation 1", "kernel: steer [client:1]")

	r.say("inject", sandbox("0123456789"))
	r.want("router: generation 2", "router: listen in runner",
		"kernel: steer [client:1 runner:1]", "kernel: generation 2", "kernel: steer [client:1 runner:1]")

	// The sandbox goes: steering ends after the table has changed, and the
	// listeners some time after that.
	r.say("inject")
	r.want("router: generation 3", "kernel: steer [client:1 runner:1]", "kernel: generation 3", "kernel: steer []")
	r.await("router: unlisten in client")
}

func TestASandboxThatComesBackInTimeFindsItsListeners(t *testing.T) {
	r := rehearse(t)
	r.say("", sandbox("0123456789"))
	r.say("")
	r.say("", sandbox("0123456789"))
	r.stage.take()
	time.Sleep(2 * grace)
	r.want()
	r.say("", sandbox("0123456789"))
	r.want("router: generation 4", "kernel: steer [client:1]", "kernel: generation 4", "kernel: steer [client:1]")
}

func TestAVanishedPodsListenerIsClosedAfterSteeringToItHasEnded(t *testing.T) {
	r := rehearse(t)
	r.say("untagged", sandbox("0123456789"))
	r.stage.take()
	was := r.agent.state.Load()
	if err := r.runner.Remove(); err != nil {
		t.Fatal(err)
	}
	r.sync(was)
	r.want("router: generation 2", "kernel: steer [client:1 runner:1]", "kernel: generation 2", "kernel: steer [client:1]")
	if s := r.agent.State(); s.PodsWithoutNamespace != 1 {
		t.Errorf("pods without a namespace: %d, want 1", s.PodsWithoutNamespace)
	}
	r.await("router: unlisten in runner")
}

func TestARefusedTableLeavesTheOldStateAndIsTriedAgain(t *testing.T) {
	r := rehearse(t)
	r.say("", sandbox("0123456789"))
	r.stage.take()
	r.stage.set(func() { r.stage.refuse = errors.New("raise --max-destinations") })
	r.say("")
	r.want("router: generation 2", "kernel: steer [client:1]", "kernel: refuse generation 2")
	if s := r.agent.State(); s.Table.Generation() != 1 || s.NotReady != "" || s.Problems["kernel"] != 1 {
		t.Errorf("state: %+v", s)
	}
	r.await("kernel: refuse generation 3") // without any change
	if n := r.log.count("raise --max-destinations"); n != 1 {
		t.Errorf("the error is logged %d times, want once", n)
	}
	r.stage.set(func() { r.stage.refuse = nil })
	r.await("kernel: steer []")
	deadline := time.Now().Add(time.Minute)
	for s := r.agent.State(); s.Table.Generation() < 4 || s.Problems["kernel"] != 0; s = r.agent.State() {
		if time.Now().After(deadline) {
			t.Fatalf("state: %+v", s)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAListenerThatCannotBeHadIsACoverageGapUntilItCan(t *testing.T) {
	r := rehearse(t)
	r.stage.set(func() { r.stage.deaf = errors.New("no ports left") })
	r.say("", sandbox("0123456789"))
	if s := r.agent.State(); s.PodsWithoutListener != 1 || s.NotReady != "" {
		t.Errorf("state: %+v", s)
	}
	// The state is there first, and then the log.
	for deadline := time.Now().Add(time.Minute); r.log.count("no ports left") != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the reason is not logged")
		}
	}
	r.stage.set(func() { r.stage.deaf = nil })
	r.await("router: listen in client")
	r.await("kernel: steer [client:1]")
}

func TestDrainTakesCaptureOffFirst(t *testing.T) {
	r := rehearse(t)
	r.say("", sandbox("0123456789"))
	r.stage.take()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.want("kernel: detach capture", "router: drain")
	if s := r.agent.State(); s.NotReady != "the agent is ending" {
		t.Errorf("not ready because %q", s.NotReady)
	}
}

func TestProblemsAreSaidOnceAndWhenTheyAreSolved(t *testing.T) {
	log := &logLines{}
	l := problemLog{log: slog.New(slog.NewTextHandler(log, nil))}
	object := []routing.Problem{{Kind: "Sandbox", Object: routing.Name{Namespace: "shop", Name: "a"}, Message: "no Service"}}
	manifest := []source.Problem{{File: "a.yaml", Document: 1, Refused: true, Problem: routing.Problem{Message: "broken"}}}
	for range 3 {
		got, say := l.update(manifest, object, nil)
		say()
		if diff := cmp.Diff(map[string]int{"manifest": 1, "object": 1, "kernel": 0}, got); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
	}
	if log.count("no Service") != 1 || log.count("a.yaml: document 1: broken") != 1 {
		t.Errorf("log:\n%s", log.text.String())
	}
	_, say := l.update(nil, object, nil)
	say()
	if log.count("msg=solved") != 1 {
		t.Errorf("log:\n%s", log.text.String())
	}
}

var (
	_ Kernel         = (*loader.Kernel)(nil)
	_ Router         = (*router.Router)(nil)
	_ metrics.Kernel = (*loader.Kernel)(nil)
	_ metrics.Router = (*router.Router)(nil)
)
