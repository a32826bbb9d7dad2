// SPDX-License-Identifier: Apache-2.0

// Package compare sends a request to the baseline and to a sandbox and says in what
// the answers differ, with the noise taken out: what differs between one answer of the
// baseline and the next says nothing.
//
// It owns the comparison, and has package proof say whether it was with a fork. Requests are sent by somebody else (Sender), several times
// each, since noise shows only then. It never decides whether a difference is good.
// Everything in it may be called concurrently.
package compare
