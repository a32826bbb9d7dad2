// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// redirectProblem reports what is wrong with a redirect, once: a group's redirects
// are its members' and reported there. Nobody can mend a deleted sandbox's.
func (s *SandboxInfo) redirectProblem(field, format string, args ...any) {
	if !s.Group && !s.given.Deleted {
		s.problem(field, format, args...)
	}
}

func (s *SandboxInfo) problem(field, format string, args ...any) {
	s.problems = append(s.problems, problem(s.given.kind(), s.Name, field, format, args...))
}

// target is where a Service port leads as a redirect's target.
type target struct {
	group    *group
	problems []Problem
}

// targetPort is a Service port as EndpointSlices know it: by its name.
type targetPort struct {
	service  Name
	name     string
	protocol Protocol
}

// service returns what is there of a Service; nil: it is not.
func (c *compiler) service(name Name) *service {
	if s := c.services.of(name); s != nil && s.Service != nil {
		return s
	}
	return nil
}

func (c *compiler) resolveRedirects(info *SandboxInfo) {
	s := &info.given
	info.routes = make([]route, 0, len(s.Redirects))
	for i := range s.Redirects {
		r := &s.Redirects[i]
		from := Name{s.Name.Namespace, r.From.Service}
		info.names.add(from)
		if r.To.Service != "" {
			info.names.add(r.To.in(s))
		}
		svc := c.service(from)
		switch {
		case svc == nil:
			info.lose(from, r)
			info.redirectProblem(r.Field+".from.service",
				"there is no Service %s: create it or correct the name; the redirect is not in force", from)
			continue
		case svc.ExternalName != "":
			info.redirectProblem(r.Field+".from.service",
				"Service %s is of type ExternalName, which has no addresses to redirect: redirect the Service it stands for; the redirect is not in force", from)
			continue
		}
		ports := selectPorts(svc.Service, r.From.Port)
		if len(ports) == 0 {
			info.redirectProblem(r.Field+".from.port",
				"Service %s has no port %q, it has %s: use one of these or leave it out for all; the redirect is not in force", from, r.From.Port, portList(svc.Service))
			continue
		}
		for i := range ports {
			p := &ports[i]
			m := c.member(servicePort{from, p.Port, p.Protocol})
			if slices.ContainsFunc(info.routes, func(r route) bool { return r.id == m.id }) {
				info.redirectProblem(r.Field+".from",
					"port %d/%s of Service %s is redirected by an earlier entry, which holds: remove one of the two", p.Port, p.Protocol, from)
				continue
			}
			g, target := c.resolveTarget(info, r, *p)
			policy := r.Unavailable
			if r.Refused != "" {
				policy = Reject
			}
			info.routes = append(info.routes, route{
				Route: Route{
					Group:       g.id,
					Unavailable: policy,
					V4:          uint16(len(g.v4())),
					V6:          uint16(len(g.v6())),
				},
				id: m.id, group: g, from: m.servicePort, target: target, refused: r.Refused,
			})
		}
	}
	slices.SortFunc(info.routes, func(a, b route) int { return cmp.Compare(a.id, b.id) })
}

// selectPorts returns the ports that ref means: a name or a number, or all.
func selectPorts(svc *Service, ref string) []ServicePort {
	if ref == "" {
		return svc.Ports
	}
	var out []ServicePort
	for _, p := range svc.Ports {
		if p.Name == ref || strconv.Itoa(int(p.Port)) == ref {
			out = append(out, p)
		}
	}
	return out
}

func portList(svc *Service) string {
	if len(svc.Ports) == 0 {
		return "none"
	}
	var names []string
	for _, p := range svc.Ports {
		n := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.Name != "" {
			n = fmt.Sprintf("%s (%s)", p.Name, n)
		}
		names = append(names, n)
	}
	return strings.Join(names, ", ")
}

// resolveTarget returns the endpoints that a redirect of port p leads to. When
// it cannot tell, the group is empty, so that tagged traffic is refused rather
// than answered by the baseline.
func (c *compiler) resolveTarget(info *SandboxInfo, r *Redirect, p ServicePort) (*group, string) {
	s := &info.given
	if r.Refused != "" {
		return c.group(nil), r.To.words(s.Name.Namespace)
	}
	if r.To.Service == "" {
		port := p.Port
		if r.To.Port != "" {
			n, err := strconv.ParseUint(r.To.Port, 10, 16)
			if err != nil || n == 0 {
				info.redirectProblem(r.Field+".to.port",
					"an address needs a port number from 1 to 65535, not %q; tagged traffic finds no fork until then", r.To.Port)
				return c.group(nil), "address " + r.To.Address.String()
			}
			port = uint16(n)
		}
		ap := netip.AddrPortFrom(r.To.Address.Unmap(), port)
		if !r.To.Address.IsValid() || !dialable(r.To.Address) {
			info.redirectProblem(r.Field+".to.address",
				"is not an address that a pod can be reached at; tagged traffic finds no fork until then")
			return c.group(nil), "address " + r.To.Address.String()
		}
		return c.group([]netip.AddrPort{ap}), "address " + ap.String()
	}
	to := r.To.in(s)
	words := "Service " + to.String()
	svc := c.service(to)
	switch {
	case svc == nil:
		info.redirectProblem(r.Field+".to.service",
			"there is no Service %s: create it or correct the name; tagged traffic finds no fork until then", to)
		return c.group(nil), words
	case svc.ExternalName != "":
		info.redirectProblem(r.Field+".to.service",
			"Service %s is of type ExternalName, which has no endpoints: name a Service with pods, or use address; tagged traffic finds no fork until then", to)
		return c.group(nil), words
	}
	port, ok := targetServicePort(svc.Service, r.To.Port, p)
	if !ok {
		info.redirectProblem(r.Field+".to",
			"Service %s has no %s port that answers to %s, it has %s: set to.port; tagged traffic finds no fork until then",
			to, p.Protocol, describePort(r.To.Port, p), portList(svc.Service))
		return c.group(nil), words
	}
	words = fmt.Sprintf("%s port %d", words, port.Port)
	k := targetPort{to, port.Name, port.Protocol}
	found := c.targets[k]
	if found == nil {
		found = &target{problems: svc.missingPorts(k), group: c.group(svc.readyEndpoints(k))}
		c.targets[k] = found
	} else {
		c.use(found.group)
	}
	info.problems = append(info.problems, found.problems...)
	return found.group, words
}

// words say where a target is that is not looked for.
func (t *Target) words(namespace string) string {
	if t.Service != "" {
		return "Service " + Name{cmp.Or(t.Namespace, namespace), t.Service}.String()
	}
	return "address " + t.Address.String()
}

func describePort(ref string, p ServicePort) string {
	if ref != "" {
		return strconv.Quote(ref)
	}
	if p.Name != "" {
		return fmt.Sprintf("%q or %d", p.Name, p.Port)
	}
	return strconv.Itoa(int(p.Port))
}

// targetServicePort finds the port of the target that stands for port p of the
// redirected Service: what ref says, else the same name, else the same number,
// else the only one of the protocol.
func targetServicePort(svc *Service, ref string, p ServicePort) (ServicePort, bool) {
	var same []ServicePort
	for _, q := range svc.Ports {
		if q.Protocol == p.Protocol {
			same = append(same, q)
		}
	}
	find := func(f func(ServicePort) bool) (ServicePort, bool) {
		if i := slices.IndexFunc(same, f); i >= 0 {
			return same[i], true
		}
		return ServicePort{}, false
	}
	if ref != "" {
		return find(func(q ServicePort) bool { return q.Name == ref || strconv.Itoa(int(q.Port)) == ref })
	}
	if p.Name != "" {
		if q, ok := find(func(q ServicePort) bool { return q.Name == p.Name }); ok {
			return q, true
		}
	}
	if q, ok := find(func(q ServicePort) bool { return q.Port == p.Port }); ok {
		return q, true
	}
	if len(same) == 1 {
		return same[0], true
	}
	return ServicePort{}, false
}
