/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What C and Go share: keys and values of the maps, reasons, flags. Go's side
 * is generated from this header.
 *
 * Addresses are 16 bytes in network byte order, an IPv4 address as ::ffff:a.b.c.d.
 * Ports (__be16) are in network byte order, all else in the host's. Padding is
 * explicit and zero, because map keys are compared byte by byte.
 */
#pragma once

#include "headers/vmlinux.h"

/* A source is the cookie of a network namespace or, for a pod on the host's network,
 * the id of its cgroup with this bit, which no cookie has. */
#define HOST_POD (1ULL << 63)

enum identity_flag {
	IDENTITY_INJECT = 1, /* its connections to known Services go through the router */
	IDENTITY_GROUP = 2,  /* those do that its sandbox does not redirect, but somebody */
};

struct identity {
	__u32 sandbox;
	enum identity_flag flags;
};
_Static_assert(sizeof(struct identity) == 8, "shared with Go");

struct dest_key {
	__u32 addr[4];
	__be16 port;
	__u8 proto;
	__u8 pad;
};
_Static_assert(sizeof(struct dest_key) == 20, "shared with Go");

enum dest_flag {
	DEST_CAPTURED = 1, /* connections to it are steered to the router */
};

struct dest {
	__u32 id; /* 24 bits, becomes a.b.c of 127.a.b.c */
	__u32 class;
	enum dest_flag flags;
};
_Static_assert(sizeof(struct dest) == 12, "shared with Go");

struct route_key {
	__u32 sandbox;
	__u32 class;
};
_Static_assert(sizeof(struct route_key) == 8, "shared with Go");

enum route_flag {
	ROUTE_BASELINE = 1, /* without an endpoint the baseline answers, by the owner's wish */
};

struct route {
	__u32 group;
	enum route_flag flags;
	__u16 v4; /* slots 0 .. v4-1 of the group are IPv4 */
	__u16 v6; /* slots v4 .. v4+v6-1 are IPv6 */
};
_Static_assert(sizeof(struct route) == 12, "shared with Go");

struct backend_key {
	__u32 group;
	__u32 slot;
};
_Static_assert(sizeof(struct backend_key) == 8, "shared with Go");

struct endpoint {
	__u32 addr[4];
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct endpoint) == 20, "shared with Go");

struct listener {
	__be16 port4; /* of 0.0.0.0, zero: none */
	__be16 port6; /* of [::1], zero: none */
};
_Static_assert(sizeof(struct listener) == 4, "shared with Go");

enum dialled_flag {
	DIALLED_CONNECTED = 1, /* dialled and actual are set, by connect */
	DIALLED_REFUSED = 2,   /* dialled is set, and a flow program has just refused it */
	DIALLED_DATAGRAMS = 4, /* sd_udp_peers may know the socket */
};

struct dialled {
	struct endpoint dialled; /* what the application asked for */
	struct endpoint actual;	 /* what it got */
	enum dialled_flag flags;
};
_Static_assert(sizeof(struct dialled) == 44, "shared with Go");

struct peer_key {
	__u64 socket; /* cookie */
	struct endpoint actual;
	__u32 pad;
};
_Static_assert(sizeof(struct peer_key) == 32, "shared with Go");

struct hits {
	__u64 redirected;
	__u64 refused;
};
_Static_assert(sizeof(struct hits) == 16, "shared with Go");

#define TCP_HEADER_MIN 20
#define TCP_HEADER_MAX 60

/* A packet that a listener of the router did not get to see: a SYN, or what has
 * come too early. */
struct syn {
	__u64 listener;	 /* cookie */
	__u32 saddr[4];
	__u32 daddr[4];
	__u8 tos;	 /* or traffic class */
	__u8 tcp_len;
	__u8 hops; /* time to live or hop limit */
	__u8 pad;
	__u8 tcp[TCP_HEADER_MAX]; /* the header; the first tcp_len bytes are set */
};
_Static_assert(sizeof(struct syn) == 104, "shared with Go");

/* How many SYNs of a listener are in the ring, or a little more: those that were
 * told since the ring had been written up to some position, and those since the
 * position before that one. */
struct budget {
	__u64 since;
	__u32 told;
	__u32 told_before;
};
_Static_assert(sizeof(struct budget) == 16, "padding is an error");

/* The programs, as rows of sd_exits. */
enum program {
	PROGRAM_CONNECT4,
	PROGRAM_CONNECT6,
	PROGRAM_SENDMSG4,
	PROGRAM_SENDMSG6,
	PROGRAM_RECVMSG4,
	PROGRAM_RECVMSG6,
	PROGRAM_GETPEER4,
	PROGRAM_GETPEER6,
	PROGRAM_CAPTURE4,
	PROGRAM_CAPTURE6,
	PROGRAM_HOLD,
	PROGRAM_LEN,
};

/* Why a program came to its end; each way out of each program counts one. */
enum reason {
	REASON_UNTAGGED,     /* the source has no identity */
	REASON_UNKNOWN_DEST, /* tagged, but nothing is known of the destination */
	REASON_NO_REDIRECT,  /* tagged, but its sandbox has no redirect for the destination */
	REASON_REDIRECTED,   /* rewritten to an endpoint of the fork */
	REASON_UNNOTED,	     /* the same, but there was no memory to note what was dialled */
	REASON_REFUSED,	     /* the redirect's target has no ready endpoint that the socket can use */
	REASON_BASELINE,     /* the same, but the redirect says unavailable: Baseline */
	REASON_NO_BACKEND,   /* refused: the endpoint's slot was empty, however often it was asked */
	REASON_AGENT,	     /* the socket has the agent's mark */
	REASON_LEASE_OVER,   /* no agent has been there for long */
	REASON_DENIED,	     /* another program has refused already */
	REASON_TRANSLATED,   /* the application was shown what it dialled */
	REASON_NOT_OURS,     /* nothing was redirected, so there is nothing to translate */
	REASON_CAPTURED,     /* steered to the router by 127.a.b.c */
	REASON_CAPTURED_V6,  /* steered to the router by ::1 */
	REASON_NOT_CAPTURED, /* known, but no sandbox redirects it */
	REASON_TAGGED,	     /* the flow programs have decided; identity goes before headers */
	REASON_NOT_TCP,	     /* only connections of TCP are captured */
	REASON_BOUND,	     /* the socket is bound to a device from which loopback is not reached */
	REASON_NO_LISTENER,  /* a gap: the router does not listen in this namespace (yet) */
	REASON_HELD,	     /* a client's SYN: kept from the listener and told to the router */
	REASON_RING_FULL,    /* the same, but there was no place to tell it: the client sends it again */
	REASON_NOT_SYN,	     /* neither a SYN nor data: the kernel's answer is right */
	REASON_TOO_EARLY,    /* data that met the listener instead of a socket in the making */
	REASON_LEN,
};

/* What is asked and answered by lookup.h. */
enum verdict {
	VERDICT_BASELINE,
	VERDICT_FORK,
	VERDICT_REFUSE,
};

struct question {
	__u64 source; /* see HOST_POD */
	struct dest_key dst;
	__u32 pick;	  /* any number: which of the endpoints */
	__u32 mapped_ok;  /* for an IPv6 destination: may it be an IPv4 endpoint? */
	__u32 pad;
};
_Static_assert(sizeof(struct question) == 40, "shared with Go");

struct answer {
	enum verdict verdict;
	enum reason reason;
	__u32 sandbox;
	__u32 class;
	struct endpoint endpoint;
};
_Static_assert(sizeof(struct answer) == 36, "shared with Go");

/* What connect and sendmsg tell of a tagged flow to a destination that is known. */
struct flow_event {
	__u64 time;   /* nanoseconds since boot */
	__u64 source; /* see HOST_POD */
	struct dest_key dst;
	struct endpoint endpoint; /* zero where it was not redirected */
	__u32 sandbox;
	enum verdict verdict;
	enum reason reason;
	enum program program;
	__u64 socket; /* cookie */
};
_Static_assert(sizeof(struct flow_event) == 80, "shared with Go");

/* Datagrams of one socket to one destination with one outcome. */
struct told_key {
	__u64 socket; /* cookie */
	struct dest_key dst;
	enum verdict verdict;
};
_Static_assert(sizeof(struct told_key) == 32, "shared with Go");

/* The context of the test program. */
struct lookup_test {
	struct question question;
	struct answer answer;
	enum program unused; /* these put their types into BTF, for Go */
	struct flow_event no_event;
	struct syn no_syn;
};
_Static_assert(sizeof(struct lookup_test) == 264, "shared with Go");
