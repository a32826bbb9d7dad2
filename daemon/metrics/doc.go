// SPDX-License-Identifier: Apache-2.0

// Package metrics shows what the agent does: to Prometheus, and to whoever asks
// whether it is ready.
//
// It owns the metrics' names and labels, keeps their number bounded, and never
// has a routing key among them. It counts nothing itself: each scrape reads what
// the kernel, the router and the agent have counted. Everything in it may be
// called concurrently.
package metrics
