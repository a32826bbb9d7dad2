// SPDX-License-Identifier: Apache-2.0

// Package sandbox makes sandboxes out of what people ask for, waits for them, and
// finds out why one does not get ready.
//
// It owns the short way to write forks and redirects (Request) and what a wait
// reports. It never validates an object, which the API server does, and never
// decides what a sandbox is: that is the controller's. Everything in it may be
// called concurrently.
package sandbox
