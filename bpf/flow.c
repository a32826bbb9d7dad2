/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
//go:build ignore

/*
 * Flow redirect: flows out of a sandbox's namespaces get another destination as
 * they connect or send, and applications are shown the one they asked for.
 * Pinned: works on, by itself, while no agent runs, until the lease is over.
 */
#include "events.h"
#include "socket.h"

static __always_inline bool lease_over(void)
{
	__u32 zero = 0;
	__u64 *until = bpf_map_lookup_elem(&sd_lease, &zero);

	return !until || bpf_ktime_get_boot_ns() > *until;
}

static __always_inline void count_hit(const struct answer *a)
{
	struct route_key key = {.sandbox = a->sandbox, .class = a->class};
	struct hits *h = bpf_map_lookup_elem(&sd_hits, &key);

	if (!h) {
		struct hits none = {};

		bpf_map_update_elem(&sd_hits, &key, &none, BPF_NOEXIST);
		h = bpf_map_lookup_elem(&sd_hits, &key);
		if (!h)
			return;
	}
	if (a->verdict == VERDICT_FORK)
		__sync_fetch_and_add(&h->redirected, 1);
	else
		__sync_fetch_and_add(&h->refused, 1);
}

/* decide is what connect and sendmsg have in common. It fills a, and answers
 * whether there is anything to do. socket is the cookie of one that sends
 * datagrams, and zero for one that connects. */
static __always_inline bool decide(struct bpf_sock_addr *ctx, enum program program, bool mapped_ok,
				   __u32 pick, __u64 socket, const struct endpoint *to,
				   struct answer *a)
{
	struct question q = {
		.dst.port = to->port,
		.dst.proto = ctx->protocol,
		.pick = pick,
		.mapped_ok = mapped_ok,
	};

	__builtin_memcpy(q.dst.addr, to->addr, sizeof(q.dst.addr));
	__builtin_memset(a, 0, sizeof(*a));
	if (ctx->sk->mark == agent_mark) {
		a->reason = REASON_AGENT;
	} else if (lease_over()) {
		a->reason = REASON_LEASE_OVER;
	} else if (bpf_get_retval() < 0) {
		a->reason = REASON_DENIED;
	} else {
		q.source = source_of(ctx);
		lookup_flow(&q, a);
		/* A class has what is tagged and known. */
		if (a->class && !(socket && told_lately(socket, &q, a)))
			tell_flow(&q, a, program, bpf_get_socket_cookie(ctx));
	}
	if (a->verdict == VERDICT_BASELINE) {
		count(program, a->reason);
		return false;
	}
	count_hit(a);
	return true;
}

static __always_inline int flow_connect(struct bpf_sock_addr *ctx, enum program program, bool v6)
{
	struct dialled *noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, 0);
	struct endpoint to;
	struct answer a;
	bool redirect, known;

	/* Whatever an earlier connect of this socket left behind is over. */
	if (noted)
		noted->flags &= DIALLED_DATAGRAMS;

	read_addr(ctx, v6, &to);
	if (!decide(ctx, program, v6 && !v6_only(ctx), bpf_get_prandom_u32(), 0, &to, &a))
		return 1;
	redirect = a.verdict == VERDICT_FORK;
	known = note_dialled(ctx, &to, &a.endpoint, redirect ? DIALLED_CONNECTED : DIALLED_REFUSED);
	if (!redirect) {
		count(program, a.reason);
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	count(program, known ? REASON_REDIRECTED : REASON_UNNOTED);
	write_addr(ctx, v6, &a.endpoint);
	return 1;
}

/* spread mixes a socket's cookie (murmur3's finaliser), so that sockets that
 * were opened one after the other use different endpoints, and one socket
 * always the same: QUIC and DTLS would not survive anything else. */
static __always_inline __u32 spread(__u64 x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	x ^= x >> 33;
	return x;
}

/* note_peer remembers what datagrams to an endpoint were addressed to. */
static __always_inline bool note_peer(struct bpf_sock_addr *ctx, __u64 socket,
				      const struct endpoint *actual, const struct endpoint *to)
{
	struct peer_key key = {.socket = socket, .actual = *actual};
	struct dialled *noted;
	struct endpoint *known;

	noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!noted)
		return false;
	noted->flags |= DIALLED_DATAGRAMS;
	/* Nearly always it is known: no write for each datagram. */
	known = bpf_map_lookup_elem(&sd_udp_peers, &key);
	if (known && same(known, to))
		return true;
	return !bpf_map_update_elem(&sd_udp_peers, &key, to, BPF_ANY);
}

/* forget_peer: datagrams now really go to an address that others were
 * redirected to before; its answers are its own. */
static __always_inline void forget_peer(struct bpf_sock_addr *ctx, __u64 socket,
					const struct endpoint *to)
{
	struct dialled *noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, 0);
	struct peer_key key = {.socket = socket, .actual = *to};

	if (noted && noted->flags & DIALLED_DATAGRAMS)
		bpf_map_delete_elem(&sd_udp_peers, &key);
}

static __always_inline int flow_sendmsg(struct bpf_sock_addr *ctx, enum program program, bool v6)
{
	__u64 socket = bpf_get_socket_cookie(ctx);
	struct endpoint to;
	struct answer a;

	read_addr(ctx, v6, &to);
	/* The kernel does not let an IPv6 datagram become an IPv4 one here
	 * (ENOTSUPP); IPv4 datagrams of IPv6 sockets come by sendmsg4. */
	if (!decide(ctx, program, false, spread(socket), socket, &to, &a)) {
		forget_peer(ctx, socket, &to);
		return 1;
	}
	if (a.verdict == VERDICT_REFUSE) {
		count(program, a.reason);
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	count(program, note_peer(ctx, socket, &a.endpoint, &to) ? REASON_REDIRECTED : REASON_UNNOTED);
	write_addr(ctx, v6, &a.endpoint);
	return 1;
}

static __always_inline int show_dialled(struct bpf_sock_addr *ctx, enum program program, bool v6,
					bool datagrams)
{
	struct dialled *noted = bpf_sk_storage_get(&sd_dialled, ctx->sk, NULL, 0);
	struct peer_key key = {};
	struct endpoint from, dialled;
	bool ours = false;

	if (!noted)
		goto out;
	read_addr(ctx, v6, &from);
	if (noted->flags & DIALLED_CONNECTED && same(&noted->actual, &from)) {
		dialled = noted->dialled;
		ours = true;
	} else if (datagrams && noted->flags & DIALLED_DATAGRAMS) {
		key.socket = bpf_get_socket_cookie(ctx);
		key.actual = from;
		ours = SNAPSHOT(&sd_udp_peers, &key, &dialled);
	}
	if (ours)
		write_addr(ctx, v6, &dialled);
out:
	count(program, ours ? REASON_TRANSLATED : REASON_NOT_OURS);
	return 1;
}

SEC("cgroup/connect4")
int sd_connect4(struct bpf_sock_addr *ctx)
{
	return flow_connect(ctx, PROGRAM_CONNECT4, false);
}

SEC("cgroup/connect6")
int sd_connect6(struct bpf_sock_addr *ctx)
{
	return flow_connect(ctx, PROGRAM_CONNECT6, true);
}

SEC("cgroup/sendmsg4")
int sd_sendmsg4(struct bpf_sock_addr *ctx)
{
	return flow_sendmsg(ctx, PROGRAM_SENDMSG4, false);
}

SEC("cgroup/sendmsg6")
int sd_sendmsg6(struct bpf_sock_addr *ctx)
{
	return flow_sendmsg(ctx, PROGRAM_SENDMSG6, true);
}

SEC("cgroup/recvmsg4")
int sd_recvmsg4(struct bpf_sock_addr *ctx)
{
	return show_dialled(ctx, PROGRAM_RECVMSG4, false, true);
}

SEC("cgroup/recvmsg6")
int sd_recvmsg6(struct bpf_sock_addr *ctx)
{
	return show_dialled(ctx, PROGRAM_RECVMSG6, true, true);
}

SEC("cgroup/getpeername4")
int sd_getpeer4(struct bpf_sock_addr *ctx)
{
	return show_dialled(ctx, PROGRAM_GETPEER4, false, false);
}

SEC("cgroup/getpeername6")
int sd_getpeer6(struct bpf_sock_addr *ctx)
{
	return show_dialled(ctx, PROGRAM_GETPEER6, true, false);
}
