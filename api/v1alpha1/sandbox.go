// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Sandbox puts somebody's in-progress version of a few workloads beside the
// running ones. Traffic that is tagged with the sandbox's routing key goes to
// these; all other traffic goes where it went before.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,categories=sidetrack
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Expires",type=date,JSONPath=`.status.expiresAt`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Sandbox struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the sandbox's owner wants.
	// +optional
	Spec SandboxSpec `json:"spec,omitempty"`
	// Status is what has become of it.
	// +optional
	Status SandboxStatus `json:"status,omitempty"`
}

// SandboxList is a list of Sandboxes.
//
// +kubebuilder:object:root=true
type SandboxList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Sandbox `json:"items"`
}

// SandboxSpec is what the owner of a Sandbox wants.
type SandboxSpec struct {
	// RoutingKey tags traffic for this sandbox. It is a secret: whoever knows it
	// can send requests to the forks. One is generated when it is left empty, and
	// it cannot be changed afterwards.
	// +optional
	// +kubebuilder:validation:MinLength=8
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9._~-]+$`
	RoutingKey string `json:"routingKey,omitempty"`

	// TTL is how long the sandbox lives after its creation. When it runs out, the
	// sandbox is deleted, forks and all. It lives until it is deleted when TTL is
	// left out.
	// +optional
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// Forks are the sandbox's own copies of workloads. Each makes a fork, and
	// redirects for every Service that selects the workload's pods.
	// +optional
	// +listType=atomic
	Forks []Fork `json:"forks,omitempty"`

	// Redirects send traffic that is tagged for this sandbox and addressed to one
	// Service somewhere else.
	// +optional
	// +listType=atomic
	Redirects []Redirect `json:"redirects,omitempty"`

	// ExistingConnections says what happens to connections to a redirected
	// Service that were opened before the redirect: Idle closes each as soon as it
	// is idle, so that the client opens a new one; All closes them at once; Leave
	// leaves them to the baseline.
	// +optional
	// +kubebuilder:default=Idle
	ExistingConnections ExistingConnections `json:"existingConnections,omitempty"`
}

// Fork is a sandbox's own copy of a workload.
type Fork struct {
	// Workload is what is copied.
	Workload WorkloadRef `json:"workload"`

	// Containers are what differs in the copy's containers.
	// +optional
	// +listType=map
	// +listMapKey=name
	Containers []ContainerOverride `json:"containers,omitempty"`

	// Patch is a strategic merge patch on the workload's pod template, for
	// everything that Containers cannot say.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	Patch *runtime.RawExtension `json:"patch,omitempty"`
}

// WorkloadRef names a workload in the sandbox's namespace.
type WorkloadRef struct {
	// Kind of the workload.
	// +kubebuilder:default=Deployment
	// +kubebuilder:validation:Enum=Deployment;StatefulSet;DaemonSet
	// +optional
	Kind string `json:"kind,omitempty"`
	// Name of the workload.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
}

// ContainerOverride is what differs in one container of a fork.
type ContainerOverride struct {
	// Name of the container in the workload's pod template.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Image replaces the container's image.
	// +optional
	Image string `json:"image,omitempty"`
	// Env is added to the container's environment; a variable of the same name is
	// replaced.
	// +optional
	// +listType=map
	// +listMapKey=name
	Env []corev1.EnvVar `json:"env,omitempty"`
}

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
	// +kubebuilder:validation:MinLength=1
	Service string `json:"service"`
	// Port is the name or number of one of the Service's ports. All ports when it
	// is left out.
	// +optional
	// +kubebuilder:validation:XIntOrString
	Port *intstr.IntOrString `json:"port,omitempty"`
}

// RedirectTo is the destination of a redirect: a Service or an address.
//
// +kubebuilder:validation:XValidation:rule="has(self.service) != has(self.address)",message="set exactly one of service or address"
type RedirectTo struct {
	// Service is the name of a Service in the sandbox's namespace. The traffic
	// goes to its ready endpoints, spread evenly.
	// +optional
	Service string `json:"service,omitempty"`
	// Address is an IPv4 or IPv6 address.
	// +optional
	Address string `json:"address,omitempty"`
	// Port is the name or number of a port of Service, or a number where Address
	// is set. When it is left out: of a Service the port with the same name as in
	// From, else the same number, else its only one; of an address the number in
	// From.
	// +optional
	// +kubebuilder:validation:XIntOrString
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

// SandboxStatus is what has become of a Sandbox.
type SandboxStatus struct {
	// RoutingKey is the routing key in force: spec.routingKey or the one that was
	// generated.
	// +optional
	RoutingKey string `json:"routingKey,omitempty"`
	// Conditions are Accepted, ForksReady, Programmed and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Redirects are those in force: the ones of the spec and the ones that the
	// forks have made.
	// +optional
	// +listType=atomic
	Redirects []RedirectStatus `json:"redirects,omitempty"`
	// ExpiresAt is when the sandbox will be deleted because its TTL has run out.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`
}

// RedirectStatus is what has become of one redirect.
type RedirectStatus struct {
	// From is the Service that is redirected.
	From RedirectFrom `json:"from"`
	// To is where its tagged traffic goes.
	To RedirectTo `json:"to"`
	// Endpoints is how many ready endpoints To has.
	Endpoints int32 `json:"endpoints"`
	// Message says what is wrong with it, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}
