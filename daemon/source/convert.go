// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unique"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Conversions are pure and the same for every source. The error list holds what
// an API server would not have let through; what it names is left out of the
// value.

// known returns one copy of a text that many objects have: namespaces, names of
// ports and of Services that everybody redirects.
func known(text string) string { return unique.Make(text).Value() }

// convertService takes what routing needs of a Service.
func convertService(o *corev1.Service) (routing.Service, field.ErrorList) {
	var errs field.ErrorList
	s := routing.Service{Name: routing.Name{Namespace: known(o.Namespace), Name: o.Name}}
	spec := field.NewPath("spec")
	if o.Spec.Type == corev1.ServiceTypeExternalName {
		s.ExternalName = o.Spec.ExternalName
		if s.ExternalName == "" {
			errs = append(errs, field.Required(spec.Child("externalName"), "a Service of type ExternalName needs it"))
		}
		return s, errs
	}
	add := func(at *field.Path, text string) {
		if text == "" || text == corev1.ClusterIPNone {
			return
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, invalid(at, "%q is not an IP address", text))
			return
		}
		for _, have := range s.Addresses {
			if have == addr {
				return
			}
		}
		s.Addresses = append(s.Addresses, addr)
	}
	add(spec.Child("clusterIP"), o.Spec.ClusterIP)
	for i, ip := range o.Spec.ClusterIPs {
		add(spec.Child("clusterIPs").Index(i), ip)
	}
	// External and load balancer addresses are left out: see routing.Service.
	for i, p := range o.Spec.Ports {
		at := spec.Child("ports").Index(i)
		proto, ok, err := protocol(at, p.Protocol)
		if err != nil {
			errs = append(errs, err)
		}
		if p.Port < 1 || p.Port > 65535 {
			errs = append(errs, invalid(at.Child("port"), "%d is not a port number: use 1 to 65535", p.Port))
			ok = false
		}
		if ok {
			s.Ports = append(s.Ports, routing.ServicePort{Name: known(p.Name), Port: uint16(p.Port), Protocol: proto, HTTP2: speaksHTTP2(&p)})
		}
	}
	return s, errs
}

// speaksHTTP2 reports whether a port is declared to speak HTTP/2 without TLS: by
// appProtocol (KEP-3726 has kubernetes.io/h2c; the others are what meshes and
// gateways take) or else by the prefix of its name, as Istio has made usual.
func speaksHTTP2(p *corev1.ServicePort) bool {
	if p.AppProtocol != nil {
		switch strings.ToLower(*p.AppProtocol) {
		case "kubernetes.io/h2c", "h2c", "http2", "grpc":
			return true
		}
		return false
	}
	name, _, _ := strings.Cut(p.Name, "-")
	return name == "h2c" || name == "http2" || name == "grpc"
}

// protocol returns ok when flows of the protocol can be redirected. SCTP cannot,
// which is no mistake of whoever has written it.
func protocol(at *field.Path, p corev1.Protocol) (routing.Protocol, bool, *field.Error) {
	switch p {
	case "", corev1.ProtocolTCP:
		return routing.TCP, true, nil
	case corev1.ProtocolUDP:
		return routing.UDP, true, nil
	case corev1.ProtocolSCTP:
		return 0, false, nil
	}
	return 0, false, invalid(at.Child("protocol"), "%q is unknown: use TCP or UDP", p)
}

// convertSlice takes what routing needs of an EndpointSlice. It reports false for one
// that belongs to no Service or holds names instead of addresses.
func convertSlice(o *discoveryv1.EndpointSlice) (routing.EndpointSlice, bool, field.ErrorList) {
	var errs field.ErrorList
	s := routing.EndpointSlice{
		Name:    routing.Name{Namespace: known(o.Namespace), Name: o.Name},
		Service: o.Labels[discoveryv1.LabelServiceName],
	}
	if s.Service == "" || o.AddressType == discoveryv1.AddressTypeFQDN {
		return s, false, nil
	}
	for i, p := range o.Ports {
		if p.Port == nil {
			continue // "all ports", which Services never have
		}
		at := field.NewPath("ports").Index(i)
		var name string
		if p.Name != nil {
			name = *p.Name
		}
		var wanted corev1.Protocol
		if p.Protocol != nil {
			wanted = *p.Protocol
		}
		proto, ok, err := protocol(at, wanted)
		if err != nil {
			errs = append(errs, err)
		}
		if *p.Port < 1 || *p.Port > 65535 {
			errs = append(errs, invalid(at.Child("port"), "%d is not a port number: use 1 to 65535", *p.Port))
			ok = false
		}
		if ok {
			s.Ports = append(s.Ports, routing.EndpointPort{Name: known(name), Port: uint16(*p.Port), Protocol: proto})
		}
	}
	for i, e := range o.Endpoints {
		// Unknown means ready, as the API says.
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		pod := ""
		if r := e.TargetRef; r != nil && r.Kind == "Pod" && (r.Namespace == "" || r.Namespace == o.Namespace) {
			pod = r.Name
		}
		for j, text := range e.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				errs = append(errs, invalid(field.NewPath("endpoints").Index(i).Child("addresses").Index(j), "%q is not an IP address", text))
				continue
			}
			s.Endpoints = append(s.Endpoints, routing.Endpoint{Addr: addr, Ready: ready, Pod: pod})
		}
	}
	return s, true, errs
}

// convertPod takes what daemon/pods needs of a Pod. It reports false for a pod that
// has ended: its addresses may be somebody else's already. One that is being
// deleted still talks and stays until it is gone.
func convertPod(o *corev1.Pod) (pods.Pod, bool) {
	p := pods.Pod{
		Name:        routing.Name{Namespace: known(o.Namespace), Name: o.Name},
		Netns:       o.Annotations[v1alpha1.NetnsAnnotation],
		HostNetwork: o.Spec.HostNetwork,
		Sandbox:     o.Labels[v1alpha1.SandboxLabel],
		Inject:      o.Labels[v1alpha1.InjectLabel] == "true",
		Workload:    workloadOf(o),
	}
	return p, o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed
}

// workloadOf names what a pod belongs to, as people know it, such as
// Deployment/cart; empty for a pod that nothing owns. A ReplicaSet that a Deployment
// has made is called after it and the hash that its pods are labelled with; anything
// else is named as the pod's owner reference does.
func workloadOf(o *corev1.Pod) string {
	for i := range o.OwnerReferences {
		r := &o.OwnerReferences[i]
		if r.Controller == nil || !*r.Controller || r.Kind == "Node" {
			continue
		}
		hash := o.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
		if name, ok := strings.CutSuffix(r.Name, "-"+hash); ok && r.Kind == "ReplicaSet" && hash != "" {
			return "Deployment/" + name
		}
		return r.Kind + "/" + r.Name
	}
	return ""
}

// podAdvice says what about a pod's labels has no effect.
func podAdvice(o *corev1.Pod) []routing.Problem {
	switch v := o.Labels[v1alpha1.InjectLabel]; v {
	case "", "true", "false":
		return nil
	default:
		return []routing.Problem{{
			Kind: "Pod", Object: routing.Name{Namespace: o.Namespace, Name: o.Name},
			Field:   fmt.Sprintf("metadata.labels[%s]", v1alpha1.InjectLabel),
			Message: fmt.Sprintf("%q has no effect: write \"true\", with the quotes, or leave the label out", v),
		}}
	}
}

// convertSandbox takes what routing needs of a Sandbox that is valid.
func convertSandbox(o *v1alpha1.Sandbox) routing.Sandbox {
	s := routing.Sandbox{
		Name: routing.Name{Namespace: known(o.Namespace), Name: o.Name},
		Key:  o.Spec.RoutingKey,
	}
	if s.Key == "" {
		s.Key = o.Status.RoutingKey
	}
	s.Existing = convertExisting(o.Spec.ExistingConnections)
	convertWatching(&s, &o.Spec)
	s.Redirects = make([]routing.Redirect, 0, len(o.Spec.Redirects))
	for i := range o.Spec.Redirects {
		r := &o.Spec.Redirects[i]
		c := convertRedirect(&r.From, &r.To, r.Unavailable)
		c.Field = known(fmt.Sprintf("spec.redirects[%d]", i))
		s.Redirects = append(s.Redirects, c)
	}
	return s
}

func portText(p *intstr.IntOrString) string {
	switch {
	case p == nil:
		return ""
	case p.Type == intstr.Int:
		return strconv.Itoa(p.IntValue())
	}
	return p.StrVal
}

// standaloneAdvice says what a Sandbox asks for that only the controller does.
func standaloneAdvice(o *v1alpha1.Sandbox) []routing.Problem {
	var out []routing.Problem
	add := func(f, message string) {
		out = append(out, routing.Problem{
			Kind: v1alpha1.SandboxKind, Object: routing.Name{Namespace: o.Namespace, Name: o.Name},
			Field: f, Message: message,
		})
	}
	if len(o.Spec.Forks) > 0 {
		add("spec.forks", "forks need the controller, which standalone mode does not have: start them yourself and write their redirects; the redirects that are there hold")
	}
	if o.Spec.RoutingKey == "" && o.Status.RoutingKey == "" {
		add("spec.routingKey", "standalone mode cannot generate one that anybody could read: write one; until then only flows of the sandbox's own pods are redirected")
	}
	if o.Spec.TTL != nil {
		add("spec.ttl", "is not enforced in standalone mode: delete the manifest when its time has come")
	}
	return out
}

// invalid leaves the bad value to the message, which puts it into a sentence.
func invalid(at *field.Path, format string, args ...any) *field.Error {
	return field.Invalid(at, field.OmitValueType{}, fmt.Sprintf(format, args...))
}
