// SPDX-License-Identifier: Apache-2.0

// Package pods finds the network namespaces of the pods on this node.
//
// It owns the way from a pod's namespace file to an open descriptor and the
// namespace's cookie, and notices when a file vanishes or comes to mean another
// namespace. It never decides which pods matter, never opens a socket that
// stays, and changes no namespace. A Resolver belongs to one goroutine; only
// Changes may be received from elsewhere. Do may be called concurrently.
package pods

import (
	"fmt"
	"path/filepath"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// NetnsDir is where a namespace is looked for that is given by name.
const NetnsDir = "/var/run/netns"

// Pod is a pod that belongs to this node, as its object says.
type Pod struct {
	Name routing.Name
	// UID finds the pod's processes on a node of a cluster. It is the one that the
	// kubelet knows the pod by: for a static pod's mirror, the annotation
	// kubernetes.io/config.mirror. Empty without a cluster.
	UID string
	// Running says that the pod's object tells of running processes. One that does
	// not is not missed before its processes are there.
	Running bool
	// Netns is a name below NetnsDir or an absolute path; empty when it is not
	// known.
	Netns string
	// HostNetwork pods have the namespace that the agent itself runs in.
	HostNetwork bool
	// Sandbox and Inject are the pod's labels; see routing.Pod.
	Sandbox string
	Inject  bool
	// Workload is what the pod belongs to, such as Deployment/cart, for people.
	Workload string
}

// path is the file that stands for the pod's namespace.
func (p *Pod) path() string {
	switch {
	case p.HostNetwork:
		return "/proc/self/ns/net"
	case filepath.IsAbs(p.Netns):
		return filepath.Clean(p.Netns)
	}
	return filepath.Join(NetnsDir, p.Netns)
}

// check reports why the pod's namespace cannot be looked for at all.
func (p *Pod) check() string {
	switch {
	case p.HostNetwork:
		return ""
	case p.Netns == "":
		return "is missing: name the pod's network namespace, by its name below " + NetnsDir + " or by its path; until then the pod is not covered"
	case !filepath.IsAbs(p.Netns) && (p.Netns != filepath.Base(p.Netns) || p.Netns == "." || p.Netns == ".."):
		return fmt.Sprintf("%q is neither a name below %s nor an absolute path; until then the pod is not covered", p.Netns, NetnsDir)
	}
	return ""
}
