// SPDX-License-Identifier: Apache-2.0

package routing

import "slices"

// release takes back what a sandbox has taken part in, before it is compiled anew.
func (c *compiler) release(name sandboxName) {
	s := c.base.byName.of(name)
	if s == nil {
		return
	}
	c.stale = append(c.stale, s)
	for i := range s.routes {
		c.leave(s.routes[i].group)
	}
	c.count(s, -1)
	if s.Key != "" {
		c.byKey.delete(s.Key)
	} else if waiting := c.waiting.of(s.given.Key); slices.Contains(waiting, name) {
		waiting = slices.DeleteFunc(slices.Clone(waiting), func(o sandboxName) bool { return o == name })
		if len(waiting) > 0 {
			c.waiting.put(s.given.Key, waiting)
		} else {
			c.waiting.delete(s.given.Key)
		}
	}
	c.troubled.delete(s.ID)
	c.sandboxes.delete(s.ID)
	c.byName.delete(name)
	c.joins.delete(name)
	for id := range s.members {
		if n := c.grouped.of(id); n > 1 {
			c.grouped.put(id, n-1)
		} else {
			c.grouped.delete(id)
		}
	}
}

// numberSandboxes gives those that are compiled anew their ids and their keys.
// Whoever has a key already keeps it, so that a newcomer cannot take traffic over by
// choosing somebody else's key.
func (c *compiler) numberSandboxes() {
	for _, name := range c.names() {
		s := c.todo[name]
		if s == nil {
			continue
		}
		info := &SandboxInfo{Name: s.Name, Group: s.Group, Propagate: s.Propagate, given: *s}
		info.Watched = len(s.Observe) > 0 || s.ObserveAll || s.Propagate
		info.AllWatched = info.Watched
		if old := c.prev.byName.of(name); old != nil {
			info.ID = old.ID
			if s.Key != "" && old.Key == s.Key {
				info.Key = s.Key
				c.byKey.put(s.Key, info)
			}
		} else {
			c.next.sandbox++
			info.ID = c.next.sandbox
		}
		c.fresh = append(c.fresh, info)
		c.sandboxes.put(info.ID, info)
		c.byName.put(name, info)
	}
	for _, info := range c.fresh {
		c.claim(info)
	}
	for _, info := range c.fresh {
		if info.Group {
			c.join(info)
		}
	}
}

// claim gives a sandbox the key that it asks for.
func (c *compiler) claim(info *SandboxInfo) {
	key := info.given.Key
	switch {
	case key == "" || info.Key != "":
	case !ValidKey(key):
		info.problem("spec.routingKey",
			"is not a routing key: use %d to %d of A-Z a-z 0-9 - . _ ~; until then only flows of the sandbox's own pods are tagged", MinKeyLen, MaxKeyLen)
	case c.byKey.of(key) != nil:
		// Not whose: the key is a secret, and who guesses one should not be told
		// what it opens.
		info.problem("spec.routingKey",
			"is in use already: choose another; until then only flows of the sandbox's own pods are tagged")
		c.waiting.put(key, append(slices.Clip(c.waiting.of(key)), info.given.key()))
	default:
		info.Key = key
		c.byKey.put(key, info)
	}
}

// join notes whose pods a group's key counts for, and whether a trace id may stand
// for it: where one member's owner has not asked for that, none of the members'
// forks may be reached by it.
func (c *compiler) join(group *SandboxInfo) {
	c.joins.put(group.given.key(), group)
	if group.Key == "" {
		return
	}
	group.members = make(map[SandboxID]bool, len(group.given.Members))
	all, watched := true, true
	for _, m := range group.given.Members {
		s := c.byName.of(sandboxName{Name: Name{group.Name.Namespace, m}})
		if s == nil {
			continue
		}
		if !group.members[s.ID] {
			group.members[s.ID] = true
			c.grouped.put(s.ID, c.grouped.of(s.ID)+1)
		}
		all = all && s.Propagate
		group.Watched = group.Watched || s.Watched
		watched = watched && s.Watched
	}
	group.Propagate = all && len(group.members) > 0
	group.AllWatched = watched && len(group.members) > 0
}

// sandboxName tells a sandbox from a group of the same name.
type sandboxName struct {
	Name
	group bool
}

func (s *Sandbox) key() sandboxName { return sandboxName{s.Name, s.Group} }

func (a sandboxName) compare(b sandboxName) int {
	if c := a.Name.Compare(b.Name); c != 0 || a.group == b.group {
		return c
	}
	if b.group {
		return -1
	}
	return 1
}

func (s *Sandbox) kind() string {
	if s.Group {
		return "RouteGroup"
	}
	return "Sandbox"
}
