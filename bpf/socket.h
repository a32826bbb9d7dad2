/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What flow.c and capture.c both do with a socket address context. */
#pragma once

#include "lookup.h"

/* The mark of the agent's own sockets; set when the programs are loaded. */
const volatile __u32 agent_mark = 0;

/* The cookie of the host's network namespace, in which pods are told apart by their
 * cgroups; zero: they are not. Set when the programs are loaded. */
const volatile __u64 host_netns = 0;

/* A pod's cgroup is rarely deeper than the third level; a node that is a container
 * itself adds its own. */
#define HOST_POD_LEVELS 16

/*
 * host_pod returns the pod that the calling process belongs to, if one is known by
 * its cgroup, and else zero. All these programs run as the process that makes the
 * call. Its own cgroup is its container's, and the pod's is above that, at a level
 * that depends on the pod's class and on where the kubelet has put all pods.
 */
__noinline __u64 host_pod(void)
{
	for (int level = 1; level <= HOST_POD_LEVELS; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);
		__u64 source = id | HOST_POD;

		if (!id)
			break;
		if (bpf_map_lookup_elem(&sd_identities, &source) ||
		    bpf_map_lookup_elem(&sd_namespaces, &source))
			return source;
	}
	return 0;
}

/* source_of says who connects or sends. */
static __always_inline __u64 source_of(struct bpf_sock_addr *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	__u64 pod;

	if (netns != host_netns)
		return netns;
	pod = host_pod();
	return pod ? pod : netns;
}

static __always_inline bool same(const struct endpoint *a, const struct endpoint *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3] && a->port == b->port;
}

/* read_addr and write_addr: v6 is a constant for each caller, because the
 * verifier lets an IPv4 hook see only the IPv4 fields and vice versa. */
static __always_inline void read_addr(struct bpf_sock_addr *ctx, bool v6, struct endpoint *e)
{
	if (v6) {
		e->addr[0] = ctx->user_ip6[0];
		e->addr[1] = ctx->user_ip6[1];
		e->addr[2] = ctx->user_ip6[2];
		e->addr[3] = ctx->user_ip6[3];
	} else {
		e->addr[0] = 0;
		e->addr[1] = 0;
		e->addr[2] = bpf_htonl(0xffff);
		e->addr[3] = ctx->user_ip4;
	}
	e->port = ctx->user_port;
	e->pad = 0;
}

static __always_inline void write_addr(struct bpf_sock_addr *ctx, bool v6, const struct endpoint *e)
{
	if (v6) {
		ctx->user_ip6[0] = e->addr[0];
		ctx->user_ip6[1] = e->addr[1];
		ctx->user_ip6[2] = e->addr[2];
		ctx->user_ip6[3] = e->addr[3];
	} else {
		ctx->user_ip4 = e->addr[3];
	}
	ctx->user_port = e->port;
}

/* v6_only says that an IPv6 socket cannot reach IPv4 by mapped addresses:
 * IPV6_V6ONLY, or bound to an address that IPv4 knows nothing of. */
static __always_inline bool v6_only(struct bpf_sock_addr *ctx)
{
	const struct sock_common *skc;
	__u32 src[4];

	src[0] = ctx->sk->src_ip6[0];
	src[1] = ctx->sk->src_ip6[1];
	src[2] = ctx->sk->src_ip6[2];
	src[3] = ctx->sk->src_ip6[3];
	if ((src[0] | src[1] | src[2] | src[3]) && !is_v4(src))
		return true;
	/* Both begin with a struct sock_common. */
	if (ctx->protocol == IPPROTO_TCP)
		skc = (const struct sock_common *)bpf_skc_to_tcp6_sock(ctx->sk);
	else
		skc = (const struct sock_common *)bpf_skc_to_udp6_sock(ctx->sk);
	return skc && BPF_CORE_READ_BITFIELD(skc, skc_ipv6only);
}

/* note_dialled notes what a socket asked for in connect and what it gets. It
 * answers false when there is no memory for that. */
static __always_inline bool note_dialled(struct bpf_sock_addr *ctx, const struct endpoint *dialled,
					 const struct endpoint *actual, enum dialled_flag flags)
{
	struct dialled *noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!noted)
		return false;
	noted->dialled = *dialled;
	noted->actual = *actual;
	noted->flags = (noted->flags & DIALLED_DATAGRAMS) | flags;

	/* What connects is a subflow of an MPTCP socket; getpeername is asked of
	 * the latter. */
	if (ctx->protocol == IPPROTO_TCP && bpf_core_type_exists(struct mptcp_sock)) {
		struct mptcp_sock *msk = bpf_skc_to_mptcp_sock(ctx->sk);
		struct dialled *shown;

		if (!msk)
			return true;
		shown = bpf_sk_storage_get(&sd_dialled, msk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (shown)
			*shown = *noted;
	}
	return true;
}
