// SPDX-License-Identifier: Apache-2.0

package routing

import "slices"

// numberSandboxes gives each sandbox its id and its key. Whoever has a key
// already keeps it, so that a newcomer cannot take traffic over by choosing
// somebody else's key.
func (c *compiler) numberSandboxes(all []Sandbox) {
	for i := range all {
		c.sandboxes = append(c.sandboxes, &all[i])
	}
	slices.SortStableFunc(c.sandboxes, func(a, b *Sandbox) int { return a.key().compare(b.key()) })
	c.deleted, c.watching = map[Name]bool{}, map[SandboxID]bool{}
	c.sandboxes = slices.CompactFunc(c.sandboxes, func(a, b *Sandbox) bool { return a.key() == b.key() })

	claimed := make(map[string]sandboxName, len(c.sandboxes))
	for _, s := range c.sandboxes {
		if old := c.prev.byName[s.key()]; s.Key != "" && old != nil && old.Key == s.Key {
			claimed[s.Key] = s.key()
		}
	}
	for _, s := range c.sandboxes {
		info := &SandboxInfo{Name: s.Name, Group: s.Group, Key: s.Key, Propagate: s.Propagate}
		if old := c.prev.byName[s.key()]; old != nil {
			info.ID = old.ID
		} else {
			c.t.next.sandbox++
			info.ID = c.t.next.sandbox
		}
		switch holder, taken := claimed[s.Key]; {
		case s.Key == "":
		case !ValidKey(s.Key):
			info.Key = ""
			c.problem(s.kind(), s.Name, "spec.routingKey",
				"is not a routing key: use %d to %d of A-Z a-z 0-9 - . _ ~; until then only flows of the sandbox's own pods are tagged", MinKeyLen, MaxKeyLen)
		case taken && holder != s.key():
			info.Key = ""
			// Not whose: the key is a secret, and who guesses one should not be told
			// what it opens.
			c.problem(s.kind(), s.Name, "spec.routingKey",
				"is in use already: choose another; until then only flows of the sandbox's own pods are tagged")
		default:
			claimed[s.Key] = s.key()
			c.t.byKey[s.Key] = info
		}
		info.Watched = len(s.Observe) > 0 || s.ObserveAll || s.Propagate
		c.watching[info.ID] = info.Key != "" && !s.Group && info.Watched
		if s.Deleted {
			c.deleted[s.Name] = true
		}
		c.t.sandboxes[info.ID] = info
		c.t.byName[s.key()] = info
	}
	c.grouped = map[SandboxID]bool{}
	for _, s := range c.sandboxes {
		if info := c.t.byName[s.key()]; s.Group && info.Key != "" {
			c.join(info, s.Members)
		}
	}
}

// join notes whose pods a group's key counts for, and whether a trace id may stand
// for it: where one member's owner has not asked for that, none of the members'
// forks may be reached by it.
func (c *compiler) join(group *SandboxInfo, members []string) {
	group.members = make(map[SandboxID]bool, len(members))
	all := true
	for _, m := range members {
		if s := c.t.byName[sandboxName{Name: Name{group.Name.Namespace, m}}]; s != nil {
			group.members[s.ID] = true
			c.grouped[s.ID] = true
			all = all && s.Propagate
			group.Watched = group.Watched || s.Watched
		}
	}
	group.Propagate = all && len(group.members) > 0
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
