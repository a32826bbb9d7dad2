// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// kernel is a model of the kernel's maps and of bpf/lookup.h.
type kernel struct {
	backends   map[BackendKey]netip.AddrPort
	routes     map[RouteKey]Route
	dests      map[DestKey]Dest
	identities map[Cookie]Identity
}

func newKernel() *kernel {
	return &kernel{map[BackendKey]netip.AddrPort{}, map[RouteKey]Route{}, map[DestKey]Dest{}, map[Cookie]Identity{}}
}

func (k *kernel) apply(s *Step) {
	switch s.Map {
	case Backends:
		put(k.backends, s.BackendKey, s.Backend, s.Delete)
	case Routes:
		put(k.routes, s.RouteKey, s.Route, s.Delete)
	case Dests:
		put(k.dests, s.DestKey, s.Dest, s.Delete)
	case Identities:
		put(k.identities, s.Cookie, s.Identity, s.Delete)
	}
}

func put[K comparable, V any](m map[K]V, k K, v V, del bool) {
	if del {
		delete(m, k)
	} else {
		m[k] = v
	}
}

// flow answers as words, so that answers of tables that number things
// differently can be compared.
func (k *kernel) flow(source Cookie, d DestKey) string {
	id, ok := k.identities[source]
	if !ok {
		return "baseline"
	}
	dest, ok := k.dests[d]
	if !ok {
		return "baseline"
	}
	r, ok := k.routes[RouteKey{id.Sandbox, dest.Class}]
	if !ok {
		return "baseline"
	}
	from, n := 0, int(r.V4)
	if !d.Addr.Is4() && r.V6 > 0 {
		from, n = int(r.V4), int(r.V6)
	}
	if n == 0 {
		return unavailable(r.Unavailable).String()
	}
	out := "fork"
	for i := range n {
		b, ok := k.backends[BackendKey{r.Group, uint32(from + i)}]
		if !ok {
			return fmt.Sprintf("slot %d of group %d is missing", from+i, r.Group)
		}
		out += " " + b.String()
	}
	return out
}

func (t *Table) flowInWords(source Cookie, d DestKey) string {
	a := t.LookupFlow(source, netip.AddrPortFrom(d.Addr, d.Port), d.Protocol)
	if a.Verdict != ToFork {
		return a.Verdict.String()
	}
	out := "fork"
	for _, ep := range a.Endpoint {
		out += " " + ep.String()
	}
	return out
}

// world makes inputs that resemble one another, from random numbers.
type world struct{ r *rand.Rand }

func (w world) chance(percent int) bool { return w.r.IntN(100) < percent }

func (w world) addr() netip.Addr {
	if w.chance(25) {
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(1 + w.r.IntN(6))})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + w.r.IntN(6))})
}

func (w world) input() Input {
	var in Input
	proto := func() Protocol {
		if w.chance(30) {
			return UDP
		}
		return TCP
	}
	for i := range 5 {
		if w.chance(20) {
			continue
		}
		svc := Service{Name: Name{"shop", fmt.Sprintf("svc%d", i)}}
		if w.chance(80) {
			svc.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(i + 1)})}
		}
		if w.chance(5) {
			svc.ExternalName = "elsewhere.example"
		}
		slice := EndpointSlice{Name: Name{"shop", svc.Name.Name + "-x"}, Service: svc.Name.Name}
		for j := range 1 + w.r.IntN(2) {
			p := ServicePort{Name: fmt.Sprintf("p%d", j), Port: uint16(80 + j), Protocol: proto()}
			svc.Ports = append(svc.Ports, p)
			slice.Ports = append(slice.Ports, EndpointPort{p.Name, uint16(8080 + w.r.IntN(2)), p.Protocol})
		}
		for range w.r.IntN(4) {
			slice.Endpoints = append(slice.Endpoints, Endpoint{Addr: w.addr(), Ready: w.chance(80)})
		}
		in.Services = append(in.Services, svc)
		in.Slices = append(in.Slices, slice)
	}
	for i := range 4 {
		if w.chance(25) {
			continue
		}
		s := Sandbox{Name: Name{"shop", fmt.Sprintf("pr-%d", i)}, Existing: ExistingPolicy(w.r.IntN(3))}
		if w.chance(80) {
			s.Key = fmt.Sprintf("routing-key-%d", w.r.IntN(5))
		}
		for j := range w.r.IntN(4) {
			r := Redirect{From: ServiceRef{Service: fmt.Sprintf("svc%d", w.r.IntN(5))}, Field: fmt.Sprintf("spec.redirects[%d]", j)}
			if w.chance(30) {
				r.From.Port = "p0"
			}
			if w.chance(50) {
				r.To.Service = fmt.Sprintf("svc%d", w.r.IntN(5))
			} else {
				r.To.Address = w.addr()
			}
			if w.chance(30) {
				r.Unavailable = Baseline
			}
			s.Redirects = append(s.Redirects, r)
		}
		in.Sandboxes = append(in.Sandboxes, s)
	}
	for i := range 6 {
		p := Pod{Name: Name{"shop", fmt.Sprintf("pod%d", i)}, Netns: Cookie(100 + i)}
		if w.chance(70) {
			p.Sandbox, p.Inject = fmt.Sprintf("pr-%d", w.r.IntN(4)), w.chance(30)
		}
		in.Pods = append(in.Pods, p)
	}
	return in
}

// movedBetween reports whether a pod has changed its sandbox.
func movedBetween(old, next *Table, c Cookie) bool {
	a, ok := old.identities[c]
	b, ok2 := next.identities[c]
	return ok && ok2 && a.Sandbox != b.Sandbox
}

func checkDiff(t *testing.T, k *kernel, old, next *Table) {
	t.Helper()
	var dests []DestKey
	for _, tb := range []*Table{old, next} {
		if tb != nil {
			for d := range tb.Dests() {
				dests = append(dests, d)
			}
		}
	}
	if old == nil {
		old = &Table{}
	}
	var cookies []Cookie
	for c := Cookie(100); c < 106; c++ {
		cookies = append(cookies, c)
	}
	check := func(when string) {
		for _, c := range cookies {
			for _, d := range dests {
				got := k.flow(c, d)
				want := []string{old.flowInWords(c, d), next.flowInWords(c, d)}
				if movedBetween(old, next, c) {
					want = append(want, next.flowAs(old.identities[c].Sandbox, d))
				}
				if !slices.Contains(want, got) {
					t.Fatalf("%s: flow from %d to %v is answered %q; before and after: %q", when, c, d, got, want)
				}
			}
		}
	}
	steps := 0
	next.Diff(old, func(s *Step) bool {
		k.apply(s)
		steps++
		check(fmt.Sprintf("after step %d (%+v)", steps, *s))
		return true
	})
	size := next.Size()
	if got := (Size{len(k.backends), len(k.routes), len(k.dests), len(k.identities)}); got != size {
		t.Fatalf("the maps hold %+v after the diff, want %+v", got, size)
	}
	for _, c := range cookies {
		for _, d := range dests {
			if got, want := k.flow(c, d), next.flowInWords(c, d); got != want {
				t.Fatalf("after the diff, flow from %d to %v is answered %q, want %q", c, d, got, want)
			}
		}
	}
	for key, want := range next.dests {
		got := k.dests[key]
		got.Existing, got.HTTP2 = want.Existing, want.HTTP2 // the kernel does not know them
		if got != want {
			t.Fatalf("after the diff, destination %v is %+v, want %+v", key, got, want)
		}
	}
	n := 0
	next.Diff(next, func(*Step) bool { n++; return true })
	if n != 0 {
		t.Fatalf("%d steps from a table to itself", n)
	}
}

// flowAs answers for a pod of this sandbox.
func (t *Table) flowAs(s SandboxID, d DestKey) string {
	other := *t
	other.identities = map[Cookie]Identity{1: {Sandbox: s}}
	return other.flowInWords(1, d)
}

func TestNoPrefixOfADiffMisroutes(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 40
	}
	for seed := range rounds {
		w := world{rand.New(rand.NewPCG(uint64(seed), 1))}
		k := newKernel()
		var prev *Table
		for range 6 {
			in := w.input()
			if prev != nil {
				// A pod changes its sandbox or its sandbox changes: one at a time,
				// which is what the order of steps promises to keep apart.
				in.Pods = keepSandboxes(in.Pods, prev)
			}
			next, _ := compileBothWays(t, in, prev)
			checkDiff(t, k, prev, next)
			prev = next
		}
	}
}

// keepSandboxes lets pods keep the sandbox they have in prev, or have none.
func keepSandboxes(pods []Pod, prev *Table) []Pod {
	out := slices.Clone(pods)
	for i := range out {
		if id, ok := prev.identities[out[i].Netns]; ok && out[i].Sandbox != "" {
			out[i].Sandbox = prev.Sandbox(id.Sandbox).Name.Name
		}
	}
	return out
}

func FuzzDiff(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		k := newKernel()
		first, _ := compileBothWays(t, world{rand.New(rand.NewPCG(a, a))}.input(), nil)
		checkDiff(t, k, nil, first)
		in := world{rand.New(rand.NewPCG(b, b))}.input()
		in.Pods = keepSandboxes(in.Pods, first)
		second, _ := compileBothWays(t, in, first)
		checkDiff(t, k, first, second)
	})
}

func TestPodsThatChangeTheirSandboxEndUpRight(t *testing.T) {
	for seed := range 100 {
		w := world{rand.New(rand.NewPCG(uint64(seed), 7))}
		k := newKernel()
		in := w.input()
		first, _ := compileBothWays(t, in, nil)
		checkDiff(t, k, nil, first)
		for i := range in.Pods {
			in.Pods[i].Sandbox = fmt.Sprintf("pr-%d", w.r.IntN(4))
		}
		second, _ := compileBothWays(t, in, first)
		checkDiff(t, k, first, second)
	}
}
