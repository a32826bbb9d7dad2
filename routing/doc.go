// SPDX-License-Identifier: Apache-2.0

// Package routing is the model: which traffic goes where, and why.
//
// It owns the words (keys, Services, redirects, sandboxes), turns plain values
// made from Kubernetes objects into an immutable Table (Compile), answers from
// it where a flow, a connection or a request goes (LookupFlow,
// DecideConnection, DecideRequest), lists the steps that take the kernel's maps
// from one Table to the next without misrouting on the way (Table.Diff), and
// reads routing keys from headers (KeyNames, KeySet).
//
// # Traffic's way
//
// An example. The Service shop/route has the cluster IP 10.96.0.7 and one pod,
// 10.244.1.5:8080; the sandbox shop/pr-42 with the key "k-8c1f…" redirects it to
// the Service shop/route-pr-42, whose pod is 10.244.2.9:8080. Compile makes
//
//	Dests       10.96.0.7:80/TCP     -> id 1, class 1, captured
//	            10.244.1.5:8080/TCP  -> id 2, class 1, captured
//	Routes      sandbox 1, class 1   -> group 1, one IPv4 endpoint
//	Backends    group 1, slot 0      -> 10.244.2.9:8080
//	Identities  cookie of a pod of the sandbox -> sandbox 1
//
// A pod of the sandbox connects to 10.96.0.7:80: bpf/flow.c finds its identity,
// the destination's class, the route and the backend, and the connection goes
// to 10.244.2.9:8080. Anybody else's connection to the same address goes to the
// request router (bpf/capture.c), which is told the destination's id and asks
// DecideRequest for each request: the fork for those that carry the key, the
// address that was dialled for all others.
//
// # Large tables
//
// A table shares with the one before it what has not changed: Compile compiles the
// objects that differ from prev's and what depends on them, and Diff looks at what
// the two tables do not share. Both still pass by every object, at some hundred
// nanoseconds each; see basis for what depends on what.
//
// The package imports nothing beyond the standard library, does no I/O and
// logs nothing. Compile and Diff are pure functions; a Table may be read from
// any number of goroutines; a KeySet belongs to one at a time.
package routing
