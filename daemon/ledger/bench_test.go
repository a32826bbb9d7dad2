// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// BenchmarkRequest is what a tagged request costs the request router in records.
func BenchmarkRequest(b *testing.B) {
	for name, traceparent := range map[string]string{"without a trace": "", "of a trace": "00-" + trace1 + "-" + parent + "-01"} {
		b.Run(name, func(b *testing.B) {
			l, table := shop(b)
			dialled := netip.MustParseAddrPort("10.96.0.7:80")
			dest, _ := table.LookupDest(dialled, routing.TCP)
			var keys routing.KeySet
			names := routing.DefaultKeyNames()
			keys.Add(&names, routing.InBaggage, []byte("sidetrack=key-of-pr-42"))
			target := netip.MustParseAddrPort("10.244.2.9:8080")
			method, authority, path := []byte("GET"), []byte("route.shop"), []byte("/v1/route?from=a&to=b")
			var spare *Entry
			b.ReportAllocs()
			for b.Loop() {
				d := table.DecideRequest(tester, dest.ID, &keys)
				e := l.Open(&Call{
					Table: table, Source: tester, Dest: dest.ID, Dialled: dialled, Protocol: HTTP1,
					Keyed: true, Traceparent: []byte(traceparent), Spare: spare,
				}, &d)
				e.Ask(method, authority, path)
				e.Answer = target
				e.Status = 200
				l.Finish(e)
				spare = e
			}
		})
	}
}

// BenchmarkFlow is what a tagged flow costs in records.
func BenchmarkFlow(b *testing.B) {
	l, _ := shop(b)
	f := Flow{
		At: time.Now(), Source: tester, Sandbox: 1, Dialled: netip.MustParseAddrPort("10.96.0.7:80"), Protocol: routing.TCP,
		Verdict: routing.ToFork, Endpoint: netip.MustParseAddrPort("10.244.2.9:8080"),
	}
	b.ReportAllocs()
	for b.Loop() {
		l.AddFlow(f)
	}
}
