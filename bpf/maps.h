/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * All maps. Their sizes are set by flags of the agent when it loads them; those
 * here are placeholders. Hashes that only the agent writes are not preallocated,
 * so that a large limit costs nothing but its buckets.
 */
#pragma once

#include "headers/bpf_helpers.h"
#include "sidetrack.h"

/* Source (see HOST_POD) -> what its flows are tagged with. Written by the
 * agent, read by connect, sendmsg and capture. Full: the agent refuses the
 * change and names the flag. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct identity);
} sd_identities SEC(".maps");

/* Dialled address, port and protocol -> the destination's number, class and
 * whether it is captured. Written by the agent, read by connect, sendmsg and
 * capture. Full: the agent refuses the change and names the flag. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct dest_key);
	__type(value, struct dest);
} sd_dests SEC(".maps");

/* Sandbox and class of destinations -> where the redirect leads. Written by the
 * agent, read by connect, sendmsg and capture. Full: the agent refuses the change
 * and names the flag. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct route_key);
	__type(value, struct route);
} sd_routes SEC(".maps");

/* Group and slot -> an endpoint. A group never changes: other endpoints are
 * another group. Written by the agent, read by connect and sendmsg. Full: the
 * agent refuses the change and names the flag. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct backend_key);
	__type(value, struct endpoint);
} sd_backends SEC(".maps");

/* Source (see HOST_POD) -> the ports at which the router listens for it.
 * Written by the agent, read by capture. Full: the agent reports it, and that
 * namespace is a gap in coverage. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct listener);
} sd_namespaces SEC(".maps");

/* Socket -> what it dialled and what it got instead. Written by connect, sendmsg
 * and capture, read by getpeername, recvmsg and capture. Lives and dies with the
 * socket, and outlives the agent by its pin. Out of memory: the redirect holds,
 * getpeername shows the endpoint, and connect counts it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct dialled);
} sd_dialled SEC(".maps");

/* Socket cookie and the endpoint that its datagrams really went to -> what it
 * had addressed them to. Written by sendmsg, read by recvmsg; outlives the agent
 * by its pin. Full: the entry longest unused goes, and a late answer shows the
 * endpoint that sent it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct peer_key);
	__type(value, struct endpoint);
} sd_udp_peers SEC(".maps");

/* Socket cookie -> the number of the destination that was captured, for sockets
 * that cannot dial ::ffff:127.a.b.c. Written by capture6, read by the agent as it
 * accepts the connection. Full: the entry longest unused goes, long after its
 * connection was accepted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u32);
} sd_v6only SEC(".maps");

/* program * REASON_LEN + reason -> how often. Written by all programs, read by
 * the agent. Cannot be full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROGRAM_LEN * REASON_LEN);
	__type(key, __u32);
	__type(value, __u64);
} sd_exits SEC(".maps");

/* Sandbox and class -> flows redirected and refused. Written by connect and
 * sendmsg, read by the agent, which also deletes what belongs to routes that are
 * gone. Full: what finds no place is missing from the metrics by sandbox, and
 * only there. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct route_key);
	__type(value, struct hits);
} sd_hits SEC(".maps");

/* 0 -> until when (nanoseconds since boot) connect and sendmsg act. Written by
 * the agent, read by connect and sendmsg. Cannot be full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sd_lease SEC(".maps");

/* Tagged flows as they begin, for the ledger. Written by connect and sendmsg, read by
 * the agent. Full: the flow is not told, and sd_untold counts it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} sd_events SEC(".maps");

/* 0 -> how many flows found no place in sd_events. Written by connect and sendmsg,
 * read by the agent. Cannot be full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sd_untold SEC(".maps");

/* Datagrams of a socket -> when they were last told of (nanoseconds since boot), so
 * that a busy socket does not fill sd_events. Written and read by sendmsg. Full: the
 * entry longest unused goes, and its socket is told of once more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct told_key);
	__type(value, __u64);
} sd_told SEC(".maps");

/* SYNs that are held. Written by hold, read by one of the router's loops; each has
 * a ring of its own. Full: the SYN is dropped, and the client sends it again after
 * a second. It has room for 4681 of them, and one listener gets SYNS_OF_ONE. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} sd_syns SEC(".maps");

#define SYNS_OF_ONE 1024

/* Cookie of a listener -> how much of the ring it uses. Written and read by hold
 * alone. Full: the listener longest unused is forgotten, which has nothing there. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct budget);
} sd_syn_budgets SEC(".maps");

/*
 * SNAPSHOT copies the value of a key and says whether there is one. A hash's
 * element can be reused for another key while a program still looks at it
 * (since Linux 6.1 at once, without waiting for readers), which would mix two
 * sandboxes. So it looks again: the same element is still that key's.
 */
#define SNAPSHOT(map, key, out)                                                \
	({                                                                     \
		bool found = false;                                            \
		for (int i = 0; i < 4 && !found; i++) {                        \
			typeof(out) p = bpf_map_lookup_elem(map, key);         \
			if (!p)                                                \
				break;                                         \
			*(out) = *p;                                           \
			found = bpf_map_lookup_elem(map, key) == p;            \
		}                                                              \
		found;                                                         \
	})

static __always_inline void count(enum program program, enum reason reason)
{
	__u32 key = program * REASON_LEN + reason;
	__u64 *n = bpf_map_lookup_elem(&sd_exits, &key);

	/* Atomic, although it is this CPU's own: programs can be preempted. */
	if (n)
		__sync_fetch_and_add(n, 1);
}
