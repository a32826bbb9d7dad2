// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"slices"
)

// change says what has changed about a Service.
type change struct {
	// shape: whether it is there, its type or its ports. endpoints: its slices.
	shape, endpoints bool
}

// differServices finds the Services that base does not have like this.
func (c *compiler) differServices(in []Service) {
	known := newSeen(c.base.next.object)
	unchanged := 0
	for i := range in {
		s := &in[i]
		old := c.base.services.of(s.Name)
		if old != nil && old.Service != nil {
			if known.twice(old.number) {
				c.odd = true
			}
			if old.same(s) {
				unchanged++
				continue
			}
		} else if _, there := c.changed[s.Name]; there {
			c.odd = true
		}
		given := *s
		next := service{Service: &given, slices: c.services.of(s.Name).behind()}
		ch := change{shape: true}
		if old != nil && old.Service != nil {
			next.number, ch.shape = old.number, !old.sameShape(s)
		} else {
			c.next.object++
			next.number = c.next.object
		}
		c.services.put(s.Name, &next)
		c.changed[s.Name] = ch
	}
	if unchanged == c.base.services.size {
		return
	}
	c.base.services.all(func(name Name, old *service) bool {
		if old.Service != nil && !known.has(old.number) {
			c.changed[name] = change{shape: true}
			c.services.put(name, &service{slices: old.slices})
		}
		return true
	})
}

// slice returns one of a Service's EndpointSlices, or nil.
func (s *service) slice(name Name) *slice {
	if s == nil {
		return nil
	}
	if i, ok := slices.BinarySearchFunc(s.slices, name, func(sl *slice, name Name) int { return sl.Name.Compare(name) }); ok {
		return s.slices[i]
	}
	return nil
}

func (s *service) behind() []*slice {
	if s == nil {
		return nil
	}
	return s.slices
}

// differSlices finds the EndpointSlices that base does not have like this. One that
// has another Service's label is another.
func (c *compiler) differSlices(in []EndpointSlice) {
	known := newSeen(c.base.next.object)
	unchanged := 0
	added := map[Name]bool{}
	var out, into []*slice
	for i := range in {
		s := &in[i]
		old := c.base.services.of(Name{s.Name.Namespace, s.Service}).slice(s.Name)
		switch {
		case old != nil:
			if known.twice(old.number) {
				c.odd = true
			}
			if old.same(s) {
				unchanged++
				continue
			}
			out = append(out, old)
		case added[s.Name]:
			c.odd = true
		default:
			added[s.Name] = true
		}
		next := &slice{EndpointSlice: *s}
		if old != nil {
			next.number = old.number
		} else {
			c.next.object++
			next.number = c.next.object
		}
		into = append(into, next)
	}
	if unchanged < c.base.slices {
		c.base.services.all(func(_ Name, svc *service) bool {
			for _, old := range svc.slices {
				if !known.has(old.number) {
					out = append(out, old)
				}
			}
			return true
		})
	}
	c.sliceCount = c.base.slices - len(out) + len(into)
	// What each Service has now.
	behind := map[Name][]*slice{}
	of := func(s *slice) Name {
		name := Name{s.Name.Namespace, s.Service}
		if _, there := behind[name]; !there {
			behind[name] = slices.Clone(c.services.of(name).behind())
		}
		return name
	}
	for _, s := range out {
		name := of(s)
		behind[name] = slices.DeleteFunc(behind[name], func(o *slice) bool { return o == s })
	}
	for _, s := range into {
		name := of(s)
		behind[name] = append(behind[name], s)
	}
	for name, all := range behind {
		slices.SortStableFunc(all, func(a, b *slice) int { return a.Name.Compare(b.Name) })
		next := service{slices: all}
		if old := c.services.of(name); old != nil {
			next.Service, next.number = old.Service, old.number
		}
		c.services.put(name, &next)
		ch := c.changed[name]
		ch.endpoints = true
		c.changed[name] = ch
	}
	for name := range c.changed {
		if s := c.services.of(name); s != nil && s.Service == nil && len(s.slices) == 0 {
			c.services.delete(name)
		}
	}
}

// differSandboxes finds the sandboxes that base does not have like this.
func (c *compiler) differSandboxes(in []Sandbox) {
	known := newSeen(uint32(c.base.next.sandbox))
	unchanged, at := 0, 0
	c.order = make([]*SandboxInfo, len(in))
	for i := range in {
		s := &in[i]
		name := s.key()
		var old *SandboxInfo
		old, at = c.base.from(at, name)
		if old != nil {
			if known.twice(uint32(old.ID)) {
				c.odd = true
			}
			if old.given.same(s) {
				unchanged++
				c.order[i] = old
				continue
			}
		} else if c.todo[name] != nil {
			c.odd = true // the first holds
			continue
		}
		c.todo[name] = s
	}
	if unchanged == c.base.sandboxes.size {
		return
	}
	c.base.sandboxes.all(func(id SandboxID, s *SandboxInfo) bool {
		if !known.has(uint32(id)) {
			c.todo[s.given.key()] = nil
		}
		return true
	})
}

// from returns a sandbox by its name. Sources give nearly all in the order of the time
// before, so it is looked for at a place in that, and the next place is returned.
func (t *Table) from(at int, name sandboxName) (*SandboxInfo, int) {
	for i := at; i < min(at+2, len(t.order)); i++ {
		if s := t.order[i]; s != nil && s.given.key() == name {
			return s, i + 1
		}
	}
	if at < len(t.order) && t.order[at] == nil {
		at++
	}
	return t.byName.of(name), at
}

// forgetStale takes those out of the order that have been compiled anew.
func (c *compiler) forgetStale() {
	stale := make(map[*SandboxInfo]bool, len(c.stale))
	for _, s := range c.stale {
		stale[s] = true
	}
	for i, s := range c.order {
		if stale[s] {
			c.order[i] = nil
		}
	}
}

// again has a sandbox compiled anew although it has not changed.
func (c *compiler) again(s *SandboxInfo) {
	name := s.given.key()
	if _, there := c.todo[name]; !there {
		c.todo[name] = &s.given
	}
}

// concern finds the sandboxes that a change of another object concerns.
func (c *compiler) concern() {
	c.concernServices()
	c.concernKeys()
	c.concernGroups()
}

func (c *compiler) concernServices() {
	var names nameFilter
	namespaces := map[string]bool{}
	for name, ch := range c.changed {
		names.add(name)
		if ch.shape {
			namespaces[name.Namespace] = true
		}
	}
	if len(c.changed) == 0 {
		return
	}
	c.base.sandboxes.all(func(_ SandboxID, s *SandboxInfo) bool {
		if s.given.ObserveAll && namespaces[s.Name.Namespace] || s.names.meets(&names) && c.namesChanged(&s.given) {
			c.again(s)
		}
		return true
	})
}

func (c *compiler) namesChanged(s *Sandbox) bool {
	for i := range s.Redirects {
		r := &s.Redirects[i]
		if c.changed[Name{s.Name.Namespace, r.From.Service}].shape {
			return true
		}
		if r.To.Service != "" {
			if ch := c.changed[r.To.in(s)]; ch.shape || ch.endpoints {
				return true
			}
		}
	}
	return slices.ContainsFunc(s.Observe, func(name string) bool { return c.changed[Name{s.Name.Namespace, name}].shape })
}

// in returns the full name of a target that is a Service.
func (t *Target) in(s *Sandbox) Name { return Name{cmp.Or(t.Namespace, s.Name.Namespace), t.Service} }

// concernKeys: who waits for a key may get it, once anybody's has changed who has to
// do with it.
func (c *compiler) concernKeys() {
	if c.base.waiting.size == 0 {
		return
	}
	for _, name := range c.names() {
		keys := []string{""}
		if s := c.todo[name]; s != nil {
			keys[0] = s.Key
		}
		if old := c.base.byName.of(name); old != nil {
			keys = append(keys, old.given.Key)
		}
		for _, key := range keys {
			for _, who := range c.base.waiting.of(key) {
				c.again(c.base.byName.of(who))
			}
		}
	}
}

// concernGroups: a group depends on its members, and what a member without a key
// observes on whether it is in one.
func (c *compiler) concernGroups() {
	touched := func(g *Sandbox) bool {
		if _, there := c.todo[g.key()]; there {
			return true
		}
		return slices.ContainsFunc(g.Members, func(m string) bool {
			_, there := c.todo[sandboxName{Name: Name{g.Name.Namespace, m}}]
			return there
		})
	}
	var groups []*Sandbox
	c.base.joins.all(func(name sandboxName, g *SandboxInfo) bool {
		if touched(&g.given) {
			groups = append(groups, &g.given)
			if now := c.todo[name]; now != nil {
				groups = append(groups, now)
			}
			c.again(g)
		}
		return true
	})
	for name, s := range c.todo {
		if name.group && s != nil && c.base.joins.of(name) == nil {
			groups = append(groups, s)
		}
	}
	for _, g := range groups {
		for _, m := range g.Members {
			if s := c.base.byName.of(sandboxName{Name: Name{g.Name.Namespace, m}}); s != nil && s.Key == "" && s.Watched {
				c.again(s)
			}
		}
	}
}
