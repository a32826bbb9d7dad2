/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
//go:build ignore

/* One object of all programs, so that they share one set of maps. */
#include "flow.c"
#include "capture.c"
#include "hold.c"
#include "test.c"

char _license[] SEC("license") = "Dual BSD/GPL";
