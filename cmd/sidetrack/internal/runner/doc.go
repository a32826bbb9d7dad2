// SPDX-License-Identifier: Apache-2.0

// Package runner runs a command in a pod of a sandbox: its flows are the sandbox's,
// and its HTTP requests get the routing key by themselves.
//
// It owns the pod, which it removes however the run ends; what it cannot remove,
// because the program was killed, goes with the pod's deadline and with the
// sandbox. It never interprets what the command prints. Everything in it may be
// called concurrently.
package runner
