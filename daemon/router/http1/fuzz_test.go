// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func seedHeads(f *testing.F) {
	for _, a := range ambiguous {
		f.Add([]byte(a.head+"GET /next HTTP/1.1\r\n\r\n"), uint16(20))
	}
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nbaggage: sidetrack=key-1234\r\n\r\nabcGET",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\nGET",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\nGET / HTTP/1.0\r\n\r\n", "SSH-2.0-x\r\n",
	} {
		f.Add([]byte(s), uint16(len(s)/2))
	}
}

// FuzzRequest reads a stream of requests. Whatever pieces it comes in, the
// outcome is the same; and what is Complete net/http must frame equally, or
// refuse for a reason that has nothing to do with framing.
func FuzzRequest(f *testing.F) {
	seedHeads(f)
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		whole := newRequest()
		var h Partial
		out := whole.Parse(&h, in)

		pieces := newRequest()
		var ph Partial
		pout := More
		if k := int(cut); k < len(in) {
			pout = pieces.Parse(&ph, in[:k])
		}
		if pout == More {
			pout = pieces.Parse(&ph, in)
		} else if pout == Complete && pieces.Len > int(cut) {
			t.Fatalf("%d bytes of %d", pieces.Len, cut)
		}
		if out != pout {
			t.Fatalf("%q is %s at once and %s when cut at %d", in, out, pout, cut)
		}
		if out != Complete {
			return
		}
		if whole.Len != pieces.Len || whole.Framing != pieces.Framing || whole.Length != pieces.Length || !slices.Equal(keys(whole), keys(pieces)) {
			t.Fatalf("%q: %+v at once, %+v when cut at %d", in, whole, pieces, cut)
		}
		compareRequest(t, whole, in)
	})
}

func compareRequest(t *testing.T, r *Request, in []byte) {
	// net/http expects its callers to skip empty lines.
	text := bytes.TrimLeft(in, "\r\n")
	skipped := len(in) - len(text)
	rest := bytes.NewReader(text)
	br := bufio.NewReaderSize(rest, len(text)+16)
	req, err := http.ReadRequest(br)
	if err != nil {
		for _, fine := range []string{"invalid URI", "parse ", "malformed HTTP request", "malformed Host", "missing required Host", "too many Host", "unsupported transfer encoding", "invalid method", "malformed MIME header", "host/port"} {
			if strings.Contains(err.Error(), fine) {
				return
			}
		}
		t.Fatalf("%q is complete here, and to net/http %v", in, err)
	}
	headEnd := len(text) - br.Buffered() + skipped
	if r.Len != headEnd {
		t.Fatalf("%q has a head of %d bytes here and of %d to net/http", in, r.Len, headEnd)
	}
	chunked := len(req.TransferEncoding) > 0
	switch {
	case chunked != (r.Framing == ByChunks):
		t.Fatalf("%q: chunked %t to net/http, framing %d here", in, chunked, r.Framing)
	case !chunked && max(req.ContentLength, 0) != r.Length:
		t.Fatalf("%q: length %d to net/http, %d here", in, req.ContentLength, r.Length)
	}
	var set routing.KeySet
	names := routing.DefaultKeyNames()
	for name, values := range req.Header {
		if p := names.Place([]byte(name)); p != routing.Nowhere {
			for _, v := range values {
				set.Add(&names, p, []byte(v))
			}
		}
	}
	if set.Seen() != r.Keys.Seen() {
		t.Fatalf("%q: key seen %t with net/http's fields, %t here", in, set.Seen(), r.Keys.Seen())
	}
	if !chunked {
		return
	}
	var c Chunked
	n, out := c.Feed(in[r.Len:], false)
	body, err := io.ReadAll(req.Body)
	switch out {
	case Complete:
		if err != nil {
			// Its reader has limits of its own, and no body with unlike trailers.
			for _, fine := range []string{"too much", "trailer", "too long", "malformed MIME header", "invalid"} {
				if strings.Contains(err.Error(), fine) {
					return
				}
			}
			t.Fatalf("%q has a complete body here, and to net/http %v (%q)", in, err, body)
		}
		if end := len(text) - br.Buffered() + skipped; end != r.Len+n {
			t.Fatalf("%q: body ends at %d here and at %d to net/http", in, r.Len+n, end)
		}
	case More:
		if err == nil {
			t.Fatalf("%q: body is whole to net/http and not here", in)
		}
	}
}

// FuzzResponse is FuzzRequest for responses.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.0 304 x\r\n\r\n", "HTTP/1.1 200\nA: b\n\n",
	} {
		f.Add([]byte(s), uint16(len(s)/2), uint8(0))
		f.Add([]byte(s), uint16(3), uint8(1))
	}
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, which uint8) {
		method, name := SafeMethod, "GET"
		if which%2 == 1 {
			method, name = HeadMethod, "HEAD"
		}
		var whole, pieces Response
		var h, ph Partial
		out := whole.Parse(&h, in, method)
		pout := More
		if k := int(cut); k < len(in) {
			pout = pieces.Parse(&ph, in[:k], method)
		}
		if pout == More {
			pout = pieces.Parse(&ph, in, method)
		}
		if out != pout || out == Complete && whole != pieces {
			t.Fatalf("%q: %s %+v at once, %s %+v when cut at %d", in, out, whole, pout, pieces, cut)
		}
		if out != Complete {
			return
		}
		br := bufio.NewReaderSize(bytes.NewReader(in), len(in)+16)
		resp, err := http.ReadResponse(br, &http.Request{Method: name})
		if err != nil {
			for _, fine := range []string{"malformed MIME header", "unsupported transfer encoding"} {
				if strings.Contains(err.Error(), fine) {
					return
				}
			}
			t.Fatalf("%q is complete here, and to net/http %v", in, err)
		}
		if end := len(in) - br.Buffered(); end != whole.Len && whole.Framing != Tunnel {
			t.Fatalf("%q has a head of %d bytes here and of %d to net/http", in, whole.Len, end)
		}
		if resp.StatusCode != whole.Status {
			t.Fatalf("%q has status %d here and %d to net/http", in, whole.Status, resp.StatusCode)
		}
		if method == HeadMethod {
			return
		}
		if chunked := len(resp.TransferEncoding) > 0; chunked != (whole.Framing == ByChunks) && whole.Status >= 200 && whole.Status != 204 && whole.Status != 304 {
			t.Fatalf("%q: chunked %t to net/http, framing %d here", in, chunked, whole.Framing)
		}
		switch whole.Framing {
		case ByLength:
			if resp.ContentLength != whole.Length {
				t.Fatalf("%q: length %d here, %d to net/http", in, whole.Length, resp.ContentLength)
			}
		case ByClose:
			if resp.ContentLength != -1 {
				t.Fatalf("%q ends with the connection here, and to net/http after %d bytes", in, resp.ContentLength)
			}
		case NoBody:
			if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%q has no body here, and %q (%v) to net/http", in, b, err)
			}
		}
	})
}

// FuzzChunked: whatever pieces a body comes in, it ends at the same byte.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5;a=b\r\nhello\r\n0\r\nT: v\r\n\r\nGET"), uint16(9), false)
	f.Add([]byte("5 \r\nhello\r\n0\r\n\r\n"), uint16(2), true)
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, padded bool) {
		var whole, pieces Chunked
		n, out := whole.Feed(in, padded)
		k := min(int(cut), len(in))
		pn, pout := pieces.Feed(in[:k], padded)
		if pout == More {
			var m int
			m, pout = pieces.Feed(in[k:], padded)
			pn += m
		}
		if n != pn || out != pout {
			t.Fatalf("%q: %d %s at once, %d %s when cut at %d", in, n, out, pn, pout, k)
		}
	})
}

// FuzzScanner: whatever a strict reading finds, the generous one does too, in any
// pieces.
func FuzzScanner(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nbaggage: a=b, sidetrack=key%2d1234;p=1\r\nX-Sidetrack-Key: a , key-4321\r\n\r\n"), uint16(40))
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		k := min(int(cut), len(in))
		once, twice := scan(string(in)), scan(string(in[:k]), string(in[k:]))
		if !slices.Equal(once, twice) {
			t.Fatalf("%q: %q at once, %q when cut at %d", in, once, twice, k)
		}
		r := newRequest()
		var h Partial
		if r.Parse(&h, in) != Complete {
			return
		}
		for _, key := range keys(r) {
			if !slices.Contains(once, key) {
				t.Fatalf("%q has the key %q, and the scanner finds only %q", in, key, once)
			}
		}
	})
}
