// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	sidetrack "github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/collector"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/responder"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

const (
	ours = "sidetrack-system"
	team = "team"

	// span is the parent of all calls: nobody makes spans of its own.
	span = "00f067aa0ba902b7"

	theTester routing.Cookie = 6 // on the first node
	theCart   routing.Cookie = 5 // on the second
)

// world is a real API server with a collector and the ledgers of two nodes, whose
// traffic is played by hand. The nodes' announcements reach nobody by themselves.
type world struct {
	*testing.T
	plane     *cluster.ControlPlane
	admin     kubernetes.Interface
	c         *sidetrack.Cluster
	sandboxes map[string]*v1alpha1.Sandbox
	reads     atomic.Int64 // of the ledger

	table      *routing.Table
	one, two   *ledger.Ledger
	announced  chan ledger.Announcement // by the first
	redirected netip.AddrPort
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, plane: cluster.StartControlPlane(t), sandboxes: map[string]*v1alpha1.Sandbox{}, announced: make(chan ledger.Announcement, 100)}
	var err error
	w.admin, err = kubernetes.NewForConfig(w.plane.Admin())
	w.must(err)
	w.must(w.plane.Apply(t.Context(), "../../../../deploy/install.yaml"))
	w.collect()
	w.compile()
	w.one, w.two = w.node("one"), w.node("two")
	w.one.Announce(func(a ledger.Announcement) { w.announced <- a })
	w.two.Announce(func(ledger.Announcement) {})
	w.must(w.plane.ApplyYAML(t.Context(), `
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-1, namespace: team}
spec:
  observe: [cart]
  redirects: [{from: {service: route}, to: {service: route-pr-1}}]
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: blind, namespace: team}
spec:
  redirects: [{from: {service: route}, to: {service: route-pr-1}}]
`))
	// The program under test reads with what its user has.
	user := w.plane.Admin()
	user.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/records") {
				w.reads.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	w.c, err = sidetrack.Connect(user, team, nil)
	w.must(err)
	for _, name := range []string{"pr-1", "blind"} {
		sb := &v1alpha1.Sandbox{}
		w.must(w.c.Objects.Get(t.Context(), client.ObjectKey{Namespace: team, Name: name}, sb))
		sb.Status = v1alpha1.SandboxStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, Reason: "Programmed", ObservedGeneration: sb.Generation, LastTransitionTime: metav1.Now()}},
			Redirects:  []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "route-pr-1"}}},
		}
		w.must(w.c.Objects.Status().Update(t.Context(), sb))
		w.sandboxes[name] = sb
	}
	return w
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// collect starts the collector, and leads the API server to it.
func (w *world) collect() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.must(w.plane.LeadHere(w.Context(), collector.APIService, ours, "sidetrack-ledger", listener.Addr().(*net.TCPAddr).Port))
	c := collector.DefaultConfig()
	c.REST, c.Listener, c.HealthAddress, c.Namespace = w.token("sidetrack-ledger", ""), listener, "0", ours
	c.Logger = slog.New(slog.DiscardHandler)
	run, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- collector.Run(run, c) }()
	w.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("the collector: %v", err)
		}
	})
}

// token is what a ServiceAccount of the installation has, on a node unless that is
// empty.
func (w *world) token(account, node string) *rest.Config {
	w.Helper()
	config, err := w.plane.Token(w.Context(), ours, account, node)
	w.must(err)
	return config
}

// compile makes the table that all nodes have.
func (w *world) compile() {
	name := func(n string) routing.Name { return routing.Name{Namespace: team, Name: n} }
	ports := []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}
	slice := func(service, pod, addr string) routing.EndpointSlice {
		return routing.EndpointSlice{
			Name: name(service + "-1"), Service: service, Ports: []routing.EndpointPort{{Name: "http", Port: 8080, Protocol: routing.TCP}},
			Endpoints: []routing.Endpoint{{Addr: netip.MustParseAddr(addr), Ready: true, Pod: pod}},
		}
	}
	var problems []routing.Problem
	w.table, problems = routing.Compile(routing.Input{
		Services: []routing.Service{
			{Name: name("route"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: ports},
			{Name: name("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.8")}, Ports: ports},
			{Name: name("route-pr-1"), Ports: ports},
		},
		Slices: []routing.EndpointSlice{slice("cart", "cart-0", "10.244.1.6"), slice("route-pr-1", "route-pr-1-0", "10.244.2.9")},
		Sandboxes: []routing.Sandbox{{
			Name: name("pr-1"), Key: "key-of-pr-1", Observe: []string{"cart"},
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "route"}, To: routing.Target{Service: "route-pr-1"}}},
		}, {
			Name: name("blind"), Key: "key-of-blind",
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "route"}, To: routing.Target{Service: "route-pr-1"}}},
		}},
	}, nil)
	for _, p := range problems {
		w.Fatal(p)
	}
	w.redirected = netip.MustParseAddrPort("10.244.2.9:8080")
}

// node has an agent answer for a node.
func (w *world) node(name string) *ledger.Ledger {
	ctx := w.Context()
	_, err := w.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	w.must(err)
	w.must(w.plane.ApplyYAML(ctx, "apiVersion: sidetrack.dev/v1alpha1\nkind: NodeState\nmetadata: {name: "+name+"}\n"))
	l := ledger.New(ledger.Config{Node: name})
	r, err := responder.Start(w.token("sidetrack-agent", name), name, l, slog.New(slog.DiscardHandler))
	w.must(err)
	w.Cleanup(func() {
		if err := r.Close(); err != nil {
			w.Error(err)
		}
	})
	pod := func(n string) *ledger.Pod {
		return &ledger.Pod{Name: routing.Name{Namespace: team, Name: n + "-0"}, Workload: "Deployment/" + n}
	}
	l.SetPods(map[routing.Cookie]*ledger.Pod{theTester: pod("tester"), theCart: pod("cart")})
	l.SetTable(w.table)
	return l
}

// begins has a request pass a node, as the router does. over ends it.
func (w *world) begins(l *ledger.Ledger, from routing.Cookie, service, key, trace string) (over func()) {
	to := netip.MustParseAddrPort(map[string]string{"route": "10.96.0.7:80", "cart": "10.96.0.8:80"}[service])
	dest, _ := w.table.LookupDest(to, routing.TCP)
	var keys routing.KeySet
	if key != "" {
		names := routing.DefaultKeyNames()
		keys.Add(&names, routing.InHeader, []byte(key))
	}
	d := w.table.DecideRequest(from, dest.ID, &keys)
	e := l.Open(&ledger.Call{
		Table: w.table, Source: from, Dest: dest.ID, Dialled: to, Keyed: keys.Seen(), Traceparent: []byte("00-" + trace + "-" + span + "-01"),
	}, &d)
	if e == nil {
		w.Fatalf("a request to %s leaves no record", service)
	}
	e.Ask([]byte("GET"), []byte(service), []byte("/"))
	e.Answer, e.Status = to, 200
	if d.Verdict == routing.ToFork {
		e.Answer = w.redirected
	}
	l.Begin(e)
	l.Going(w.table, e, &d, e.Answer)
	return func() { l.Finish(e) }
}

// TestALossThatIsNamedLateIsNeverVerified sends requests to cart and, without cart, to
// route, whose fork answers; cart, on another node, calls route as well. Everything that
// the first node has on record is in order.
func TestALossThatIsNamedLateIsNeverVerified(t *testing.T) {
	w := newWorld(t)
	const (
		named = "Deployment/cart called route.team:80 without the routing key"
		stray = "a call of this request to route.team came without the routing key, from somebody of whom it is not known how the request came there: " +
			"to see who has lost the key, observe the Services on the way (spec.observe; \"*\" is all of the namespace)"
	)
	// Agents are connected in a moment.
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		e, err := Gather(t.Context(), w.c, w.sandboxes["pr-1"], Sent{Trace: strings.Repeat("1", 32), Began: time.Now()})
		w.must(err)
		if v := e.Judge(); e.Unread == "" && len(v.Doubts) == 1 && strings.HasPrefix(v.Doubts[0], "no call of this request") {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the nodes do not answer: %q", v.Doubts)
		}
	}
	const key = "key-of-pr-1"
	passed := func(trace string) { w.begins(w.two, theCart, "route", key, trace)() }
	lost := func(trace string) { w.begins(w.two, theCart, "route", "", trace)() }
	for _, tc := range []struct {
		name string
		// cart is what it does; it returns when the request is answered.
		cart func(trace string)
		says string
		// blind: the sandbox observes nothing. unseen: the request itself goes by a way
		// that nobody captures. more: it would help to observe more.
		blind, unseen, more bool
	}{
		{name: "the key is passed on", cart: passed},
		{name: "nobody announces the trace", cart: lost, says: named},
		{name: "the trace is announced late", cart: func(trace string) {
			lost(trace)
			select {
			case word := <-w.announced:
				time.AfterFunc(time.Second, func() { w.two.Heard(word) })
			case <-time.After(time.Minute):
				t.Error("the trace is not announced")
			}
		}, says: named},
		{name: "the call outlasts the answer", cart: func(trace string) {
			over := w.begins(w.two, theCart, "route", "", trace)
			time.AfterFunc(time.Second, over)
		}, says: named},
		{name: "the call does not end", cart: func(trace string) {
			over := w.begins(w.two, theCart, "route", "", trace)
			t.Cleanup(over)
		}, says: "not verified yet: node two has 1 calls of this request under way"},
		{name: "a call with the key does not end", cart: func(trace string) {
			over := w.begins(w.two, theCart, "route", key, trace)
			t.Cleanup(over)
		}, says: "not verified yet: node two has 1 calls of this request under way"},
		// Nodes do not tell each other of its traces, so nobody can name cart.
		{name: "the sandbox observes nothing", cart: lost, blind: true, more: true,
			says: "not verified: the sandbox observes nothing, so a workload on another node that loses the routing key would not be seen: set spec.observe to the Services on the way, sidetrack sandbox create … --observe SERVICE --update"},
		{name: "nobody has seen cart receive the key, which it passes on", cart: passed, unseen: true},
		// One call of cart's has the key, another has not.
		{name: "nobody has seen cart receive the key", cart: func(trace string) { passed(trace); lost(trace) }, unseen: true, more: true, says: stray},
		{name: "the key was lost on the way to cart", cart: lost, unseen: true, more: true, says: stray},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for len(w.announced) > 0 {
				<-w.announced
			}
			var id [16]byte
			rand.Read(id[:])
			sent := Sent{Trace: hex.EncodeToString(id[:]), Began: time.Now()}
			sb, mine := w.sandboxes["pr-1"], key
			if tc.blind {
				sb, mine = w.sandboxes["blind"], "key-of-blind"
			}
			if tc.unseen {
				tc.cart(sent.Trace)
			} else {
				w.begins(w.one, theTester, "route", mine, sent.Trace)()
				for len(w.announced) > 0 {
					<-w.announced // of route; the test is about cart's
				}
				over := w.begins(w.one, theTester, "cart", mine, sent.Trace)
				tc.cart(sent.Trace)
				over()
			}
			before := w.reads.Load()
			e, err := Gather(t.Context(), w.c, sb, sent)
			w.must(err)
			v := e.Judge()
			if said := strings.Join(v.Doubts, "\n"); v.Verified != (tc.says == "") || said != tc.says {
				t.Errorf("verified %t, %q: want %q", v.Verified, said, tc.says)
			}
			if v.Unseen != tc.more {
				t.Errorf("that it would help to observe more is said to be %t", v.Unseen)
			}
			if n := w.reads.Load() - before; tc.says == "" && n != 1 {
				t.Errorf("the ledger is read %d times where once is enough", n)
			}
		})
	}
}
