// SPDX-License-Identifier: Apache-2.0

// Package cluster is how tasks reach a cluster: the clients, the namespace, and
// what the API server's errors mean for a user.
//
// It owns the clients. It never decides what is right or wrong with an object:
// that is for the API server to say. Everything in it may be called concurrently.
package cluster
