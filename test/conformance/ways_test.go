// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"testing"
)

// TestTheWaysAreWhatTheySay: what is called direct is, and the others lead
// through the router and to where they should.
func TestTheWaysAreWhatTheySay(t *testing.T) {
	w := newWorld(t)
	port := w.port()
	w.base.MustServeHTTP("baseline", fmt.Sprintf(":%d", port))
	w.forks["a"].MustServeHTTP("fork-a", fmt.Sprintf(":%d", port))
	w.relay(t, port)
	for _, v := range []way{direct, untagged, tagged, relayed, injected} {
		before := w.metric("sidetrack_router_connections_total")
		var headers []string
		if key := w.key(v); key != "" {
			headers = append(headers, keyHeader+": "+key)
		}
		got := w.from(v).MustGet(fmt.Sprintf("http://%s:%d/", w.host(v), port), headers...)
		routed := w.metric("sidetrack_router_connections_total") - before
		want, through := "baseline", 1.0
		if v == tagged || v == injected {
			want = "fork-a"
		}
		if v == direct || v == relayed {
			through = 0
		}
		if got.Server != want || routed != through {
			t.Errorf("%s: %s answered through %v connections of the router, want %s through %v", v, got.Server, routed, want, through)
		}
	}
}
