// SPDX-License-Identifier: Apache-2.0

// Package task is what every task that a user can have done has in common,
// whoever asks for it, a terminal or a model: how a task says how far it is, and
// how it fails.
//
// It owns the two types for that. It does nothing itself: no I/O, no flags.
// Everything in it may be called concurrently.
package task
