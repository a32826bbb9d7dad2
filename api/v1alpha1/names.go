// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// The API group, its version, and the kinds in it.
const (
	Group      = "sidetrack.dev"
	Version    = "v1alpha1"
	APIVersion = Group + "/" + Version

	SandboxKind    = "Sandbox"
	RouteGroupKind = "RouteGroup"
	NodeStateKind  = "NodeState"
)

// Labels and annotations of pods.
const (
	// SandboxLabel names the sandbox, of the pod's own namespace, that the pod
	// belongs to: its flows are tagged.
	SandboxLabel = "sidetrack.dev/sandbox"
	// InjectLabel, when it is "true" on a pod of a sandbox, has the routing key
	// added to the pod's HTTP requests.
	InjectLabel = "sidetrack.dev/inject"
	// ForkLabel is on everything that a fork consists of, its pods included; its
	// value tells the forks of all sandboxes apart.
	ForkLabel = "sidetrack.dev/fork"
	// NetnsAnnotation names, in standalone mode, the network namespace that stands
	// for the pod: a name below /var/run/netns or an absolute path.
	NetnsAnnotation = "sidetrack.dev/netns"
)

// Types of the conditions of a Sandbox and of a RouteGroup.
const (
	// ConditionAccepted: the object is valid and everything that it names exists.
	ConditionAccepted = "Accepted"
	// ConditionForksReady: every fork has a ready pod. A RouteGroup has none.
	ConditionForksReady = "ForksReady"
	// ConditionProgrammed: every node that has to has the redirects in force.
	ConditionProgrammed = "Programmed"
	// ConditionReady: tagged traffic reaches the forks.
	ConditionReady = "Ready"
)
