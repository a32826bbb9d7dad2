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

static __always_inline void lookup_flow(const struct question *q, struct answer *a)
{
	struct identity identity;
	struct dest dest;
	struct route route;

	__builtin_memset(a, 0, sizeof(*a));
	a->reason = REASON_UNTAGGED;
	if (!SNAPSHOT(&sd_identities, &q->netns, &identity))
		return;
	a->sandbox = identity.sandbox;
	a->reason = REASON_UNKNOWN_DEST;
	if (!SNAPSHOT(&sd_dests, &q->dst, &dest))
		return;
	a->class = dest.class;

	struct route_key key = {.sandbox = a->sandbox, .class = a->class};

	/* A slot is missing when the route has just moved to another group and
	 * the old one was deleted: then the route, read again, leads on. */
	for (int i = 0; i < 3; i++) {
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

		if (SNAPSHOT(&sd_backends, &slot, &a->endpoint)) {
			a->verdict = VERDICT_FORK;
			a->reason = REASON_REDIRECTED;
			return;
		}
	}
	a->verdict = VERDICT_REFUSE;
	a->reason = REASON_NO_BACKEND;
}
