// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxRetired bounds how many destinations that have left the table are still
// known by their id. It only has to cover connections between connect and
// accept.
const maxRetired = 1 << 14

// destinations are what connections are known by. They are compiled as a whole when
// anything about them has changed, and else the last table's.
type destinations struct {
	made *draftMark // tells this compilation from others; nil: never

	dests     map[DestKey]Dest
	byID      map[DestID]*destInfo
	retired   []DestID // ids whose destination has left, oldest first
	classes   map[ClassID]*class
	classIDs  map[string]ClassID
	classesOf map[portID][]ClassID
	captures  bool // some connections are steered to the router
	watched   bool // some destination is
	problems  []Problem
}

// chart makes a table's destinations.
type chart struct {
	destinations
	prev    *Table
	t       *Table // complete but for these
	next    *counters
	members map[servicePort]*charted
	byDest  map[DestKey][]*charted
}

// charted is a member, or a Service port that is known because some pod here wants
// every Service.
type charted struct {
	*member
	summary
	svc   *service
	name  string // the port's
	http2 bool
}

func (d *chart) enter(m *member) {
	svc := d.t.services.of(m.service)
	c := &charted{member: m, summary: m.summary(), svc: svc}
	for i := range svc.Ports {
		if p := &svc.Ports[i]; p.Port == m.port && p.Protocol == m.protocol {
			c.name, c.http2 = p.Name, p.HTTP2
			break
		}
	}
	d.members[m.servicePort] = c
}

// collect finds out which addresses belong to the Service ports that matter.
func (d *chart) collect() {
	d.members = make(map[servicePort]*charted, d.t.members.size)
	d.t.members.all(func(_ servicePort, m *member) bool {
		d.enter(m)
		return true
	})
	if d.t.inject {
		d.t.services.all(func(name Name, s *service) bool {
			for i := 0; s.Service != nil && i < len(s.Ports); i++ {
				p := servicePort{name, s.Ports[i].Port, s.Ports[i].Protocol}
				if p.protocol == TCP && d.members[p] == nil {
					d.enter(&member{servicePort: p})
				}
			}
			return true
		})
	}
	d.byDest = make(map[DestKey][]*charted, 2*len(d.members))
	for _, m := range d.members {
		add := func(a netip.Addr, port uint16) {
			if !dialable(a) || port == 0 {
				return
			}
			k := DestKey{a.Unmap().WithZone(""), port, m.protocol}
			if !slices.Contains(d.byDest[k], m) {
				d.byDest[k] = append(d.byDest[k], m)
			}
		}
		for _, a := range m.svc.Addresses {
			add(a, m.port)
		}
		k := targetPort{m.service, m.name, m.protocol}
		if m.redirected {
			d.problems = append(d.problems, m.svc.missingPorts(k)...)
		}
		for _, s := range m.svc.slices {
			for _, p := range m.svc.portsOf(s, k) {
				// Those that are not ready too: who dials them without us reaches
				// them, and a tagged request to them is a tagged request.
				for i := range s.Endpoints {
					add(s.Endpoints[i].Addr, p.Port)
				}
			}
		}
	}
}

// number gives destinations and their classes ids.
func (d *chart) number() {
	keys := slices.SortedFunc(maps.Keys(d.byDest), func(a, b DestKey) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	d.made = &draftMark{}
	d.dests = make(map[DestKey]Dest, len(keys))
	d.byID = make(map[DestID]*destInfo, len(keys)+len(d.prev.retired))
	d.classes, d.classIDs, d.classesOf = map[ClassID]*class{}, map[string]ClassID{}, map[portID][]ClassID{}
	classOf := make([]string, len(keys))
	moved := map[string]bool{}
	for i, k := range keys {
		ms := d.byDest[k]
		slices.SortFunc(ms, func(a, b *charted) int { return a.compare(b.servicePort) })
		classOf[i] = classKey(ms)
		// A class into which a destination moves from another gets a new id: its
		// routes are then written before anything can find them, and each of its
		// destinations changes from the old answer to the new one in one step.
		if old, ok := d.prev.dests[k]; ok && d.prev.classIDs[classOf[i]] != old.Class {
			moved[classOf[i]] = true
		}
	}
	for i, k := range keys {
		ms := d.byDest[k]
		cl, ok := d.classIDs[classOf[i]]
		if !ok {
			if cl, ok = d.prev.classIDs[classOf[i]]; !ok || moved[classOf[i]] {
				d.next.class++
				cl = d.next.class
			}
			d.addClass(cl, classOf[i], ms)
		}
		dest := Dest{Class: cl}
		for _, m := range ms {
			dest.Captured = dest.Captured || m.captured
			dest.Existing = max(dest.Existing, m.summary.existing)
			dest.HTTP2 = dest.HTTP2 || m.http2
		}
		if old, ok := d.prev.dests[k]; ok {
			dest.ID = old.ID
		} else if dest.ID = d.newDestID(); dest.ID == 0 {
			d.problems = append(d.problems, problem("Service", ms[0].service, "", "there are more than %d destinations: this one is left out", MaxDestID))
			continue
		}
		d.dests[k] = dest
		info := &destInfo{key: k, class: cl, ports: portsOfMembers(ms), service: ms[0].service, watched: d.classes[cl].watched}
		d.byID[dest.ID] = info
		d.watched = d.watched || info.watched
		d.captures = d.captures || dest.Captured || (d.t.inject && k.Protocol == TCP)
	}
}

// classKey is the same for the same Service ports in every generation.
func classKey(ms []*charted) string {
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

func portsOfMembers(ms []*charted) []servicePort {
	out := make([]servicePort, len(ms))
	for i, m := range ms {
		out[i] = m.servicePort
	}
	return out
}

// newDestID returns an id that neither a destination nor a retired one has, or
// zero when there is none.
func (d *chart) newDestID() DestID {
	if len(d.prev.byID)+len(d.byDest) >= int(MaxDestID) {
		return 0
	}
	for {
		d.next.dest++
		if d.next.dest > MaxDestID {
			d.next.dest = 1
		}
		id := d.next.dest
		if d.prev.byID[id] == nil && d.byID[id] == nil {
			return id
		}
	}
}

// retire keeps the ids of destinations that have left known for a while: a
// connection to one may live on, and a tagged request on it is one still.
func (d *chart) retire() {
	ids := slices.Clone(d.prev.retired)
	var gone []DestID
	for k, old := range d.prev.dests {
		if _, stays := d.dests[k]; !stays {
			gone = append(gone, old.ID)
		}
	}
	slices.Sort(gone)
	ids = append(ids, gone...)
	if n := len(ids) - maxRetired; n > 0 {
		ids = slices.Clone(ids[n:])
	}
	for _, id := range ids {
		info := *d.prev.byID[id]
		if now, back := d.dests[info.key]; back {
			d.byID[id] = d.byID[now.ID]
			continue
		}
		info.class = d.classNow(info.ports)
		info.watched = info.class != 0 && d.classes[info.class].watched
		d.watched = d.watched || info.watched
		d.byID[id] = &info
	}
	d.retired = ids
}

// classNow returns the class of a destination that has left, by the Service
// ports that it belonged to, as far as these matter still. No destination need
// have it.
func (d *chart) classNow(ports []servicePort) ClassID {
	var ms []*charted
	for _, p := range ports {
		if m := d.members[p]; m != nil {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return 0
	}
	key := classKey(ms)
	cl, ok := d.classIDs[key]
	if !ok {
		if cl, ok = d.prev.classIDs[key]; !ok {
			d.next.class++
			cl = d.next.class
		}
		d.addClass(cl, key, ms)
	}
	return cl
}

func (d *chart) addClass(id ClassID, key string, ms []*charted) {
	cl := &class{key: key, service: ms[0].service}
	for _, m := range ms {
		cl.watched = cl.watched || m.watched
		if m.id != 0 {
			cl.ports = append(cl.ports, m.id)
			d.classesOf[m.id] = append(d.classesOf[m.id], id)
		}
	}
	d.classIDs[key], d.classes[id] = id, cl
}
