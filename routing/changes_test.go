// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// compileBothWays is Compile, and checks that the whole input, without anything
// of prev but its ids, comes to the same.
func compileBothWays(t *testing.T, in Input, prev *Table) (*Table, []Problem) {
	t.Helper()
	in = in.Clone() // tests go on to change theirs
	got, problems := Compile(in, prev)
	if prev == nil {
		prev = &Table{}
	}
	want, wantProblems, _ := compileFrom(&Table{}, in, prev)
	if diff := cmp.Diff(describe(want), describe(got)); diff != "" {
		t.Fatalf("compiled from scratch (-) and from the table before (+):\n%s", diff)
	}
	if diff := cmp.Diff(wantProblems, problems); diff != "" {
		t.Fatalf("problems from scratch (-) and from the table before (+):\n%s", diff)
	}
	steps := func(tb *Table) []string {
		var out []string
		tb.Diff(prev, func(s *Step) bool {
			out = append(out, fmt.Sprintf("%+v", *s))
			return true
		})
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff(steps(want), steps(got)); diff != "" {
		t.Fatalf("steps from scratch (-) and from the table before (+):\n%s", diff)
	}
	for i, s := range got.order {
		if s != nil && (got.sandboxes.of(s.ID) != s || s.given.key() != in.Sandboxes[i].key()) {
			t.Fatalf("%s is remembered at place %d, which is that of %v, or is not the one in force", s.Title(), i, in.Sandboxes[i].key())
		}
	}
	return got, problems
}

// describe says all that there is in a table, but for how its Services are numbered.
func describe(t *Table) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	next := t.next
	next.object = 0
	say("generation %d, next %+v, routes %d, backends %d, inject %v, odd %v", t.generation, next, t.routes, t.backends, t.inject, t.odd)
	say("captures %v, watched %v, retired %v, size %+v", t.captures, t.watched, t.retired, t.Size())
	for k, d := range t.dests {
		say("dest %v: %+v", k, d)
	}
	for id, d := range t.byID {
		say("dest %d: %+v", id, *d)
	}
	for id, cl := range t.classes {
		say("class %d: %+v", id, *cl)
	}
	for key, id := range t.classIDs {
		say("class %q: %d", key, id)
	}
	for p, ids := range t.classesOf {
		say("port %d: %v", p, slices.Sorted(slices.Values(ids)))
	}
	for c, id := range t.identities {
		say("identity %d: %+v", c, id)
	}
	t.sandboxes.all(func(id SandboxID, s *SandboxInfo) bool {
		say("sandbox %d: %s, key %q, propagate %v, watched %v, members %v, observed %v, problems %v", id, s.Title(), s.Key, s.Propagate, s.Watched, s.members, s.observed, s.problems)
		for name, all := range s.lost {
			for _, l := range all {
				say("sandbox %d lost %s: %+v", id, name, *l)
			}
		}
		for _, r := range s.routes {
			say("sandbox %d: port %d %s: %+v to %v, %q, %q", id, r.id, r.from, r.Route, r.group.all, r.target, r.refused)
		}
		t.routesOf(s, func(c ClassID, r *route) bool {
			say("route %d %d: %+v", id, c, r.Route)
			return true
		})
		return true
	})
	t.byName.all(func(n sandboxName, s *SandboxInfo) bool { say("named %v: %d", n, s.ID); return true })
	t.byKey.all(func(key string, s *SandboxInfo) bool { say("key %s: %d", key, s.ID); return true })
	t.groups.all(func(key string, g groupUse) bool {
		say("group %x: %d, %d routes, %v %v", key, g.id, g.routes, g.v4(), g.v6())
		return true
	})
	t.answering.all(func(e endpointKey, pods []Name) bool { say("answering %v: %v", e, pods); return true })
	t.behind.all(func(pod Name, of []Name) bool { say("behind %s: %v", pod, of); return true })
	t.services.all(func(n Name, s *service) bool {
		say("service %s: %v", n, s.Service)
		for _, sl := range s.slices {
			say("service %s: slice %v", n, sl.EndpointSlice)
		}
		return true
	})
	say("slices %d", t.slices)
	t.members.all(func(p servicePort, m *member) bool { say("member %s: %+v", p, *m); return true })
	t.waiting.all(func(key string, who []sandboxName) bool {
		say("waiting for %s: %v", key, slices.SortedFunc(slices.Values(who), sandboxName.compare))
		return true
	})
	t.joins.all(func(n sandboxName, s *SandboxInfo) bool { say("group %v: %d", n, s.ID); return true })
	t.grouped.all(func(id SandboxID, n int) bool { say("grouped %d: %d", id, n); return true })
	t.troubled.all(func(id SandboxID, s *SandboxInfo) bool { say("troubled %d", id); return true })
	t.named.all(func(n Name, times int) bool { say("matters %s: %d", n, times); return true })
	slices.Sort(out)
	return out
}

// change makes one object of in, or a few, otherwise than they are, as sources do:
// in itself stays as it is.
func (w world) change(in Input) Input {
	in.Services, in.Slices = slices.Clone(in.Services), slices.Clone(in.Slices)
	in.Pods, in.Sandboxes = slices.Clone(in.Pods), slices.Clone(in.Sandboxes)
	other := w.richInput()
	for range 1 + w.r.IntN(2) {
		switch w.r.IntN(5) {
		case 0:
			in.Services = one(w, in.Services, other.Services, func(s Service) Name { return s.Name })
		case 1:
			in.Slices = one(w, in.Slices, other.Slices, func(s EndpointSlice) Name { return s.Name })
		case 2:
			in.Pods = one(w, in.Pods, other.Pods, func(p Pod) Name { return p.Name })
		default:
			in.Sandboxes = one(w, in.Sandboxes, other.Sandboxes, func(s Sandbox) sandboxName { return s.key() })
		}
	}
	if w.chance(20) {
		w.r.Shuffle(len(in.Sandboxes), swapper(in.Sandboxes))
		w.r.Shuffle(len(in.Slices), swapper(in.Slices))
	}
	return in
}

// one has another's object in the place of one of the same name, adds it, or takes
// one away.
func one[T any, N comparable](w world, list, other []T, name func(T) N) []T {
	if len(list) > 0 && w.chance(25) || len(other) == 0 {
		if len(list) == 0 {
			return list
		}
		i := w.r.IntN(len(list))
		return slices.Delete(list, i, i+1)
	}
	o := other[w.r.IntN(len(other))]
	if i := slices.IndexFunc(list, func(l T) bool { return name(l) == name(o) }); i >= 0 {
		list[i] = o
		return list
	}
	return append(list, o)
}

// richInput has more kinds of things in it than input.
func (w world) richInput() Input {
	in := w.input()
	for i := range in.Slices {
		s := &in.Slices[i]
		if w.chance(10) {
			s.Service = fmt.Sprintf("svc%d", w.r.IntN(5))
		}
		for j := range s.Endpoints {
			s.Endpoints[j].Pod = fmt.Sprintf("pod%d", w.r.IntN(8))
		}
		if w.chance(20) {
			for j := range s.Ports {
				s.Ports[j].Name += "-other"
			}
		}
	}
	for i := range in.Sandboxes {
		s := &in.Sandboxes[i]
		s.Propagate, s.ObserveAll = w.chance(20), w.chance(10)
		if w.chance(30) {
			s.Observe = []string{fmt.Sprintf("svc%d", w.r.IntN(6))}
		}
		if s.Deleted = w.chance(10); s.Deleted {
			s.Key = ""
		}
		for j := range s.Redirects {
			r := &s.Redirects[j]
			if w.chance(10) {
				r.Refused = "nobody allows it"
			}
			if r.To.Service != "" && w.chance(10) {
				r.To.Namespace = "data"
			}
		}
	}
	for i := range 2 {
		if w.chance(50) {
			g := Sandbox{Name: Name{"shop", fmt.Sprintf("pr-%d", i)}, Group: true, Key: fmt.Sprintf("routing-key-%d", w.r.IntN(7))}
			for range w.r.IntN(4) {
				g.Members = append(g.Members, fmt.Sprintf("pr-%d", w.r.IntN(4)))
			}
			for range w.r.IntN(2) {
				g.Redirects = append(g.Redirects, Redirect{From: ServiceRef{Service: fmt.Sprintf("svc%d", w.r.IntN(5))}, To: Target{Address: w.addr()}})
			}
			in.Sandboxes = append(in.Sandboxes, g)
		}
	}
	data := Service{Name: Name{"data", fmt.Sprintf("svc%d", w.r.IntN(5))}, Addresses: []netip.Addr{w.addr()},
		Ports: []ServicePort{{Name: "p0", Port: 80, Protocol: TCP, HTTP2: w.chance(30)}}}
	in.Services = append(in.Services, data)
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"data", data.Name.Name}, Service: data.Name.Name,
		Ports: []EndpointPort{{"p0", 8080, TCP}}, Endpoints: []Endpoint{{Addr: w.addr(), Ready: true, Pod: "data"}}})
	return in
}

// TestChangesCompileToWhatTheWholeInputDoes goes through many small changes, and
// through the steps of each.
func TestChangesCompileToWhatTheWholeInputDoes(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	for seed := range rounds {
		checkChanges(t, world{rand.New(rand.NewPCG(uint64(seed), 11))}, 25)
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { checkChanges(t, world{rand.New(rand.NewPCG(a, b))}, 6) })
}

func checkChanges(t *testing.T, w world, changes int) {
	t.Helper()
	k := newKernel()
	in := w.richInput()
	var prev, applied *Table
	for i := range changes {
		next, _ := compileBothWays(t, in, prev)
		// The kernel may lag behind, where a table did not fit. Then it begins anew.
		if w.chance(75) || i == changes-1 {
			if applied != nil && !next.Follows(applied) {
				k, applied = newKernel(), nil
			}
			checkDiff(t, k, applied, next)
			applied = next
		}
		prev = next
		in = w.change(in)
		if applied != nil {
			in.Pods = keepSandboxes(in.Pods, applied)
		}
	}
}

// TestASmallChangeIsASmallDifference: that little of a large table is compiled, and
// looked at, for a small change. What it takes says BenchmarkChangeOneOfAMillionRoutes.
func TestASmallChangeIsASmallDifference(t *testing.T) {
	in := bigInput(2000, 10)
	first, _ := Compile(in, nil)
	in = in.Clone()
	in.Sandboxes[77].Redirects[3].To.Address = netip.MustParseAddr("12.0.0.1")
	second, _ := Compile(in, first)
	same, other := 0, 0
	second.sandboxes.all(func(id SandboxID, s *SandboxInfo) bool {
		if first.sandboxes.of(id) == s {
			same++
		} else {
			other++
		}
		return true
	})
	if same != 1999 || other != 1 {
		t.Errorf("%d sandboxes are the last table's and %d are not, want all but one", same, other)
	}
	if second.made != first.made {
		t.Error("destinations are compiled anew, though none has changed")
	}
	looked := 0
	second.groups.since(&first.groups, func(string, groupUse, groupUse, bool) bool { looked++; return true })
	if looked > 40*crowd {
		t.Errorf("%d groups of %d are looked at for a difference", looked, second.groups.size)
	}
	steps := map[Map]int{}
	second.Diff(first, func(s *Step) bool { steps[s.Map]++; return true })
	if steps[Routes] != 1 || steps[Backends] != 1 || len(steps) != 2 {
		t.Errorf("steps by map: %v, want one backend and one route", steps)
	}
}

func BenchmarkChangeOneOfAMillionRoutes(b *testing.B) {
	in := bigInput(100_000, 10)
	tb, _ := Compile(in, nil)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		s := &in.Sandboxes[n*7919%len(in.Sandboxes)]
		s.Redirects = slices.Clone(s.Redirects)
		s.Redirects[3].To.Address = netip.AddrFrom4([4]byte{12, byte(n >> 16), byte(n >> 8), byte(n)})
		next, _ := Compile(in, tb)
		steps := 0
		next.Diff(tb, func(*Step) bool { steps++; return true })
		if steps < 2 {
			b.Fatalf("%d steps", steps)
		}
		tb = next
	}
}
