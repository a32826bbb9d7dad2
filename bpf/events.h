/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the ledger is told of flows: those that are tagged and lead to a destination
 * that is known. All others never come here.
 */
#pragma once

#include "lookup.h"

/* How long a socket's datagrams to one destination are one and the same event. */
#define TOLD_NS (10ULL * 1000 * 1000 * 1000)

/* told_lately answers whether datagrams like this one have been told of already. */
static __always_inline bool told_lately(__u64 socket, const struct question *q, const struct answer *a)
{
	struct told_key key = {.socket = socket, .dst = q->dst, .verdict = a->verdict};
	__u64 now = bpf_ktime_get_boot_ns();
	__u64 *last = bpf_map_lookup_elem(&sd_told, &key);

	if (last && now - *last < TOLD_NS)
		return true;
	bpf_map_update_elem(&sd_told, &key, &now, BPF_ANY);
	return false;
}

/* router_decides answers whether capture, which runs after this, is going to steer
 * the connection to the router: then it is the router that knows. */
static __always_inline bool router_decides(const struct question *q, const struct answer *a)
{
	struct dest_key dst = q->dst;
	__u64 source = q->source;
	struct identity identity;
	struct dest dest;

	if (dst.proto != IPPROTO_TCP || !SNAPSHOT(&sd_identities, &source, &identity) ||
	    !bpf_map_lookup_elem(&sd_namespaces, &source))
		return false;
	if (identity.flags & IDENTITY_INJECT)
		return true;
	return identity.flags & IDENTITY_GROUP && a->reason == REASON_NO_REDIRECT &&
	       SNAPSHOT(&sd_dests, &dst, &dest) && dest.flags & DEST_CAPTURED;
}

/* tell_flow tells of a flow. A global function for the reason that lookup_flow is
 * one. */
__noinline int tell_flow(const struct question *q, const struct answer *a, __u32 program, __u64 socket)
{
	struct flow_event *e;

	if (!q || !a || router_decides(q, a))
		return 0;
	e = bpf_ringbuf_reserve(&sd_events, sizeof(*e), 0);
	if (!e) {
		__u32 zero = 0;
		__u64 *n = bpf_map_lookup_elem(&sd_untold, &zero);

		if (n)
			__sync_fetch_and_add(n, 1);
		return 0;
	}
	e->time = bpf_ktime_get_boot_ns();
	e->source = q->source;
	e->dst = q->dst;
	e->endpoint = a->endpoint;
	e->sandbox = a->sandbox;
	e->verdict = a->verdict;
	e->reason = a->reason;
	e->program = program;
	e->socket = socket;
	bpf_ringbuf_submit(e, 0);
	return 0;
}
