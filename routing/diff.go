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

// Size is how many entries a table needs in each kernel map.
type Size struct{ Backends, Routes, Dests, Identities int }

// Size returns how many entries t needs in each kernel map.
func (t *Table) Size() Size { panic("later") }

// Diff calls yield with each step that takes the kernel's maps from old (nil:
// empty maps) to t, in an order in which no prefix misroutes.
func (t *Table) Diff(old *Table, yield func(*Step) bool) { panic("later") }
