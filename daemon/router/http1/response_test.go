// SPDX-License-Identifier: Apache-2.0

package http1

import "testing"

func parseResponse(t *testing.T, in string, m Method) (*Response, Outcome) {
	t.Helper()
	var whole, pieces Response
	var h, ph Partial
	out := whole.Parse(&h, []byte(in), m)
	pout := More
	for i := 1; i <= len(in) && pout == More; i++ {
		pout = pieces.Parse(&ph, []byte(in[:i]), m)
	}
	if out != pout || out == Complete && whole != pieces {
		t.Errorf("%q is %s %+v at once and %s %+v byte by byte", in, out, whole, pout, pieces)
	}
	return &whole, out
}

func TestResponsesThatAreBeyondDoubt(t *testing.T) {
	for _, tc := range []struct {
		name, head string
		method     Method
		want       Response
	}{
		{"Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByLength, Length: 5}},
		{"an empty body", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", SafeMethod, Response{Status: 200, Framing: NoBody}},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByChunks}},
		{"until the connection closes", "HTTP/1.1 200 OK\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByClose}},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByClose}},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", HeadMethod, Response{Status: 200, Framing: NoBody}},
		{"HEAD, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", HeadMethod, Response{Status: 200, Framing: NoBody}},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", SafeMethod, Response{Status: 204, Framing: NoBody}},
		{"304 with a length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", SafeMethod, Response{Status: 304, Framing: NoBody}},
		{"100", "HTTP/1.1 100 Continue\r\n\r\n", SafeMethod, Response{Status: 100, Framing: Interim}},
		{"103 with fields", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", SafeMethod, Response{Status: 103, Framing: Interim}},
		{"101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", SafeMethod, Response{Status: 101, Framing: Tunnel}},
		{"2xx to CONNECT", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", ConnectMethod, Response{Status: 200, Framing: Tunnel}},
		{"4xx to CONNECT", "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n", ConnectMethod, Response{Status: 403, Framing: ByLength, Length: 5}},
		{"no reason phrase", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByLength, Length: 5}},
		{"an empty reason phrase", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", SafeMethod, Response{Status: 200, Framing: ByLength, Length: 5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.want.Len = len(tc.head)
			got, out := parseResponse(t, tc.head, tc.method)
			if out != Complete || *got != tc.want {
				t.Errorf("%s %+v, want %+v", out, *got, tc.want)
			}
		})
	}
}

func TestResponsesThatPeersMayFrameDifferently(t *testing.T) {
	for _, tc := range []struct {
		name, head string
		want       Outcome
	}{
		{"Content-Length and Transfer-Encoding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Ambiguous},
		{"different Content-Lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Ambiguous},
		{"an unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Ambiguous},
		{"chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Ambiguous},
		{"an interim response with a body", "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n", Ambiguous},
		{"bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", Ambiguous},
		{"a folded field", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", Ambiguous},
		{"a bare carriage return", "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", Ambiguous},
		{"a malformed status", "HTTP/1.1 20 OK\r\n\r\n", Ambiguous},
		{"an unknown version", "HTTP/2 200\r\n\r\n", NotHTTP},
		{"something else", "ICY 200 OK\r\n\r\n", NotHTTP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, out := parseResponse(t, tc.head, SafeMethod); out != tc.want {
				t.Errorf("%s, want %s", out, tc.want)
			}
		})
	}
}
