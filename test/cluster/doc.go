// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes on one machine for tests, in two sizes.
//
// StartControlPlane is etcd and a kube-apiserver on loopback, nothing else:
// objects can be validated, stored and watched, and nothing ever happens to
// them by itself. It takes ten seconds, needs no root, and any number of them may run
// side by side.
//
//	func TestMain(m *testing.M) { os.Exit(cluster.WithControlPlane(m, &plane)) } // one for all tests of a package
//
//	plane := cluster.StartControlPlane(t)               // one for one test
//	plane.Apply(ctx, "../../deploy/charts/sidetrack-crds/crds") // files or folders; waits for CRDs
//	c, err := client.New(plane.Admin(), client.Options{})
//	plane.User("jane", "developers")                    // a rest.Config, by client certificate
//	plane.ServiceAccount(ctx, "shop", "agent")          // a rest.Config with a real token
//	plane.Kubectl(ctx, "get", "sandboxes", "-A")
//	plane.StopAPIServer(); plane.StartAPIServer(ctx)    // an outage
//
// Up is a whole cluster: the same with controller manager and scheduler, and
// two nodes with containerd, kubelet and kube-proxy. The first node is the host
// itself, the second one is a network namespace. There can be only one
// on a machine, and it needs root. Open finds one that runs; Down takes it away,
// also the remains of one whose starter was killed. The program
// cmd/cluster does the same by hand.
//
// The programs are built from Go modules into a cache (see Programs). The
// package makes images out of static binaries and of Debian packages, since
// there is no registry. It knows nothing of Sidetrack.
//
// Methods may be called concurrently, except those that start or stop the same
// thing.
package cluster
