// SPDX-License-Identifier: Apache-2.0

// Package collector puts the ledgers of all nodes together and lets people read
// them through the Kubernetes API, as the aggregated API ledger.sidetrack.dev.
//
// It owns the connections of the nodes, which dial in, and who may read what: whoever
// may get a Sandbox, or a RouteGroup, may read its records, and nobody else. It asks
// the API server about that each time and never decides it by itself. It speaks to
// nobody but the API server: a client that does not have its front proxy's
// certificate cannot finish a TLS handshake of any use. It serves the page that shows
// ledgers (package page), too, since it is below the same path. It keeps no record. A node
// that does not answer is named in the answer, never left out.
//
// A Collector's parts may be used concurrently. There has to be one at a time, since
// a node is connected to one.
package collector
