// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// The addresses of the Service "web" besides its endpoint's own.
const (
	webVIP4 = "10.96.0.10"
	webVIP6 = "fd96::10"
)

// scene is a world with the Service "web": a baseline, a fork, a client of the
// sandbox "pr-1" and one of nobody's. Every server tells its name, on TCP 80 and
// UDP 53.
type scene struct {
	*testing.T
	w              *lab.World
	base, fork     *lab.Pod
	tagged, other  *lab.Pod
	input          routing.Input
	table          *routing.Table
	k              *Kernel
	listenersTaken map[routing.Cookie]Listener
}

// web names the Service's and its fork's objects.
var (
	webName  = routing.Name{Namespace: "shop", Name: "web"}
	forkName = routing.Name{Namespace: "shop", Name: "web-pr"}
	sandbox  = routing.Name{Namespace: "shop", Name: "pr-1"}
)

func newScene(t *testing.T) *scene {
	t.Helper()
	w := lab.New(t)
	s := &scene{T: t, w: w, listenersTaken: map[routing.Cookie]Listener{}}
	s.base = w.MustPod("base", webVIP4, webVIP6)
	s.fork = w.MustPod("fork")
	s.tagged = w.MustPod("tagged")
	s.other = w.MustPod("other")
	s.base.MustServeTCP("baseline", ":80")
	s.base.MustServeUDP("baseline", ":53")
	s.fork.MustServeTCP("fork", ":80")
	s.fork.MustServeUDP("fork", ":53")
	w.MustMoveSelf()
	ports := []routing.ServicePort{
		{Name: "http", Port: 80, Protocol: routing.TCP},
		{Name: "dns", Port: 53, Protocol: routing.UDP},
	}
	s.input = routing.Input{
		Services: []routing.Service{
			{Name: webName, Addresses: addrs(webVIP4, webVIP6), Ports: ports},
			{Name: forkName, Ports: ports},
		},
		Slices: []routing.EndpointSlice{
			slice(webName, s.base.IPv4, s.base.IPv6),
			slice(forkName, s.fork.IPv4, s.fork.IPv6),
		},
		Pods: []routing.Pod{
			{Name: routing.Name{Namespace: "shop", Name: "tagged"}, Netns: s.cookie(s.tagged), Sandbox: sandbox.Name},
			{Name: routing.Name{Namespace: "shop", Name: "other"}, Netns: s.cookie(s.other)},
		},
		Sandboxes: []routing.Sandbox{{
			Name: sandbox, Key: "0123456789abcdef",
			Redirects: []routing.Redirect{{
				From: routing.ServiceRef{Service: webName.Name}, To: routing.Target{Service: forkName.Name}, Field: "spec.redirects[0]",
			}},
		}},
	}
	return s
}

func addrs(ss ...string) (as []netip.Addr) {
	for _, s := range ss {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func slice(of routing.Name, ready ...netip.Addr) routing.EndpointSlice {
	s := routing.EndpointSlice{Name: of, Service: of.Name, Ports: []routing.EndpointPort{
		{Name: "http", Port: 80, Protocol: routing.TCP},
		{Name: "dns", Port: 53, Protocol: routing.UDP},
	}}
	for _, a := range ready {
		s.Endpoints = append(s.Endpoints, routing.Endpoint{Addr: a, Ready: true})
	}
	return s
}

func (s *scene) cookie(p *lab.Pod) routing.Cookie {
	s.Helper()
	c, err := p.Cookie()
	s.must(err)
	return routing.Cookie(c)
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// config is small, so that a test costs little memory.
func (s *scene) config() Config {
	c := DefaultConfig()
	c.Cgroup, c.BPFFS = s.w.Cgroup, s.w.BPFFS
	c.MaxFlowRoutes, c.MaxDestinations, c.MaxBackends, c.MaxIdentities = 1024, 1024, 1024, 1024
	c.MaxNamespaces, c.MaxUDPPeers = 1024, 1024
	return c
}

// start opens a Kernel and applies the input.
func (s *scene) start() {
	s.Helper()
	k, err := Open(s.config())
	s.must(err)
	s.Cleanup(func() { k.Close() })
	s.k = k
	s.apply()
}

// apply compiles the input and applies it.
func (s *scene) apply() {
	s.Helper()
	s.compile()
	s.must(s.k.Apply(s.table))
}

func (s *scene) compile() {
	s.Helper()
	t, problems := routing.Compile(s.input.Clone(), s.table)
	for _, p := range problems {
		s.Fatalf("compile: %s", p)
	}
	s.table = t
}

// unready makes the fork's endpoints not ready.
func (s *scene) setReady(ready bool) {
	for i := range s.input.Slices[1].Endpoints {
		s.input.Slices[1].Endpoints[i].Ready = ready
	}
}

// steer captures pod's connections to a stand-in for the router: it answers
// "router", the address that it was reached at and the client's.
func (s *scene) steer(p *lab.Pod) *routerStub {
	s.Helper()
	r := newRouterStub(s, p)
	s.listenersTaken[s.cookie(p)] = Listener{Port4: r.port4, Port6: r.port6}
	s.must(s.k.SetNamespaces(s.listenersTaken))
	return r
}

// count returns a counter of Exits.
func (s *scene) count(program, reason string) uint64 {
	s.Helper()
	exits, err := s.k.Exits()
	s.must(err)
	for _, e := range exits {
		if e.Program == program && e.Reason == reason {
			return e.Count
		}
	}
	return 0
}

// mustCount runs f and wants it to add n to a counter.
func (s *scene) mustCount(program, reason string, n uint64, f func()) {
	s.Helper()
	before := s.count(program, reason)
	f()
	if got := s.count(program, reason) - before; got != n {
		exits, _ := s.k.Exits()
		s.Fatalf("%s/%s was counted %d times, want %d; all: %v", program, reason, got, n, exits)
	}
}

const soon = 30 * time.Second
