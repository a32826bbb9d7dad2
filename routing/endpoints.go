// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
)

// readyEndpoints returns where a port of the Service is answered.
func (s *service) readyEndpoints(k targetPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, sl := range s.slices {
		for _, p := range s.portsOf(sl, k) {
			for _, e := range sl.Endpoints {
				if e.Ready && dialable(e.Addr) {
					out = append(out, netip.AddrPortFrom(e.Addr.Unmap().WithZone(""), p.Port))
				}
			}
		}
	}
	return out
}

// portsOf returns a slice's ports that stand for a Service port: those of its
// name. Where either side has but one port of the protocol, that is the one,
// whatever it is called: a controller writes the same names, people need not.
func (s *service) portsOf(sl *slice, k targetPort) []EndpointPort {
	var named, same []EndpointPort
	for _, p := range sl.Ports {
		if p.Protocol != k.protocol || p.Port == 0 {
			continue
		}
		same = append(same, p)
		if p.Name == k.name {
			named = append(named, p)
		}
	}
	if len(named) > 0 || len(same) != 1 {
		return named
	}
	n := 0
	for _, p := range s.Ports {
		if p.Protocol == k.protocol {
			n++
		}
	}
	if n != 1 {
		return nil
	}
	return same
}

// missingPorts reports that EndpointSlices have endpoints, but for none of these a
// port that stands for one of the Service's.
func (s *service) missingPorts(k targetPort) []Problem {
	have, found := false, false
	for _, sl := range s.slices {
		have = have || len(sl.Endpoints) > 0
		found = found || len(s.portsOf(sl, k)) > 0
	}
	if !have || found {
		return nil
	}
	return []Problem{problem("Service", k.service, "spec.ports",
		"no EndpointSlice of it has a %s port named %q: give the ports of both the same names; until then its endpoints on this port are not known", k.protocol, k.name)}
}

// dialable keeps out addresses that mean something else in every pod.
func dialable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// maxGroup is how many endpoints of one family a group can have: the kernel's
// route counts them in 16 bits.
const maxGroup = 1<<16 - 1

// group returns the group of these endpoints for one more route. It sorts and
// changes eps.
func (c *compiler) group(eps []netip.AddrPort) *group {
	slices.SortFunc(eps, netip.AddrPort.Compare)
	eps = slices.Compact(eps)
	n4 := sort.Search(len(eps), func(i int) bool { return !eps[i].Addr().Is4() })
	var room [18]byte // of the one endpoint that most have
	key := room[:0]
	for _, ep := range eps {
		a := ep.Addr().As16()
		key = append(key, a[:]...)
		key = binary.BigEndian.AppendUint16(key, ep.Port())
	}
	text := string(key)
	use, ok := c.groups.get(text)
	if !ok {
		// From another generation only where all is compiled anew.
		if use.group = c.prev.groups.of(text).group; use.group == nil {
			c.next.group++
			use.group = &group{id: c.next.group, key: text, n4: uint16(min(n4, maxGroup))}
			use.all = slices.Concat(eps[:use.n4], eps[n4:][:min(len(eps)-n4, maxGroup)])
		}
		c.backends += len(use.all)
	}
	use.routes++
	c.groups.put(text, use)
	return use.group
}

// use notes one more route to a group.
func (c *compiler) use(g *group) {
	u := c.groups.of(g.key)
	u.routes++
	c.groups.put(g.key, u)
}

// leave notes that a route does not lead to a group any more.
func (c *compiler) leave(g *group) {
	u := c.groups.of(g.key)
	u.routes--
	c.groups.put(g.key, u)
	if u.routes == 0 {
		c.unused = append(c.unused, g.key)
	}
}

// forgetGroups forgets those that no route leads to.
func (c *compiler) forgetGroups() {
	for _, key := range c.unused {
		if u, ok := c.groups.get(key); ok && u.routes == 0 {
			c.groups.delete(key)
			c.backends -= len(u.all)
		}
	}
}
