// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Sandbox puts somebody's in-progress version of a few workloads beside the
// running ones. Traffic that is tagged with the sandbox's routing key goes to
// these; all other traffic goes where it went before.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,categories=sidetrack,shortName=sdbx;sb
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Accepted",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Forks",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="ForksReady")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.expiresAt`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="metadata.name cannot be a label's value: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit"
type Sandbox struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the sandbox's owner wants.
	// +optional
	// +kubebuilder:default={}
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
//
// +kubebuilder:validation:XValidation:rule="has(self.routingKey) == has(oldSelf.routingKey) && (!has(self.routingKey) || self.routingKey == oldSelf.routingKey)",fieldPath=".routingKey",message="cannot be changed, set later or removed: create another sandbox for another key"
type SandboxSpec struct {
	// RoutingKey tags traffic for this sandbox. It is a secret: whoever knows it
	// can send requests to the forks. One is generated when it is left out, and
	// it cannot be changed afterwards.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9._~-]{8,64}$')",message="is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~"
	RoutingKey string `json:"routingKey,omitempty"`

	// TTL is how long the sandbox lives after its creation, such as 90s, 30m or
	// 2h, at most a year. When it runs out, the sandbox is deleted, forks and all.
	// It lives until it is deleted when TTL is left out.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:XValidation:rule="self.matches('^(([0-9]{1,5}([.][0-9]{1,6})?h)|([0-9]{1,8}([.][0-9]{1,6})?(m|s|ms)))+$')",message="is not a duration: write one such as 90s, 30m or 2h"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^(([0-9]{1,5}([.][0-9]{1,6})?h)|([0-9]{1,8}([.][0-9]{1,6})?(m|s|ms)))+$') || duration(self) > duration('0s')",message="is over before it begins: use a positive duration such as 2h, or leave it out"
	// +kubebuilder:validation:XValidation:rule="!self.matches('^(([0-9]{1,5}([.][0-9]{1,6})?h)|([0-9]{1,8}([.][0-9]{1,6})?(m|s|ms)))+$') || duration(self) <= duration('8760h')",message="is longer than a year (8760h): leave it out for a sandbox that stays"
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// Forks are the sandbox's own copies of workloads. Each makes a fork, and
	// redirects for every Service that selects the workload's pods.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:XValidation:rule="self.all(f, self.exists_one(g, g.workload.kind == f.workload.kind && g.workload.name == f.workload.name))",message="a workload is forked twice: merge the two entries"
	Forks []Fork `json:"forks,omitempty"`

	// Redirects send traffic that is tagged for this sandbox and addressed to one
	// Service somewhere else. Where two of them mean one port of a Service, since
	// one of them names no port, the earlier one holds.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:XValidation:rule="self.all(r, self.exists_one(s, s.from.service == r.from.service && has(s.from.port) == has(r.from.port) && (!has(r.from.port) || string(s.from.port) in [string(r.from.port)])))",message="a Service's port is redirected twice: remove one of the two entries"
	Redirects []Redirect `json:"redirects,omitempty"`

	// ExistingConnections says what happens to connections to a redirected
	// Service that were opened before the redirect: Idle closes each as soon as it
	// is idle, so that the client opens a new one; All closes them at once; Leave
	// leaves them to the baseline.
	// +optional
	// +kubebuilder:default=Idle
	ExistingConnections ExistingConnections `json:"existingConnections,omitempty"`

	// Observe names Services of the sandbox's namespace whose HTTP requests the
	// ledger is to know of though the sandbox does not redirect them: tagged ones
	// leave a record, and so do those of a tagged trace that have lost the routing
	// key. All go where they went before. "*" alone means every Service of the
	// namespace.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.all(s, s == '*' || s.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))",message="names what is not the name of a Service: write metadata.name of one in the sandbox's namespace, or \"*\" for all"
	// +kubebuilder:validation:XValidation:rule="!self.exists(s, s == '*') || size(self) == 1",message="has \"*\", which means every Service already: remove the other entries or \"*\""
	Observe []string `json:"observe,omitempty"`

	// Propagate says what stands for the routing key where a workload has lost it:
	// TraceID sends a request without the key, by a pod that was seen to receive one of
	// the same trace with it, where the key would have sent it, and adds the key.
	// Nothing does when it is left out.
	// +optional
	Propagate Propagate `json:"propagate,omitempty"`
}

// ObserveAll is the entry of spec.observe that means every Service of the
// namespace.
const ObserveAll = "*"

// Propagate says what stands for a routing key that was lost.
//
// +kubebuilder:validation:Enum=TraceID
type Propagate string

// PropagateTraceID is the W3C trace id of a traceparent header.
const PropagateTraceID Propagate = "TraceID"

// Fork is a sandbox's own copy of a workload.
type Fork struct {
	// Workload is what is copied.
	Workload WorkloadRef `json:"workload"`

	// Containers are what differs in the copy's containers.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
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
	// Kind of the workload. The fork of a CronJob is a Job that runs once; that of
	// all others is a Deployment.
	// +kubebuilder:default=Deployment
	// +kubebuilder:validation:Enum=Deployment;StatefulSet;DaemonSet;ReplicaSet;CronJob
	// +optional
	Kind string `json:"kind,omitempty"`
	// Name of the workload.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self != ''",message="name the workload to fork"
	Name string `json:"name"`
}

// ContainerOverride is what differs in one container of a fork.
//
// +kubebuilder:validation:XValidation:rule="!has(self.env) || !has(self.removeEnv) || !self.env.exists(e, e.name in self.removeEnv)",fieldPath=".removeEnv",message="names a variable that env sets: remove it from one of the two"
type ContainerOverride struct {
	// Name of the container, or init container, in the workload's pod template.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self != ''",message="name a container of the workload's pod template"
	Name string `json:"name"`
	// Image replaces the container's image.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
	// Env is added to the container's environment; a variable of the same name is
	// replaced.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=128
	// +kubebuilder:validation:XValidation:rule="self.all(e, e.name != '')",message="a variable has no name"
	Env []corev1.EnvVar `json:"env,omitempty"`
	// RemoveEnv names variables that the container's environment loses.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	RemoveEnv []string `json:"removeEnv,omitempty"`
}

// SandboxStatus is what has become of a Sandbox.
type SandboxStatus struct {
	// RoutingKey is the routing key in force: spec.routingKey or the one that was
	// generated.
	// +optional
	RoutingKey string `json:"routingKey,omitempty"`
	// KeyNames is where nodes look for the routing key in a request. Missing while no
	// agent says: then they are the members sidetrack and sd-routing-key and the header
	// x-sidetrack-key, unless agents are told otherwise.
	// +optional
	KeyNames *CommonKeyNames `json:"keyNames,omitempty"`
	// Conditions are Accepted, ForksReady, Programmed and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Redirects are those that nodes put in force: the ones of the spec and the
	// ones that the forks have made. Where two mean one port of a Service, the
	// earlier one holds.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Redirects []RedirectStatus `json:"redirects,omitempty"`
	// Forks are what has become of the forks, in the order of spec.forks.
	// +optional
	// +listType=atomic
	Forks []ForkStatus `json:"forks,omitempty"`
	// Revision grows whenever what nodes have to put in force changes: the
	// routing key or where redirects lead.
	// +optional
	Revision int64 `json:"revision,omitempty"`
	// Nodes counts the nodes that have this revision in force.
	// +optional
	Nodes *NodeCount `json:"nodes,omitempty"`
	// UncoveredConnections is how many connections to redirected Services, on all
	// nodes, were opened before the redirect and have not been closed yet (see
	// spec.existingConnections): a tagged request on one of them reaches the baseline.
	// +optional
	UncoveredConnections int64 `json:"uncoveredConnections,omitempty"`
	// ExpiresAt is when the sandbox will be deleted because its TTL has run out.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`
}

// ForkStatus is what has become of one fork.
type ForkStatus struct {
	// Workload is what is copied.
	Workload WorkloadRef `json:"workload"`
	// Name of the Deployment, or of the Job, that the copy is.
	// +optional
	Name string `json:"name,omitempty"`
	// Replicas is how many pods the fork should have.
	Replicas int32 `json:"replicas"`
	// Ready is how many of them are ready; of a Job, how many are ready or have
	// succeeded.
	Ready int32 `json:"ready"`
	// Message says what is wrong with it, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}

// NodeCount counts nodes.
type NodeCount struct {
	// Programmed is how many nodes have the present revision in force.
	Programmed int32 `json:"programmed"`
	// Total is how many nodes should.
	Total int32 `json:"total"`
}
