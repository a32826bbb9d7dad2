// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"slices"
)

// Map names a kernel map in a Step.
type Map uint8

// The kernel maps that a Table is applied to.
const (
	Backends   Map = iota // BackendKey -> netip.AddrPort
	Routes                // RouteKey -> Route
	Dests                 // DestKey -> Dest
	Identities            // Cookie -> Identity
)

// BackendKey is one slot of a group.
type BackendKey struct {
	Group GroupID
	Slot  uint32
}

// Step is one change of one kernel map: a put, or a delete when Delete is set.
// Which of the key and value fields are used follows from Map.
type Step struct {
	Map    Map
	Delete bool

	BackendKey BackendKey
	Backend    netip.AddrPort
	RouteKey   RouteKey
	Route      Route
	DestKey    DestKey
	Dest       Dest
	Cookie     Cookie
	Identity   Identity
}

// Size is how many entries a table needs in each kernel map. While a Diff is
// applied, the maps hold up to the old table's entries besides.
type Size struct{ Backends, Routes, Dests, Identities int }

// Size returns how many entries t needs in each kernel map.
func (t *Table) Size() Size {
	return Size{Backends: t.backends, Routes: t.routes, Dests: len(t.dests), Identities: len(t.identities)}
}

// Diff calls yield with each step that takes the kernel's maps from old (nil:
// empty maps) to t, which must follow old (Follows): what came and went in between
// could be in the maps under a number that has another meaning now. The kernel looks
// flows up while the steps are applied one by one, so their order matters: after every
// prefix of the steps, each flow is answered as by old or as by t. (A pod that moves
// from one sandbox to another in one generation is in between answered as t answers
// its old sandbox.)
//
// It looks at what the two do not share, so after a small change it is quick,
// however large they are.
//
// What makes that true:
//   - groups are immutable and their ids never used again, so a route changes
//     from one list of endpoints to the next in one update;
//   - a class that a destination moves into has a new id (see Compile), so all
//     its routes are there before a destination leads to them;
//   - what disappears stops being found before anything else changes, and what
//     is new is found only when everything behind it is in place.
func (t *Table) Diff(old *Table, yield func(*Step) bool) {
	if old == nil {
		old = &Table{}
	}
	d := differ{old: old, new: t, yield: yield}
	d.compareClasses()
	for _, phase := range []func() bool{
		d.newBackends,
		func() bool { return d.putRoutes(true) },
		d.deleteIdentities,
		d.deleteDests,
		func() bool { return d.putDests(false) },
		func() bool { return d.deleteRoutes(true) && d.putRoutes(false) },
		func() bool { return d.putDests(true) },
		d.putIdentities,
		func() bool { return d.deleteRoutes(false) },
		d.oldBackends,
	} {
		if !phase() {
			return
		}
	}
}

type differ struct {
	old, new *Table
	yield    func(*Step) bool
	step     Step // one for all: a million steps need not be a million allocations

	// ports are those in classes that only one of the two has.
	ports []portID
}

func (d *differ) emit(s Step) bool {
	d.step = s
	return d.yield(&d.step)
}

func (d *differ) newBackends() bool {
	return d.new.groups.since(&d.old.groups, func(_ string, g, was groupUse, had bool) bool {
		if had && was.id == g.id {
			return true
		}
		for i, ep := range g.all {
			if !d.emit(Step{Map: Backends, BackendKey: BackendKey{g.id, uint32(i)}, Backend: ep}) {
				return false
			}
		}
		return true
	})
}

func (d *differ) oldBackends() bool {
	return d.old.groups.since(&d.new.groups, func(_ string, g, now groupUse, has bool) bool {
		if has && now.id == g.id {
			return true
		}
		for i := range g.all {
			if !d.emit(Step{Map: Backends, Delete: true, BackendKey: BackendKey{g.id, uint32(i)}}) {
				return false
			}
		}
		return true
	})
}

// compareClasses finds the ports of classes that have come or gone. A class that
// both tables have has the same ports in both.
func (d *differ) compareClasses() {
	if d.old.made == d.new.made {
		return
	}
	seen := map[portID]bool{}
	only := func(these, others map[ClassID]*class) {
		for id, cl := range these {
			if others[id] != nil {
				continue
			}
			for _, p := range cl.ports {
				if !seen[p] {
					seen[p] = true
					d.ports = append(d.ports, p)
				}
			}
		}
	}
	only(d.new.classes, d.old.classes)
	only(d.old.classes, d.new.classes)
}

// newRoutes calls yield with every route that is new or changed, and with what it
// was.
func (d *differ) newRoutes(yield func(RouteKey, *route) bool) bool {
	return d.routes(d.new, d.old, func(k RouteKey, r, o *route) bool {
		return o != nil && o.Route == r.Route || yield(k, r)
	})
}

// goneRoutes calls yield with every route that is gone.
func (d *differ) goneRoutes(yield func(RouteKey) bool) bool {
	return d.routes(d.old, d.new, func(k RouteKey, _, o *route) bool { return o != nil || yield(k) })
}

// routes calls yield with routes of a and what b has instead: with all that differ,
// and few others.
func (d *differ) routes(a, b *Table, yield func(k RouteKey, r, o *route) bool) bool {
	of := func(s, o *SandboxInfo) bool {
		return a.routesOf(s, func(c ClassID, r *route) bool {
			return yield(RouteKey{s.ID, c}, r, b.route(o, c))
		})
	}
	if !a.sandboxes.since(&b.sandboxes, func(_ SandboxID, s, o *SandboxInfo, _ bool) bool { return s == o || of(s, o) }) {
		return false
	}
	if len(d.ports) == 0 {
		return true
	}
	// A sandbox that has not changed has other routes all the same, where its
	// destinations are in other classes.
	whole := true
	a.sandboxes.all(func(id SandboxID, s *SandboxInfo) bool {
		if slices.ContainsFunc(d.ports, func(p portID) bool { return s.find(p) != nil }) && b.sandboxes.of(id) == s {
			whole = of(s, s)
		}
		return whole
	})
	return whole
}

// putRoutes writes routes that nothing leads to yet (unreachable), or the
// others that are new or changed.
func (d *differ) putRoutes(unreachable bool) bool {
	if !unreachable && d.old.sandboxes.size == 0 {
		return true
	}
	return d.newRoutes(func(k RouteKey, r *route) bool {
		return unreachable == d.inOld(k) || d.emit(Step{Map: Routes, RouteKey: k, Route: r.Route})
	})
}

// inOld reports whether a flow could already find a route of this key.
func (d *differ) inOld(k RouteKey) bool {
	return d.old.classes[k.Class] != nil && d.old.sandboxes.of(k.Sandbox) != nil
}

// deleteRoutes deletes routes that are gone: those of sandboxes and classes
// that stay (live), or the rest, which nothing leads to any more.
func (d *differ) deleteRoutes(live bool) bool {
	return d.goneRoutes(func(k RouteKey) bool {
		stays := d.new.classes[k.Class] != nil && d.new.sandboxes.of(k.Sandbox) != nil
		return live != stays || d.emit(Step{Map: Routes, Delete: true, RouteKey: k})
	})
}

func (d *differ) deleteDests() bool {
	if d.old.made == d.new.made {
		return true
	}
	for k := range d.old.dests {
		if _, ok := d.new.dests[k]; ok {
			continue
		}
		if !d.emit(Step{Map: Dests, Delete: true, DestKey: k}) {
			return false
		}
	}
	return true
}

// putDests writes the destinations that are new, or those that have changed.
func (d *differ) putDests(added bool) bool {
	if d.old.made == d.new.made {
		return true
	}
	for k, v := range d.new.dests {
		o, ok := d.old.dests[k]
		if added == ok {
			continue
		}
		o.Existing, o.HTTP2 = v.Existing, v.HTTP2 // the kernel does not know them
		if ok && o == v {
			continue
		}
		if !d.emit(Step{Map: Dests, DestKey: k, Dest: v}) {
			return false
		}
	}
	return true
}

func (d *differ) deleteIdentities() bool {
	for c := range d.old.identities {
		if _, ok := d.new.identities[c]; ok {
			continue
		}
		if !d.emit(Step{Map: Identities, Delete: true, Cookie: c}) {
			return false
		}
	}
	return true
}

func (d *differ) putIdentities() bool {
	for c, v := range d.new.identities {
		if o, ok := d.old.identities[c]; ok && o == v {
			continue
		}
		if !d.emit(Step{Map: Identities, Cookie: c, Identity: v}) {
			return false
		}
	}
	return true
}
