// SPDX-License-Identifier: Apache-2.0

package routing

// member returns a member that may be changed, or a new one.
func (c *compiler) member(p servicePort) *member {
	m := c.touched[p]
	if m != nil {
		return m
	}
	m = &member{servicePort: p}
	if old := c.base.members.of(p); old != nil {
		*m = *old
	} else if old := c.prev.members.of(p); old != nil {
		m.id = old.id
	} else {
		c.next.port++
		m.id = c.next.port
	}
	c.touched[p] = m
	return m
}

// contribute enters what a sandbox has been compiled to.
func (c *compiler) contribute(s *SandboxInfo) {
	c.count(s, +1)
	if len(s.problems) > 0 {
		c.troubled.put(s.ID, s)
	}
}

// count has members know of one sandbox more, or of one less.
func (c *compiler) count(s *SandboxInfo, n int) {
	existing := min(s.given.Existing, All)
	for i := range s.routes {
		p := s.routes[i].from
		m := c.member(p)
		m.redirects += n
		m.existing[existing] += n
		// Without a key nobody can tag a request for it, so there is nothing
		// that the router would have to look for.
		if s.Key != "" && p.protocol == TCP {
			m.captures += n
		}
		if s.Key != "" && s.Watched {
			m.watches += n
		}
	}
	for _, p := range s.observed {
		m := c.member(p)
		m.captures += n
		m.watches += n
		m.existing[existing] += n
	}
	for i := range s.given.Redirects {
		if r := &s.given.Redirects[i]; r.To.Service != "" && r.Refused == "" {
			c.matter(r.To.in(&s.given), n)
		}
	}
}

// settleMembers enters the members that have changed, and reports whether there is
// anything for destinations in it, or in what else has changed.
func (c *compiler) settleMembers() bool {
	moved := c.everyMoved
	for p, m := range c.touched {
		old := c.base.members.of(p)
		if old == nil {
			old = &member{}
		}
		if m.used() {
			c.members.put(p, m)
		} else {
			c.members.delete(p)
		}
		switch was, is := old.used(), m.used(); {
		case is && !was:
			c.matter(p.service, +1)
			moved = true
		case was && !is:
			c.matter(p.service, -1)
			moved = true
		default:
			moved = moved || was && old.summary() != m.summary()
		}
	}
	for name := range c.changed {
		// Where a port has gone, so have its redirects.
		s := c.service(name)
		for i := 0; s != nil && i < len(s.Ports) && !moved; i++ {
			_, moved = c.members.get(servicePort{name, s.Ports[i].Port, s.Ports[i].Protocol})
		}
	}
	return moved
}
