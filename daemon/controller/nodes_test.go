// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// someNode has been Ready for an hour.
func someNode(name string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(noon.Add(-2 * time.Hour))},
		Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", BootID: "boot"},
			Conditions: []corev1.NodeCondition{readySince(corev1.ConditionTrue, time.Hour)},
		},
	}
}

func readySince(status corev1.ConditionStatus, ago time.Duration) corev1.NodeCondition {
	return corev1.NodeCondition{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.NewTime(noon.Add(-ago))}
}

// someState is what an agent says that has version 100 of everything in force.
func someState(name string) v1alpha1.NodeState {
	beat := metav1.NewMicroTime(noon.Add(-5 * time.Second))
	return v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeStateStatus{
		BootID: "boot", Instance: "a", HeartbeatTime: &beat, Pods: v1alpha1.PodCoverage{Covered: 10},
		Applied: &v1alpha1.AppliedVersions{Sandboxes: "100", RouteGroups: "100", Services: "100", EndpointSlices: "100"},
	}}
}

// exposing has two pods of a node not covered, for long enough, because of problems.
func exposing(problems ...v1alpha1.NodeProblem) func(*v1alpha1.NodeState) {
	return func(s *v1alpha1.NodeState) {
		s.Status.Pods = v1alpha1.PodCoverage{Covered: 8, Uncovered: 2}
		s.Status.Problems = problems
	}
}

func clusterOf(h *heartbeats, nodes []corev1.Node, states []v1alpha1.NodeState, now time.Time) *cluster {
	c := &cluster{nodes: nodes, states: map[string]*v1alpha1.NodeState{}, agents: h.hear(states, now), selector: labels.Everything(), now: now}
	for i := range states {
		c.states[states[i].Name] = &states[i]
	}
	return c
}

func TestNodesThatCountAndWhatTheyLack(t *testing.T) {
	const never = "n2 (never Ready)"
	for _, tt := range []struct {
		name   string
		node   func(*corev1.Node)
		state  func(*v1alpha1.NodeState)
		none   bool // no agent
		want   versions
		reason string
		says   string
		counts bool
	}{
		{name: "all is in force", reason: reasonProgrammed, says: "in force on 2 of 2 nodes", counts: true},
		{name: "versions are numbers of any length", want: versions{sandboxes: "99"}, reason: reasonProgrammed, counts: true},
		{name: "a longer number is newer", want: versions{sandboxes: "1000000000000000000000000"}, reason: reasonWaiting, says: "0 of 2 nodes have it in force, waiting for n1, n2", counts: true},
		{name: "a version is behind", state: func(s *v1alpha1.NodeState) { s.Status.Applied.EndpointSlices = "9" }, want: versions{slices: "100"}, reason: reasonWaiting, says: "1 of 2 nodes have it in force, waiting for n2", counts: true},
		{name: "a node that is behind says why", state: func(s *v1alpha1.NodeState) {
			s.Status.Applied.Sandboxes = "9"
			s.Status.Problems = []v1alpha1.NodeProblem{{Kind: "Service", Name: "x", Message: "no"}, {Kind: "Node", Message: "raise --max-destinations"}}
		}, want: versions{sandboxes: "100"}, reason: reasonWaiting, says: "waiting for n2 (raise --max-destinations)", counts: true},
		{name: "pods that are not covered", state: exposing(
			v1alpha1.NodeProblem{Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "no namespace"},
		), reason: reasonPodsUncover, says: "n2 (2 of its 10 pods, the first problem: Pod shop/web-0: no namespace)", counts: true},
		// Whoever reads a Sandbox need not know what there is in other namespaces.
		{name: "problems of other namespaces", state: exposing(
			v1alpha1.NodeProblem{Kind: "Pod", Namespace: "vault", Name: "key-0", Message: "no namespace"},
			v1alpha1.NodeProblem{Kind: "Sandbox", Namespace: "vault", Name: "pr-1", Message: "there is no Service vault/secrets"},
		), reason: reasonPodsUncover, says: "n2 (2 of its 10 pods): tagged requests", counts: true},
		{name: "problems of other namespaces, and the node's", state: exposing(
			v1alpha1.NodeProblem{Kind: "Pod", Namespace: "vault", Name: "key-0", Message: "no namespace"},
			v1alpha1.NodeProblem{Kind: "Node", Message: "the disk is full"},
		), reason: reasonPodsUncover, says: "n2 (2 of its 10 pods, the first problem: the disk is full)", counts: true},
		{name: "no agent", none: true, reason: reasonNodeUncover, says: "1 of 2 nodes have no working agent: n2 (no agent)", counts: true},
		{name: "an agent from before the reboot", state: func(s *v1alpha1.NodeState) { s.Status.BootID = "old" }, reason: reasonNodeUncover, says: "n2 (no agent since it has been rebooted)", counts: true},
		{name: "what an agent left that is long gone", state: func(s *v1alpha1.NodeState) {
			old := metav1.NewMicroTime(noon.Add(-time.Hour))
			s.Status.HeartbeatTime = &old
		}, reason: reasonNodeUncover, says: "n2 (its agent is silent)", counts: true},
		{name: "an agent that has never said when", state: func(s *v1alpha1.NodeState) { s.Status.HeartbeatTime = nil }, reason: reasonNodeUncover, says: "n2 (its agent is silent)", counts: true},
		{name: "an agent that has ended", state: func(s *v1alpha1.NodeState) { s.Status.Applied = nil }, reason: reasonNodeUncover, says: "n2 (its agent has nothing in force yet)", counts: true},
		{name: "a node that is being deleted", node: func(n *corev1.Node) { n.DeletionTimestamp = &metav1.Time{Time: noon} }, none: true, reason: reasonProgrammed, says: "in force on 1 of 1 nodes"},
		{name: "Windows", node: func(n *corev1.Node) { n.Status.NodeInfo.OperatingSystem = "windows" }, none: true, reason: reasonProgrammed, says: "in force on 1 of 1 nodes"},
		{name: "not Ready for long", node: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{readySince(corev1.ConditionUnknown, time.Minute)}
		}, none: true, reason: reasonProgrammed, says: "in force on 1 of 1 nodes; left out: n2 (not Ready)"},
		{name: "not Ready for a moment", node: func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{readySince(corev1.ConditionFalse, 30*time.Second)}
		}, none: true, reason: reasonNodeUncover, counts: true},
		{name: "just joined", node: func(n *corev1.Node) {
			n.CreationTimestamp = metav1.NewTime(noon.Add(-5 * time.Second))
			n.Status.Conditions = []corev1.NodeCondition{readySince(corev1.ConditionFalse, 5*time.Second)}
		}, none: true, reason: reasonProgrammed, says: never},
		{name: "no kubelet yet", node: func(n *corev1.Node) { n.Status.Conditions = nil }, none: true, reason: reasonProgrammed, says: never},
		{name: "just become Ready", node: func(n *corev1.Node) {
			n.CreationTimestamp = metav1.NewTime(noon.Add(-5 * time.Second))
			n.Status.Conditions = []corev1.NodeCondition{readySince(corev1.ConditionTrue, time.Second)}
		}, none: true, reason: reasonNodeUncover, says: "n2 (no agent)", counts: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nodes := []corev1.Node{someNode("n1"), someNode("n2")}
			states := []v1alpha1.NodeState{someState("n1"), someState("n2")}
			if tt.node != nil {
				tt.node(&nodes[1])
			}
			if tt.state != nil {
				tt.state(&states[1])
			}
			if tt.none {
				states = states[:1]
			}
			h := &heartbeats{}
			h.hear(states, noon.Add(-uncoveredGrace)) // so long ago
			c := clusterOf(h, nodes, states, noon).cover(tt.want, "shop")
			reason, message := c.describe()
			if reason != tt.reason || !strings.Contains(message, tt.says) {
				t.Errorf("%s: %s, want %s with %q", reason, message, tt.reason, tt.says)
			}
			if c.complete() != (tt.reason == reasonProgrammed) || (c.total == 2) != tt.counts {
				t.Errorf("coverage %+v", c)
			}
		})
	}
}

func TestNodesThatAgentsDoNotRunOnDoNotCount(t *testing.T) {
	nodes := []corev1.Node{someNode("n1"), someNode("n2")}
	nodes[1].Labels = map[string]string{"virtual": "yes"}
	c := clusterOf(&heartbeats{}, nodes, []v1alpha1.NodeState{someState("n1")}, noon)
	c.selector, _ = labels.Parse("virtual!=yes")
	if got := c.cover(versions{}, metav1.NamespaceAll); !got.complete() || got.total != 1 {
		t.Errorf("coverage %+v", got)
	}
	c.nodes = nil
	got := c.cover(versions{}, metav1.NamespaceAll)
	if reason, _ := got.describe(); got.complete() || reason != reasonNoNodes {
		t.Errorf("coverage of no nodes %+v (%s)", got, reason)
	}
}

func TestPodsThatStayUncoveredAreAGap(t *testing.T) {
	nodes := []corev1.Node{someNode("n1"), someNode("n2")}
	h := &heartbeats{}
	look := func(after time.Duration, uncovered int32) (coverage, string) {
		now := noon.Add(after)
		states := []v1alpha1.NodeState{someState("n1"), someState("n2")}
		for i := range states {
			beat := metav1.NewMicroTime(now)
			states[i].Status.HeartbeatTime = &beat
		}
		states[1].Status.Pods.Uncovered = uncovered
		states[1].Status.Problems = []v1alpha1.NodeProblem{
			{Kind: "Sandbox", Namespace: "shop", Name: "pr-42", Message: "something else"},
			{Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "permission denied: give CAP_SYS_PTRACE"},
		}
		out := clusterOf(h, nodes, states, now).cover(versions{}, metav1.NamespaceAll)
		p := programming{coverage: out, current: true, graced: true}
		c := conditions{}
		c.program(&p)
		if got := c.isTrue(v1alpha1.ConditionProgrammed); got != (out.exposed == nil) {
			t.Errorf("Programmed is %v with %+v", got, out)
		}
		return out, c.list[0].Message
	}
	if got, _ := look(0, 2); !got.complete() {
		t.Errorf("a pod that has just started: %+v", got)
	}
	got, message := look(uncoveredGrace, 2)
	for _, want := range []string{"1 of 2 nodes", "n2 (2 of its 12 pods", "Pod shop/web-0: permission denied: give CAP_SYS_PTRACE", "reach the baseline"} {
		if got.complete() || got.programmed != 1 || !strings.Contains(message, want) {
			t.Errorf("%+v, message %q, want %q", got, message, want)
		}
	}
	if got, _ := look(2*uncoveredGrace, 0); !got.complete() {
		t.Errorf("all covered again: %+v", got)
	}
	if got, _ := look(3*uncoveredGrace, 1); !got.complete() {
		t.Errorf("another one, that has just started: %+v", got)
	}
}

func TestAgentsAreSilentByOurOwnClock(t *testing.T) {
	nodes := []corev1.Node{someNode("n1")}
	h := &heartbeats{}
	state := someState("n1")
	// The node's clock is an hour ahead.
	ahead := metav1.NewMicroTime(noon.Add(time.Hour))
	state.Status.HeartbeatTime = &ahead
	silent := func(after time.Duration) bool {
		c := clusterOf(h, nodes, []v1alpha1.NodeState{state}, noon.Add(after)).cover(versions{}, metav1.NamespaceAll)
		return !c.complete()
	}
	if silent(0) || silent(staleAfter) || !silent(staleAfter+time.Second) {
		t.Error("an agent is not silent when it has said nothing for so long")
	}
	again := metav1.NewMicroTime(noon)
	state.Status.HeartbeatTime = &again
	if silent(staleAfter + 2*time.Second) {
		t.Error("an agent that has said something is silent")
	}
}

func TestWhileNobodyCanBeHeardNobodyFallsSilent(t *testing.T) {
	nodes := []corev1.Node{someNode("n1"), someNode("n2")}
	h := &heartbeats{}
	states := []v1alpha1.NodeState{someState("n1"), someState("n2")}
	gone := metav1.NewMicroTime(noon.Add(-time.Hour))
	states[1].Status.HeartbeatTime = &gone
	look := func(after time.Duration) coverage {
		return clusterOf(h, nodes, states, noon.Add(after)).cover(versions{}, metav1.NamespaceAll)
	}
	look(0)
	for after := 5 * time.Second; after <= 60*time.Second; after += 5 * time.Second {
		h.pause(noon.Add(after))
	}
	if got := look(90 * time.Second); got.programmed != 1 || len(got.uncovered) != 1 || !strings.HasPrefix(got.uncovered[0], "n2") {
		t.Errorf("after an outage: %+v", got)
	}
	if got := look(60*time.Second + staleAfter + time.Second); got.programmed != 0 {
		t.Errorf("long after an outage: %+v", got)
	}
}

func TestProgrammedHoldsWhileNodesTakeOverEndpoints(t *testing.T) {
	nodes := []corev1.Node{someNode("n1")}
	states := []v1alpha1.NodeState{someState("n1")}
	r := &remembered{}
	ask := func(after time.Duration, in programInput) (programming, time.Duration) {
		return judge(clusterOf(&heartbeats{}, nodes, states, noon.Add(after)), r, in)
	}
	in := programInput{generation: 1, revision: 1, version: "100", wasTrue: true}
	if p, again := ask(0, in); !p.strict() || again != 0 {
		t.Errorf("%+v", p)
	}
	// Another write of the same revision asks for nothing.
	in.version = "200"
	if p, _ := ask(0, in); !p.strict() {
		t.Errorf("an unrelated write: %+v", p)
	}
	in.slices = "200"
	p, again := ask(time.Second, in)
	if p.strict() || !p.graced || again != lagGrace {
		t.Errorf("new endpoints: %+v, again in %s", p, again)
	}
	if p, _ := ask(time.Second+lagGrace, in); p.graced {
		t.Errorf("new endpoints that nobody takes over: %+v", p)
	}
	in.revision, in.wasTrue = 2, false
	if p, _ := ask(2*time.Second, in); p.strict() || p.graced {
		t.Errorf("a new revision at version 200: %+v", p)
	}
	in.group = true
	states[0].Status.Applied.RouteGroups, states[0].Status.Applied.EndpointSlices = "200", "200"
	if p, _ := ask(2*time.Second, in); !p.strict() {
		t.Errorf("a group is looked for among Sandboxes: %+v", p)
	}
	in.changed = true
	if p, _ := ask(2*time.Second, in); p.strict() {
		t.Errorf("what has not been written is in force: %+v", p)
	}
}

func TestConnectionsFromBeforeAreSummedOverNodesThatSpeak(t *testing.T) {
	var h heartbeats
	nodes := []corev1.Node{someNode("n1"), someNode("n2"), someNode("n3")}
	states := []v1alpha1.NodeState{someState("n1"), someState("n2"), someState("n3"), someState("gone")}
	for i := range states {
		states[i].Status.Connections = []v1alpha1.ServiceConnections{
			{Namespace: "shop", Service: "route", Uncovered: 2},
			{Namespace: "shop", Service: "db", Uncovered: 1},
			{Namespace: "other", Service: "route", Uncovered: 100},
		}
	}
	states[2].Status.BootID = "before the last reboot"
	c := clusterOf(&h, nodes, states, noon)
	redirect := func(service string) v1alpha1.RedirectStatus {
		return v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: service}}
	}
	for _, tt := range []struct {
		name      string
		redirects []v1alpha1.RedirectStatus
		want      int64
	}{
		{"none is redirected", nil, 0},
		{"one Service", []v1alpha1.RedirectStatus{redirect("route")}, 4},
		{"two ports of one", []v1alpha1.RedirectStatus{redirect("route"), redirect("route")}, 4},
		{"two Services", []v1alpha1.RedirectStatus{redirect("route"), redirect("db")}, 6},
	} {
		if got := c.connectionsOf("shop", tt.redirects); got != tt.want {
			t.Errorf("%s: %d connections, want %d", tt.name, got, tt.want)
		}
	}
	before := c.signature()
	states[0].Status.Connections = nil
	if c.signature() == before {
		t.Error("that connections have been covered changes nothing that is looked at")
	}
}

func TestTheNamesOfNodesWithWorkingAgentsCount(t *testing.T) {
	named := func(name string, members ...string) v1alpha1.NodeState {
		s := someState(name)
		if len(members) > 0 {
			s.Status.KeyNames = &v1alpha1.KeyNames{Members: members, Header: "x-key"}
		}
		return s
	}
	silent := named("n3", "other")
	silent.Status.Applied = nil
	nodes := []corev1.Node{someNode("n1"), someNode("n2"), someNode("n3"), someNode("n4")}
	older, gone := named("n2"), named("gone", "other")
	c := clusterOf(&heartbeats{}, nodes, []v1alpha1.NodeState{older, silent, gone}, noon)
	if got := c.keyNames(); got != nil {
		t.Errorf("where no agent says anything: %+v", got)
	}
	before := c.signature()
	c = clusterOf(&heartbeats{}, nodes, []v1alpha1.NodeState{named("n1", "a", "b"), older, silent, gone, named("n4", "b", "a")}, noon)
	if got := c.keyNames(); got == nil || strings.Join(got.Members, " ") != "a b" || got.Header != "x-key" || got.Split || got.Message != "" {
		t.Errorf("names %+v", got)
	}
	both := c.signature()
	c.states["n4"].Status.KeyNames.Members = []string{"b"}
	if got := c.keyNames(); got == nil || !got.Split {
		t.Errorf("n4 does not know what n1 adds: %+v", got)
	}
	if now := c.signature(); before == both || both == now {
		t.Errorf("the signature stays %s", now)
	}
}
