// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "k8s.io/apimachinery/pkg/util/intstr"

// Redirect is one rule: tagged traffic that is addressed to From goes to To.
type Redirect struct {
	// From is the Service that the traffic is addressed to.
	From RedirectFrom `json:"from"`
	// To is where it goes instead.
	To RedirectTo `json:"to"`
	// Unavailable says what happens to tagged traffic while To has no ready
	// endpoint: Reject answers 503, or refuses the connection; Baseline lets the
	// baseline answer.
	// +optional
	// +kubebuilder:default=Reject
	Unavailable Unavailable `json:"unavailable,omitempty"`
}

// RedirectFrom names a Service in the sandbox's namespace and, where not all are
// meant, one of its ports.
type RedirectFrom struct {
	// Service is the Service's name.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is not the name of a Service: write metadata.name of one in the sandbox's namespace"
	Service string `json:"service"`
	// Port is the name or number of one of the Service's ports. All ports when it
	// is left out.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 65535 : self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is neither a port's number, 1 to 65535, nor its name"
	Port *intstr.IntOrString `json:"port,omitempty"`
}

// RedirectTo is the destination of a redirect: a Service or an address.
//
// +kubebuilder:validation:XValidation:rule="has(self.service) != has(self.address)",message="set exactly one of service or address"
// +kubebuilder:validation:XValidation:rule="!has(self.namespace) || has(self.service)",fieldPath=".namespace",message="is the namespace of service, which is not set: an address is in no namespace"
// +kubebuilder:validation:XValidation:rule="!has(self.address) || has(self.service) || !has(self.port) || type(self.port) == int || (self.port.matches('^[0-9]{1,5}$') && int(self.port) >= 1 && int(self.port) <= 65535)",fieldPath=".port",message="is a name, and an address has no named ports: use a number, 1 to 65535"
type RedirectTo struct {
	// Service is the name of a Service. The traffic goes to its ready endpoints,
	// spread evenly.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is not the name of a Service: write the metadata.name of one"
	Service string `json:"service,omitempty"`
	// Namespace is the namespace of Service where that is not the sandbox's own.
	// A ReferenceGrant (gateway.networking.k8s.io) in it has to allow Sandboxes of
	// the sandbox's namespace to refer to the Service.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is not a namespace's name: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit"
	Namespace string `json:"namespace,omitempty"`
	// Address is an IPv4 or IPv6 address, neither of loopback nor link-local.
	// +optional
	// +kubebuilder:validation:MaxLength=45
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="is not an IP address: write one such as 10.0.0.9 or 2001:db8::9, and the port in to.port"
	// +kubebuilder:validation:XValidation:rule="!isIP(self) || ip(self).isGlobalUnicast()",message="means something else on every node or in every pod: use an address that is the same for all"
	Address string `json:"address,omitempty"`
	// Port is the name or number of a port of Service, or a number where Address
	// is set. When it is left out: of a Service the port with the same name as in
	// From, else the same number, else its only one; of an address the number in
	// From.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 65535 : self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is neither a port's number, 1 to 65535, nor its name"
	Port *intstr.IntOrString `json:"port,omitempty"`
}

// Unavailable says what happens to tagged traffic that cannot reach a fork.
//
// +kubebuilder:validation:Enum=Reject;Baseline
type Unavailable string

// The values of Unavailable. Reject is the default.
const (
	UnavailableReject   Unavailable = "Reject"
	UnavailableBaseline Unavailable = "Baseline"
)

// ExistingConnections says what happens to connections from before a redirect.
//
// +kubebuilder:validation:Enum=Idle;All;Leave
type ExistingConnections string

// The values of ExistingConnections. Idle is the default.
const (
	ExistingIdle  ExistingConnections = "Idle"
	ExistingAll   ExistingConnections = "All"
	ExistingLeave ExistingConnections = "Leave"
)

// RedirectStatus is what has become of one redirect. Nodes put it in force as
// it is: the controller has looked at everything that it depends on.
type RedirectStatus struct {
	// From is the Service that is redirected.
	From RedirectFrom `json:"from"`
	// To is where its tagged traffic goes.
	To RedirectTo `json:"to"`
	// Unavailable is what happens to tagged traffic while To has no ready
	// endpoint.
	// +optional
	Unavailable Unavailable `json:"unavailable,omitempty"`
	// Fork is the workload whose fork has made the redirect, such as
	// Deployment/route. Empty for one of the spec's redirects.
	// +optional
	Fork string `json:"fork,omitempty"`
	// Sandbox is the member that a RouteGroup has the redirect from. Empty in a
	// Sandbox's own status.
	// +optional
	Sandbox string `json:"sandbox,omitempty"`
	// Endpoints is how many ready endpoints To has.
	Endpoints int32 `json:"endpoints"`
	// Refused says that To may not be reached: tagged traffic is answered 503, or
	// its connection refused, whatever Unavailable says.
	// +optional
	Refused bool `json:"refused,omitempty"`
	// Message says what is wrong with it, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}
