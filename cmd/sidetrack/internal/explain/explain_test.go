// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func TestATargetIsAServiceAPortOrAURL(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  " ",
		"route":                             "route ",
		"route:80":                          "route 80",
		"route:http":                        "route http",
		"route.shop":                        "route ",
		"route.shop.svc.cluster.local:8080": "route 8080",
		"http://route/quote?x=http://a":     "route 80",
		"https://route.shop":                "route 443",
		"http://route.shop.svc:9000/":       "route 9000",
		"grpc://route:50051":                "route 50051",
		"http://":                           "is not a URL",
		"http://[":                          "is not a URL",
		"route.elsewhere":                   "route.elsewhere is in namespace elsewhere, and the sandbox in shop",
		"http://10.0.0.9:80/":               "10.0.0.9 is an address",
		"http://[fd00::1]/":                 "fd00::1 is an address",
		"10.0.0.9:80":                       "10.0.0.9 is an address",
		"fd00::1":                           "fd00::1 is an address",
	} {
		service, port, err := target(text, "shop")
		got := service + " " + port
		if err != nil {
			got = err.Error()
			if task.KindOf(err) != task.Usage {
				t.Errorf("%q: %v is no error of usage", text, err)
			}
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// only is the verdict and detail of the steps on one topic.
func only(e *explainer, topic string) (out []string) {
	for _, s := range e.out.Steps {
		if s.Topic == topic {
			out = append(out, string(s.Verdict)+" "+s.Detail)
		}
	}
	return out
}

func has(t *testing.T, name string, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %q, want %q", name, got, want)
		return
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("%s: %q, want %q", name, got[i], want[i])
		}
	}
}

func TestOfAPortIsSaidWhetherItCanBeRouted(t *testing.T) {
	app := "https"
	for name, c := range map[string]struct {
		spec corev1.ServiceSpec
		port string
		want []string
	}{
		"plain":        {corev1.ServiceSpec{ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}, "", []string{"ok connections from pods to its cluster IP 10.96.0.7 and its pods' addresses are captured"}},
		"headless":     {corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Port: 80}}}, "", []string{"ok connections from pods to its pods' addresses are captured"}},
		"by its name":  {corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "tls-web", Port: 9443}}}, "", []string{"ok ", "note port tls-web seems to be encrypted"}},
		"by protocol":  {corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80, AppProtocol: &app}}}, "", []string{"ok ", "note port web seems"}},
		"another port": {corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "https", Port: 443}}}, "80", []string{"ok "}},
		"SCTP":         {corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 5000, Protocol: corev1.ProtocolSCTP}}}, "", []string{"ok ", "NO port 5000 is SCTP"}},
		"a name only":  {corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "db.example"}, "", []string{"NO Service x is a name for db.example"}},
	} {
		e := explainer{port: c.port}
		e.capture(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: c.spec})
		has(t, name, only(&e, "capture"), c.want...)
	}
}

// newExplainer is of sandbox a in shop, which redirects route's port http.
func newExplainer(t *testing.T, objects ...client.Object) *explainer {
	t.Helper()
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	http := intstr.FromString("http")
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}, Status: v1alpha1.SandboxStatus{
		RoutingKey: "key-of-sandbox-a",
		Redirects:  []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route", Port: &http}, To: v1alpha1.RedirectTo{Service: "route-a"}, Endpoints: 1}},
	}}
	objects = append(objects, sb.DeepCopy())
	return &explainer{sb: sb, c: &cluster.Cluster{Namespace: "shop", Objects: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build()}}
}

func TestARedirectIsFoundByEitherNameOfItsPort(t *testing.T) {
	route := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "route"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 81}},
	}}
	for port, want := range map[string]string{
		"": "ok redirect route:http -> route-a", "80": "ok redirect", "http": "ok redirect", "81": "NO the sandbox does not redirect Service route", "admin": "NO ", "82": "NO ",
	} {
		e := newExplainer(t, route)
		e.service, e.port = "route", port
		r, err := e.redirect(t.Context())
		if err != nil || (r != nil) != strings.HasPrefix(want, "ok") {
			t.Errorf("port %q: %+v %v", port, r, err)
		}
		has(t, "port "+port, only(e, "service"), want)
	}
	e := newExplainer(t, route)
	e.sb.Status.Redirects[0].Refused, e.sb.Status.Redirects[0].Message = true, "no grant"
	e.service = "route"
	if _, err := e.redirect(t.Context()); err != nil {
		t.Fatal(err)
	}
	has(t, "refused", only(e, "service"), "NO its tagged traffic is refused: no grant")
	// A fork of what no Service selects is ready, and no request comes to it.
	e = newExplainer(t, route)
	e.sb.Status.Redirects = nil
	for _, accepted := range []metav1.ConditionStatus{metav1.ConditionFalse, metav1.ConditionTrue} {
		e.sb.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: accepted}}
		if _, err := e.redirect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	has(t, "nothing", only(e, "service"), "NO no Service leads to a fork")
}

func TestACallerIsJudgedByWhoseItIs(t *testing.T) {
	pod := func(labels map[string]string, change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Labels: labels}, Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		if change != nil {
			change(p)
		}
		return p
	}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want []string
	}{
		"nobody's":          {pod(nil, nil), []string{"ok p is no sandbox's: its requests are tagged by the key that they carry"}},
		"the sandbox's":     {pod(map[string]string{v1alpha1.SandboxLabel: "a"}, nil), []string{"ok p is the sandbox's: its flows follow the redirects"}},
		"with inject":       {pod(map[string]string{v1alpha1.SandboxLabel: "a", v1alpha1.InjectLabel: "true"}, nil), []string{"ok p is the sandbox's: its HTTP requests get the key"}},
		"another sandbox's": {pod(map[string]string{v1alpha1.SandboxLabel: "b"}, nil), []string{"NO p is sandbox b's"}},
		"on the host's network, and pending": {pod(nil, func(p *corev1.Pod) { p.Spec.HostNetwork, p.Status.Phase = true, corev1.PodPending }),
			[]string{"ok ", "note p is on the host's network", "NO p does not run: it is Pending"}},
	} {
		e := newExplainer(t, c.pod)
		e.r.From = "p"
		if err := e.pod(t.Context()); err != nil || e.node != "n1" {
			t.Errorf("%s: node %q, %v", name, e.node, err)
		}
		has(t, name, only(e, "pod"), c.want...)
	}
}

func TestAForkIsJudgedByItsEndpoints(t *testing.T) {
	for name, c := range map[string]struct {
		redirect *v1alpha1.RedirectStatus
		want     []string
	}{
		"none is asked about":  {nil, nil},
		"refused":              {&v1alpha1.RedirectStatus{Refused: true}, nil},
		"it is ready":          {&v1alpha1.RedirectStatus{Endpoints: 2}, []string{"ok 2 ready endpoints answer"}},
		"it is not":            {&v1alpha1.RedirectStatus{}, []string{"NO no endpoint is ready: tagged requests get a 503"}},
		"and the baseline may": {&v1alpha1.RedirectStatus{Unavailable: v1alpha1.UnavailableBaseline}, []string{"NO no endpoint is ready, and unavailable: Baseline lets the baseline answer"}},
	} {
		e := newExplainer(t)
		e.forks(c.redirect)
		has(t, name, only(e, "fork"), c.want...)
	}
}

func TestTheNodeOfTheCallerIsWhatCounts(t *testing.T) {
	now := metav1.NowMicro()
	state := func(name string, uncovered int32) *v1alpha1.NodeState {
		return &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeStateStatus{
			HeartbeatTime: &now, Applied: &v1alpha1.AppliedVersions{Sandboxes: "99999"}, Pods: v1alpha1.PodCoverage{Covered: 3, Uncovered: uncovered},
		}}
	}
	for node, want := range map[string][]string{
		"":   {"ok n1: 3 pods are covered", "NO n2: 1 pods are not covered; what pods there send reaches the baseline"},
		"n1": {"ok n1: "}, "n2": {"NO n2: "}, "n3": {"NO n3 has no agent"},
	} {
		e := newExplainer(t, state("n1", 0), state("n2", 1))
		e.node = node
		e.nodes(t.Context())
		has(t, "node "+node, only(e, "node"), want...)
	}
}

func TestTheSummaryIsTheFirstThatDoesNotHold(t *testing.T) {
	e := newExplainer(t)
	e.service, e.r.From = "route", "cart"
	e.say("key", Holds, "", "x")
	e.say("ledger", Unknown, "", "y")
	e.summarise(&v1alpha1.RedirectStatus{})
	if !e.out.Reaches || e.out.Summary != "nothing is known that keeps tagged requests to route from cart from the fork" {
		t.Errorf("%+v", e.out)
	}
	e = newExplainer(t)
	if e.summarise(nil); !e.out.Reaches || e.out.Summary != "nothing is known that keeps tagged requests from what the sandbox redirects" {
		t.Errorf("%+v", e.out)
	}
	e = newExplainer(t)
	e.say("node", Fails, "", "first")
	e.say("fork", Fails, "", "second")
	if e.summarise(nil); e.out.Reaches || e.out.Summary != "tagged requests do not reach the fork, or not all: node: first" {
		t.Errorf("%+v", e.out)
	}
}
