// SPDX-License-Identifier: Apache-2.0

package health

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

var now = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

// heard is what an agent said some time ago.
func heard(ago time.Duration, change func(*v1alpha1.NodeStateStatus)) *v1alpha1.NodeState {
	at := metav1.NewMicroTime(now.Add(-ago))
	s := &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: v1alpha1.NodeStateStatus{
		AgentVersion: "1.0", BootID: "boot-1", HeartbeatTime: &at, Applied: &v1alpha1.AppliedVersions{Sandboxes: "10"}, Pods: v1alpha1.PodCoverage{Covered: 3},
	}}
	if change != nil {
		change(&s.Status)
	}
	return s
}

func TestANodeIsCoveredWhereItsAgentWorksAndSeesAllPods(t *testing.T) {
	booted := func(id string) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: id}}}
	}
	for name, c := range map[string]struct {
		state *v1alpha1.NodeState
		node  *corev1.Node
		want  string
	}{
		"it works":                        {heard(time.Second, nil), booted("boot-1"), "covered"},
		"the user may not see the node":   {heard(time.Second, nil), nil, "covered"},
		"it has just begun":               {heard(time.Second, func(s *v1alpha1.NodeStateStatus) { s.Applied = nil }), booted("boot-1"), "its agent has nothing in force yet"},
		"it has never said anything":      {heard(0, func(s *v1alpha1.NodeStateStatus) { s.HeartbeatTime = nil }), booted("boot-1"), "its agent has nothing in force yet"},
		"it is as old as it may be":       {heard(staleAfter, nil), booted("boot-1"), "covered"},
		"it is silent":                    {heard(staleAfter+time.Second, nil), booted("boot-1"), "its agent is silent: see its pod"},
		"what it said is of before":       {heard(time.Second, nil), booted("boot-2"), "no agent since it has been rebooted"},
		"some pods are not covered":       {heard(time.Second, func(s *v1alpha1.NodeStateStatus) { s.Pods.Uncovered = 2 }), booted("boot-1"), "2 pods are not covered"},
		"silent, and pods are uncovered":  {heard(time.Hour, func(s *v1alpha1.NodeStateStatus) { s.Pods.Uncovered = 2 }), booted("boot-1"), "its agent is silent: see its pod"},
		"problems do not uncover the pod": {heard(time.Second, func(s *v1alpha1.NodeStateStatus) { s.Problems = []v1alpha1.NodeProblem{{Message: "x"}} }), booted("boot-1"), "covered"},
	} {
		got := node(c.state, c.node, now)
		if got.State != c.want || got.OK != (c.want == "covered") || got.Name != "n1" {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
	}
	got := node(heard(30*time.Second, func(s *v1alpha1.NodeStateStatus) {
		s.Problems = []v1alpha1.NodeProblem{
			{Message: "the kernel"}, {Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "is there"},
			{Kind: "Sandbox", Namespace: "shop", Name: "a", Field: "spec.ttl", Message: "is wrong"}, {Kind: "Node", Name: "n1", Message: "is old"},
		}
	}), nil, now)
	if want := []string{"the kernel", "Pod shop/web-0: is there", "Sandbox shop/a spec.ttl: is wrong", "Node n1: is old"}; !slices.Equal(got.Problems, want) || got.HeartbeatSeconds != 30 {
		t.Errorf("%q after %v s, want %q", got.Problems, got.HeartbeatSeconds, want)
	}
}

func TestAnAgentIsBehindUntilItHasSaidTheNewestVersion(t *testing.T) {
	sandbox := func(version string, generation int64, conditions ...metav1.Condition) *v1alpha1.Sandbox {
		return &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version, Generation: generation}, Status: v1alpha1.SandboxStatus{Conditions: conditions}}
	}
	programmed := metav1.Condition{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, ObservedGeneration: 2}
	for name, c := range map[string]struct {
		state   *v1alpha1.NodeState
		sandbox *v1alpha1.Sandbox
		want    bool
	}{
		"it has it":            {heard(0, nil), sandbox("10", 1), false},
		"it has a newer one":   {heard(0, nil), sandbox("9", 1), false},
		"numbers, not letters": {heard(0, nil), sandbox("9", 2), false},
		"it has an older one":  {heard(0, nil), sandbox("11", 1), true},
		"it has none":          {heard(0, func(s *v1alpha1.NodeStateStatus) { s.Applied = nil }), sandbox("1", 1), true},
		"the controller says that it has what matters":  {heard(0, nil), sandbox("11", 2, programmed), false},
		"the controller has said so of another version": {heard(0, nil), sandbox("11", 3, programmed), true},
	} {
		if got := behind(c.state, c.sandbox); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestARedirectIsToldInWords(t *testing.T) {
	http, number := intstr.FromString("http"), intstr.FromInt32(8080)
	for want, r := range map[string]v1alpha1.RedirectStatus{
		"route -> route-x (fork of Deployment/route), 2 endpoints": {From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "route-x"}, Fork: "Deployment/route", Endpoints: 2},
		"mail:http -> stubs/mail:8080, 0 endpoints: none is ready": {From: v1alpha1.RedirectFrom{Service: "mail", Port: &http}, To: v1alpha1.RedirectTo{Service: "mail", Namespace: "stubs", Port: &number}, Message: "none is ready"},
		"db -> 10.0.0.9, refused: it is a node's address":          {From: v1alpha1.RedirectFrom{Service: "db"}, To: v1alpha1.RedirectTo{Address: "10.0.0.9"}, Refused: true, Message: "it is a node's address"},
	} {
		if got := Redirect(&r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestASandboxIsReadyWhereTheControllerSaysSoOfThisGeneration(t *testing.T) {
	at := metav1.NewTime(now)
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", Generation: 2}, Status: v1alpha1.SandboxStatus{
		Revision: 7, Nodes: &v1alpha1.NodeCount{Programmed: 1, Total: 2}, ExpiresAt: &at,
		Forks:      []v1alpha1.ForkStatus{{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Replicas: 2, Ready: 1, Message: "one starts"}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: 1}},
	}}
	if got := describe(sb); got.Ready || got.Reason != "Unseen" {
		t.Errorf("of another generation: %+v", got)
	}
	sb.Status.Conditions[0].ObservedGeneration = 2
	got := describe(sb)
	if !got.Ready || got.Reason != "Ready" || got.Programmed != 1 || got.Nodes != 2 || got.ExpiresAt != "2030-01-02T12:00:00Z" || !slices.Equal(got.Forks, []string{"Deployment/route: 1 of 2 ready: one starts"}) {
		t.Errorf("%+v", got)
	}
}

func TestNodesWithoutAnAgentAreNodesToo(t *testing.T) {
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	system := func(name, os string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{OperatingSystem: os, BootID: "boot-1"}}}
	}
	at := metav1.NowMicro()
	working := heard(0, func(s *v1alpha1.NodeStateStatus) { s.HeartbeatTime = &at })
	c := &cluster.Cluster{Namespace: "shop", Objects: fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		system("n1", "linux"), system("n2", "linux"), system("w1", "windows"), working,
		&v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}},
	).Build()}
	s, err := Look(t.Context(), c, "", "")
	if err != nil || len(s.Nodes) != 2 || s.Nodes[0].Name != "n1" || !s.Nodes[0].OK || s.Nodes[1].Name != "n2" || !strings.HasPrefix(s.Nodes[1].State, "no agent: ") {
		t.Errorf("%v: %+v", err, s)
	}
	if len(s.Sandboxes) != 1 || s.NodesHidden != "" {
		t.Errorf("%+v", s)
	}
}
