// SPDX-License-Identifier: Apache-2.0

package http1

import "testing"

// feed gives a body at once and byte by byte.
func feed(t *testing.T, body string, padded bool) (int, Outcome) {
	t.Helper()
	var whole, pieces Chunked
	n, out := whole.Feed([]byte(body), padded)
	pn, pout := 0, More
	for i := 0; i < len(body) && pout == More; i++ {
		k, o := pieces.Feed([]byte{body[i]}, padded)
		pn, pout = pn+k, o
	}
	if n != pn || out != pout {
		t.Errorf("%q: %d bytes, %s at once; %d bytes, %s byte by byte", body, n, out, pn, pout)
	}
	return n, out
}

func TestChunkedBodiesEndWhereTheyShould(t *testing.T) {
	for _, tc := range []struct{ name, body string }{
		{"an empty one", "0\r\n\r\n"},
		{"one chunk", "5\r\nhello\r\n0\r\n\r\n"},
		{"chunks that look like the end", "5\r\n0\r\n\r\n\r\n0\r\n\r\n"},
		{"hexadecimal sizes", "1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n"},
		{"leading zeros", "0005\r\nhello\r\n000\r\n\r\n"},
		{"extensions", "5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n"},
		{"trailers", "5\r\nhello\r\n0\r\nDigest: abc\r\nX-Y:\r\n\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if n, out := feed(t, tc.body+"GET / HTTP/1.1\r\n", false); n != len(tc.body) || out != Complete {
				t.Errorf("%d of %d bytes, %s", n, len(tc.body), out)
			}
		})
	}
}

func TestChunksThatPeersMayReadDifferently(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		at         int
	}{
		{"no size", "\r\nhello\r\n", 0},
		{"a size that is no number", "xyz\r\n", 0},
		{"a negative size", "-1\r\n", 0},
		{"a size with 0x", "0x5\r\nhello\r\n", 1},
		{"a size that overflows", "10000000000000005\r\nhello\r\n", 15},
		{"a blank before the size", " 5\r\nhello\r\n", 0},
		{"a blank behind the size", "5 \r\nhello\r\n", 1},
		{"a bare line feed behind the size", "5\nhello\r\n", 1},
		{"a bare carriage return behind the size", "5\rhello\r\n", 2},
		{"a bare line feed in an extension", "5;a\nhello\r\n", 3},
		{"a chunk that is longer than its size", "5\r\nhelloo\r\n", 8},
		{"a bare line feed behind the chunk", "5\r\nhello\n0\r\n\r\n", 8},
		{"a NUL in an extension", "5;\x00\r\nhello\r\n", 2},
		{"a folded trailer", "0\r\nX: a\r\n b\r\n\r\n", 9},
		{"a trailer without a colon", "0\r\nfoo\r\n\r\n", 6},
		{"a bare line feed as the end", "0\r\n\n", 3},
		{"a bare line feed in a trailer", "0\r\nX: a\n\r\n", 7},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if n, out := feed(t, tc.body, false); n != tc.at || out != Ambiguous {
				t.Errorf("at byte %d, %s; want %d", n, out, tc.at)
			}
		})
	}
}

func TestServersMayPadChunkSizes(t *testing.T) {
	const body = "5  \r\nhello\r\n0 ;x\r\n\r\n"
	if n, out := feed(t, body, true); n != len(body) || out != Complete {
		t.Errorf("%d of %d bytes, %s", n, len(body), out)
	}
}
