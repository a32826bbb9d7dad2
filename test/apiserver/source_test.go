// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

var compareAddrs = cmpopts.EquateComparable(netip.Addr{})

// reaches reports whether a version is at least another one.
func reaches(t *testing.T, have, want string) bool {
	t.Helper()
	order, err := resourceversion.CompareResourceVersion(have, want)
	if err != nil {
		t.Fatal(err)
	}
	return order >= 0
}

func TestTheSourceBelievesStatusAndNothingElse(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	s := follow(t, c.agentConfig(t, ns), "node-a", quietLog())
	cross := resolved("cache", "cache-pr-42")
	cross.To.Namespace = "data"
	refused := resolved("postgres", "secrets")
	refused.Refused, refused.Message, refused.Unavailable = true, "no ReferenceGrant in namespace data\nallows it.", v1alpha1.UnavailableBaseline
	port := resolved("route", "route-pr-42")
	port.From.Port, port.To.Port = ptr(intstr.FromString("http")), ptr(intstr.FromInt32(8080))
	address := v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: "mail"}, To: v1alpha1.RedirectTo{Address: "10.0.0.9"}}
	version := c.sandbox(t, ns, "pr-42", v1alpha1.SandboxStatus{
		RoutingKey: "key-of-the-status",
		Redirects:  []v1alpha1.RedirectStatus{port, cross, refused, address},
	})
	name := routing.Name{Namespace: ns, Name: "pr-42"}
	s.await(t, "the sandbox's status", func(s *source.Snapshot) bool {
		b := sandboxIn(s, name, false)
		return b != nil && len(b.Redirects) == 4 && reaches(t, s.Versions.Sandboxes, version)
	})
	want := &routing.Sandbox{Name: name, Key: "key-of-the-status", Existing: routing.All, Redirects: []routing.Redirect{
		{From: routing.ServiceRef{Service: "route", Port: "http"}, To: routing.Target{Service: "route-pr-42", Port: "8080"}, Field: "status.redirects[0]"},
		{From: routing.ServiceRef{Service: "cache"}, To: routing.Target{Service: "cache-pr-42", Namespace: "data"}, Field: "status.redirects[1]"},
		{From: routing.ServiceRef{Service: "postgres"}, To: routing.Target{Service: "secrets"}, Unavailable: routing.Baseline,
			Refused: "no ReferenceGrant in namespace data allows it", Field: "status.redirects[2]"},
		{From: routing.ServiceRef{Service: "mail"}, To: routing.Target{Address: netip.MustParseAddr("10.0.0.9")}, Field: "status.redirects[3]"},
	}}
	last := s.newest()
	if diff := gocmp.Diff(want, sandboxIn(&last, name, false), compareAddrs); diff != "" {
		t.Errorf("the sandbox (-want +got):\n%s", diff)
	}

	version = c.withStatus(t, "routegroups", ns, &v1alpha1.RouteGroup{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.RouteGroupKind},
		ObjectMeta: metav1.ObjectMeta{Name: "pr-42", Namespace: ns},
		Spec:       v1alpha1.RouteGroupSpec{Sandboxes: []v1alpha1.SandboxRef{{Name: "pr-42"}}},
	}, v1alpha1.RouteGroupStatus{RoutingKey: "key-of-the-group", Sandboxes: []string{"pr-42"}, Redirects: []v1alpha1.RedirectStatus{resolved("route", "route-pr-42")}})
	s.await(t, "the group's status", func(s *source.Snapshot) bool {
		g := sandboxIn(s, name, true)
		return g != nil && g.Key == "key-of-the-group" && len(g.Redirects) == 1 && slices.Equal(g.Members, []string{"pr-42"}) && reaches(t, s.Versions.RouteGroups, version)
	})
}

func TestTheSourceKnowsThePodsOfItsNodeByUID(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	s := follow(t, c.agentConfig(t, ns), "node-"+ns, quietLog())
	pod := func(name, node string, change func(*corev1.Pod)) string {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.SandboxLabel: "pr-42", v1alpha1.InjectLabel: "true"},
				// Nobody's word in a cluster: it would lead the agent anywhere.
				Annotations: map[string]string{v1alpha1.NetnsAnnotation: "/proc/1/ns/net"}},
			Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		change(p)
		got, err := c.core.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(got.UID)
	}
	phase := func(name string, phase corev1.PodPhase) {
		patch := []byte(`{"status":{"phase":"` + string(phase) + `"}}`)
		_, err := c.core.CoreV1().Pods(ns).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil {
			t.Fatal(err)
		}
	}
	plain := pod("plain", "node-"+ns, func(*corev1.Pod) {})
	pod("elsewhere", "node-of-others", func(*corev1.Pod) {})
	host := pod("host", "node-"+ns, func(p *corev1.Pod) { p.Spec.HostNetwork = true; p.Labels = nil })
	pod("static", "node-"+ns, func(p *corev1.Pod) {
		p.Labels = nil
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "5d41402abc4b2a76b9719d911017c592"}
	})
	// Whoever may create pods may claim to be the mirror of any.
	thief := pod("a-thief", "node-"+ns, func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: plain} })
	pod("b-thief", "node-"+ns, func(p *corev1.Pod) {
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "5d41402abc4b2a76b9719d911017c592"}
	})
	pod("ended", "node-"+ns, func(*corev1.Pod) {})
	phase("plain", corev1.PodRunning)
	phase("ended", corev1.PodSucceeded)
	name := func(n string) routing.Name { return routing.Name{Namespace: ns, Name: n} }
	want := []pods.Pod{
		{Name: name("a-thief"), UID: thief, Sandbox: "pr-42", Inject: true},
		{Name: name("b-thief"), UID: "5d41402abc4b2a76b9719d911017c592"},
		{Name: name("host"), UID: host, HostNetwork: true},
		{Name: name("plain"), UID: plain, Running: true, Sandbox: "pr-42", Inject: true},
		{Name: name("static"), UID: "5d41402abc4b2a76b9719d911017c592"},
	}
	var diff string
	defer func() {
		if diff != "" {
			t.Logf("pods (-want +got):\n%s", diff)
		}
	}()
	s.await(t, "this node's pods", func(s *source.Snapshot) bool {
		got := slices.SortedFunc(slices.Values(s.Pods), func(a, b pods.Pod) int { return a.Name.Compare(b.Name) })
		diff = gocmp.Diff(want, got)
		return diff == ""
	})
}

// TestAChangeIsSeenSoon prints how long it takes from the moment that the API
// server has answered who made a change until the agent has it.
func TestAChangeIsSeenSoon(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	c.service(t, ns, "route", "10.1.1.1")
	c.service(t, ns, "route-pr-42", "10.1.1.2")
	c.sandbox(t, ns, "pr-42", v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Redirects: []v1alpha1.RedirectStatus{resolved("route", "route-pr-42")}})
	s := follow(t, c.agentConfig(t, ns), "node-a", quietLog())
	slice := routing.Name{Namespace: ns, Name: "route-pr-42-1"}
	s.await(t, "the first state", func(s *source.Snapshot) bool { return sliceIn(s, slice) != nil })
	const changes = 300
	took := make([]time.Duration, 0, changes)
	for i := range changes {
		address := netip.AddrFrom4([4]byte{10, 2, byte(i / 250), byte(1 + i%250)})
		c.endpoint(t, ns, slice.Name, address.String())
		done := time.Now()
		at := s.await(t, address.String(), func(s *source.Snapshot) bool {
			e := sliceIn(s, slice)
			return e != nil && len(e.Endpoints) == 1 && e.Endpoints[0].Addr == address
		})
		took = append(took, max(0, at.Sub(done)))
	}
	slices.Sort(took)
	t.Logf("a change is with the agent after its writer's answer: median %s, p99 %s, most %s (%d changes)",
		took[changes/2], took[changes*99/100], took[changes-1], changes)
	if p99 := took[changes*99/100]; p99 > 2*time.Second {
		t.Errorf("p99 is %s: watches do not work, changes are found some other way", p99)
	}
}

func TestWhatNoRedirectNamesIsKnownButChangesNothing(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	c.service(t, ns, "route", "10.1.1.1")
	c.service(t, ns, "bystander", "10.1.1.2")
	c.sandbox(t, ns, "pr-42", v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Redirects: []v1alpha1.RedirectStatus{resolved("route", "x")}})
	s := follow(t, c.agentConfig(t, ns), "node-a", quietLog())
	s.await(t, "the first state", func(s *source.Snapshot) bool {
		return sliceIn(s, routing.Name{Namespace: ns, Name: "bystander-1"}) != nil
	})
	before := s.count()
	for i := range 50 {
		c.endpoint(t, ns, "bystander-1", fmt.Sprintf("10.3.0.%d", i+1))
	}
	if n := s.count() - before; n != 0 {
		t.Errorf("%d snapshots for changes of a Service that nobody redirects", n)
	}
	// With a change that matters, the others come too.
	c.endpoint(t, ns, "route-1", "10.1.1.9")
	at := func(s *source.Snapshot, slice, address string) bool {
		e := sliceIn(s, routing.Name{Namespace: ns, Name: slice})
		return e != nil && e.Endpoints[0].Addr == netip.MustParseAddr(address)
	}
	s.await(t, "both changes", func(s *source.Snapshot) bool {
		return at(s, "route-1", "10.1.1.9") && at(s, "bystander-1", "10.3.0.50")
	})
	// And once a redirect names it, its changes matter.
	c.setStatus(t, "sandboxes", ns, "pr-42", v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Redirects: []v1alpha1.RedirectStatus{resolved("route", "bystander")}})
	c.endpoint(t, ns, "bystander-1", "10.3.3.3")
	s.await(t, "a change of what is redirected now", func(s *source.Snapshot) bool { return at(s, "bystander-1", "10.3.3.3") })
}

func TestAStatusThatChangesNoRoutingMakesNobodySpeak(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	status := v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Revision: 1, Redirects: []v1alpha1.RedirectStatus{resolved("route", "x")}}
	c.sandbox(t, ns, "pr-42", status)
	s := follow(t, c.agentConfig(t, ns), "node-a", quietLog())
	name := routing.Name{Namespace: ns, Name: "pr-42"}
	s.await(t, "the sandbox", func(s *source.Snapshot) bool { return sandboxIn(s, name, false) != nil })
	before := s.count()
	// As the controller counts nodes: else each agent's word would make all others
	// speak again.
	for i := range int32(20) {
		status.Nodes = &v1alpha1.NodeCount{Programmed: i, Total: 20}
		c.setStatus(t, "sandboxes", ns, "pr-42", status)
	}
	time.Sleep(200 * time.Millisecond)
	if n := s.count() - before; n != 0 {
		t.Errorf("%d snapshots for statuses that change no routing", n)
	}
	// The versions come by and by; a new revision's comes at once.
	status.Revision = 2
	version := c.setStatus(t, "sandboxes", ns, "pr-42", status)
	s.await(t, "the revision's version", func(s *source.Snapshot) bool { return reaches(t, s.Versions.Sandboxes, version) })
	if n := s.count() - before; n != 1 {
		t.Errorf("%d snapshots, want one for the new revision", n)
	}
}

func TestAnAPIServerThatIsAwayChangesNothingAndIsCaughtUpWith(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	c.service(t, ns, "route", "10.1.1.1")
	c.service(t, ns, "gone", "10.1.1.3")
	c.sandbox(t, ns, "pr-42", v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Redirects: []v1alpha1.RedirectStatus{resolved("route", "gone")}})
	var text transcript.Log
	s := follow(t, c.agentConfig(t, ns), "node-a", slog.New(slog.NewTextHandler(&text, nil)))
	gone := routing.Name{Namespace: ns, Name: "gone"}
	s.await(t, "the first state", func(s *source.Snapshot) bool {
		return serviceIn(s, gone) != nil && sandboxIn(s, routing.Name{Namespace: ns, Name: "pr-42"}, false) != nil
	})
	before := s.count()
	if err := plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if n := s.count() - before; n != 0 {
		t.Errorf("%d snapshots while there was no API server", n)
	}
	if err := plane.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	if err := c.core.CoreV1().Services(ns).Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.endpoint(t, ns, "route-1", "10.1.1.9")
	at := s.await(t, "what has happened since", func(s *source.Snapshot) bool {
		e := sliceIn(s, routing.Name{Namespace: ns, Name: "route-1"})
		return serviceIn(s, gone) == nil && e.Endpoints[0].Addr == netip.MustParseAddr("10.1.1.9")
	})
	t.Logf("changes after an outage are seen %s after the API server is back", at.Sub(back).Round(time.Millisecond))
	log := text.String()
	if n := strings.Count(log, "API server cannot be followed"); n < 1 || n > 20 {
		t.Errorf("the outage is logged %d times:\n%s", n, log)
	}
	// The last of the kinds may still wait for its turn.
	for limit := time.Now().Add(20 * time.Second); strings.Count(text.String(), "API server is followed again") == 0 && time.Now().Before(limit); {
		time.Sleep(50 * time.Millisecond)
	}
	if !strings.Contains(text.String(), "API server is followed again") {
		t.Errorf("the end of the outage is not logged:\n%s", text.String())
	}
}

func TestAWatchThatHasExpiredIsReplacedByAList(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	c.service(t, ns, "route", "10.1.1.1")
	c.sandbox(t, ns, "pr-42", v1alpha1.SandboxStatus{RoutingKey: "key-" + ns, Redirects: []v1alpha1.RedirectStatus{resolved("route", "gone")}})
	cfg := c.agentConfig(t, ns)
	net := &interruptible{}
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper {
		net.mu.Lock()
		defer net.mu.Unlock()
		net.RoundTripper = cmp.Or(net.RoundTripper, rt)
		return net
	}
	s := follow(t, cfg, "node-a", quietLog())
	name := routing.Name{Namespace: ns, Name: "route-1"}
	s.await(t, "the first state", func(s *source.Snapshot) bool { return sliceIn(s, name) != nil })
	lists := net.cut(5)
	c.endpoint(t, ns, "route-1", "10.1.1.9")
	c.sandbox(t, ns, "pr-43", v1alpha1.SandboxStatus{RoutingKey: "another-" + ns})
	s.await(t, "what has happened meanwhile", func(s *source.Snapshot) bool {
		e := sliceIn(s, name)
		b := sandboxIn(s, routing.Name{Namespace: ns, Name: "pr-43"}, false)
		return e != nil && e.Endpoints[0].Addr == netip.MustParseAddr("10.1.1.9") && b != nil && b.Key == "another-"+ns
	})
	if net.listed() == lists {
		t.Error("no watch was refused: the test has tested nothing")
	}
	// And watches go on.
	c.endpoint(t, ns, "route-1", "10.1.1.10")
	s.await(t, "a change afterwards", func(s *source.Snapshot) bool {
		return sliceIn(s, name).Endpoints[0].Addr == netip.MustParseAddr("10.1.1.10")
	})
}

func TestMissingPermissionsAreSaidAndWaitedFor(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	cfg, err := plane.ServiceAccount(t.Context(), ns, "nobody")
	if err != nil {
		t.Fatal(err)
	}
	var text transcript.Log
	s := follow(t, cfg, "node-a", slog.New(slog.NewTextHandler(&text, nil)))
	want := "the agent may not list and watch Sandboxes: give its service account the ClusterRole of the installation"
	for limit := time.Now().Add(30 * time.Second); !strings.Contains(text.String(), want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("the log lacks %q:\n%s", want, text.String())
		}
	}
	if n := s.count(); n != 0 {
		t.Errorf("%d snapshots though nothing could be read", n)
	}
	if n := strings.Count(text.String(), "level="); n > 10 {
		t.Errorf("the same is said again and again:\n%s", text.String())
	}
}

func TestCRDsThatAreInstalledLaterAreFound(t *testing.T) {
	bare := cluster.StartControlPlane(t)
	var text transcript.Log
	s := follow(t, bare.Admin(), "node-a", slog.New(slog.NewTextHandler(&text, nil)))
	for _, want := range []string{
		"the API server does not know Sandboxes: install the CRDs, Helm chart sidetrack-crds",
		"the API server does not know RouteGroups: install the CRDs, Helm chart sidetrack-crds",
	} {
		for limit := time.Now().Add(30 * time.Second); !strings.Contains(text.String(), want); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("the log lacks %q:\n%s", want, text.String())
			}
		}
	}
	if n := s.count(); n != 0 {
		t.Errorf("%d snapshots without knowing the sandboxes", n)
	}
	if err := bare.Apply(t.Context(), crds); err != nil {
		t.Fatal(err)
	}
	s.await(t, "everything", func(s *source.Snapshot) bool { return s.Versions.Sandboxes != "" })
}
