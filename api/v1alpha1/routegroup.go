// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// RouteGroup joins several sandboxes of its namespace under one routing key:
// traffic that is tagged with it follows the redirects of all of them. Each
// sandbox keeps its own key besides, and its pods stay its own.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,categories=sidetrack,shortName=sdrg
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Accepted",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Sandboxes",type=string,priority=1,JSONPath=`.status.sandboxes`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",message="metadata.name cannot be a label's value: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit"
type RouteGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the group's owner wants.
	Spec RouteGroupSpec `json:"spec"`
	// Status is what has become of it.
	// +optional
	Status RouteGroupStatus `json:"status,omitempty"`
}

// RouteGroupList is a list of RouteGroups.
//
// +kubebuilder:object:root=true
type RouteGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RouteGroup `json:"items"`
}

// RouteGroupSpec is what the owner of a RouteGroup wants.
//
// +kubebuilder:validation:XValidation:rule="has(self.sandboxes) || has(self.selector)",message="set sandboxes, selector or both: a group needs members"
// +kubebuilder:validation:XValidation:rule="has(self.routingKey) == has(oldSelf.routingKey) && (!has(self.routingKey) || self.routingKey == oldSelf.routingKey)",fieldPath=".routingKey",message="cannot be changed, set later or removed: create another group for another key"
type RouteGroupSpec struct {
	// RoutingKey tags traffic for this group. It is a secret: whoever knows it can
	// send requests to the forks of its members. One is generated when it is left
	// out, and it cannot be changed afterwards.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9._~-]{8,64}$')",message="is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~"
	RoutingKey string `json:"routingKey,omitempty"`

	// Sandboxes are members by name. Where two members redirect one port of a
	// Service, the one that comes first in this list holds.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Sandboxes []SandboxRef `json:"sandboxes,omitempty"`

	// Selector makes members of all sandboxes of the namespace whose labels match.
	// They come after those in Sandboxes, in the order of their names.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn', 'Exists', 'DoesNotExist'] && (e.operator in ['In', 'NotIn']) == (has(e.values) && e.values.size() > 0))",message="is not a label selector: an expression's operator is In or NotIn with values, or Exists or DoesNotExist without"
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// ExistingConnections says what happens to connections to a redirected
	// Service that were opened before the redirect: Idle closes each as soon as it
	// is idle, so that the client opens a new one; All closes them at once; Leave
	// leaves them to the baseline.
	// +optional
	// +kubebuilder:default=Idle
	ExistingConnections ExistingConnections `json:"existingConnections,omitempty"`
}

// SandboxRef names a Sandbox in the group's namespace.
type SandboxRef struct {
	// Name of the Sandbox.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="is not the name of a Sandbox: write metadata.name of one in the group's namespace"
	Name string `json:"name"`
}

// RouteGroupStatus is what has become of a RouteGroup.
type RouteGroupStatus struct {
	// RoutingKey is the routing key in force: spec.routingKey or the one that was
	// generated.
	// +optional
	RoutingKey string `json:"routingKey,omitempty"`
	// KeyNames is where nodes look for the routing key in a request. Missing while no
	// agent says: then they are the members sidetrack and sd-routing-key and the header
	// x-sidetrack-key, unless agents are told otherwise.
	// +optional
	KeyNames *CommonKeyNames `json:"keyNames,omitempty"`
	// Conditions are Accepted, Programmed and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Sandboxes are the names of the members, in the order in which their
	// redirects hold.
	// +optional
	// +listType=atomic
	Sandboxes []string `json:"sandboxes,omitempty"`
	// Redirects are those that nodes put in force: the members', in their order.
	// Where two mean one port of a Service, the earlier one holds.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Redirects []RedirectStatus `json:"redirects,omitempty"`
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
}
