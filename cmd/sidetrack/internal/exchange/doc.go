// SPDX-License-Identifier: Apache-2.0

// Package exchange sends one HTTP request and keeps the answer: what a model or a
// comparison needs of it, and the trace by which the ledger knows it.
//
// It owns no connections beyond the request, follows no redirections, and never
// decides whether an answer is good. Everything in it may be called concurrently.
package exchange
