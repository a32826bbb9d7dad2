// SPDX-License-Identifier: Apache-2.0

package routing

// observe has the Services captured that a sandbox wants to know about without
// redirecting them. Their traffic goes where it went: they have no route. Without
// a key, the sandbox's own or a group's, there is nothing to look for.
func (c *compiler) observe(s *Sandbox) {
	info := c.t.byName[s.key()]
	if s.Deleted || info.Key == "" && !c.grouped[info.ID] {
		return
	}
	if s.ObserveAll {
		for name, svc := range c.services {
			if name.Namespace == s.Name.Namespace {
				c.capture(s, svc)
			}
		}
		return
	}
	for _, name := range s.Observe {
		svc := c.services[Name{s.Name.Namespace, name}]
		switch {
		case svc == nil:
			c.problem(s.kind(), s.Name, "spec.observe",
				"there is no Service %s: create it or correct the name; it is not observed", Name{s.Name.Namespace, name})
		case svc.ExternalName != "":
			c.problem(s.kind(), s.Name, "spec.observe",
				"Service %s is of type ExternalName, which has no addresses to observe: name the Service it stands for; it is not observed", svc.Name)
		default:
			c.capture(s, svc)
		}
	}
}

func (c *compiler) capture(s *Sandbox, svc *Service) {
	for _, p := range svc.Ports {
		if p.Protocol == TCP {
			m := c.member(svc.Name, p)
			m.captured = true
			m.existing = max(m.existing, s.Existing)
		}
	}
}
