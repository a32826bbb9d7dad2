/* SPDX-License-Identifier: (LGPL-2.1 OR BSD-2-Clause) */
/*
 * From libbpf 1.1 (bpf_helpers.h, bpf_helper_defs.h, bpf_core_read.h and
 * bpf_endian.h, https://github.com/libbpf/libbpf), cut down to what these
 * programs use.
 */
#pragma once

#include "vmlinux.h"

#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name

#define SEC(name)                                                              \
	_Pragma("GCC diagnostic push")                                         \
	_Pragma("GCC diagnostic ignored \"-Wignored-attributes\"")             \
	__attribute__((section(name), used))                                   \
	_Pragma("GCC diagnostic pop")

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#define __noinline __attribute__((noinline))

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only little-endian targets are supported"
#endif
#define bpf_htonl(x) __builtin_bswap32(x)
#define bpf_htons(x) __builtin_bswap16(x)

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u32 (*bpf_get_prandom_u32)(void) = (void *)7;
static long (*bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)46;
static long (*bpf_skb_load_bytes_relative)(const void *skb, __u32 offset, void *to, __u32 len, __u32 start_header) = (void *)68;
static void *(*bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)122;
static __u64 (*bpf_get_current_ancestor_cgroup_id)(int ancestor_level) = (void *)123;
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)125;
static void *(*bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static void (*bpf_ringbuf_discard)(void *data, __u64 flags) = (void *)133;
static __u64 (*bpf_ringbuf_query)(void *ringbuf, __u64 flags) = (void *)134;
static struct tcp6_sock *(*bpf_skc_to_tcp6_sock)(void *sk) = (void *)136;
static struct udp6_sock *(*bpf_skc_to_udp6_sock)(void *sk) = (void *)140;
static int (*bpf_get_retval)(void) = (void *)186;
static int (*bpf_set_retval)(int retval) = (void *)187;

static struct mptcp_sock *(*bpf_skc_to_mptcp_sock)(void *sk) = (void *)196;

enum bpf_type_info_kind {
	BPF_TYPE_EXISTS = 0,
};

/* Whether the running kernel has a type. */
#define bpf_core_type_exists(type) \
	__builtin_preserve_type_info(*(typeof(type) *)0, BPF_TYPE_EXISTS)

enum bpf_field_info_kind {
	BPF_FIELD_BYTE_OFFSET = 0,
	BPF_FIELD_BYTE_SIZE = 1,
	BPF_FIELD_LSHIFT_U64 = 4,
	BPF_FIELD_RSHIFT_U64 = 5,
};

#define __CORE_RELO(src, field, info) \
	__builtin_preserve_field_info((src)->field, BPF_FIELD_##info)

/* Reads an unsigned bit field of a BTF-typed pointer, wherever the running
 * kernel has it. */
#define BPF_CORE_READ_BITFIELD(s, field) ({                                    \
	const void *p = (const void *)s + __CORE_RELO(s, field, BYTE_OFFSET);  \
	unsigned long long val = 0;                                            \
                                                                               \
	/* Makes p a black box, so that its offset is relocated once and not   \
	 * once for each load below. */                                        \
	asm volatile("" : "=r"(p) : "0"(p));                                   \
                                                                               \
	switch (__CORE_RELO(s, field, BYTE_SIZE)) {                            \
	case 1: val = *(const unsigned char *)p; break;                        \
	case 2: val = *(const unsigned short *)p; break;                       \
	case 4: val = *(const unsigned int *)p; break;                         \
	case 8: val = *(const unsigned long long *)p; break;                   \
	}                                                                      \
	val <<= __CORE_RELO(s, field, LSHIFT_U64);                             \
	val >> __CORE_RELO(s, field, RSHIFT_U64);                              \
})
