// SPDX-License-Identifier: Apache-2.0

// Package agent is the node agent: it takes what a source and the pods'
// namespaces say to the kernel and to the request router, as one generation.
//
// It owns the order in which things happen: that a listener is there before the
// kernel steers to it and until it has stopped, that the router knows a table
// before the kernel acts by it, that connections from before a redirect are
// closed after it is in force; further the lease, the drain, and what is said
// about problems. It never parses an object or a request, and decides about no
// traffic. An Agent runs once; State may be called concurrently.
package agent
