/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
//go:build ignore

/*
 * Capture: connections whose tag is inside the bytes are steered to the router's
 * listener in the client's own namespace. Never pinned: it dies with the agent,
 * and new connections go to the baseline.
 *
 * Runs after flow.c in the same cgroup: flow's links are older. What flow has
 * done to a connection that is captured, it undoes.
 */
#include "socket.h"

static __always_inline enum reason capture(struct bpf_sock_addr *ctx, bool v6)
{
	int err = bpf_get_retval();
	struct dialled *noted;
	struct identity identity = {};
	struct listener listener;
	struct dest_key key = {};
	struct endpoint to, router = {};
	__u64 source;
	struct dest dest;
	bool tagged, inject, refused = false, by_v6;

	if (ctx->protocol != IPPROTO_TCP)
		return REASON_NOT_TCP;
	if (ctx->sk->mark == agent_mark)
		return REASON_AGENT;
	source = source_of(ctx);
	tagged = SNAPSHOT(&sd_identities, &source, &identity);
	inject = tagged && identity.flags & IDENTITY_INJECT;
	if (tagged && !inject && !(identity.flags & IDENTITY_GROUP))
		return REASON_TAGGED;

	read_addr(ctx, v6, &to);
	noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, 0);
	if (tagged && noted) {
		refused = noted->flags & DIALLED_REFUSED && same(&noted->dialled, &to) &&
			  err == -ECONNREFUSED;
		if (noted->flags & DIALLED_CONNECTED && same(&noted->actual, &to)) {
			to = noted->dialled;
			if (!inject)
				return REASON_TAGGED;
		}
		if (refused && !inject)
			return REASON_TAGGED;
	}
	if (err < 0 && !refused)
		return REASON_DENIED;

	__builtin_memcpy(key.addr, to.addr, sizeof(key.addr));
	key.port = to.port;
	key.proto = IPPROTO_TCP;
	if (!SNAPSHOT(&sd_dests, &key, &dest))
		return REASON_UNKNOWN_DEST;
	if (!inject && !(dest.flags & DEST_CAPTURED))
		return REASON_NOT_CAPTURED;
	if (tagged && !inject) {
		struct route_key own = {.sandbox = identity.sandbox, .class = dest.class};

		/* What its sandbox redirects is no group's, even if the baseline answers. */
		if (bpf_map_lookup_elem(&sd_routes, &own))
			return REASON_TAGGED;
	}
	/* 1 is lo's number in every namespace. */
	if (ctx->sk->bound_dev_if > 1)
		return REASON_BOUND;
	if (!SNAPSHOT(&sd_namespaces, &source, &listener))
		return REASON_NO_LISTENER;
	by_v6 = v6 && !is_v4(to.addr) && v6_only(ctx);
	if (by_v6) {
		__u64 socket = bpf_get_socket_cookie(ctx);

		router.addr[3] = bpf_htonl(1);
		router.port = listener.port6;
		if (router.port && bpf_map_update_elem(&sd_v6only, &socket, &dest.id, BPF_ANY))
			return REASON_NO_LISTENER;
	} else {
		router.addr[2] = bpf_htonl(0xffff);
		router.addr[3] = bpf_htonl(127U << 24 | dest.id);
		router.port = listener.port4;
	}
	if (!router.port)
		return REASON_NO_LISTENER;

	/* Without memory for the note getpeername shows the router; the router itself
	 * goes by the address. */
	note_dialled(ctx, &to, &router, DIALLED_CONNECTED);
	write_addr(ctx, v6, &router);
	if (refused)
		bpf_set_retval(0);
	return by_v6 ? REASON_CAPTURED_V6 : REASON_CAPTURED;
}

SEC("cgroup/connect4")
int sd_capture4(struct bpf_sock_addr *ctx)
{
	count(PROGRAM_CAPTURE4, capture(ctx, false));
	return 1;
}

SEC("cgroup/connect6")
int sd_capture6(struct bpf_sock_addr *ctx)
{
	count(PROGRAM_CAPTURE6, capture(ctx, true));
	return 1;
}
