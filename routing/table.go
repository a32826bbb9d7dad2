// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"hash/maphash"
	"iter"
	"net/netip"
)

// SandboxID is a sandbox's number in the kernel's maps. Zero is never used.
// It is given out anew when a sandbox is deleted and created again, unless pods of
// it have lived on meanwhile.
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
	// sandbox redirects or observes its Service. When false the destination is only known:
	// connections of pods with inject are steered, nobody else's.
	Captured bool
	// Existing is what to do about connections opened before the capture, HTTP2
	// whether these are declared to speak it.
	Existing ExistingPolicy
	HTTP2    bool
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
	// Grouped says that, without Inject, a group's routing key may count in its
	// requests, where its sandbox redirects nothing: a group's that it is a member of.
	// Or the sandbox wants to know of them (Observe, Propagate). Connections to
	// captured destinations go through the router then.
	Grouped bool
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
	// Refused says why Target may not be reached at all; empty when it may.
	Refused string
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

// SandboxInfo is what the router may say of a sandbox, or of a group, in metrics
// and messages.
type SandboxInfo struct {
	ID    SandboxID
	Name  Name
	Group bool
	// Key is secret: it goes into requests that are injected, never into a log.
	Key string
	// Propagate says that the trace id of a request that was seen with the key may
	// stand for it in another that has lost it.
	Propagate bool
	// Watched says that somebody wants to know who loses the key, on whichever node:
	// the sandbox observes or propagates, or a member of the group does.
	Watched bool
	// AllWatched says that Watched is so of everything that the key leads to: of a
	// group, that each member is watched.
	AllWatched bool

	members map[SandboxID]bool // a group's
	lost    map[Name][]*lost   // redirects of Services that are not there
	routes  []route            // by their ports' ids

	given    Sandbox       // what it was made from
	names    nameFilter    // the Services that given names
	observed []servicePort // captured though not redirected
	problems []Problem
}

// Label is the name for metrics: a group's is told from that of a sandbox.
func (s *SandboxInfo) Label() Name {
	if s.Group {
		return Name{s.Name.Namespace, "RouteGroup/" + s.Name.Name}
	}
	return s.Name
}

// Title is kind and name for messages: "sandbox shop/pr-42".
func (s *SandboxInfo) Title() string {
	if s.Group {
		return "RouteGroup " + s.Name.String()
	}
	return "sandbox " + s.Name.String()
}

// Table is one immutable generation of everything that decides about traffic.
// All its methods may be called concurrently; those that decide do not
// allocate. The zero Table is empty: everything goes to the baseline.
//
// What has not changed since the generation before is shared with it.
type Table struct {
	generation uint64
	next       counters

	destinations
	identities map[Cookie]Identity

	sandboxes shared[SandboxID, *SandboxInfo, countedHash[SandboxID]]
	byName    shared[sandboxName, *SandboxInfo, plainHash[sandboxName]]
	byKey     shared[string, *SandboxInfo, stringHash]
	groups    shared[string, groupUse, stringHash] // by their endpoints
	routes    int                                  // of all sandboxes, by class
	backends  int                                  // of all groups

	answering shared[endpointKey, []Name, plainHash[endpointKey]] // endpoints of Services that matter -> their pods
	behind    shared[Name, []Name, plainHash[Name]]               // the same pods -> these Services

	basis // what the next generation is compiled from
}

// destInfo is a destination as the router finds it, by its id.
type destInfo struct {
	key     DestKey
	class   ClassID // zero: nobody redirects it at present
	ports   []servicePort
	service Name
	watched bool // see Table.Watched
}

// class is a set of Service ports that share destinations.
type class struct {
	key     string
	service Name     // the first of them names the class in metrics
	ports   []portID // in the order of their names
	watched bool     // some of them is
}

// route is a sandbox's redirect of one port, resolved. All classes that the port is
// in share it.
type route struct {
	Route
	id      portID
	group   *group
	from    servicePort
	target  string
	refused string
}

// group is an immutable list of endpoints, sorted: IPv4 first.
type group struct {
	id  GroupID
	n4  uint16
	key string // what makes it the same in every generation
	all []netip.AddrPort
}

func (g *group) v4() []netip.AddrPort { return g.all[:g.n4] }
func (g *group) v6() []netip.AddrPort { return g.all[g.n4:] }

// groupUse is a group and how many routes lead to it.
type groupUse struct {
	*group
	routes int
}

// find returns the sandbox's redirect of a port, or nil.
func (s *SandboxInfo) find(id portID) *route {
	// Not slices.BinarySearchFunc: this is on the way of each tagged request.
	low, high := 0, len(s.routes)
	for low < high {
		if mid := (low + high) / 2; s.routes[mid].id < id {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(s.routes) && s.routes[low].id == id {
		return &s.routes[low]
	}
	return nil
}

// route returns a sandbox's redirect of a class, or nil. Where it redirects several
// of the class's Services differently, the first in order of name holds: the
// address alone does not say which of them was meant.
func (t *Table) route(s *SandboxInfo, c ClassID) *route {
	cl := t.classes[c]
	if cl == nil || s == nil {
		return nil
	}
	for _, id := range cl.ports {
		if r := s.find(id); r != nil {
			return r
		}
	}
	return nil
}

// routesOf calls yield with each of a sandbox's routes, until it returns false.
func (t *Table) routesOf(s *SandboxInfo, yield func(ClassID, *route) bool) bool {
	for i := range s.routes {
		r := &s.routes[i]
		for _, c := range t.classesOf[r.id] {
			if t.route(s, c) == r && !yield(c, r) {
				return false
			}
		}
	}
	return true
}

// counters are the ids given out last.
type counters struct {
	dest    DestID
	class   ClassID
	group   GroupID
	sandbox SandboxID
	port    portID
	object  uint32 // a Service or an EndpointSlice
}

// Generation counts tables: each Compile adds one to its predecessor's.
func (t *Table) Generation() uint64 { return t.generation }

// Follows reports whether t was compiled from old, or is old.
func (t *Table) Follows(old *Table) bool {
	return t == old || old.generation > 0 && t.generation == old.generation+1
}

// Dest returns the destination that a DestID stands for. Ids of destinations
// that have left the table are known for a while longer, because a connection
// may have been captured just before.
func (t *Table) Dest(id DestID) (DestKey, bool) {
	if d := t.byID[id]; d != nil {
		return d.key, true
	}
	return DestKey{}, false
}

// Dests yields every destination that the kernel knows, in no order.
func (t *Table) Dests() iter.Seq2[DestKey, Dest] {
	return func(yield func(DestKey, Dest) bool) {
		for k, d := range t.dests {
			if !yield(k, d) {
				return
			}
		}
	}
}

// LookupDest returns what is known of a destination, whichever way its address
// is written.
func (t *Table) LookupDest(dst netip.AddrPort, proto Protocol) (Dest, bool) {
	d, ok := t.dests[DestKey{dst.Addr().Unmap().WithZone(""), dst.Port(), proto}]
	return d, ok
}

// Captures reports whether connections to any destination are steered to the
// router, for anybody: only then are listeners wanted.
func (t *Table) Captures() bool { return t.captures }

// Identity returns what a network namespace stands for; the zero Identity for
// everybody else's pods.
func (t *Table) Identity(source Cookie) Identity { return t.identities[source] }

// Describe names the sandbox or group and the Service of a route, for metrics.
func (t *Table) Describe(k RouteKey) (sandbox, service Name, ok bool) {
	sb := t.sandboxes.of(k.Sandbox)
	r := t.route(sb, k.Class)
	if r == nil {
		return Name{}, Name{}, false
	}
	return sb.Label(), r.from.service, true
}

// ServiceOf names the Service that a class of destinations belongs to, the
// first in order of name where there are several.
func (t *Table) ServiceOf(c ClassID) (Name, bool) {
	if cl := t.classes[c]; cl != nil {
		return cl.service, true
	}
	return Name{}, false
}

// DecideRequest says where a request or stream goes that came to destination
// dest (as captured) from the namespace source and carries keys.
//
// The first key that some sandbox has wins; a key that nobody has is none. Then
// the source's identity counts. Without inject the identity alone counts, as it
// does in the kernel, but where its sandbox has no redirect: there the first key
// counts that is a group's which the sandbox is a member of. (A group's request
// that one fork has served is on its way to another.)
func (t *Table) DecideRequest(source Cookie, dest DestID, keys *KeySet) Decision {
	var sb *SandboxInfo
	id := t.identities[source]
	switch {
	case id.Sandbox == 0 || id.Inject:
		keys.Keys(func(key []byte) bool {
			sb = t.SandboxOf(key)
			return sb == nil
		})
	case id.Grouped && !t.redirects(id.Sandbox, dest):
		keys.Keys(func(key []byte) bool {
			if sb = t.SandboxOf(key); sb != nil && !sb.members[id.Sandbox] {
				sb = nil
			}
			return sb == nil
		})
	}
	inject := ""
	if sb == nil && id.Sandbox != 0 {
		sb = t.sandboxes.of(id.Sandbox)
		if id.Inject && sb != nil && !keys.Seen() {
			inject = sb.Key
		}
	}
	if sb == nil {
		d := t.toBaseline(dest, nil, Untagged)
		if keys.Seen() {
			d.Reason = UnknownKey
		}
		return d
	}
	d := t.decide(sb, dest)
	d.Inject = inject
	return d
}

// DecideConnection says where a captured connection goes that carries no
// HTTP requests, or none yet: by the source's identity alone.
func (t *Table) DecideConnection(source Cookie, dest DestID) Decision {
	if id := t.identities[source]; id.Sandbox != 0 {
		if sb := t.sandboxes.of(id.Sandbox); sb != nil {
			return t.decide(sb, dest)
		}
	}
	return t.toBaseline(dest, nil, Untagged)
}

// redirects reports whether a sandbox's own redirect is what decides. Of what has
// left the table nobody knows, and the sandbox's own refusal holds.
func (t *Table) redirects(s SandboxID, dest DestID) bool {
	info, sb := t.byID[dest], t.sandboxes.of(s)
	return info == nil || t.route(sb, info.class) != nil || sb.lostTo(info) != nil
}

// SandboxOf returns the sandbox that has this routing key, or nil.
func (t *Table) SandboxOf(key []byte) *SandboxInfo {
	entries := t.byKey.leaf(maphash.Bytes(seed, key))
	for i := range entries {
		if entries[i].key == string(key) {
			return entries[i].value
		}
	}
	return nil
}

func (t *Table) toBaseline(dest DestID, sb *SandboxInfo, why Reason) Decision {
	d := Decision{Verdict: ToBaseline, Reason: why, Sandbox: sb}
	if info := t.byID[dest]; info != nil {
		d.Service = info.service
	} else {
		d.Reason = UnknownDest
	}
	return d
}

func (t *Table) decide(sb *SandboxInfo, dest DestID) Decision {
	info := t.byID[dest]
	if info == nil {
		// It left the table so long ago that nobody knows whose it was: whether the
		// sandbox redirects it cannot be told, so the baseline is no answer.
		return Decision{Verdict: Refuse, Reason: UnknownDest, Sandbox: sb, Target: "an unknown place"}
	}
	r := t.route(sb, info.class)
	if r == nil {
		if l := sb.lostTo(info); l != nil {
			return Decision{Verdict: Refuse, Reason: Unavailable, Sandbox: sb, Service: info.service, Target: l.target, Refused: l.why}
		}
		return t.toBaseline(dest, sb, NoRedirect)
	}
	d := Decision{
		Verdict:   ToFork,
		Reason:    Redirected,
		Sandbox:   sb,
		Service:   r.from.service,
		Target:    r.target,
		Refused:   r.refused,
		Endpoints: r.group.forRouter(info.key.Addr),
		FallBack:  r.Unavailable == Baseline,
	}
	if len(d.Endpoints) == 0 {
		d.Verdict, d.Reason = unavailable(r.Unavailable), Unavailable
	}
	return d
}

func unavailable(p UnavailablePolicy) Verdict {
	if p == Baseline {
		return ToBaseline
	}
	return Refuse
}

// forRouter returns the endpoints of the dialled address's family or, because
// the router can dial either, those of the other.
func (g *group) forRouter(dialled netip.Addr) []netip.AddrPort {
	if eps := g.forFlow(dialled); len(eps) > 0 {
		return eps
	}
	return g.v6()
}

// forFlow returns the endpoints that a socket can be connected to which has
// dialled this address. An IPv6 socket reaches IPv4 too, in its v4-mapped form;
// one with IPV6_V6ONLY gets the kernel's ENETUNREACH for it.
func (g *group) forFlow(dialled netip.Addr) []netip.AddrPort {
	if dialled.Is4() || int(g.n4) == len(g.all) {
		return g.v4()
	}
	return g.v6()
}

// FlowAnswer is what LookupFlow found.
type FlowAnswer struct {
	Verdict  Verdict
	Reason   Reason
	Sandbox  SandboxID        // zero when untagged
	Class    ClassID          // zero when the destination is not known
	Endpoint []netip.AddrPort // any one of these; all of one family; shared, read only
}

// LookupFlow says what the kernel does to a flow that source sends to dst.
// bpf/lookup.h is its twin; a differential test keeps them the same.
func (t *Table) LookupFlow(source Cookie, dst netip.AddrPort, proto Protocol) FlowAnswer {
	id, ok := t.identities[source]
	if !ok {
		return FlowAnswer{Reason: Untagged}
	}
	addr := dst.Addr().Unmap().WithZone("")
	d, ok := t.dests[DestKey{addr, dst.Port(), proto}]
	if !ok {
		return FlowAnswer{Reason: UnknownDest, Sandbox: id.Sandbox}
	}
	a := FlowAnswer{Reason: NoRedirect, Sandbox: id.Sandbox, Class: d.Class}
	r := t.route(t.sandboxes.of(id.Sandbox), d.Class)
	if r == nil {
		return a
	}
	a.Verdict, a.Reason, a.Endpoint = ToFork, Redirected, r.group.forFlow(addr)
	if len(a.Endpoint) == 0 {
		a.Verdict, a.Reason, a.Endpoint = unavailable(r.Unavailable), Unavailable, nil
	}
	return a
}
