// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"slices"
)

// basis is what a table keeps of what it was compiled from, so that the next one is
// compiled from the difference. What depends on what:
//
//	a sandbox's routes    the sandbox; the Services that it names, what they are and,
//	                      where a redirect leads to one, its EndpointSlices
//	its routing key       the sandboxes that ask for the same
//	a group's key         and the members it counts for
//	members               the sandboxes that redirect or observe the port
//	destinations          members; addresses and EndpointSlices of their Services;
//	                      whether some pod here wants every Service
//	identities            the pods; their sandboxes
//
// Destinations and identities are compiled as a whole when anything about them has
// changed: they are few beside routes.
type basis struct {
	// odd says that one object was given twice: then it is not enough to know what
	// differs.
	odd bool

	services shared[Name, *service, plainHash[Name]]
	slices   int // of all Services
	members  shared[servicePort, *member, plainHash[servicePort]]
	// waiting are those whose routing key is another's, by key; the slices are never
	// changed.
	waiting  shared[string, []sandboxName, stringHash]
	joins    shared[sandboxName, *SandboxInfo, plainHash[sandboxName]] // groups
	grouped  shared[SandboxID, int, countedHash[SandboxID]]            // members -> in how many groups that have a key
	troubled shared[SandboxID, *SandboxInfo, countedHash[SandboxID]]   // those with problems
	named    shared[Name, int, plainHash[Name]]                        // Services that matter -> how often
	inject   bool                                                      // some pod here wants every Service
	// order are the sandboxes as they were given, as far as they had been compiled before.
	order []*SandboxInfo
}

// portID numbers a Service port that is a member. It is given out anew once no
// sandbox has had anything to do with the port.
type portID uint32

// service is a Service and what is behind it.
type service struct {
	*Service // nil: there is none, or not yet
	number   uint32
	slices   []*slice // by name
}

// slice is an EndpointSlice.
type slice struct {
	EndpointSlice
	number uint32
}

// servicePort identifies one port of a Service. A Service has no two of the
// same number and protocol.
type servicePort struct {
	service  Name
	port     uint16
	protocol Protocol
}

func (p servicePort) compare(o servicePort) int {
	return cmp.Or(p.service.Compare(o.service), cmp.Compare(p.port, o.port), cmp.Compare(p.protocol, o.protocol))
}

// member is a Service port that is redirected or observed or, with inject, known.
// It says of how many sandboxes that is true.
type member struct {
	servicePort
	id        portID
	redirects int
	captures  int
	watches   int
	existing  [All + 1]int
}

// summary is what destinations depend on.
type summary struct {
	redirected, captured, watched bool
	existing                      ExistingPolicy
}

func (m *member) summary() summary {
	s := summary{redirected: m.redirects > 0, captured: m.captures > 0, watched: m.watches > 0}
	for policy := range m.existing {
		if m.existing[policy] > 0 {
			s.existing = ExistingPolicy(policy)
		}
	}
	return s
}

// used reports whether any sandbox has to do with the port.
func (m *member) used() bool { return m.redirects > 0 || m.captures > 0 }

// nameFilter tells apart, nearly always, what a sandbox has to do with from what it
// has not (Bloom, "Space/time trade-offs in hash coding with allowable errors", 1970).
type nameFilter [4]uint64

func (f *nameFilter) add(n Name) {
	h := plainHash[Name]{}.hash(n)
	f[h>>6%4] |= 1 << (h % 64)
}

// meets reports whether f may have a name that o has.
func (f *nameFilter) meets(o *nameFilter) bool {
	return f[0]&o[0]|f[1]&o[1]|f[2]&o[2]|f[3]&o[3] != 0
}

// seen is a set of numbers that were counted up.
type seen []uint64

func newSeen(last uint32) seen { return make(seen, last/64+1) }

// twice adds a number and reports whether it was there.
func (s seen) twice(n uint32) bool {
	was := s[n/64]&(1<<(n%64)) != 0
	s[n/64] |= 1 << (n % 64)
	return was
}

func (s seen) has(n uint32) bool { return s[n/64]&(1<<(n%64)) != 0 }

// alike reports whether two lists say the same. Those that share their memory do:
// what Compile was given is not changed afterwards.
func alike[T comparable](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

func (s *Service) sameShape(o *Service) bool {
	return s.ExternalName == o.ExternalName && alike(s.Ports, o.Ports)
}

func (s *Service) same(o *Service) bool {
	return s.sameShape(o) && alike(s.Addresses, o.Addresses)
}

func (s *EndpointSlice) same(o *EndpointSlice) bool {
	return s.Service == o.Service && alike(s.Ports, o.Ports) && alike(s.Endpoints, o.Endpoints)
}

func (s *Sandbox) same(o *Sandbox) bool {
	return s.Key == o.Key && s.Existing == o.Existing && s.Deleted == o.Deleted && s.Propagate == o.Propagate &&
		s.ObserveAll == o.ObserveAll && alike(s.Redirects, o.Redirects) && alike(s.Members, o.Members) && alike(s.Observe, o.Observe)
}
