/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
//go:build ignore

/*
 * The decision of lookup.h as a program that BPF_PROG_TEST_RUN can run: socket
 * address programs have no test run of their own. Only tests load it.
 */
#include "lookup.h"

SEC("syscall")
int sd_lookup_test(struct lookup_test *ctx)
{
	struct question q = ctx->question;
	struct answer a = {};

	lookup_flow(&q, &a);
	ctx->answer = a;
	return 0;
}
