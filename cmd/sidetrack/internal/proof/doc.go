// SPDX-License-Identifier: Apache-2.0

// Package proof says whether forks of a sandbox have answered what they were to
// answer of a request, by the ledger's records of the request's trace.
//
// It owns the verdict, which is never a guess: whatever the ledger cannot tell is a
// doubt, and one doubt is enough. It reads with the user's own permissions and changes
// nothing; whether an answer is right is not its business. Everything in it may be
// called concurrently.
package proof
