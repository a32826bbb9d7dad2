// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeState is what the agent of one node says that it has put in force there.
// It has the node's name. Agents write it; nobody else needs to.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=sidetrack,shortName=sdn
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.status.agentVersion`
// +kubebuilder:printcolumn:name="Heartbeat",type=date,JSONPath=`.status.heartbeatTime`
// +kubebuilder:printcolumn:name="Covered",type=integer,JSONPath=`.status.pods.covered`
// +kubebuilder:printcolumn:name="Uncovered",type=integer,JSONPath=`.status.pods.uncovered`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeState struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Status is what the agent says.
	// +optional
	Status NodeStateStatus `json:"status,omitempty"`
}

// NodeStateList is a list of NodeStates.
//
// +kubebuilder:object:root=true
type NodeStateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeState `json:"items"`
}

// NodeStateStatus is what an agent says about its node.
type NodeStateStatus struct {
	// AgentVersion is the agent's version.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	AgentVersion string `json:"agentVersion,omitempty"`
	// BootID is the kernel's boot id: what was in force before a reboot is not.
	// It equals status.nodeInfo.bootID of the Node.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	BootID string `json:"bootID,omitempty"`
	// Instance is random and new at each start of an agent.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Instance string `json:"instance,omitempty"`
	// HeartbeatTime is when the agent wrote this. It does so every 10 seconds; an
	// agent that has been silent for 40 is taken to be gone.
	// +optional
	HeartbeatTime *metav1.MicroTime `json:"heartbeatTime,omitempty"`
	// Applied is how much of what the API server has is in force, in the kernel
	// and in the request router. Missing until the first of it is.
	// +optional
	Applied *AppliedVersions `json:"applied,omitempty"`
	// KeyNames is where the agent looks for a request's routing key. Missing where the
	// agent is older than this field: nothing is known of its names then.
	// +optional
	KeyNames *KeyNames `json:"keyNames,omitempty"`
	// Pods counts the node's pods.
	// +optional
	Pods PodCoverage `json:"pods,omitempty"`
	// Connections counts connections that were opened before a redirect of their
	// Service and are not covered yet: tagged requests on them reach the baseline. Of
	// the 256 Services with the most.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Connections []ServiceConnections `json:"connections,omitempty"`
	// Problems are what the agent could not honour, the first 64 of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Problems []NodeProblem `json:"problems,omitempty"`
}

// AppliedVersions are resource versions up to which all changes of a kind are
// in force.
type AppliedVersions struct {
	// Sandboxes is that of the Sandboxes.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Sandboxes string `json:"sandboxes,omitempty"`
	// RouteGroups is that of the RouteGroups.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RouteGroups string `json:"routeGroups,omitempty"`
	// Services is that of the Services.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Services string `json:"services,omitempty"`
	// EndpointSlices is that of the EndpointSlices.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	EndpointSlices string `json:"endpointSlices,omitempty"`
}

// PodCoverage counts pods of a node.
type PodCoverage struct {
	// Covered is how many have their traffic looked at.
	// +optional
	Covered int32 `json:"covered"`
	// Uncovered is how many do not, though they run: tagged traffic of theirs
	// reaches the baseline.
	// +optional
	Uncovered int32 `json:"uncovered"`
}

// ServiceConnections counts connections of a node's pods to a Service.
type ServiceConnections struct {
	// Namespace of the Service.
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Service is its name.
	// +kubebuilder:validation:MaxLength=253
	Service string `json:"service"`
	// Uncovered is how many of them were opened before a redirect and are still
	// with the baseline.
	Uncovered int32 `json:"uncovered"`
}

// NodeProblem is something that an agent could not honour.
type NodeProblem struct {
	// Kind of the object that it is about.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Kind string `json:"kind,omitempty"`
	// Namespace of the object.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// Name of the object.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
	// Field of the object.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Field string `json:"field,omitempty"`
	// Message says what is wrong and what to do about it.
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message"`
}
