// SPDX-License-Identifier: Apache-2.0

package routing

import "net/netip"

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
	s := Size{Routes: len(t.routes), Dests: len(t.dests), Identities: len(t.identities)}
	for _, g := range t.groups {
		s.Backends += len(g.v4) + len(g.v6)
	}
	return s
}

// Diff calls yield with each step that takes the kernel's maps from old (nil:
// empty maps) to t. The kernel looks flows up while the steps are applied one
// by one, so their order matters: after every prefix of the steps, each flow is
// answered as by old or as by t. (A pod that moves from one sandbox to another
// in one generation is in between answered as t answers its old sandbox.)
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
}

func (d *differ) emit(s Step) bool {
	d.step = s
	return d.yield(&d.step)
}

func (d *differ) newBackends() bool {
	for id, g := range d.new.groups {
		if _, ok := d.old.groups[id]; ok {
			continue
		}
		for i, n := 0, g.len(); i < n; i++ {
			if !d.emit(Step{Map: Backends, BackendKey: BackendKey{id, uint32(i)}, Backend: g.at(i)}) {
				return false
			}
		}
	}
	return true
}

func (d *differ) oldBackends() bool {
	for id, g := range d.old.groups {
		if _, ok := d.new.groups[id]; ok {
			continue
		}
		for i, n := 0, g.len(); i < n; i++ {
			if !d.emit(Step{Map: Backends, Delete: true, BackendKey: BackendKey{id, uint32(i)}}) {
				return false
			}
		}
	}
	return true
}

func (g *group) len() int { return len(g.v4) + len(g.v6) }

func (g *group) at(i int) netip.AddrPort {
	if i < len(g.v4) {
		return g.v4[i]
	}
	return g.v6[i-len(g.v4)]
}

// putRoutes writes routes that nothing leads to yet (unreachable), or the
// others that are new or changed.
func (d *differ) putRoutes(unreachable bool) bool {
	for k, r := range d.new.routes {
		if unreachable == d.inOld(k) {
			continue
		}
		if o := d.old.routes[k]; o != nil && o.Route == r.Route {
			continue
		}
		if !d.emit(Step{Map: Routes, RouteKey: k, Route: r.Route}) {
			return false
		}
	}
	return true
}

// inOld reports whether a flow could already find a route of this key.
func (d *differ) inOld(k RouteKey) bool {
	return d.old.classes[k.Class] != nil && d.old.sandboxes[k.Sandbox] != nil
}

// deleteRoutes deletes routes that are gone: those of sandboxes and classes
// that stay (live), or the rest, which nothing leads to any more.
func (d *differ) deleteRoutes(live bool) bool {
	for k := range d.old.routes {
		if d.new.routes[k] != nil {
			continue
		}
		if live != (d.new.classes[k.Class] != nil && d.new.sandboxes[k.Sandbox] != nil) {
			continue
		}
		if !d.emit(Step{Map: Routes, Delete: true, RouteKey: k}) {
			return false
		}
	}
	return true
}

func (d *differ) deleteDests() bool {
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
