// SPDX-License-Identifier: Apache-2.0

// Package controller makes what Sandboxes and RouteGroups ask for: forks and
// their Services, routing keys, resolved redirects, and conditions that say what
// is in the way.
//
// It owns the status of both kinds and every object that it has made, and
// decides everything that is about objects: which Services a fork stands in for,
// what another namespace has granted, who of two holds a routing key, and when
// all nodes have put it in force. It never touches a kernel, never sees traffic
// and never reads a Secret or ConfigMap.
//
// What is decided is in functions of plain objects; only the reconcilers and
// what has "apply" or "watch" in its name talk to an API server. The functions
// may be called concurrently; of a Manager only one is to run, which leader
// election sees to.
package controller
