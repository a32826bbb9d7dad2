// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Compile turns objects into the next table after prev, the one in force (nil
// at first). It never fails as a whole: what cannot be honoured is a Problem
// and left out, all else is compiled. The result depends on the input and on
// prev only, not on the order of the input's slices.
//
// It compiles what differs from prev's input and takes the rest from prev, so that
// a change of one object costs little however many there are. Tables share memory
// with their input, and lists that are the same memory are taken for the same: what
// the input's objects lead to must not be changed once Compile was given it. (The
// four slices of objects are the caller's, and so are their elements.) A Sandbox that
// changes has another slice of Redirects; Input.Clone makes others of all.
//
// Ids are kept from prev wherever the kernel can then be brought from prev to
// the result without misrouting anything on the way; see Diff.
func Compile(in Input, prev *Table) (*Table, []Problem) {
	if prev == nil {
		prev = &Table{}
	}
	if t, problems, ok := compileFrom(prev, in, prev); ok {
		return t, problems
	}
	t, problems, _ := compileFrom(&Table{}, in, prev)
	return t, problems
}

// compileFrom makes the table after prev by changing base, which is prev, or empty:
// then everything is compiled, and prev gives no more than ids. It is false where
// the difference from base cannot be told.
func compileFrom(base *Table, in Input, prev *Table) (*Table, []Problem, bool) {
	if base.odd {
		return nil, nil, false
	}
	c := &compiler{
		base: base, prev: prev, generation: prev.generation + 1, next: prev.next,
		backends: base.backends, inject: base.inject,
		services: base.services.change(), members: base.members.change(),
		sandboxes: base.sandboxes.change(), byName: base.byName.change(), byKey: base.byKey.change(),
		waiting: base.waiting.change(), joins: base.joins.change(), grouped: base.grouped.change(),
		troubled: base.troubled.change(), named: base.named.change(), groups: base.groups.change(),
		answering: base.answering.change(), behind: base.behind.change(),
		changed: map[Name]change{}, touched: map[servicePort]*member{}, todo: map[sandboxName]*Sandbox{},
		targets: map[targetPort]*target{}, renamed: map[Name]bool{},
	}
	c.differServices(in.Services)
	c.differSlices(in.Slices)
	c.differSandboxes(in.Sandboxes)
	if c.odd && base.generation > 0 {
		return nil, nil, false
	}
	c.concern()
	for _, name := range c.names() {
		c.release(name)
	}
	c.numberSandboxes()
	for _, s := range c.fresh {
		c.resolveRedirects(s)
	}
	for _, s := range c.fresh {
		c.observe(s)
	}
	for _, s := range c.fresh {
		c.contribute(s)
	}
	identities := c.identify(in.Pods)
	moved := c.settleMembers()
	c.forgetGroups()
	c.forgetStale()
	c.namePods()

	t := &Table{
		generation: c.generation, destinations: base.destinations, identities: identities,
		sandboxes: c.sandboxes.seal(), byName: c.byName.seal(), byKey: c.byKey.seal(), groups: c.groups.seal(),
		backends: c.backends, answering: c.answering.seal(), behind: c.behind.seal(),
		basis: basis{
			odd: c.odd, services: c.services.seal(), slices: c.sliceCount, members: c.members.seal(),
			waiting: c.waiting.seal(), joins: c.joins.seal(), grouped: c.grouped.seal(), troubled: c.troubled.seal(),
			named: c.named.seal(), inject: c.inject, order: c.order,
		},
	}
	if moved || base.made == nil {
		d := chart{prev: prev, t: t, next: &c.next}
		d.collect()
		d.number()
		d.retire()
		t.destinations = d.destinations
	}
	t.next = c.next
	t.countRoutes(base, c)
	return t, t.problems(c.problems), true
}

type compiler struct {
	base, prev *Table
	odd        bool
	generation uint64
	next       counters
	backends   int
	sliceCount int
	inject     bool
	order      []*SandboxInfo // see basis
	everyMoved bool           // destinations are others for a reason that members do not tell

	services  draft[Name, *service, plainHash[Name]]
	members   draft[servicePort, *member, plainHash[servicePort]]
	sandboxes draft[SandboxID, *SandboxInfo, countedHash[SandboxID]]
	byName    draft[sandboxName, *SandboxInfo, plainHash[sandboxName]]
	byKey     draft[string, *SandboxInfo, stringHash]
	waiting   draft[string, []sandboxName, stringHash]
	joins     draft[sandboxName, *SandboxInfo, plainHash[sandboxName]]
	grouped   draft[SandboxID, int, countedHash[SandboxID]]
	troubled  draft[SandboxID, *SandboxInfo, countedHash[SandboxID]]
	named     draft[Name, int, plainHash[Name]]
	groups    draft[string, groupUse, stringHash]
	answering draft[endpointKey, []Name, plainHash[endpointKey]]
	behind    draft[Name, []Name, plainHash[Name]]

	changed map[Name]change          // Services
	todo    map[sandboxName]*Sandbox // that are compiled anew; nil: gone
	fresh   []*SandboxInfo           // what has become of them, by name
	stale   []*SandboxInfo           // what they were
	touched map[servicePort]*member  // that may change in place
	targets map[targetPort]*target   // that have been looked up
	unused  []string                 // keys of groups that a route has left
	renamed map[Name]bool            // Services that have begun or ceased to matter

	problems []Problem // of pods
}

func problem(kind string, obj Name, field, format string, args ...any) Problem {
	return Problem{Kind: kind, Object: obj, Field: field, Message: fmt.Sprintf(format, args...)}
}

// names returns the names of what is compiled anew, in order.
func (c *compiler) names() []sandboxName {
	names := make([]sandboxName, 0, len(c.todo))
	for name := range c.todo {
		names = append(names, name)
	}
	slices.SortFunc(names, sandboxName.compare)
	return names
}

// problems are those of the sandboxes, the destinations and of others.
func (t *Table) problems(others []Problem) []Problem {
	out := slices.Concat(others, t.destinations.problems)
	t.troubled.all(func(_ SandboxID, s *SandboxInfo) bool {
		out = append(out, s.problems...)
		return true
	})
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), a.Object.Compare(b.Object),
			strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	// A Service's is found by everybody who has to do with it.
	return slices.Compact(out)
}

// countRoutes counts the kernel's routes.
func (t *Table) countRoutes(base *Table, c *compiler) {
	count := func(of *Table, s *SandboxInfo) (n int) {
		of.routesOf(s, func(ClassID, *route) bool { n++; return true })
		return n
	}
	if t.made == base.made {
		t.routes = base.routes
		for _, s := range c.stale {
			t.routes -= count(base, s)
		}
		for _, s := range c.fresh {
			t.routes += count(t, s)
		}
		return
	}
	t.sandboxes.all(func(_ SandboxID, s *SandboxInfo) bool {
		t.routes += count(t, s)
		return true
	})
}
