// SPDX-License-Identifier: Apache-2.0

// Package relay is what a pod of a sandbox runs on behalf of somebody outside of
// the cluster: it opens connections from there, so that names resolve as in the
// pod's namespace, the servers see a pod of the cluster, and the pod's traffic is
// routed as that of any other. It also tells whether it is.
//
// It owns the listener that it is given and the connections through it. It never
// reads what goes through them, knows nothing of keys and sandboxes, and listens to
// whoever reaches it: it belongs on a loopback address, which nobody but the
// kubelet reaches, by the API server's port-forwarding. Its functions may be called
// concurrently.
package relay
