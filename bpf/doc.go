// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the kernel programs: C sources, the object that is
// compiled from them, and the Go types generated from the header that both
// sides share.
//
// It decides nothing and loads nothing; package loader does the latter.
// README.md says which way traffic takes through the programs. Everything
// exported is generated, and all of it may be used concurrently except values
// that hold kernel objects, which belong to whoever loaded them.
package bpf

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-O2 -g -Wall -Wextra -Wpadded -Werror -mcpu=v3" -type reason -type program -type verdict -type identity_flag -type dest_flag -type route_flag -type dialled_flag -type syn -type lookup_test -type flow_event Sd sidetrack.c
