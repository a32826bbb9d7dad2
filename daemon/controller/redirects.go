// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// targetView is what redirects depend on.
type targetView struct {
	service func(types.NamespacedName) *corev1.Service // nil: there is none
	slices  func(types.NamespacedName) []*discoveryv1.EndpointSlice
	// granted reports whether Sandboxes of a namespace may refer to a Service of
	// another; where they may not, what to do about it.
	granted func(from string, to types.NamespacedName) (bool, string)
}

// servicePort is a port of a Service in the sandbox's namespace.
type servicePort struct {
	service  string
	port     int32
	protocol corev1.Protocol
}

// resolution is what has become of a sandbox's redirects.
type resolution struct {
	redirects []v1alpha1.RedirectStatus
	refusals  []refusal
	// notes say what gives way to an earlier redirect.
	notes []string
	// services are those that nodes have to know for the redirects.
	services []types.NamespacedName
	// targets are those Services whose endpoints they have to know.
	targets []types.NamespacedName
}

// resolve decides on the redirects of a sandbox: those of its spec, in their
// order, then those of its forks, in theirs. A port of a Service is redirected
// once, by the first that names it: so what the spec says goes before what forks
// bring along. No two of the result are about the same port.
func resolve(sb *v1alpha1.Sandbox, forks []fork, view targetView) resolution {
	r := resolver{sandbox: sb, view: view, taken: takenPorts{}}
	for i, rd := range sb.Spec.Redirects {
		r.add(rd, nil, fmt.Sprintf("spec.redirects[%d]", i), view.service(types.NamespacedName{Namespace: sb.Namespace, Name: rd.From.Service}))
	}
	for i := range forks {
		f := &forks[i]
		for _, s := range f.services {
			from := view.service(types.NamespacedName{Namespace: sb.Namespace, Name: s.from})
			if from == nil || len(from.Spec.Ports) == 0 {
				continue
			}
			r.add(v1alpha1.Redirect{
				From:        v1alpha1.RedirectFrom{Service: s.from},
				To:          v1alpha1.RedirectTo{Service: s.object.Name},
				Unavailable: v1alpha1.UnavailableReject,
			}, f, "the fork of "+workloadName(f.ref), from)
		}
		r.keep(f)
	}
	return r.out
}

type resolver struct {
	sandbox *v1alpha1.Sandbox
	view    targetView
	taken   takenPorts
	out     resolution
}

func (r *resolver) refuse(s *v1alpha1.RedirectStatus, what, reason, format string, args ...any) {
	s.Message = fmt.Sprintf(format, args...)
	r.out.refusals = append(r.out.refusals, refusal{reason, what + ": " + s.Message})
}

// keep leaves redirects of a fork as they are while what they have come from is
// gone: the baseline, or its Service, which may be made anew at any time, as
// "kubectl replace --force" does.
func (r *resolver) keep(f *fork) {
	workload := workloadName(f.ref)
	for _, s := range r.sandbox.Status.Redirects {
		if s.Fork != workload {
			continue
		}
		rd := v1alpha1.Redirect{From: s.From, To: s.To, Unavailable: s.Unavailable}
		from := r.view.service(types.NamespacedName{Namespace: r.sandbox.Namespace, Name: s.From.Service})
		switch {
		case from == nil:
			s.Message = fmt.Sprintf("there is no Service %s any more: its redirect stays for one that is made anew", s.From.Service)
			target := types.NamespacedName{Namespace: r.sandbox.Namespace, Name: s.To.Service}
			if s.Refused = f.refusal != nil && !f.orphan; s.Refused {
				s.Message, s.Endpoints = "the fork of "+workload+": "+f.refusal.message, 0
			} else if svc := r.view.service(target); svc != nil {
				s.Endpoints = readyEndpoints(r.view.slices(target), svc.Spec.Ports, f.addresses)
			}
			r.out.redirects = append(r.out.redirects, s)
		case f.orphan:
			r.add(rd, &fork{ref: f.ref, addresses: f.addresses}, "the fork of "+workload, from)
		}
	}
}

func (r *resolver) add(rd v1alpha1.Redirect, f *fork, what string, from *corev1.Service) {
	s := v1alpha1.RedirectStatus{From: rd.From, To: rd.To, Unavailable: rd.Unavailable}
	if f != nil {
		s.Fork = workloadName(f.ref)
	}
	if s.Unavailable == "" {
		s.Unavailable = v1alpha1.UnavailableReject
	}
	if s.To.Namespace == r.sandbox.Namespace {
		s.To.Namespace = ""
	}
	ports := r.from(&s, what, from)
	if f != nil && f.refusal != nil {
		s.Refused, s.Message = true, what+": "+f.refusal.message
	} else {
		var only map[string]bool
		if f != nil {
			only = f.addresses
		}
		r.to(&s, what, f != nil, only, ports)
	}

	left, note := r.taken.take(s, ports, what)
	if note != "" {
		r.out.notes = append(r.out.notes, note)
	}
	r.out.redirects = append(r.out.redirects, left...)
}

// takenPorts are the redirected ports and by what.
type takenPorts map[servicePort]string

// take leaves out what an earlier redirect has taken, so that nodes need not
// decide it.
func (t takenPorts) take(s v1alpha1.RedirectStatus, ports []corev1.ServicePort, what string) (left []v1alpha1.RedirectStatus, note string) {
	var free []corev1.ServicePort
	var before string
	for _, p := range ports {
		at := servicePort{s.From.Service, p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)}
		if by, ok := t[at]; ok {
			before = by
			continue
		}
		t[at] = what
		free = append(free, p)
	}
	if before == "" {
		return []v1alpha1.RedirectStatus{s}, ""
	}
	for _, p := range free {
		one := s
		port := intstr.FromInt32(p.Port)
		if p.Name != "" {
			port = intstr.FromString(p.Name)
		}
		one.From.Port = &port
		left = append(left, one)
	}
	which := "all of it"
	if len(free) > 0 {
		which = "some of its ports"
	}
	return left, fmt.Sprintf("%s gives way to %s, which comes first, about Service %s (%s)", what, before, s.From.Service, which)
}

// from finds the ports that are redirected; none where there is no such Service
// or port, or where it has no addresses.
func (r *resolver) from(s *v1alpha1.RedirectStatus, what string, svc *corev1.Service) []corev1.ServicePort {
	name := types.NamespacedName{Namespace: r.sandbox.Namespace, Name: s.From.Service}
	switch {
	case svc == nil:
		r.refuse(s, what, reasonServiceNotFound, "there is no Service %s: create it or correct from.service; until then nothing is redirected", name)
		return nil
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		r.refuse(s, what, reasonUnsupported, "Service %s is of type ExternalName, which has no addresses to redirect: name the Service that it stands for", name)
		return nil
	}
	r.out.services = append(r.out.services, name)
	if s.From.Port == nil {
		return svc.Spec.Ports
	}
	var out []corev1.ServicePort
	for _, p := range svc.Spec.Ports {
		if isPort(p, s.From.Port.String()) {
			out = append(out, p)
		}
	}
	if out == nil {
		r.refuse(s, what, reasonPortNotFound, "Service %s has no port %s, it has %s: use one of these, or leave from.port out for all; until then nothing is redirected",
			name, s.From.Port, portList(svc))
	}
	return out
}

// to decides on the target and counts its endpoints; of a fork's own, which
// follow its pods a moment later, those of its present pods.
func (r *resolver) to(s *v1alpha1.RedirectStatus, what string, own bool, only map[string]bool, ports []corev1.ServicePort) {
	if s.To.Service == "" {
		s.Endpoints = 1
		return
	}
	name := types.NamespacedName{Namespace: cmp.Or(s.To.Namespace, r.sandbox.Namespace), Name: s.To.Service}
	if s.To.Namespace != "" {
		// First, and the same whether the Service exists or not: that is the other
		// namespace's business.
		if ok, remedy := r.view.granted(r.sandbox.Namespace, name); !ok {
			s.Refused = true
			r.refuse(s, what, reasonRefNotPermitted, "namespace %s does not let Sandboxes of %s refer to its Service %s: %s; until then tagged traffic is rejected",
				name.Namespace, r.sandbox.Namespace, name.Name, remedy)
			return
		}
	}
	svc := r.view.service(name)
	if !own {
		switch {
		case svc == nil:
			r.refuse(s, what, reasonServiceNotFound, "there is no Service %s: create it or correct to.service; until then tagged traffic finds no endpoint", name)
			return
		case svc.Spec.Type == corev1.ServiceTypeExternalName:
			r.refuse(s, what, reasonUnsupported, "Service %s is of type ExternalName, which has no endpoints: name a Service with pods, or use to.address; until then tagged traffic finds no endpoint", name)
			return
		}
	}
	r.out.services = append(r.out.services, name)
	r.out.targets = append(r.out.targets, name)
	if svc == nil {
		return // the fork's own, just made: it comes in a moment
	}
	var targets []corev1.ServicePort
	for _, p := range ports {
		t, ok := targetPort(svc, s.To.Port, p)
		if !ok {
			r.refuse(s, what, reasonPortNotFound, "Service %s has no %s port that stands for %s of Service %s, it has %s: set to.port; until then tagged traffic finds no endpoint",
				name, cmp.Or(p.Protocol, corev1.ProtocolTCP), describePort(s.To.Port, p), s.From.Service, portList(svc))
			continue
		}
		targets = append(targets, t)
	}
	s.Endpoints = readyEndpoints(r.view.slices(name), targets, only)
	if s.Endpoints == 0 && s.Message == "" && !own {
		s.Message = fmt.Sprintf("Service %s has no ready endpoint", name)
	}
}

func isPort(p corev1.ServicePort, ref string) bool {
	return p.Name == ref || strconv.Itoa(int(p.Port)) == ref
}

// targetPort finds the port that stands for another Service's, by the rule that
// the nodes go by as well: the one that is named, else the one of the same name,
// else of the same number, else the only one.
func targetPort(svc *corev1.Service, ref *intstr.IntOrString, from corev1.ServicePort) (corev1.ServicePort, bool) {
	var same []corev1.ServicePort
	for _, p := range svc.Spec.Ports {
		if cmp.Or(p.Protocol, corev1.ProtocolTCP) == cmp.Or(from.Protocol, corev1.ProtocolTCP) {
			same = append(same, p)
		}
	}
	find := func(match func(corev1.ServicePort) bool) (corev1.ServicePort, bool) {
		for _, p := range same {
			if match(p) {
				return p, true
			}
		}
		return corev1.ServicePort{}, false
	}
	if ref != nil {
		return find(func(p corev1.ServicePort) bool { return isPort(p, ref.String()) })
	}
	if from.Name != "" {
		if p, ok := find(func(p corev1.ServicePort) bool { return p.Name == from.Name }); ok {
			return p, true
		}
	}
	if p, ok := find(func(p corev1.ServicePort) bool { return p.Port == from.Port }); ok {
		return p, true
	}
	if len(same) == 1 {
		return same[0], true
	}
	return corev1.ServicePort{}, false
}

func describePort(ref *intstr.IntOrString, p corev1.ServicePort) string {
	switch {
	case ref != nil:
		return strconv.Quote(ref.String())
	case p.Name != "":
		return fmt.Sprintf("%q (%d)", p.Name, p.Port)
	}
	return strconv.Itoa(int(p.Port))
}

func portList(svc *corev1.Service) string {
	if len(svc.Spec.Ports) == 0 {
		return "none"
	}
	var names []string
	for _, p := range svc.Spec.Ports {
		n := fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP))
		if p.Name != "" {
			n = fmt.Sprintf("%s (%s)", p.Name, n)
		}
		names = append(names, n)
	}
	return join(names, ", ")
}

// readyEndpoints counts those that serve at least one of the ports, in the
// family that has most of them. Where only is not nil, others do not count.
func readyEndpoints(all []*discoveryv1.EndpointSlice, ports []corev1.ServicePort, only map[string]bool) int32 {
	byFamily := map[discoveryv1.AddressType]map[string]bool{}
	for _, s := range all {
		if !servesOneOf(s, ports) {
			continue
		}
		ready := byFamily[s.AddressType]
		if ready == nil {
			ready = map[string]bool{}
			byFamily[s.AddressType] = ready
		}
		for _, e := range s.Endpoints {
			if (e.Conditions.Ready == nil || *e.Conditions.Ready) && (only == nil || anyOf(only, e.Addresses)) {
				ready[strings.Join(e.Addresses, ",")] = true
			}
		}
	}
	most := 0
	for _, ready := range byFamily {
		most = max(most, len(ready))
	}
	return int32(most)
}

func anyOf(set map[string]bool, items []string) bool {
	for _, i := range items {
		if set[i] {
			return true
		}
	}
	return false
}

func servesOneOf(s *discoveryv1.EndpointSlice, ports []corev1.ServicePort) bool {
	for _, have := range s.Ports {
		if have.Port == nil {
			continue
		}
		for _, p := range ports {
			if deref(have.Name) == p.Name && cmp.Or(deref(have.Protocol), corev1.ProtocolTCP) == cmp.Or(p.Protocol, corev1.ProtocolTCP) {
				return true
			}
		}
	}
	return false
}

func deref[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}
