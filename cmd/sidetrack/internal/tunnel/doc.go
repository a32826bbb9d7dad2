// SPDX-License-Identifier: Apache-2.0

// Package tunnel opens connections from inside the cluster for somebody who can
// reach the API server and nothing else: through a small pod, which a Tunnel owns,
// and the API server's port-forwarding.
//
// Names resolve as they do in the pod's namespace, and the pod's traffic is routed
// as any pod's: tagged when it belongs to a sandbox. Nothing listens here, nor on
// the cluster's network: the pod's relay listens on its loopback address, which only
// the kubelet reaches. It never looks into a connection. A Tunnel may be used
// concurrently.
package tunnel
