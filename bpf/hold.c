/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
//go:build ignore

/*
 * Hold: a filter on the router's outer listeners. A client's SYN does not reach
 * the listener but the router, which dials first and then sends the SYN again, or
 * refuses it. So the client's connect(2) ends as it would without us. What the
 * router sends carries its mark, and goes to the inner listener, at the same
 * address, which has no filter.
 *
 * The kernel runs a listener's filter in tcp_v4_rcv and tcp_v6_rcv (tcp_filter);
 * the packet's data begin with the TCP header, and its socket is the listener.
 */
#include "socket.h"

#define DROP 0
#define PASS 0xffffffff /* whole */

#define TCP_OFFSET_AND_FLAGS 12
#define TCP_FLAGS 0x17 /* ACK, RST, SYN, FIN */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04

#define IPV4_TOS 1
#define IPV4_TTL 8
#define IPV4_SADDR 12
#define IPV4_DADDR 16
#define IPV6_HOPS 7
#define IPV6_SADDR 8
#define IPV6_DADDR 24

static __always_inline bool read_network(struct __sk_buff *skb, struct syn *syn)
{
	__u8 first[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		syn->saddr[0] = syn->saddr[1] = syn->daddr[0] = syn->daddr[1] = 0;
		syn->saddr[2] = syn->daddr[2] = bpf_htonl(0xffff);
		return !bpf_skb_load_bytes_relative(skb, IPV4_TOS, &syn->tos, 1, BPF_HDR_START_NET) &&
		       !bpf_skb_load_bytes_relative(skb, IPV4_TTL, &syn->hops, 1, BPF_HDR_START_NET) &&
		       !bpf_skb_load_bytes_relative(skb, IPV4_SADDR, &syn->saddr[3], 4, BPF_HDR_START_NET) &&
		       !bpf_skb_load_bytes_relative(skb, IPV4_DADDR, &syn->daddr[3], 4, BPF_HDR_START_NET);
	}
	/* The traffic class is what is between the version and the flow label. */
	if (bpf_skb_load_bytes_relative(skb, 0, first, sizeof(first), BPF_HDR_START_NET))
		return false;
	syn->tos = first[0] << 4 | first[1] >> 4;
	return !bpf_skb_load_bytes_relative(skb, IPV6_HOPS, &syn->hops, 1, BPF_HDR_START_NET) &&
	       !bpf_skb_load_bytes_relative(skb, IPV6_SADDR, syn->saddr, 16, BPF_HDR_START_NET) &&
	       !bpf_skb_load_bytes_relative(skb, IPV6_DADDR, syn->daddr, 16, BPF_HDR_START_NET);
}

/*
 * too_early: the router completes the handshake on its CPU, and the client may
 * send at once on another. In the moment in which the kernel takes the request for
 * a socket out of its table and puts the socket in (inet_ehash_insert, at least
 * until Linux 6.18) a lookup finds neither, but this listener, which would answer
 * with RST. The router is told, because it may also be that there is no such
 * connection any more. A bare ACK may be meant for the listener, with SYN cookies.
 */
static __always_inline bool too_early(struct __sk_buff *skb, __u32 header, __u8 flags)
{
	struct bpf_sock *sk = skb->sk;

	return sk && sk->state == TCP_LISTEN && !(flags & TCP_RST) &&
	       (skb->len > header || flags & TCP_FIN);
}

/*
 * has_room: one listener's clients must not fill the ring that others need as
 * well. When the reader has passed the position that is noted, all that was told
 * before it is no longer there. Counts that race on two CPUs are off by a few.
 */
static __always_inline bool has_room(__u64 listener)
{
	__u64 written = bpf_ringbuf_query(&sd_syns, BPF_RB_PROD_POS);
	__u64 read = bpf_ringbuf_query(&sd_syns, BPF_RB_CONS_POS);
	struct budget *b = bpf_map_lookup_elem(&sd_syn_budgets, &listener);

	if (!b) {
		struct budget first = {.since = written};

		bpf_map_update_elem(&sd_syn_budgets, &listener, &first, BPF_NOEXIST);
		b = bpf_map_lookup_elem(&sd_syn_budgets, &listener);
		if (!b)
			return true;
	}
	if (read >= b->since) {
		b->told_before = read < written ? b->told : 0;
		b->told = 0;
		b->since = written;
	}
	if (b->told + b->told_before >= SYNS_OF_ONE)
		return false;
	__sync_fetch_and_add(&b->told, 1);
	return true;
}

static __always_inline enum reason hold(struct __sk_buff *skb)
{
	__u8 offset_flags[2];
	bool early = false;
	struct syn *syn;
	__u64 listener;
	__u32 len;

	if (bpf_skb_load_bytes(skb, TCP_OFFSET_AND_FLAGS, offset_flags, sizeof(offset_flags)))
		return REASON_NOT_SYN;
	len = (offset_flags[0] >> 4) * 4;
	if ((offset_flags[1] & TCP_FLAGS) != TCP_SYN) {
		if (!too_early(skb, len, offset_flags[1]))
			return REASON_NOT_SYN;
		early = true;
	} else if (skb->mark == agent_mark) {
		return REASON_AGENT;
	}
	listener = bpf_get_socket_cookie(skb);
	if (!has_room(listener))
		return REASON_RING_FULL;
	syn = bpf_ringbuf_reserve(&sd_syns, sizeof(*syn), 0);
	if (!syn)
		return REASON_RING_FULL;
	if (len < TCP_HEADER_MIN || len > TCP_HEADER_MAX || !read_network(skb, syn) ||
	    bpf_skb_load_bytes(skb, 0, syn->tcp, len)) {
		/* The kernel has looked at these headers before. */
		bpf_ringbuf_discard(syn, 0);
		return REASON_NOT_SYN;
	}
	syn->listener = listener;
	syn->tcp_len = len;
	syn->pad = 0;
	bpf_ringbuf_submit(syn, 0);
	return early ? REASON_TOO_EARLY : REASON_HELD;
}

SEC("socket")
int sd_hold(struct __sk_buff *skb)
{
	enum reason reason = hold(skb);

	count(PROGRAM_HOLD, reason);
	switch (reason) {
	case REASON_HELD:
	case REASON_RING_FULL:
	case REASON_TOO_EARLY:
		return DROP;
	default:
		return PASS;
	}
}
