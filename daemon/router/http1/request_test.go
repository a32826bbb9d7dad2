// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func newRequest() *Request {
	names := routing.DefaultKeyNames()
	return &Request{Names: &names, Keys: new(routing.KeySet)}
}

// parse gives the whole of in at once, then piece by piece at every byte, and
// fails when that makes a difference.
func parse(t *testing.T, in string) (*Request, Outcome, Partial) {
	t.Helper()
	whole := newRequest()
	var h Partial
	out := whole.Parse(&h, []byte(in))

	pieces := newRequest()
	var ph Partial
	pout := More
	for i := 1; i <= len(in) && pout == More; i++ {
		pout = pieces.Parse(&ph, []byte(in[:i]))
	}
	if out != pout {
		t.Errorf("%q is %s at once and %s byte by byte", in, out, pout)
	}
	if out == Complete && (whole.Len != pieces.Len || whole.Framing != pieces.Framing || whole.Length != pieces.Length) {
		t.Errorf("%q read at once differs from byte by byte: %+v, %+v", in, whole, pieces)
	}
	return whole, out, h
}

func keys(r *Request) (found []string) {
	r.Keys.Keys(func(k []byte) bool { found = append(found, string(k)); return true })
	return found
}

func TestRequestsThatAreBeyondDoubt(t *testing.T) {
	const host = "Host: a\r\n"
	for _, tc := range []struct {
		name, head string
		framing    Framing
		length     int64
		check      func(*Request) bool
	}{
		{"a GET", "GET / HTTP/1.1\r\n" + host + "\r\n", NoBody, 0, func(r *Request) bool { return r.Method == SafeMethod && r.KeepAlive }},
		{"HTTP/1.0 closes", "GET / HTTP/1.0\r\n\r\n", NoBody, 0, func(r *Request) bool { return !r.KeepAlive }},
		{"HTTP/1.0 with keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", NoBody, 0, func(r *Request) bool { return r.KeepAlive }},
		{"close among options", "GET / HTTP/1.1\r\n" + host + "connection: upgrade , Close\r\n\r\n", NoBody, 0, func(r *Request) bool { return !r.KeepAlive }},
		{"HEAD", "HEAD /x HTTP/1.1\r\n" + host + "\r\n", NoBody, 0, func(r *Request) bool { return r.Method == HeadMethod }},
		{"CONNECT", "CONNECT a:1 HTTP/1.1\r\n" + host + "\r\n", NoBody, 0, func(r *Request) bool { return r.Method == ConnectMethod }},
		{"a method nobody knows", "BREW /pot HTTP/1.1\r\n" + host + "\r\n", NoBody, 0, func(r *Request) bool { return r.Method == OtherMethod }},
		{"Content-Length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 12\r\n\r\n", ByLength, 12, nil},
		{"Content-Length in another case and with blanks", "POST / HTTP/1.1\r\ncontent-LENGTH: \t 12 \t\r\n\r\n", ByLength, 12, nil},
		{"Content-Length twice, the same", "POST / HTTP/1.1\r\nContent-Length: 12\r\nContent-Length: 12\r\n\r\n", ByLength, 12, nil},
		{"Content-Length zero", "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", NoBody, 0, nil},
		{"chunked", "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", ByChunks, 0, nil},
		{"another coding below chunked", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ByChunks, 0, nil},
		{"Upgrade", "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", NoBody, 0, func(r *Request) bool { return r.Upgrade }},
		{"Expect", "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", ByLength, 1, func(r *Request) bool { return r.Expect }},
		{"empty lines before it", "\r\n\r\nGET / HTTP/1.1\r\n\r\n", NoBody, 0, nil},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", NoBody, 0, nil},
		{"an empty value", "GET / HTTP/1.1\r\nX:\r\n\r\n", NoBody, 0, nil},
		{"obs-text in a value and in the target", "GET /\xc3\xa9 HTTP/1.1\r\nX: caf\xe9\r\n\r\n", NoBody, 0, nil},
		{"a tab in a value", "GET / HTTP/1.1\r\nX: a\tb\r\n\r\n", NoBody, 0, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, out, _ := parse(t, tc.head)
			if out != Complete || r.Len != len(tc.head) || r.Framing != tc.framing || r.Length != tc.length {
				t.Fatalf("%s, %d of %d bytes, framing %d, length %d, reason %q", out, r.Len, len(tc.head), r.Framing, r.Length, r.Reason)
			}
			if tc.check != nil && !tc.check(r) {
				t.Errorf("read wrong: %+v", r)
			}
			// What follows is not looked at.
			if r, out, _ := parse(t, tc.head+"\x00anything"); out != Complete || r.Len != len(tc.head) {
				t.Errorf("with more behind it: %s, %d bytes", out, r.Len)
			}
		})
	}
}

// ambiguous are heads that some server takes for one thing and another for
// something else.
var ambiguous = []struct{ name, head string }{
	{"Content-Length and Transfer-Encoding", "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{"the same the other way round", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"},
	{"different Content-Lengths", "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n"},
	{"Content-Lengths in a list", "POST / HTTP/1.1\r\nContent-Length: 4, 4\r\n\r\n"},
	{"a signed Content-Length", "POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\n"},
	{"a negative Content-Length", "POST / HTTP/1.1\r\nContent-Length: -4\r\n\r\n"},
	{"a hexadecimal Content-Length", "POST / HTTP/1.1\r\nContent-Length: 0x4\r\n\r\n"},
	{"an octal Content-Length", "POST / HTTP/1.1\r\nContent-Length: 010\r\n\r\n"},
	{"an empty Content-Length", "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n"},
	{"a huge Content-Length", "POST / HTTP/1.1\r\nContent-Length: 18446744073709551620\r\n\r\n"},
	{"a blank in a Content-Length", "POST / HTTP/1.1\r\nContent-Length: 1 2\r\n\r\n"},
	{"Transfer-Encoding identity", "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n"},
	{"chunked not last", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"},
	{"chunked twice", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"},
	{"Transfer-Encoding twice", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{"something like chunked", "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n"},
	{"chunked with a parameter", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n\r\n"},
	{"chunked in quotes", "POST / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n\r\n"},
	{"an empty Transfer-Encoding", "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n"},
	{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
	{"CONNECT with a body", "CONNECT a:1 HTTP/1.1\r\nContent-Length: 4\r\n\r\n"},
	{"a blank before the colon", "POST / HTTP/1.1\r\nContent-Length : 4\r\n\r\n"},
	{"a tab before the colon", "POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n"},
	{"a folded field", "GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n"},
	{"a fold right behind the request line", "GET / HTTP/1.1\r\n X: a\r\n\r\n"},
	{"a bare line feed", "GET / HTTP/1.1\nHost: a\r\n\r\n"},
	{"a bare line feed between fields", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"},
	{"a bare line feed at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n"},
	{"bare line feeds only", "GET / HTTP/1.1\nHost: a\n\n"},
	{"a bare line feed before it", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	{"a bare carriage return in a value", "GET / HTTP/1.1\r\nX: a\rb\r\n\r\n"},
	{"a bare carriage return as a line's end", "GET / HTTP/1.1\rX: a\r\n\r\n"},
	{"two carriage returns", "GET / HTTP/1.1\r\r\nX: a\r\n\r\n"},
	{"a NUL in a value", "GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n"},
	{"a control byte in a value", "GET / HTTP/1.1\r\nX: a\x01b\r\n\r\n"},
	{"a DEL in a value", "GET / HTTP/1.1\r\nX: a\x7fb\r\n\r\n"},
	{"a control byte in the target", "GET /\x01 HTTP/1.1\r\nX: a\r\n\r\n"},
	{"a vertical tab in a coding", "POST / HTTP/1.1\r\nTransfer-Encoding: \vchunked\r\n\r\n"},
	{"a control byte in a name", "GET / HTTP/1.1\r\nX\x01: a\r\n\r\n"},
	{"obs-text in a name", "GET / HTTP/1.1\r\nX\xe9: a\r\n\r\n"},
	{"a line without a colon", "GET / HTTP/1.1\r\nHost\r\n\r\n"},
	{"an empty name", "GET / HTTP/1.1\r\n: a\r\n\r\n"},
	{"an unknown version", "GET / HTTP/1.2\r\n\r\n"},
	{"a version of another time", "GET / HTTP/3.0\r\n\r\n"},
	{"a version with too many digits", "GET / HTTP/1.11\r\n\r\n"},
	{"a version in lower case", "GET / http/1.1\r\n\r\n"},
	{"a blank behind the version", "GET / HTTP/1.1 \r\n\r\n"},
	{"two blanks in the request line", "GET  / HTTP/1.1\r\n\r\n"},
	{"two blanks before the version", "GET /  HTTP/1.1\r\n\r\n"},
	{"a blank in the target", "GET /a b HTTP/1.1\r\n\r\n"},
	{"a tab in the request line", "GET\t/ HTTP/1.1\r\n\r\n"},
	{"a blank before the method", " GET / HTTP/1.1\r\n\r\n"},
	{"a missing target", "GET  HTTP/1.1\r\n\r\n"},
	{"two requests' versions", "GET / HTTP/1.1 HTTP/1.1\r\n\r\n"},
}

func TestRequestsThatPeersMayFrameDifferently(t *testing.T) {
	for _, tc := range ambiguous {
		t.Run(tc.name, func(t *testing.T) {
			r, out, _ := parse(t, tc.head)
			if out != Ambiguous || r.Reason == "" {
				t.Errorf("%s, reason %q", out, r.Reason)
			}
		})
	}
}

func TestWhatIsNotHTTPShowsAtTheEarliestByte(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		at       int // bytes that it takes to know
		foreign  bool
	}{
		{"TLS", "\x16\x03\x01\x02\x00\x01", 1, true},
		{"PostgreSQL's start", "\x00\x00\x00\x08\x04\xd2\x16\x2f", 1, true},
		{"MySQL's client", "\x85\xa6\x03\x00", 1, true},
		{"MongoDB", "A\x00\x00\x00", 2, true},
		{"JSON", `{"op":1}`, 1, true},
		{"SSH", "SSH-2.0-OpenSSH_9.2\r\n", 20, true},
		{"Redis", "*1\r\n$4\r\nPING\r\n", 3, true},
		{"a single word", "PING\n", 5, true},
		{"STOMP", "CONNECT\naccept-version:1.2\n\n\x00", 8, true},
		{"memcached", "set a 0 0 1\r\n1\r\n", 12, true},
		{"SMTP's client", "EHLO example.org\r\n", 17, true},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 15, true},
		{"HTTP/0.9", "GET /index.html\r\n", 16, false},
		{"PROXY protocol 1", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n", 31, false},
		{"PROXY protocol 2", "\r\n\r\n\x00\r\nQUIT\n", 5, false},
		{"AMQP", "AMQP\x00\x00\x09\x01", 5, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, out, h := parse(t, tc.in)
			if out != NotHTTP || h.Foreign != tc.foreign {
				t.Fatalf("%s, foreign %t", out, h.Foreign)
			}
			r := newRequest()
			var before Partial
			if out := r.Parse(&before, []byte(tc.in[:tc.at-1])); out != More {
				t.Errorf("one byte earlier: %s", out)
			}
			var then Partial
			if out := r.Parse(&then, []byte(tc.in[:tc.at])); out != NotHTTP {
				t.Errorf("after %d bytes: %s", tc.at, out)
			}
		})
	}
}

func TestBytesThatDoNotLookLikeHTTPAreUnlikely(t *testing.T) {
	for in, unlikely := range map[string]bool{
		"G": false, "GET": false, "GET /": false, "POST / HT": false, "PROPFIND /": false,
		"h": true, "hello": true, "GETX": true, "BREW /pot HTTP/1.": true, "\r\n": true, " GET": true, "GET / x": true,
		"GET / HTTP/1.1\r\nHo": false,
	} {
		r := newRequest()
		var h Partial
		if out := r.Parse(&h, []byte(in)); out != More || h.Unlikely != unlikely {
			t.Errorf("%q: %s, unlikely %t, want %t", in, out, h.Unlikely, unlikely)
		}
	}
}

func TestKeysAreFoundInAHead(t *testing.T) {
	for _, tc := range []struct{ name, fields, want string }{
		{"none", "X: sidetrack=key-1234\r\n", ""},
		{"baggage", "Baggage: a=b, sidetrack=key-1234;p=1\r\n", "key-1234"},
		{"tracestate", "tracestate: sd-routing-key=key-1234\r\n", "key-1234"},
		{"the header", "X-Sidetrack-Key: key-1234\r\n", "key-1234"},
		{"in order of precedence", "x-sidetrack-key: key-3333\r\ntracestate: sidetrack=key-2222\r\nbaggage: a=b\r\nbaggage: sidetrack=key-1111\r\n", "key-1111 key-2222 key-3333"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, out, _ := parse(t, "GET / HTTP/1.1\r\n"+tc.fields+"\r\n")
			if got := strings.Join(keys(r), " "); out != Complete || got != tc.want {
				t.Errorf("%s: %q, want %q", out, got, tc.want)
			}
		})
	}
}

func TestAMemberIsAddedToBaggage(t *testing.T) {
	for _, tc := range []struct{ name, fields, want string }{
		{"none yet", "Host: a\r\n", "Host: a\r\nbaggage: sidetrack=key-1234\r\n"},
		{"no field at all", "", "baggage: sidetrack=key-1234\r\n"},
		{"one", "Baggage: a=b\r\nHost: a\r\n", "Baggage: a=b,sidetrack=key-1234\r\nHost: a\r\n"},
		{"one with blanks behind it", "Baggage:a=b;p \t\r\nHost: a\r\n", "Baggage:a=b;p,sidetrack=key-1234 \t\r\nHost: a\r\n"},
		{"several", "baggage: a=b\r\nX: y\r\nbaggage: c=d\r\n", "baggage: a=b\r\nX: y\r\nbaggage: c=d,sidetrack=key-1234\r\n"},
		{"an empty one", "baggage:\r\n", "baggage:sidetrack=key-1234\r\n"},
		{"one that ends in a comma", "baggage: a=b,\r\n", "baggage: a=b,sidetrack=key-1234\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const line = "GET / HTTP/1.1\r\n"
			head := line + tc.fields + "\r\n"
			r, out, _ := parse(t, head)
			if out != Complete {
				t.Fatal(out)
			}
			if got, want := string(r.AppendWithMember(nil, []byte(head+"next"), "sidetrack", "key-1234")), line+tc.want+"\r\n"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestParsingAHeadDoesNotAllocate(t *testing.T) {
	r := newRequest()
	head := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: route\r\nUser-Agent: test\r\nbaggage: a=b,sidetrack=key-1234\r\nContent-Length: 10\r\n\r\n")
	var h Partial
	if n := testing.AllocsPerRun(100, func() {
		if r.Parse(&h, head) != Complete {
			t.Error("not complete")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParseHead(b *testing.B) {
	r := newRequest()
	head := []byte("GET /a/b?c=d HTTP/1.1\r\nHost: route\r\nUser-Agent: bench\r\nAccept: */*\r\n" + strings.Repeat("X-Filler-Header: "+strings.Repeat("v", 60)+"\r\n", 12) + "\r\n")
	b.SetBytes(int64(len(head)))
	for b.Loop() {
		var h Partial
		if r.Parse(&h, head) != Complete {
			b.Fatal("not complete")
		}
	}
}
