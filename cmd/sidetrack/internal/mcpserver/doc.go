// SPDX-License-Identifier: Apache-2.0

// Package mcpserver is the Model Context Protocol server that a coding agent
// drives Sidetrack with: a few tools, each of which does a whole task.
//
// It owns the tools' names, what they take and what they reply, and how they are
// reached: over standard input and output, or over HTTP. It never does a task
// itself, which the packages beside it do, and keeps nothing between two calls: a
// sandbox's namespace/name and a request's trace id are handles that hold in
// another session, and after a restart. It does not log.
//
// Replies are short unless the call asks for detail. A task that fails is a result
// with isError that says what to do next; a protocol error is a client's mistake.
// The routing key is in no reply but the one that was asked for it.
//
// A Server may be used by several sessions at once.
package mcpserver
