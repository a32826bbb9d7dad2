// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: commands, flags, what is printed, and the exit
// status.
//
// It owns nothing but the conversation with a person or a script: each command
// reads its flags, has a package beside this one do the task, and prints what came
// of it. Main may be called once at a time.
package cli
