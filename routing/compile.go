// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxGroup is how many endpoints of one family a group can have: the kernel's
// route counts them in 16 bits.
const maxGroup = 1<<16 - 1

// Compile turns objects into the next table after prev, the one in force (nil
// at first). It never fails as a whole: what cannot be honoured is a Problem
// and left out, all else is compiled. The result depends on the input and on
// prev only, not on the order of the input's slices.
//
// Ids are kept from prev wherever the kernel can then be brought from prev to
// the result without misrouting anything on the way; see Diff.
func Compile(in Input, prev *Table) (*Table, []Problem) {
	if prev == nil {
		prev = &Table{}
	}
	c := compiler{
		prev:    prev,
		members: map[servicePort]*member{},
		targets: map[targetPort]*group{},
		// Most generations are about as large as the one before.
		t: &Table{
			generation: prev.generation + 1,
			next:       prev.next,
			dests:      make(map[DestKey]Dest, len(prev.dests)),
			byID:       make(map[DestID]*destInfo, len(prev.byID)),
			classes:    make(map[ClassID]*class, len(prev.classes)),
			classIDs:   make(map[string]ClassID, len(prev.classIDs)),
			routes:     make(map[RouteKey]*route, len(prev.routes)),
			groups:     make(map[GroupID]*group, len(prev.groups)),
			groupIDs:   make(map[string]GroupID, len(prev.groupIDs)),
			identities: make(map[Cookie]Identity, len(prev.identities)),
			sandboxes:  make(map[SandboxID]*SandboxInfo, len(in.Sandboxes)),
			byName:     make(map[sandboxName]*SandboxInfo, len(in.Sandboxes)),
			byKey:      make(map[string]*SandboxInfo, len(in.Sandboxes)),
			answering:  make(map[netip.AddrPort]Name, len(prev.answering)),
			behind:     make(map[Name][]Name, len(prev.behind)),
		},
	}
	c.index(in)
	c.numberSandboxes(in.Sandboxes)
	for i := range c.sandboxes {
		c.resolveRedirects(c.sandboxes[i])
	}
	for i := range c.sandboxes {
		c.observe(c.sandboxes[i])
	}
	c.identify(in.Pods)
	c.collectDests()
	c.namePods()
	c.numberDests()
	c.retire()
	slices.SortFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), a.Object.Compare(b.Object),
			strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	return c.t, c.problems
}

type compiler struct {
	prev *Table
	t    *Table

	services  map[Name]*Service
	slices    map[Name][]*EndpointSlice // by Service
	sandboxes []*Sandbox                // sorted by name, without duplicates
	deleted   map[Name]bool             // of these
	grouped   map[SandboxID]bool        // members of a group that has a key
	watching  map[SandboxID]bool        // those whose pods' requests are wanted in the ledger
	inject    bool                      // some pod here wants every Service

	members map[servicePort]*member // Service ports that matter
	targets map[targetPort]*group
	byDest  map[DestKey][]*member // each sorted

	problems []Problem
}

// servicePort identifies one port of a Service. A Service has no two of the
// same number and protocol.
type servicePort struct {
	service  Name
	port     uint16
	protocol Protocol
}

func (p servicePort) compare(o servicePort) int {
	return cmp.Or(p.service.Compare(o.service), cmp.Compare(p.port, o.port), cmp.Compare(p.protocol, o.protocol))
}

// member is a Service port that is redirected or observed or, with inject, known.
type member struct {
	servicePort
	name      string // the port's
	http2     bool
	redirects []memberRedirect
	captured  bool
	watched   bool // see Table.Watched
	existing  ExistingPolicy
}

type memberRedirect struct {
	sandbox SandboxID
	route   *route
}

// targetPort is a Service port as EndpointSlices know it: by its name.
type targetPort struct {
	service  Name
	name     string
	protocol Protocol
}

func (c *compiler) problem(kind string, obj Name, field, format string, args ...any) {
	c.problems = append(c.problems, Problem{Kind: kind, Object: obj, Field: field, Message: fmt.Sprintf(format, args...)})
}

func (c *compiler) index(in Input) {
	c.services = make(map[Name]*Service, len(in.Services))
	for i := range in.Services {
		c.services[in.Services[i].Name] = &in.Services[i]
	}
	c.slices = make(map[Name][]*EndpointSlice, len(in.Slices))
	for i := range in.Slices {
		s := &in.Slices[i]
		svc := Name{s.Name.Namespace, s.Service}
		c.slices[svc] = append(c.slices[svc], s)
	}
}

// redirectProblem reports what is wrong with a redirect, once: a group's redirects
// are its members' and reported there. Nobody can mend a deleted sandbox's.
func (c *compiler) redirectProblem(s *Sandbox, field, format string, args ...any) {
	if !s.Group && !s.Deleted {
		c.problem(s.kind(), s.Name, field, format, args...)
	}
}

func (c *compiler) resolveRedirects(s *Sandbox) {
	info := c.t.byName[s.key()]
	for i := range s.Redirects {
		r := &s.Redirects[i]
		from := Name{s.Name.Namespace, r.From.Service}
		svc := c.services[from]
		switch {
		case svc == nil:
			info.lose(from, r)
			c.redirectProblem(s, r.Field+".from.service",
				"there is no Service %s: create it or correct the name; the redirect is not in force", from)
			continue
		case svc.ExternalName != "":
			c.redirectProblem(s, r.Field+".from.service",
				"Service %s is of type ExternalName, which has no addresses to redirect: redirect the Service it stands for; the redirect is not in force", from)
			continue
		}
		ports := selectPorts(svc, r.From.Port)
		if len(ports) == 0 {
			c.redirectProblem(s, r.Field+".from.port",
				"Service %s has no port %q, it has %s: use one of these or leave it out for all; the redirect is not in force", from, r.From.Port, portList(svc))
			continue
		}
		for _, p := range ports {
			m := c.member(from, p)
			// Sandboxes come one after another, so an earlier entry of this one is
			// the last.
			if n := len(m.redirects); n > 0 && m.redirects[n-1].sandbox == info.ID {
				c.redirectProblem(s, r.Field+".from",
					"port %d/%s of Service %s is redirected by an earlier entry, which holds: remove one of the two", p.Port, p.Protocol, from)
				continue
			}
			g, target := c.resolveTarget(s, r, p)
			policy := r.Unavailable
			if r.Refused != "" {
				policy = Reject
			}
			m.redirects = append(m.redirects, memberRedirect{info.ID, &route{
				Route: Route{
					Group:       c.t.groupIDs[g.key],
					Unavailable: policy,
					V4:          uint16(len(g.v4)),
					V6:          uint16(len(g.v6)),
				},
				group: g, service: from, target: target, refused: r.Refused,
			}})
			m.existing = max(m.existing, s.Existing)
			// Without a key nobody can tag a request for it, so there is nothing
			// that the router would have to look for.
			m.captured = m.captured || (info.Key != "" && p.Protocol == TCP)
			m.watched = m.watched || (info.Key != "" && info.Watched)
		}
	}
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

func (c *compiler) member(svc Name, p ServicePort) *member {
	k := servicePort{svc, p.Port, p.Protocol}
	m := c.members[k]
	if m == nil {
		m = &member{servicePort: k, name: p.Name, http2: p.HTTP2}
		c.members[k] = m
	}
	return m
}

// resolveTarget returns the endpoints that a redirect of port p leads to. When
// it cannot tell, the group is empty, so that tagged traffic is refused rather
// than answered by the baseline.
func (c *compiler) resolveTarget(s *Sandbox, r *Redirect, p ServicePort) (*group, string) {
	if r.Refused != "" {
		return c.group(nil), r.To.words(s.Name.Namespace)
	}
	if r.To.Service == "" {
		port := p.Port
		if r.To.Port != "" {
			n, err := strconv.ParseUint(r.To.Port, 10, 16)
			if err != nil || n == 0 {
				c.redirectProblem(s, r.Field+".to.port",
					"an address needs a port number from 1 to 65535, not %q; tagged traffic finds no fork until then", r.To.Port)
				return c.group(nil), "address " + r.To.Address.String()
			}
			port = uint16(n)
		}
		ap := netip.AddrPortFrom(r.To.Address.Unmap(), port)
		if !r.To.Address.IsValid() || !dialable(r.To.Address) {
			c.redirectProblem(s, r.Field+".to.address",
				"is not an address that a pod can be reached at; tagged traffic finds no fork until then")
			return c.group(nil), "address " + r.To.Address.String()
		}
		return c.group([]netip.AddrPort{ap}), "address " + ap.String()
	}
	to := Name{cmp.Or(r.To.Namespace, s.Name.Namespace), r.To.Service}
	words := "Service " + to.String()
	svc := c.services[to]
	switch {
	case svc == nil:
		c.redirectProblem(s, r.Field+".to.service",
			"there is no Service %s: create it or correct the name; tagged traffic finds no fork until then", to)
		return c.group(nil), words
	case svc.ExternalName != "":
		c.redirectProblem(s, r.Field+".to.service",
			"Service %s is of type ExternalName, which has no endpoints: name a Service with pods, or use address; tagged traffic finds no fork until then", to)
		return c.group(nil), words
	}
	port, ok := targetServicePort(svc, r.To.Port, p)
	if !ok {
		c.redirectProblem(s, r.Field+".to",
			"Service %s has no %s port that answers to %s, it has %s: set to.port; tagged traffic finds no fork until then",
			to, p.Protocol, describePort(r.To.Port, p), portList(svc))
		return c.group(nil), words
	}
	words = fmt.Sprintf("%s port %d", words, port.Port)
	k := targetPort{to, port.Name, port.Protocol}
	g := c.targets[k]
	if g == nil {
		c.missingPorts(k)
		g = c.group(c.readyEndpoints(k))
		c.targets[k] = g
	}
	return g, words
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

func (c *compiler) readyEndpoints(k targetPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range c.slices[k.service] {
		for _, p := range c.portsOf(s, k) {
			for _, e := range s.Endpoints {
				if e.Ready && dialable(e.Addr) {
					out = append(out, netip.AddrPortFrom(e.Addr.Unmap().WithZone(""), p.Port))
				}
			}
		}
	}
	return out
}

// portsOf returns a slice's ports that stand for a Service port: those of its
// name. Where either side has but one port of the protocol, that is the one,
// whatever it is called: a controller writes the same names, people need not.
func (c *compiler) portsOf(s *EndpointSlice, k targetPort) []EndpointPort {
	var named, same []EndpointPort
	for _, p := range s.Ports {
		if p.Protocol != k.protocol || p.Port == 0 {
			continue
		}
		same = append(same, p)
		if p.Name == k.name {
			named = append(named, p)
		}
	}
	if len(named) > 0 || len(same) != 1 {
		return named
	}
	n := 0
	for _, p := range c.services[k.service].Ports {
		if p.Protocol == k.protocol {
			n++
		}
	}
	if n != 1 {
		return nil
	}
	return same
}

// missingPorts reports Services whose EndpointSlices have endpoints, but for none
// of these a port that stands for one of the Service's.
func (c *compiler) missingPorts(k targetPort) {
	have, found := false, false
	for _, s := range c.slices[k.service] {
		have = have || len(s.Endpoints) > 0
		found = found || len(c.portsOf(s, k)) > 0
	}
	if have && !found {
		c.problem("Service", k.service, "spec.ports",
			"no EndpointSlice of it has a %s port named %q: give the ports of both the same names; until then its endpoints on this port are not known", k.protocol, k.name)
	}
}

// dialable keeps out addresses that mean something else in every pod.
func dialable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// group interns a list of endpoints. It sorts and changes eps.
func (c *compiler) group(eps []netip.AddrPort) *group {
	slices.SortFunc(eps, netip.AddrPort.Compare)
	eps = slices.Compact(eps)
	g := &group{}
	var key []byte
	for _, ep := range eps {
		if ep.Addr().Is4() {
			g.v4 = append(g.v4, ep)
		} else {
			g.v6 = append(g.v6, ep)
		}
		a := ep.Addr().As16()
		key = append(key, a[:]...)
		key = binary.BigEndian.AppendUint16(key, ep.Port())
	}
	g.v4, g.v6 = g.v4[:min(len(g.v4), maxGroup)], g.v6[:min(len(g.v6), maxGroup)]
	g.key = string(key)
	if id, ok := c.t.groupIDs[g.key]; ok {
		return c.t.groups[id]
	}
	id, ok := c.prev.groupIDs[g.key]
	if ok {
		g = c.prev.groups[id]
	} else {
		c.t.next.group++
		id = c.t.next.group
	}
	c.t.groups[id] = g
	c.t.groupIDs[g.key] = id
	return g
}

// identify gives the node's namespaces their identities.
func (c *compiler) identify(pods []Pod) {
	sorted := slices.Clone(pods)
	slices.SortFunc(sorted, func(a, b Pod) int { return a.Name.Compare(b.Name) })
	for _, p := range sorted {
		if p.Sandbox == "" {
			if p.Inject {
				c.problem("Pod", p.Name, "metadata.labels[sidetrack.dev/inject]",
					"has no effect without the label sidetrack.dev/sandbox")
			}
			continue
		}
		name := Name{p.Name.Namespace, p.Sandbox}
		info := c.t.byName[sandboxName{Name: name}]
		if info == nil {
			c.problem("Pod", p.Name, "metadata.labels[sidetrack.dev/sandbox]",
				"there is no Sandbox %s: create it or correct the label; the pod's traffic is not tagged", name)
			continue
		}
		inject := p.Inject && info.Key != ""
		switch {
		case c.deleted[name]:
			c.problem("Pod", p.Name, "metadata.labels[sidetrack.dev/sandbox]",
				"Sandbox %s has been deleted: delete the pod or correct the label; until then what the sandbox redirected is refused to it", name)
		case p.Inject && !inject:
			c.problem("Pod", p.Name, "metadata.labels[sidetrack.dev/inject]",
				"Sandbox %s has no routing key to inject: set spec.routingKey; until then the pod's flows are redirected in the kernel alone", name)
		}
		if p.Netns == 0 {
			continue
		}
		if _, taken := c.t.identities[p.Netns]; taken {
			continue // another pod of the same namespace; daemon/pods reports where they differ
		}
		c.t.identities[p.Netns] = Identity{Sandbox: info.ID, Inject: inject, Grouped: (c.grouped[info.ID] || c.watching[info.ID]) && !inject}
		c.inject = c.inject || inject
	}
}

// collectDests finds out which addresses belong to the Service ports that
// matter.
func (c *compiler) collectDests() {
	if c.inject {
		for _, svc := range c.services {
			for _, p := range svc.Ports {
				if p.Protocol == TCP {
					c.member(svc.Name, p)
				}
			}
		}
	}
	c.byDest = make(map[DestKey][]*member, 2*len(c.members))
	for _, m := range c.members {
		add := func(a netip.Addr, port uint16) {
			if !dialable(a) || port == 0 {
				return
			}
			k := DestKey{a.Unmap().WithZone(""), port, m.protocol}
			if !slices.Contains(c.byDest[k], m) {
				c.byDest[k] = append(c.byDest[k], m)
			}
		}
		for _, a := range c.services[m.service].Addresses {
			add(a, m.port)
		}
		k := targetPort{m.service, m.name, m.protocol}
		if len(m.redirects) > 0 && c.targets[k] == nil {
			c.missingPorts(k)
		}
		for _, s := range c.slices[m.service] {
			for _, p := range c.portsOf(s, k) {
				// Those that are not ready too: who dials them without us reaches
				// them, and a tagged request to them is a tagged request.
				for _, e := range s.Endpoints {
					add(e.Addr, p.Port)
				}
			}
		}
	}
}
