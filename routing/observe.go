// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"slices"
)

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
			m.captured, m.watched = true, true
			m.existing = max(m.existing, s.Existing)
		}
	}
}

// namePods notes which pods are behind the Services that matter: those of
// destinations, and those that redirects lead to.
func (c *compiler) namePods() {
	named := map[Name]bool{}
	name := func(svc Name) {
		if named[svc] {
			return
		}
		named[svc] = true
		for _, s := range c.slices[svc] {
			for _, e := range s.Endpoints {
				if e.Pod == "" {
					continue
				}
				pod := Name{svc.Namespace, e.Pod}
				for _, p := range s.Ports {
					c.t.answering[netip.AddrPortFrom(e.Addr.Unmap().WithZone(""), p.Port)] = pod
				}
				if !slices.Contains(c.t.behind[pod], svc) {
					c.t.behind[pod] = append(c.t.behind[pod], svc)
				}
			}
		}
	}
	for p := range c.members {
		name(p.service)
	}
	for k := range c.targets {
		name(k.service)
	}
}

// PodAt names the pod that has an address and port, if it is behind a Service that
// matters: one that is captured or redirected, or that a redirect leads to.
func (t *Table) PodAt(a netip.AddrPort) (Name, bool) {
	pod, ok := t.answering[netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())]
	return pod, ok
}

// Behind reports whether a pod is behind a Service that matters.
func (t *Table) Behind(pod, service Name) bool { return slices.Contains(t.behind[pod], service) }

// Watched reports whether somebody wants to know of calls to a destination that lose
// a key: a sandbox observes it, or redirects it and observes or propagates. It does
// not allocate, and where nobody wants to know of any it is one load.
func (t *Table) Watched(id DestID) bool {
	if !t.watched {
		return false
	}
	info := t.byID[id]
	return info != nil && info.watched
}

// Serves reports whether a pod is behind any Service that matters.
func (t *Table) Serves(pod Name) bool { return len(t.behind[pod]) > 0 }

// ServicePort returns which port of a Service a destination is; zero when it is
// none, or not known.
func (t *Table) ServicePort(id DestID, service Name) uint16 {
	if info := t.byID[id]; info != nil {
		for _, p := range info.ports {
			if p.service == service {
				return p.port
			}
		}
	}
	return 0
}

// SandboxNamed returns a Sandbox, or a RouteGroup, by its name; nil: there is none.
func (t *Table) SandboxNamed(name Name, group bool) *SandboxInfo {
	return t.byName[sandboxName{name, group}]
}

// Sandbox returns a Sandbox by its number; nil: there is none.
func (t *Table) Sandbox(id SandboxID) *SandboxInfo { return t.sandboxes[id] }

// Lacking returns the sandbox whose key a request lacks that is known to belong to
// it: it came without any, and d is what was decided. It is nil where the sandbox
// is gone, or where the key would not count: what the source's own identity says
// goes before it.
func (t *Table) Lacking(source Cookie, dest DestID, d *Decision, owner *SandboxInfo) *SandboxInfo {
	sb := t.sandboxes[owner.ID]
	if sb == nil || sb.Key == "" || d.Reason == UnknownDest {
		return nil
	}
	id := t.identities[source]
	if id.Sandbox == 0 || id.Sandbox == sb.ID || sb.members[id.Sandbox] && !t.redirects(id.Sandbox, dest) {
		return sb
	}
	return nil
}

// DecideFor says where a request goes that lacks a sandbox's key, and has it added.
func (t *Table) DecideFor(sb *SandboxInfo, dest DestID) Decision {
	d := t.decide(sb, dest)
	d.Inject = sb.Key
	return d
}

// Leads names the Service that a destination is for a sandbox and, where it
// redirects it, says in words where to.
func (t *Table) Leads(sb *SandboxInfo, id DestID) (service Name, target string) {
	info := t.byID[id]
	if info == nil {
		return Name{}, ""
	}
	if r := t.routes[RouteKey{sb.ID, info.class}]; r != nil {
		return r.service, r.target
	}
	return info.service, ""
}
