// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/nodestate"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// node makes a Node.
func (c clients) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := c.core.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func reporter(t *testing.T, cfg *rest.Config, node string, log *slog.Logger) *nodestate.Reporter {
	t.Helper()
	r, err := nodestate.New(cfg, node, "v9.9.9", routing.KeyNames{Members: []string{"acme-key", "sidetrack"}, Header: "X-Acme"}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// state returns the NodeState, or nil when there is none.
func (c clients) state(t *testing.T, name string) *v1alpha1.NodeState {
	t.Helper()
	got, err := c.of("nodestates", "").Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var s v1alpha1.NodeState
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// awaitState returns the NodeState once it is as wanted.
func (c clients) awaitState(t *testing.T, name, what string, want func(*v1alpha1.NodeState) bool) *v1alpha1.NodeState {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s := c.state(t, name)
		if s != nil && want(s) {
			return s
		}
		if time.Now().After(limit) {
			t.Fatalf("no NodeState with %s, but %+v", what, s)
		}
	}
}

func applied(n int) nodestate.State {
	return nodestate.State{Applied: &v1alpha1.AppliedVersions{Sandboxes: fmt.Sprint(n)}}
}

func isApplied(n int) func(*v1alpha1.NodeState) bool {
	return func(s *v1alpha1.NodeState) bool {
		return s.Status.Applied != nil && s.Status.Applied.Sandboxes == fmt.Sprint(n)
	}
}

func TestANodesStateSaysWhatIsInForceAndGoesWithTheNode(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "node-of-"+ns)
	r := reporter(t, c.agentConfig(t, ns), node.Name, quietLog())
	time.Sleep(200 * time.Millisecond)
	if s := c.state(t, node.Name); s != nil {
		t.Fatalf("written before there was anything to say: %+v", s)
	}
	r.Report(nodestate.State{
		Applied: &v1alpha1.AppliedVersions{Sandboxes: "11", RouteGroups: "12", Services: "13", EndpointSlices: "14"},
		Covered: 7, Uncovered: 2,
		Problems: []routing.Problem{{Kind: "Sandbox", Object: routing.Name{Namespace: "shop", Name: "pr-42"}, Field: "status.redirects[0]",
			Message: "there is no Service\n" + strings.Repeat("ü", 2000)}},
	}, true)
	s := c.awaitState(t, node.Name, "what was reported", func(s *v1alpha1.NodeState) bool { return s.Status.Applied != nil })
	if len(s.OwnerReferences) != 1 || s.OwnerReferences[0].Kind != "Node" || s.OwnerReferences[0].UID != node.UID {
		t.Errorf("owners %+v, want the Node alone", s.OwnerReferences)
	}
	want := v1alpha1.AppliedVersions{Sandboxes: "11", RouteGroups: "12", Services: "13", EndpointSlices: "14"}
	if diff := gocmp.Diff(want, *s.Status.Applied); diff != "" {
		t.Errorf("applied (-want +got):\n%s", diff)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if s.Status.BootID != strings.TrimSpace(string(boot)) || s.Status.AgentVersion != "v9.9.9" || s.Status.Instance == "" {
		t.Errorf("status %+v", s.Status)
	}
	if s.Status.Pods != (v1alpha1.PodCoverage{Covered: 7, Uncovered: 2}) || len(s.Status.Problems) != 1 || s.Status.Problems[0].Name != "pr-42" {
		t.Errorf("status %+v", s.Status)
	}
	if got := s.Status.KeyNames; got == nil || strings.Join(got.Members, " ") != "acme-key sidetrack" || got.Header != "x-acme" {
		t.Errorf("key names %+v", got)
	}
	if s.Status.HeartbeatTime == nil || time.Since(s.Status.HeartbeatTime.Time).Abs() > time.Minute {
		t.Errorf("heartbeat %v", s.Status.HeartbeatTime)
	}
	// What is no problem any more is gone from the object too.
	r.Report(applied(15), true)
	s = c.awaitState(t, node.Name, "the next state", isApplied(15))
	if len(s.Status.Problems) != 0 || s.Status.Applied.Services != "" {
		t.Errorf("what is not said any more is there still: %+v", s.Status)
	}
	// Somebody deletes it.
	if err := c.of("nodestates", "").Delete(t.Context(), node.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Report(applied(16), true)
	c.awaitState(t, node.Name, "it made anew", isApplied(16))
	// An agent that ends has nothing in force.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if s := c.state(t, node.Name); s.Status.Applied != nil || s.Status.Instance == "" {
		t.Errorf("after the agent's end: %+v", s.Status)
	}
}

func TestManyChangesAreFewWrites(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "node-of-"+ns)
	r := reporter(t, c.agentConfig(t, ns), node.Name, quietLog())
	r.Report(applied(0), true)
	c.awaitState(t, node.Name, "the first state", isApplied(0))
	w, err := c.of("nodestates", "").Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + node.Name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	began := time.Now()
	n := 0
	for ; time.Since(began) < time.Second; n++ {
		r.Report(applied(n), true)
		time.Sleep(time.Millisecond)
	}
	c.awaitState(t, node.Name, "the last state", isApplied(n-1))
	took := time.Since(began)
	writes := 0
	for quiet := false; !quiet; {
		select {
		case <-w.ResultChan():
			writes++
		case <-time.After(300 * time.Millisecond):
			quiet = true
		}
	}
	t.Logf("%d changes were %d writes in %s", n, writes, took.Round(time.Millisecond))
	if most := int(took/(100*time.Millisecond)) + 2; writes < 2 || writes > most {
		t.Errorf("%d writes, want between 2 and %d", writes, most)
	}
	// What is not urgent waits for the heartbeat.
	r.Report(applied(n), false)
	time.Sleep(300 * time.Millisecond)
	if s := c.state(t, node.Name); !isApplied(n - 1)(s) {
		t.Errorf("what was not urgent was written at once")
	}
}

func TestOfTwoAgentsTheOneThatTakesOverHasTheWord(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "node-of-"+ns)
	cfg := c.agentConfig(t, ns)
	before := reporter(t, cfg, node.Name, quietLog())
	before.Report(applied(1), true)
	first := c.awaitState(t, node.Name, "the old agent's", isApplied(1))
	after := reporter(t, cfg, node.Name, quietLog())
	after.Report(applied(2), true)
	second := c.awaitState(t, node.Name, "the new agent's", isApplied(2))
	if first.Status.Instance == second.Status.Instance {
		t.Fatal("two agents are one instance")
	}
	before.Report(applied(3), true)
	time.Sleep(500 * time.Millisecond)
	if s := c.state(t, node.Name); s.Status.Instance != second.Status.Instance || !isApplied(2)(s) {
		t.Errorf("the old agent has written after the new one: %+v", s.Status)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	if s := c.state(t, node.Name); !isApplied(2)(s) {
		t.Errorf("the old agent's end has taken back what the new one said: %+v", s.Status)
	}
	after.Report(applied(4), true)
	c.awaitState(t, node.Name, "the new agent's next word", isApplied(4))
}

func TestAnAgentThatActsAgainHasTheWordAtOnce(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "node-of-"+ns)
	cfg := c.agentConfig(t, ns)
	before := reporter(t, cfg, node.Name, quietLog())
	before.Report(applied(1), true)
	first := c.awaitState(t, node.Name, "the old agent's", isApplied(1))
	soon := func(what string, want func(*v1alpha1.NodeState) bool) *v1alpha1.NodeState {
		t.Helper()
		began := time.Now()
		s := c.awaitState(t, node.Name, what, want)
		// Far from the next heartbeat, and from the other one's being stale.
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s came after %s", what, took)
		}
		return s
	}
	for n, end := range []func(*nodestate.Reporter){
		func(*nodestate.Reporter) {}, // killed: not a word
		func(r *nodestate.Reporter) {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		},
	} {
		after := reporter(t, cfg, node.Name, quietLog())
		after.Report(applied(10+n), true)
		c.awaitState(t, node.Name, "the new agent's", isApplied(10+n))
		before.Act(false)
		after.Act(true)
		before.Report(applied(20+n), true)
		time.Sleep(300 * time.Millisecond)
		if s := c.state(t, node.Name); !isApplied(10 + n)(s) {
			t.Errorf("an agent that does not act has written: %+v", s.Status)
		}
		end(after)
		before.Act(true)
		s := soon("the old agent's word", isApplied(20+n))
		if s.Status.Instance != first.Status.Instance {
			t.Errorf("written by %s, want %s", s.Status.Instance, first.Status.Instance)
		}
	}
}

func TestAnAgentThatHasNothingInForceDoesNotHaveTheWord(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "node-of-"+ns)
	cfg := c.agentConfig(t, ns)
	before := reporter(t, cfg, node.Name, quietLog())
	before.Report(applied(1), true)
	c.awaitState(t, node.Name, "the old agent's", isApplied(1))
	// A new one whose first table does not get into the kernel.
	failing := reporter(t, cfg, node.Name, quietLog())
	failing.Report(nodestate.State{}, true)
	c.awaitState(t, node.Name, "the new agent's", func(s *v1alpha1.NodeState) bool { return s.Status.Applied == nil })
	before.Report(applied(2), true)
	c.awaitState(t, node.Name, "what is in force", isApplied(2))
}

func TestAStateThatCannotBeWrittenIsSaidOnceAndWrittenLater(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	name := "node-of-" + ns
	var text transcript.Log
	r := reporter(t, c.agentConfig(t, ns), name, slog.New(slog.NewTextHandler(&text, nil)))
	r.Report(applied(1), true)
	want := "there is no Node " + name + ": give the agent its node's name with --node-name"
	for limit := time.Now().Add(20 * time.Second); !strings.Contains(text.String(), want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("the log lacks %q:\n%s", want, text.String())
		}
	}
	time.Sleep(2500 * time.Millisecond)
	if n := strings.Count(text.String(), want); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	c.node(t, name)
	c.awaitState(t, name, "what was to be said", isApplied(1))
}

func TestTheDefaultNamesOfKeysAreTheSameEverywhere(t *testing.T) {
	said, known := v1alpha1.DefaultKeyNames(), routing.DefaultKeyNames()
	if diff := gocmp.Diff(known, routing.KeyNames{Members: said.Members, Header: said.Header}); diff != "" {
		t.Errorf("routing's (-) and the API's (+) differ:\n%s", diff)
	}
}

// What routing takes the API server takes, and no agent is kept from saying what it has
// in force by the names it was given.
func TestTheAPIServerTakesEveryNameThatAnAgentDoes(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	node := c.node(t, "names-of-"+ns)
	members := make([]string, 16)
	for i := range members {
		members[i] = fmt.Sprintf("m%d_-", i) + strings.Repeat("x", 200)
	}
	names := routing.KeyNames{Members: members, Header: "!#$%&'*+-.^_`|~" + strings.Repeat("x", 200)}
	if err := names.Validate(); err != nil {
		t.Fatal(err)
	}
	r, err := nodestate.New(c.agentConfig(t, ns), node.Name, "v9.9.9", names, quietLog())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Report(applied(1), true)
	s := c.awaitState(t, node.Name, "the names", isApplied(1))
	if diff := gocmp.Diff(names, routing.KeyNames{Members: s.Status.KeyNames.Members, Header: s.Status.KeyNames.Header}); diff != "" {
		t.Errorf("names (-given +said):\n%s", diff)
	}
}
