// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func get(header string) string {
	return "GET /who HTTP/1.1\r\nHost: route\r\n" + header + "\r\n"
}

const (
	tagged   = "baggage: sidetrack=" + key + "\r\n"
	untagged = ""
)

func TestEachRequestOnAConnectionGoesByItsOwnKey(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	c := w.dial(w.client)
	for _, step := range []struct{ header, want string }{
		{untagged, "base"},
		{untagged, "base"},
		{tagged, "fork"},
		{tagged, "fork"},
		{untagged, "base"},
		{"x-sidetrack-key: " + otherKey + "\r\n", "fork2"},
		{tagged, "fork"},
		{"tracestate: a=b,sidetrack=" + otherKey + "\r\n", "fork2"},
		{"baggage: sidetrack=nobodys-key\r\n", "base"},
	} {
		c.send(get(step.header))
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != step.want {
			t.Errorf("a request with %q was served by %s, want %s", step.header, resp.Header.Get(lab.ServedBy), step.want)
		}
	}
	s := w.router.Stats()
	shop := func(n string) routing.Name { return routing.Name{Namespace: "shop", Name: n} }
	for k, want := range map[RequestKey]uint64{
		{Service: shop("route"), Reason: routing.Untagged}:                                                    3,
		{Service: shop("route"), Reason: routing.UnknownKey}:                                                  1,
		{Sandbox: shop("pr-42"), Service: shop("route"), Verdict: routing.ToFork, Reason: routing.Redirected}: 3,
		{Sandbox: shop("pr-43"), Service: shop("route"), Verdict: routing.ToFork, Reason: routing.Redirected}: 2,
	} {
		if s.Requests[k] != want {
			t.Errorf("%d requests counted as %+v, want %d", s.Requests[k], k, want)
		}
	}
	if len(s.Requests) != 4 || s.Open != 1 || s.Accepted != 1 {
		t.Errorf("counted wrong: %+v", s)
	}
}

func TestServersSeeTheClientPodsOwnAddress(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	for header, want := range map[string]string{"": "base", key: "fork"} {
		resp := w.do(w.http(w.client), "GET", "/", nil, "x-sidetrack-key", header)
		s, err := lab.ReadSeen(resp)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		from := netip.MustParseAddrPort(s.Remote).Addr()
		if s.Server != want || from != w.client.IPv4 {
			t.Errorf("%s saw %s, want %s to see %s", s.Server, from, want, w.client.IPv4)
		}
	}
}

func TestRequestsAndResponsesArriveByteForByte(t *testing.T) {
	w := newWorld(t)
	w.echo(w.base, w.fork)
	c := w.dial(w.client)
	for _, header := range []string{untagged, tagged} {
		for _, raw := range []string{
			"GET /A%20b?c=D&e HTTP/1.1\r\nhOSt:route\r\nX-b:  two  blanks \r\nx-A: 1\r\nX-B: again\r\n" + header + "\r\n",
			"\r\nPUT /x HTTP/1.1\r\nHost: route\r\n" + header + "Content-Length: 11\r\n\r\nhello world",
			"POST /x HTTP/1.1\r\n" + header + "Host: route\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=\"a b\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n",
			"BREW /pot HTTP/1.1\r\nHost: route\r\n" + header + "\r\n",
		} {
			for _, step := range []int{len(raw), 1, 7} {
				for i := 0; i < len(raw); i += step {
					c.send(raw[i:min(i+step, len(raw))])
					if step == 1 {
						time.Sleep(50 * time.Microsecond)
					}
				}
				if _, body := c.response("GET"); body != raw {
					t.Fatalf("in pieces of %d: the server received %q, sent was %q", step, body, raw)
				}
			}
		}
	}
}

func TestHeadsMayBeSplitAtEveryByte(t *testing.T) {
	w := newWorld(t)
	w.echo(w.base, w.fork)
	c := w.dial(w.client)
	sent := 0
	for _, tc := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
		raw := "POST /x HTTP/1.1\r\nHost: route\r\n" + tc.header + "Content-Length: 3\r\n\r\nabc"
		for i := 1; i < len(raw); i++ {
			c.send(raw[:i])
			sent += i
			w.eventually("the first part is read", func() bool { return w.router.Stats().FromClients == uint64(sent) })
			c.send(raw[i:])
			sent += len(raw) - i
			resp, body := c.response("POST")
			if body != raw || resp.Header.Get(lab.ServedBy) != tc.want {
				t.Fatalf("split at %d: %s received %q, want %s to receive %q", i, resp.Header.Get(lab.ServedBy), body, tc.want, raw)
			}
		}
	}
}

// do sends a request of a net/http client.
func (w *world) do(c *http.Client, method, path string, body io.Reader, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequest(method, "http://route"+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func TestNoneOfManyMixedRequestsIsMisrouted(t *testing.T) {
	total := 100_000
	if testing.Short() || lab.InVM() {
		total = 5_000
	}
	w := newWorld(t)
	// Who answers says so, and says back what it was asked.
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		err := p.ServeHandler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				t.Errorf("read a body: %v", err)
			}
			fmt.Fprintf(rw, "%s %s %d", p.Name, r.URL.Path, n)
		}), addressesOf(p)...)
		if err != nil {
			t.Fatal(err)
		}
	}
	const clients = 8
	var wg sync.WaitGroup
	var wrong atomic.Int64
	body := strings.Repeat("b", 20_000)
	for i := range clients {
		c := w.http(w.client)
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for j := range total / clients {
				k, want := "", "base"
				switch random.IntN(4) {
				case 0:
					k, want = key, "fork"
				case 1:
					k, want = otherKey, "fork2"
				case 2:
					k = "an-unknown-key"
				}
				var b io.Reader
				n := 0
				if random.IntN(4) == 0 {
					n = random.IntN(len(body))
					b = strings.NewReader(body[:n])
					if random.IntN(2) == 0 {
						b = struct{ io.Reader }{b} // chunked
					}
				}
				req, err := http.NewRequest("POST", fmt.Sprintf("http://route/%d/%d", i, j), b)
				if err != nil {
					t.Error(err)
					return
				}
				if k != "" {
					req.Header.Set("baggage", "a=b, sidetrack="+k)
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Errorf("request %d: %v", j, err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if full := fmt.Sprintf("%s /%d/%d %d", want, i, j, n); string(got) != full || err != nil {
					wrong.Add(1)
					t.Errorf("got %q (%v), want %q", got, err, full)
					return
				}
			}
		})
	}
	wg.Wait()
	s := w.router.Stats()
	var counted uint64
	for _, n := range s.Requests {
		counted += n
	}
	if want := uint64(total / clients * clients); counted != want {
		t.Errorf("%d requests counted, want %d: %+v", counted, want, s)
	}
}

func TestPipelinedRequestsAreAnsweredInOrderWhereverTheyGo(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	c := w.dial(w.client)
	var all strings.Builder
	random := rand.New(rand.NewPCG(2, 2))
	const n = 300
	wants := make([]string, 0, n)
	for range n {
		switch random.IntN(4) {
		case 0:
			all.WriteString(get(tagged))
			wants = append(wants, "fork")
		case 1:
			body := strings.Repeat("x", random.IntN(3000))
			fmt.Fprintf(&all, "POST / HTTP/1.1\r\nHost: a\r\nx-sidetrack-key: %s\r\nContent-Length: %d\r\n\r\n%s", otherKey, len(body), body)
			wants = append(wants, "fork2")
		default:
			all.WriteString(get(untagged))
			wants = append(wants, "base")
		}
	}
	go func() {
		if _, err := io.Copy(c.conn, strings.NewReader(all.String())); err != nil {
			t.Errorf("send: %v", err)
		}
	}()
	for i, want := range wants {
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != want {
			t.Fatalf("answer %d is of %s, want %s", i, resp.Header.Get(lab.ServedBy), want)
		}
	}
}

// randomRequest returns a request as bytes and who is to answer it.
func randomRequest(random *rand.Rand) (raw, want string) {
	header, want := untagged, "base"
	switch random.IntN(4) {
	case 0:
		header, want = tagged, "fork"
	case 1:
		header, want = "tracestate: x=y,sd-routing-key="+otherKey+"\r\n", "fork2"
	}
	head := fmt.Sprintf(" /%d HTTP/1.1\r\nHost: a\r\n%sX-Filler: %s\r\n", random.Uint32(), header, strings.Repeat("f", random.IntN(2000)))
	switch random.IntN(4) {
	case 0:
		body := strings.Repeat("\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", random.IntN(300))
		return fmt.Sprintf("POST%sContent-Length: %d\r\n\r\n%s", head, len(body), body), want
	case 1:
		var b strings.Builder
		b.WriteString("PUT" + head + "Transfer-Encoding: chunked\r\n\r\n")
		for range random.IntN(20) {
			chunk := strings.Repeat("0\r\n\r\n", 1+random.IntN(100))
			fmt.Fprintf(&b, "%x;e=%d\r\n%s\r\n", len(chunk), random.IntN(10), chunk)
		}
		b.WriteString("0\r\nX-Trailer: t\r\n\r\n")
		return b.String(), want
	}
	return "GET" + head + "\r\n", want
}

func TestAStreamOfAnyRequestsInAnyPiecesArrivesInOrderByteForByte(t *testing.T) {
	w := newWorld(t)
	w.echo(w.base, w.fork, w.fork2)
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(5, seed))
		var stream strings.Builder
		const n = 60
		var raws, wants [n]string
		for i := range n {
			raws[i], wants[i] = randomRequest(random)
			stream.WriteString(raws[i])
		}
		c := w.dial(w.client)
		go func() {
			for all := stream.String(); all != ""; {
				k := min(1+random.IntN(1<<random.IntN(16)), len(all))
				if _, err := io.WriteString(c.conn, all[:k]); err != nil {
					t.Errorf("send: %v", err)
					return
				}
				all = all[k:]
			}
		}()
		for i := range n {
			resp, body := c.response("GET")
			if resp.Header.Get(lab.ServedBy) != wants[i] || body != raws[i] {
				t.Fatalf("seed %d, request %d: %s received %d bytes, want %s to receive %d: %.200q, %.200q", seed, i, resp.Header.Get(lab.ServedBy), len(body), wants[i], len(raws[i]), body, raws[i])
			}
		}
	}
}

func TestRequestsToOneUpstreamArePipelined(t *testing.T) {
	w := newWorld(t)
	// This server answers only when it has three requests.
	w.script(w.fork, func(p *peer) {
		for range 3 {
			if _, err := readRequest(p.r); err != nil {
				t.Errorf("read a request: %v", err)
			}
		}
		for i := range 3 {
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", i))
		}
	})
	w.names(w.base)
	c := w.dial(w.client)
	c.send(get(untagged))
	c.response("GET")
	c.send(get(tagged) + get(tagged))
	c.send(get(tagged))
	for i := range 3 {
		if _, body := c.response("GET"); body != fmt.Sprint(i) {
			t.Errorf("answer %d: %q", i, body)
		}
	}
}

func TestATableChangesUnderAnOpenConnection(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	c := w.dial(w.client)
	ask := func(want string) {
		t.Helper()
		c.send(get(tagged))
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != want {
			t.Fatalf("served by %s, want %s", resp.Header.Get(lab.ServedBy), want)
		}
	}
	ask("fork")
	w.input.Slices[1] = endpoints("route-pr-42", w.fork2.IPv4)
	w.apply()
	ask("fork2")
	w.input.Sandboxes = w.input.Sandboxes[1:]
	w.apply()
	ask("base")
	w.input.Services = w.input.Services[1:]
	w.input.Slices = w.input.Slices[1:]
	w.input.Sandboxes = nil
	w.apply()
	ask("base")
}

func TestRequestsAreSpreadOverAForksEndpoints(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	w.input.Slices[1] = endpoints("route-pr-42", w.fork.IPv4, w.fork2.IPv4)
	w.apply()
	seen := map[string]int{}
	for range 60 {
		c := w.dial(w.client)
		c.send(get(tagged))
		resp, _ := c.response("GET")
		seen[resp.Header.Get(lab.ServedBy)]++
		c.conn.Close()
	}
	if seen["fork"] < 10 || seen["fork2"] < 10 || len(seen) != 2 {
		t.Errorf("60 connections were spread as %v", seen)
	}
}

func TestLargeBodiesArriveWhole(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork} {
		err := p.ServeHandler(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set(lab.ServedBy, p.Name)
			rw.Header().Set("Trailer", "X-End")
			if r.ContentLength > 0 {
				rw.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			if err := http.NewResponseController(rw).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			if _, err := io.Copy(rw, r.Body); err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
			rw.Header().Set("X-End", r.Trailer.Get("X-Start"))
		}), addressesOf(p)...)
		if err != nil {
			t.Fatal(err)
		}
	}
	sizes := []int{0, 1, 65535, 65536, 65537, 1 << 20, 64 << 20}
	if lab.InVM() {
		sizes = sizes[:6]
	}
	content := make([]byte, 64<<20)
	fill := rand.NewChaCha8([32]byte{})
	if _, err := fill.Read(content); err != nil {
		t.Fatal(err)
	}
	c := w.http(w.client)
	for _, k := range []string{"", key} {
		for _, size := range sizes {
			for _, chunked := range []bool{false, true} {
				var body io.Reader = bytes.NewReader(content[:size])
				if chunked {
					body = struct{ io.Reader }{body}
				}
				req, err := http.NewRequest("POST", "http://route/", body)
				if err != nil {
					t.Fatal(err)
				}
				if k != "" {
					req.Header.Set("x-sidetrack-key", k)
				}
				if chunked {
					req.Trailer = http.Header{"X-Start": {"sum"}}
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, content[:size]) {
					t.Errorf("%d bytes, chunked %t: %d came back, %v", size, chunked, len(got), err)
				}
				if chunked && size > 0 && resp.Trailer.Get("X-End") != "sum" {
					t.Errorf("%d bytes: trailers did not arrive: %v", size, resp.Trailer)
				}
			}
		}
	}
}
