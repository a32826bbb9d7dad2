// SPDX-License-Identifier: Apache-2.0

// Package health says how a cluster's Sidetrack is: what is in force on which node
// (Status), and whether all is there that a user needs (Doctor).
//
// It owns no judgement of its own about sandboxes and nodes: those are the
// controller's and the agents', which it reads. It changes nothing. Everything in it
// may be called concurrently.
package health
