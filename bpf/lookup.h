/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What becomes of a flow. The twin of routing.Table.LookupFlow: a differential
 * test runs both. Nothing in here looks at a program's context.
 */
#pragma once

#include "maps.h"

static __always_inline bool is_v4(const __u32 addr[4])
{
	return addr[0] == 0 && addr[1] == 0 && addr[2] == bpf_htonl(0xffff);
}

/* choose says which slots of a group a flow may use: IPv4 endpoints for IPv4
 * destinations; for IPv6 ones IPv6, else IPv4 where the socket can reach it. */
static __always_inline __u32 choose(const struct question *q, const struct route *r, __u32 *first)
{
	*first = 0;
	if (is_v4(q->dst.addr))
		return r->v4;
	if (r->v6 || !q->mapped_ok) {
		*first = r->v4;
		return r->v6;
	}
	return r->v4;
}

/* lookup_once goes through the maps once. */
static __always_inline void lookup_once(const struct question *q, struct answer *a)
{
	/* On the stack, from where Linux 6.1 takes keys. */
	struct dest_key dst = q->dst;
	__u64 source = q->source;
	struct identity identity;
	struct dest dest;
	struct route route;

	__builtin_memset(a, 0, sizeof(*a));
	a->reason = REASON_UNTAGGED;
	if (!SNAPSHOT(&sd_identities, &source, &identity))
		return;
	a->sandbox = identity.sandbox;
	a->reason = REASON_UNKNOWN_DEST;
	if (!SNAPSHOT(&sd_dests, &dst, &dest))
		return;
	a->class = dest.class;

	struct route_key key = {.sandbox = a->sandbox, .class = a->class};

	a->reason = REASON_NO_REDIRECT;
	if (!SNAPSHOT(&sd_routes, &key, &route))
		return;

	__u32 first, n = choose(q, &route, &first);

	if (!n) {
		bool baseline = route.flags & ROUTE_BASELINE;

		a->verdict = baseline ? VERDICT_BASELINE : VERDICT_REFUSE;
		a->reason = baseline ? REASON_BASELINE : REASON_REFUSED;
		return;
	}

	struct backend_key slot = {.group = route.group, .slot = first + q->pick % n};
	bool there = SNAPSHOT(&sd_backends, &slot, &a->endpoint);

	a->verdict = there ? VERDICT_FORK : VERDICT_REFUSE;
	a->reason = there ? REASON_REDIRECTED : REASON_NO_BACKEND;
}

/*
 * lookup_flow answers q. The agent may change the maps between two looks of one
 * pass: then the entry that the first look leads to is gone, and what was found
 * is no answer of the old table nor of the new one. So a flow that is tagged and
 * leads nowhere is looked up again until it leads nowhere twice by the same way.
 *
 * A global function, because the verifier looks at those once, by themselves,
 * and not along every path of every program that calls them. It cannot know the
 * callers, hence the question whether there are arguments.
 */
__noinline int lookup_flow(const struct question *q, struct answer *a)
{
	if (!q || !a)
		return 0;

	__u32 sandbox = 0, class = 0;
	enum reason reason = REASON_LEN;

	for (int i = 0; i < 4; i++) {
		lookup_once(q, a);
		if (a->verdict == VERDICT_FORK || a->reason == REASON_UNTAGGED)
			break;
		if (a->sandbox == sandbox && a->class == class && a->reason == reason &&
		    reason != REASON_NO_BACKEND)
			break;
		sandbox = a->sandbox;
		class = a->class;
		reason = a->reason;
	}
	return 0;
}
