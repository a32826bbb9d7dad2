// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
)

// SandboxID is a sandbox's number in the kernel's maps. Zero is never used.
// It is given out anew when a sandbox is deleted and created again.
type SandboxID uint32

// DestID is the number of one destination (address, port) in the kernel's
// maps; 24 bits, zero is never used. The capture program tells it to the
// router as the last three bytes of 127.a.b.c.
type DestID uint32

// MaxDestID is the largest DestID: what fits into 127.a.b.c, less the last
// value, so that the broadcast address 127.255.255.255 is never dialled.
const MaxDestID DestID = 1<<24 - 2

// ClassID numbers a set of Service ports that share a destination. Nearly
// always it is a set of one; a pod's address may be an endpoint of several
// Services.
type ClassID uint32

// GroupID numbers an immutable list of endpoints. A changed list is a new
// group, so that a redirect moves from one list to the other in one step.
type GroupID uint32

// DestKey is what a client dials. Addr is never v4-mapped (it is unmapped), Port is in
// host byte order.
type DestKey struct {
	Addr     netip.Addr
	Port     uint16
	Protocol Protocol
}

// Dest is what is known of one destination.
type Dest struct {
	ID    DestID
	Class ClassID
	// Captured says that connections to it are steered to the router: some
	// sandbox redirects its Service. When false the destination is only known:
	// connections of pods with inject are steered, nobody else's.
	Captured bool
	// Existing is what to do about connections opened before the capture.
	Existing ExistingPolicy
}

// RouteKey finds a sandbox's redirect for a class of destinations.
type RouteKey struct {
	Sandbox SandboxID
	Class   ClassID
}

// Route is where a sandbox's redirect leads.
type Route struct {
	Group       GroupID
	Unavailable UnavailablePolicy
	// V4 and V6 are how many endpoints of each family the group has; its slots
	// are numbered from zero, IPv4 first.
	V4, V6 uint16
}

// Identity is what a network namespace on this node stands for.
type Identity struct {
	Sandbox SandboxID
	// Inject says that its connections to known Services go through the router
	// and get the routing key.
	Inject bool
}

// Verdict is what becomes of a flow, connection, request or stream.
type Verdict uint8

const (
	// ToBaseline goes where it was going.
	ToBaseline Verdict = iota
	// ToFork goes to one of the endpoints given.
	ToFork
	// Refuse is a 503 or a refused connection.
	Refuse
)

// String is for logs, the ledger and metrics' labels.
func (v Verdict) String() string {
	switch v {
	case ToBaseline:
		return "baseline"
	case ToFork:
		return "fork"
	case Refuse:
		return "reject"
	}
	return "invalid"
}

// Reason says why a Verdict was reached. Values are stable metric labels.
type Reason uint8

// Reasons of decisions.
const (
	// Untagged: there was no key, and the source has no identity.
	Untagged Reason = iota
	// UnknownKey: a key was there, but it is no sandbox's.
	UnknownKey
	// NoRedirect: tagged, but its sandbox has no redirect for this destination.
	NoRedirect
	// Redirected: tagged and redirected.
	Redirected
	// Unavailable: tagged, and the redirect's target has no ready endpoint.
	Unavailable
	// UnknownDest: the destination is not (or no longer) in the table.
	UnknownDest
	reasonCount
)

// String is the reason's metric label.
func (r Reason) String() string {
	if r < reasonCount {
		return [...]string{"untagged", "unknown_key", "no_redirect", "redirected", "unavailable", "unknown_destination"}[r]
	}
	return "invalid"
}

// Decision is the table's answer to the router's one question. Its slices and
// pointers are shared with the table: read only.
type Decision struct {
	Verdict Verdict
	Reason  Reason
	// Sandbox is whose tag decided; nil when untagged.
	Sandbox *SandboxInfo
	// Service is the Service that was addressed: the redirect's, where there is
	// one, else the destination's first; the zero Name when it is not known.
	Service Name
	// Target says in words where the redirect leads, for messages.
	Target string
	// Endpoints are the fork's ready endpoints, those of the dialled family
	// first when there are any (the others are left out then).
	Endpoints []netip.AddrPort
	// FallBack says that the baseline may answer if no endpoint can be reached
	// (unavailable: Baseline).
	FallBack bool
	// Inject is the routing key to add to the request as a baggage member; empty:
	// forward as it came.
	Inject string
}

// SandboxInfo is what the router may say of a sandbox in metrics and messages.
type SandboxInfo struct {
	ID   SandboxID
	Name Name
	// Key is secret: it goes into requests that are injected, never into a log.
	Key string
}

// Table is one immutable generation of everything that decides about traffic.
// All its methods may be called concurrently and do not allocate.
type Table struct {
	generation uint64

	dests      map[DestKey]Dest
	destKeys   map[DestID]DestKey // also destinations of late, see retired
	retired    []DestID           // ids that no key of dests has any more, oldest first
	classes    map[ClassID]*class
	routes     map[RouteKey]Route
	redirects  map[RouteKey]*redirectInfo
	groups     map[GroupID]*group
	identities map[Cookie]Identity
	sandboxes  map[SandboxID]*SandboxInfo
	byName     map[Name]*SandboxInfo
	byKey      map[string]*SandboxInfo

	next counters
}

// class is a set of Service ports that share destinations.
type class struct {
	services []Name // sorted; the first names the class in metrics
	key      string
}

// redirectInfo is what the router may say of a route.
type redirectInfo struct {
	service Name
	target  string
}

// group is an immutable list of endpoints.
type group struct {
	v4, v6 []netip.AddrPort
	key    string
}

// counters are the next ids to give out.
type counters struct {
	dest    DestID
	class   ClassID
	group   GroupID
	sandbox SandboxID
}

// Generation counts tables; each Compile that has a predecessor adds one.
func (t *Table) Generation() uint64 { return t.generation }

// Dest returns the destination that a DestID stands for. Ids of destinations
// that have left the table are known for a while, because a connection may
// have been captured just before.
func (t *Table) Dest(id DestID) (DestKey, bool) {
	k, ok := t.destKeys[id]
	return k, ok
}

// Captures reports whether any destination is steered to the router, for
// anybody: only then are listeners wanted.
func (t *Table) Captures() bool { panic("later") }

// Identity returns what a network namespace stands for; the zero Identity for
// everybody else's pods.
func (t *Table) Identity(source Cookie) Identity { return t.identities[source] }

// DecideRequest says where a request or stream goes that came to destination
// dest (as captured) from the namespace source and carries keys. A key that
// some sandbox has wins over the source's identity.
func (t *Table) DecideRequest(source Cookie, dest DestID, keys *KeySet) Decision { panic("later") }

// DecideConnection says where a captured connection goes that carries no
// HTTP requests, or none yet: by the source's identity alone.
func (t *Table) DecideConnection(source Cookie, dest DestID) Decision { panic("later") }

// FlowAnswer is LookupFlow's result.
type FlowAnswer struct {
	Verdict  Verdict
	Reason   Reason
	Sandbox  SandboxID
	Class    ClassID
	Endpoint []netip.AddrPort // any of these; all of one family
}

// LookupFlow says what the kernel does to a flow; bpf/lookup.h is its twin, and
// a differential test keeps them the same.
func (t *Table) LookupFlow(source Cookie, dst netip.AddrPort, proto Protocol) FlowAnswer {
	panic("later")
}
