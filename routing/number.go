// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxRetired bounds how many destinations that have left the table are still
// known by their id. It only has to cover connections between connect and
// accept.
const maxRetired = 1 << 14

// numberDests gives destinations and their classes ids, and the classes their
// routes.
func (c *compiler) numberDests() {
	keys := slices.SortedFunc(maps.Keys(c.byDest), func(a, b DestKey) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	classOf := make([]string, len(keys))
	moved := map[string]bool{}
	for i, k := range keys {
		ms := c.byDest[k]
		slices.SortFunc(ms, func(a, b *member) int { return a.compare(b.servicePort) })
		classOf[i] = classKey(ms)
		// A class into which a destination moves from another gets a new id: its
		// routes are then written before anything can find them, and each of its
		// destinations changes from the old answer to the new one in one step.
		if old, ok := c.prev.dests[k]; ok && c.prev.classIDs[classOf[i]] != old.Class {
			moved[classOf[i]] = true
		}
	}
	for i, k := range keys {
		ms := c.byDest[k]
		cl, ok := c.t.classIDs[classOf[i]]
		if !ok {
			if cl, ok = c.prev.classIDs[classOf[i]]; !ok || moved[classOf[i]] {
				c.t.next.class++
				cl = c.t.next.class
			}
			c.addClass(cl, classOf[i], ms)
		}
		d := Dest{Class: cl}
		for _, m := range ms {
			d.Captured = d.Captured || m.captured
			d.Existing = max(d.Existing, m.existing)
			d.HTTP2 = d.HTTP2 || m.http2
		}
		if old, ok := c.prev.dests[k]; ok {
			d.ID = old.ID
		} else if d.ID = c.newDestID(); d.ID == 0 {
			c.problem("Service", ms[0].service, "", "there are more than %d destinations: this one is left out", MaxDestID)
			continue
		}
		c.t.dests[k] = d
		info := &destInfo{key: k, class: cl, ports: portsOfMembers(ms), service: ms[0].service, watched: c.t.classes[cl].watched}
		c.t.byID[d.ID] = info
		c.t.watched = c.t.watched || info.watched
		c.t.captures = c.t.captures || d.Captured || (c.inject && k.Protocol == TCP)
	}
}

// classKey is the same for the same Service ports in every generation.
func classKey(ms []*member) string {
	if len(ms) == 1 {
		return ms[0].String()
	}
	parts := make([]string, len(ms))
	for i, m := range ms {
		parts[i] = m.String()
	}
	return strings.Join(parts, " ")
}

func (p servicePort) String() string {
	return p.service.String() + ":" + strconv.Itoa(int(p.port)) + "/" + p.protocol.String()
}

func portsOfMembers(ms []*member) []servicePort {
	out := make([]servicePort, len(ms))
	for i, m := range ms {
		out[i] = m.servicePort
	}
	return out
}

// routeClass enters the redirects of a class. Where one sandbox redirects
// several of its Services differently, the first in order of name holds: the
// address alone does not say which of them was meant.
func (c *compiler) routeClass(cl ClassID, ms []*member) {
	for _, m := range ms {
		for _, r := range m.redirects {
			k := RouteKey{r.sandbox, cl}
			if _, taken := c.t.routes[k]; !taken {
				c.t.routes[k] = r.route
			}
		}
	}
}

// newDestID returns an id that neither a destination nor a retired one has, or
// zero when there is none.
func (c *compiler) newDestID() DestID {
	if len(c.prev.byID)+len(c.byDest) >= int(MaxDestID) {
		return 0
	}
	for {
		c.t.next.dest++
		if c.t.next.dest > MaxDestID {
			c.t.next.dest = 1
		}
		id := c.t.next.dest
		if c.prev.byID[id] == nil && c.t.byID[id] == nil {
			return id
		}
	}
}

// retire keeps the ids of destinations that have left known for a while: a
// connection to one may live on, and a tagged request on it is one still.
func (c *compiler) retire() {
	ids := slices.Clone(c.prev.retired)
	var gone []DestID
	for k, d := range c.prev.dests {
		if _, stays := c.t.dests[k]; !stays {
			gone = append(gone, d.ID)
		}
	}
	slices.Sort(gone)
	ids = append(ids, gone...)
	if n := len(ids) - maxRetired; n > 0 {
		ids = slices.Clone(ids[n:])
	}
	for _, id := range ids {
		info := *c.prev.byID[id]
		if d, back := c.t.dests[info.key]; back {
			c.t.byID[id] = c.t.byID[d.ID]
			continue
		}
		info.class = c.classNow(info.ports)
		info.watched = info.class != 0 && c.t.classes[info.class].watched
		c.t.watched = c.t.watched || info.watched
		c.t.byID[id] = &info
	}
	c.t.retired = ids
}

// classNow returns the class of a destination that has left, by the Service
// ports that it belonged to, as far as these matter still. No destination need
// have it.
func (c *compiler) classNow(ports []servicePort) ClassID {
	var ms []*member
	for _, p := range ports {
		if m := c.members[p]; m != nil {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return 0
	}
	key := classKey(ms)
	cl, ok := c.t.classIDs[key]
	if !ok {
		if cl, ok = c.prev.classIDs[key]; !ok {
			c.t.next.class++
			cl = c.t.next.class
		}
		c.addClass(cl, key, ms)
	}
	return cl
}

func (c *compiler) addClass(cl ClassID, key string, ms []*member) {
	c.t.classIDs[key] = cl
	c.t.classes[cl] = &class{
		key: key, service: ms[0].service,
		watched: slices.ContainsFunc(ms, func(m *member) bool { return m.watched }),
	}
	c.routeClass(cl, ms)
}
