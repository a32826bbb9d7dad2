// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"testing"

	wire "golang.org/x/net/http2"
)

// TestStuckUploadsStallNobodyElse: forks take nothing of some uploads, and the baseline's
// windows, which count for all streams, are those of usual servers.
func TestStuckUploadsStallNobodyElse(t *testing.T) {
	for _, tc := range []struct {
		name         string
		stream, conn int64 // the baseline's windows
		stuck        int
	}{
		{"small windows", initialWindow, initialWindow, 20},
		{"as Go's server has them", 1 << 20, 1 << 20, 2},
		{"a large window for each stream", 4 << 20, 1 << 20, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t, Limits{})
			c, base := s.client, s.servers["base"]
			s.settle()
			base.myInitial = tc.stream
			base.must(base.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: uint32(tc.stream)}))
			if more := tc.conn - initialWindow; more > 0 {
				base.mayGetConn += more
				base.must(base.write.WriteWindowUpdate(0, uint32(more)))
			}
			s.settle()
			c.headers(1, false, keyed("")...)
			c.headers(3, false, keyed(keyB)...)
			last := uint32(3)
			for range tc.stuck {
				last += 2
				c.headers(last, false, keyed(keyA)...)
			}
			s.settle()
			b := s.servers["b"]
			toBase, toB := 0, 0
			for range 400 {
				for id := uint32(5); id <= last; id += 2 {
					c.data(id, 10_000, false)
				}
				toBase += c.data(1, 10_000, false)
				toB += c.data(3, 10_000, false)
				s.settle()
				base.pay()
				b.pay()
				s.settle()
			}
			if toBase < 2_000_000 || toB < 2_000_000 {
				t.Errorf("%d bytes to the baseline and %d to another fork have passed, %d are kept, %d withheld; the client may send %d more",
					toBase, toB, s.relay.Buffered(), s.relay.withheld, c.maySendConn)
			}
		})
	}
}
