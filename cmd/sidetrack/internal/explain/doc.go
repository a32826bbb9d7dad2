// SPDX-License-Identifier: Apache-2.0

// Package explain says why a request goes, or does not go, to a sandbox's fork:
// step by step, in the order in which the request meets them, with what to do where
// one does not hold.
//
// It owns the order of the steps and their words. What it says it has read: from the
// objects, from what agents and the controller say, and from the ledger. It sends
// no traffic and changes nothing. Everything in it may be called concurrently.
package explain
