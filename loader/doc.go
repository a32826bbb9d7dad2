// SPDX-License-Identifier: Apache-2.0

// Package loader owns everything of ours that is in the kernel: it loads the
// programs of package bpf, fills their maps from a routing.Table, attaches the
// programs to a cgroup, pins what must outlive the agent, and takes all of it
// away again. It is the only hand-written package that imports cilium/ebpf.
//
// # The life of a Kernel
//
//	k, err := loader.Open(cfg)   // locks, loads; nothing is attached yet
//	err = k.Apply(table)         // fills the maps; the first time it publishes
//	err = k.SetNamespaces(…)     // where capture finds the router's listeners
//	err = k.RenewLease(d)        // again and again, or flow redirects stop after d
//	s, err := k.HoldSYNs()       // for the router's listeners; lives by itself
//	err = k.DetachCapture()      // a drain begins: nothing new for the router
//	err = k.Close()              // flow redirects stay, by their pins
//	err = loader.Uninstall(bpffs, log) // everything of ours is gone
//
// # What stays and what does not
//
// The flow programs' links are pinned below <bpffs>/sidetrack, so tagged flows
// are redirected while no agent runs, until its lease is over. The capture
// programs' links are held by this process and nothing else: however it dies,
// the kernel drops them and new connections go to the baseline.
//
// Each start loads a fresh set of maps and programs, fills it in peace, and
// then puts the new programs into the old links one by one: nothing of an
// earlier agent's state or sizes survives, and there is no moment without a
// program. Only sd_dialled and sd_udp_peers are taken over, because sockets
// that are open now were told addresses by what is in them. The pins of maps
// are there for that and for people with bpftool.
//
// # What it never does
//
// It decides nothing about traffic and knows nothing of Kubernetes, sandboxes'
// names or keys. It detaches no program and removes no pin that is not ours.
// It never waits for the router: whoever calls keeps the order between the two.
//
// # Concurrency
//
// All methods of a Kernel may be called concurrently. Apply, DetachCapture and
// Close wait for each other; RenewLease, V6OnlyDest, Exits and Hits wait for
// none but Close.
package loader
