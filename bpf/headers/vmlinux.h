/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types that these programs need, written by hand, so that
 * neither a whole vmlinux.h nor the build machine's own headers have a say in
 * the objects.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef _Bool bool;

enum { false = 0, true = 1 };

#define NULL ((void *)0)

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define ECONNREFUSED 111
#define ETH_P_IP 0x0800
#define TCP_LISTEN 10

/* UAPI, linux/bpf.h. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
};

#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_F_NO_PREALLOC 1
#define BPF_SK_STORAGE_GET_F_CREATE 1
#define BPF_HDR_START_NET 1
#define BPF_RB_CONS_POS 2
#define BPF_RB_PROD_POS 3

/* UAPI: what the verifier lets programs see of a socket. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port;
	__be16 dst_port;
	__u16 : 16;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};

/* UAPI: the context of the cgroup socket address hooks. */
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;	   /* network byte order */
	__u32 user_ip6[4]; /* network byte order */
	__u32 user_port;   /* network byte order, in the low 16 bits */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	__u32 : 32;
	struct bpf_sock *sk;
};

/* UAPI: the context of socket filters. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol; /* network byte order, in the low 16 bits */
	__u32 unused[37];
	struct bpf_sock *sk;
};
_Static_assert(__builtin_offsetof(struct __sk_buff, sk) == 168, "UAPI");

/* Kernel types: only the members that are read, found by their BTF. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpadded"
struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));
#pragma clang diagnostic pop

struct tcp6_sock;
struct udp6_sock;

/* Not in every kernel: CONFIG_MPTCP. */
struct mptcp_sock {
	char any;
} __attribute__((preserve_access_index));
