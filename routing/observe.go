// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"iter"
	"net/netip"
	"slices"
)

// observe has the Services captured that a sandbox wants to know about without
// redirecting them. Their traffic goes where it went: they have no route. Without
// a key, the sandbox's own or a group's, there is nothing to look for.
func (c *compiler) observe(info *SandboxInfo) {
	s := &info.given
	for _, name := range s.Observe {
		info.names.add(Name{s.Name.Namespace, name})
	}
	if s.Deleted || info.Key == "" && c.grouped.of(info.ID) == 0 {
		return
	}
	if s.ObserveAll {
		c.services.all(func(name Name, svc *service) bool {
			if svc.Service != nil && name.Namespace == s.Name.Namespace {
				info.capture(svc.Service)
			}
			return true
		})
		slices.SortFunc(info.observed, servicePort.compare)
		return
	}
	for _, name := range s.Observe {
		svc := c.service(Name{s.Name.Namespace, name})
		switch {
		case svc == nil:
			info.problem("spec.observe",
				"there is no Service %s: create it or correct the name; it is not observed", Name{s.Name.Namespace, name})
		case svc.ExternalName != "":
			info.problem("spec.observe",
				"Service %s is of type ExternalName, which has no addresses to observe: name the Service it stands for; it is not observed", svc.Name)
		default:
			info.capture(svc.Service)
		}
	}
}

func (s *SandboxInfo) capture(svc *Service) {
	for _, p := range svc.Ports {
		if p.Protocol == TCP {
			s.observed = append(s.observed, servicePort{svc.Name, p.Port, p.Protocol})
		}
	}
}

// endpointKey is an endpoint without a pointer in it, for plainHash.
type endpointKey struct {
	addr [16]byte
	port uint16
}

func keyOf(a netip.Addr, port uint16) endpointKey { return endpointKey{a.As16(), port} }

// matter notes that a Service matters to more, or to fewer: a destination's, or one
// that a redirect leads to. The pods behind these are known by name.
func (c *compiler) matter(svc Name, more int) {
	if n := c.named.of(svc) + more; n > 0 {
		c.named.put(svc, n)
	} else {
		c.named.delete(svc)
	}
	c.renamed[svc] = true
}

// namePods notes which pods are behind the Services that matter.
func (c *compiler) namePods() {
	for name := range c.changed {
		c.renamed[name] = true
	}
	if c.inject != c.base.inject {
		c.services.all(func(name Name, _ *service) bool {
			c.renamed[name] = true
			return true
		})
	}
	for name := range c.renamed {
		was, is := c.base.services.of(name), c.services.of(name)
		if c.base.named.of(name) == 0 && !(c.base.inject && was.injected()) {
			was = nil
		}
		if c.named.of(name) == 0 && !(c.inject && is.injected()) {
			is = nil
		}
		if was == is {
			continue
		}
		endpoints, pods := was.named()
		for e := range endpoints {
			relist(&c.answering, e.endpointKey, e.pod, without)
		}
		for pod := range pods {
			relist(&c.behind, pod, name, without)
		}
		endpoints, pods = is.named()
		for e := range endpoints {
			relist(&c.answering, e.endpointKey, e.pod, with)
		}
		for pod := range pods {
			relist(&c.behind, pod, name, with)
		}
	}
}

// injected reports whether a pod whose connections all go through the router may
// have one to the Service.
func (s *service) injected() bool {
	return s != nil && s.Service != nil && slices.ContainsFunc(s.Ports, func(p ServicePort) bool { return p.Protocol == TCP })
}

// answer is who answers at an endpoint.
type answer struct {
	endpointKey
	pod Name
}

// named returns who is behind a Service.
func (s *service) named() (endpoints map[answer]bool, pods map[Name]bool) {
	if s == nil || s.Service == nil {
		return nil, nil
	}
	endpoints, pods = map[answer]bool{}, map[Name]bool{}
	for _, sl := range s.slices {
		for i := range sl.Endpoints {
			e := &sl.Endpoints[i]
			if e.Pod == "" {
				continue
			}
			pod := Name{s.Name.Namespace, e.Pod}
			for _, p := range sl.Ports {
				endpoints[answer{keyOf(e.Addr, p.Port), pod}] = true
			}
			pods[pod] = true
		}
	}
	return endpoints, pods
}

// relist puts another list of names in the place of a key's: lists are shared.
func relist[K comparable, H hasher[K]](d *draft[K, []Name, H], key K, name Name, edit func([]Name, Name) []Name) {
	if list := edit(d.of(key), name); len(list) > 0 {
		d.put(key, list)
	} else {
		d.delete(key)
	}
}

// with returns a sorted list with one name more. It may be there already, for
// another reason.
func with(list []Name, name Name) []Name {
	i, _ := slices.BinarySearchFunc(list, name, Name.Compare)
	return slices.Insert(slices.Clip(list), i, name)
}

// without returns a sorted list with a name once less.
func without(list []Name, name Name) []Name {
	if i, ok := slices.BinarySearchFunc(list, name, Name.Compare); ok {
		return slices.Delete(slices.Clone(list), i, i+1)
	}
	return list
}

// PodAt names the pod that has an address and port, if it is behind a Service that
// matters: one that is captured or redirected, or that a redirect leads to.
func (t *Table) PodAt(a netip.AddrPort) (Name, bool) {
	if !a.IsValid() {
		return Name{}, false
	}
	pods, ok := t.answering.get(keyOf(a.Addr(), a.Port()))
	if !ok {
		return Name{}, false
	}
	return pods[0], true
}

// Endpoints yields where a destination's Services are answered by TCP: at all of their
// ports' endpoints, ready or not.
func (t *Table) Endpoints(id DestID) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		info := t.byID[id]
		if info == nil {
			return
		}
		for _, p := range info.ports {
			s := t.services.of(p.service)
			if s == nil {
				continue
			}
			for _, sl := range s.slices {
				for i := range sl.Endpoints {
					a := sl.Endpoints[i].Addr.Unmap().WithZone("")
					for _, port := range sl.Ports {
						if port.Protocol == TCP && !yield(netip.AddrPortFrom(a, port.Port)) {
							return
						}
					}
				}
			}
		}
	}
}

// Behind reports whether a pod is behind a Service that matters.
func (t *Table) Behind(pod, service Name) bool { return slices.Contains(t.behind.of(pod), service) }

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
func (t *Table) Serves(pod Name) bool { return len(t.behind.of(pod)) > 0 }

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
	return t.byName.of(sandboxName{name, group})
}

// Sandbox returns a Sandbox by its number; nil: there is none.
func (t *Table) Sandbox(id SandboxID) *SandboxInfo { return t.sandboxes.of(id) }

// Lacking returns the sandbox whose key a request lacks that is known to belong to
// it: it came without any, and d is what was decided. It is nil where the sandbox
// is gone, or where the key would not count: what the source's own identity says
// goes before it.
func (t *Table) Lacking(source Cookie, dest DestID, d *Decision, owner *SandboxInfo) *SandboxInfo {
	sb := t.sandboxes.of(owner.ID)
	if sb == nil || sb.Key == "" || d.Reason == UnknownDest {
		return nil
	}
	id := t.identities[source]
	if id.Sandbox == 0 || id.Sandbox == sb.ID || sb.members[id.Sandbox] && !t.redirects(id.Sandbox, dest) {
		return sb
	}
	return nil
}

// OfMember reports whether what a source's identity decides about a destination is what
// owner, a group, would have decided: it is a member's own pod, and the member redirects
// the destination itself.
func (t *Table) OfMember(source Cookie, dest DestID, owner *SandboxInfo) bool {
	id, sb := t.identities[source], t.sandboxes.of(owner.ID)
	return id.Sandbox != 0 && sb != nil && sb.members[id.Sandbox] && t.redirects(id.Sandbox, dest)
}

// DecideFor says where a request goes that lacks a sandbox's key, and has it added.
// The sandbox is one of this table, as Lacking returns it.
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
	if r := t.route(t.sandboxes.of(sb.ID), info.class); r != nil {
		return r.from.service, r.target
	}
	return info.service, ""
}
