// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"net/netip"
	"slices"
)

// Name names a namespaced object.
type Name struct{ Namespace, Name string }

// String returns "namespace/name", as kubectl users write it.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	switch {
	case n.Namespace < o.Namespace:
		return -1
	case n.Namespace > o.Namespace:
		return 1
	case n.Name < o.Name:
		return -1
	case n.Name > o.Name:
		return 1
	}
	return 0
}

// Protocol is an IP protocol number (IANA "Protocol Numbers").
type Protocol uint8

// The protocols whose flows can be redirected.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns Kubernetes' name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// Cookie is a network namespace's cookie, as bpf_get_netns_cookie and the
// socket option SO_NETNS_COOKIE (Linux 5.14) return it. The kernel never uses
// one twice before a reboot. Zero means "not on this node". For a pod on the host's
// network see HostPod.
type Cookie uint64

// Input is everything that Compile looks at: plain values that daemon/source
// has made from Kubernetes objects and daemon/pods has completed with network
// namespaces. The order of the slices does not matter.
//
// A table that was compiled from it shares memory with it: see Compile for what may
// be changed afterwards.
type Input struct {
	Services  []Service
	Slices    []EndpointSlice
	Pods      []Pod
	Sandboxes []Sandbox
}

// Clone returns a copy that shares no slice with in, for whoever goes on to change
// what Compile was given.
func (in Input) Clone() Input {
	in.Services, in.Slices = slices.Clone(in.Services), slices.Clone(in.Slices)
	in.Pods, in.Sandboxes = slices.Clone(in.Pods), slices.Clone(in.Sandboxes)
	for i := range in.Services {
		s := &in.Services[i]
		s.Addresses, s.Ports = slices.Clone(s.Addresses), slices.Clone(s.Ports)
	}
	for i := range in.Slices {
		s := &in.Slices[i]
		s.Ports, s.Endpoints = slices.Clone(s.Ports), slices.Clone(s.Endpoints)
	}
	for i := range in.Sandboxes {
		s := &in.Sandboxes[i]
		s.Members, s.Redirects, s.Observe = slices.Clone(s.Members), slices.Clone(s.Redirects), slices.Clone(s.Observe)
	}
	return in
}

// Service is what routing needs of a core/v1 Service.
type Service struct {
	Name Name
	// Addresses are the cluster IPs; none for a headless Service. External and
	// load balancer addresses are left out on purpose: whoever may write a
	// Service can claim any address with them (CVE-2020-8554).
	Addresses []netip.Addr
	Ports     []ServicePort
	// ExternalName is set on a Service of that type: it is a DNS alias without
	// addresses, so it can be neither captured nor a redirect's target.
	ExternalName string
}

// ServicePort is one port of a Service. Port is in host byte order.
type ServicePort struct {
	Name     string
	Port     uint16
	Protocol Protocol
	// HTTP2 says that the port is declared to speak HTTP/2 without TLS, as gRPC does.
	// It decides about nothing but connections from before a redirect: what a new
	// connection speaks is seen from its first bytes.
	HTTP2 bool
}

// EndpointSlice is what routing needs of a discovery.k8s.io/v1 EndpointSlice.
type EndpointSlice struct {
	Name      Name
	Service   string // the label kubernetes.io/service-name
	Ports     []EndpointPort
	Endpoints []Endpoint
}

// EndpointPort is one port of an EndpointSlice. Name equals the ServicePort's.
// Port is in host byte order.
type EndpointPort struct {
	Name     string
	Port     uint16
	Protocol Protocol
}

// Endpoint is one address behind a Service. Addresses that are not ready are
// never a redirect's target, but dialling one directly is still captured.
type Endpoint struct {
	Addr  netip.Addr
	Ready bool
	// Pod is the name of the pod, of the slice's namespace, that has the address;
	// empty: none is known to.
	Pod string
}

// Pod is a pod on this node.
type Pod struct {
	Name Name
	// Netns identifies the pod's network namespace, or the pod itself where it has
	// none of its own (see HostPod). Pods with Netns zero have
	// no identity (yet) and are left out.
	Netns Cookie
	// Sandbox is the label sidetrack.dev/sandbox, the name of a sandbox in the
	// pod's own namespace; empty for everybody else's pods.
	Sandbox string
	// Inject is the label sidetrack.dev/inject being "true".
	Inject bool
}

// Sandbox is what routing needs of a sidetrack.dev Sandbox, or of a RouteGroup.
type Sandbox struct {
	Name Name
	// Group says that it is a RouteGroup: a sandbox without pods of its own, whose
	// redirects are its members'. One of the same name is somebody else. What is
	// wrong with its redirects is not reported again: it is where they come from.
	Group bool
	// Members are a group's sandboxes, by name: its key counts in requests of their
	// pods.
	Members []string
	// Deleted says that there is no such sandbox any more, but pods of it. It has no
	// key, its redirects are Refused, and nothing is wrong with them.
	Deleted bool
	// Key is the routing key; empty when the sandbox has none (yet): then only
	// flows of its own pods are tagged.
	Key       string
	Redirects []Redirect
	Existing  ExistingPolicy
	// Observe are Services of the sandbox's namespace that are captured for it though
	// it redirects nothing of theirs; ObserveAll means every one. A group has its
	// members'.
	Observe    []string
	ObserveAll bool
	// Propagate says that a trace id may stand for a routing key that was lost. A
	// group's does where all its members' do.
	Propagate bool
}

// Redirect is one rule: traffic tagged with the sandbox's key and addressed to
// From goes to To.
type Redirect struct {
	From        ServiceRef
	To          Target
	Unavailable UnavailablePolicy
	// Refused says why To may not be reached at all, which is known to whoever made
	// the input. Tagged traffic is then refused, whatever Unavailable is, since the
	// baseline is not what its owner asked for. Empty: it may.
	Refused string
	// Field is the path of the redirect in its object, for messages:
	// "spec.redirects[0]".
	Field string
}

// ServiceRef names a Service of the sandbox's namespace and, optionally, one
// of its ports by name or decimal number; all its ports when Port is empty.
type ServiceRef struct {
	Service string
	Port    string
}

// Target is a redirect's destination: a Service (any of its ready endpoints), or
// an address. Exactly one is set.
type Target struct {
	Service string
	// Namespace is the Service's, where that is not the sandbox's own. Whether it may
	// be reached from there has been decided by whoever made the input.
	Namespace string
	Address   netip.Addr
	// Port is a port's name or decimal number. Empty means: for a Service, the
	// port of the same name, else of the same number, else its only port; for an
	// address, the number of the port in From.
	Port string
}

// UnavailablePolicy says what happens to tagged traffic while the target has
// no ready endpoint.
type UnavailablePolicy uint8

const (
	// Reject answers 503, or refuses a flow's connection. It is the default.
	Reject UnavailablePolicy = iota
	// Baseline lets the baseline answer, which the sandbox's owner has asked for.
	Baseline
)

// ExistingPolicy says what happens to connections to a Service that were
// opened before the sandbox's redirect existed. Larger values are stronger:
// where sandboxes differ about a Service, the strongest holds.
type ExistingPolicy uint8

const (
	// Leave leaves them alone.
	Leave ExistingPolicy = iota
	// Idle closes each as soon as it is idle. It is the default of the API.
	Idle
	// All closes them at once.
	All
)

// Problem is something in the input that Compile could not honour. What it
// names is left out or restricted as Message says; all else is compiled.
type Problem struct {
	Kind    string // "Sandbox", "Service", …
	Object  Name
	Field   string // "spec.redirects[0].from.service"; may be empty
	Message string // what is wrong and what to do about it
}

// String formats the problem for a log line or a condition.
func (p Problem) String() string {
	if p.Field == "" {
		return fmt.Sprintf("%s %s: %s", p.Kind, p.Object, p.Message)
	}
	return fmt.Sprintf("%s %s: %s: %s", p.Kind, p.Object, p.Field, p.Message)
}
