// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	wire "golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// announceLimit is how long a request waits at most for others to be told.
const announceLimit = 250 * time.Millisecond

// propagating has the sandbox ask for it. A server may be slow to say that it serves a
// second connection, as far as these tests are concerned.
func propagating(w *world) {
	w.input.Sandboxes[0].Propagate = true
	w.setDelays(func(d *delays) { d.second = patience })
}

// tellingOthers are others who are told after a moment. early reports whether something that
// is to wait for that, or for the limit, has not.
type tellingOthers struct {
	said chan struct{} // an announcement has been made
	told atomic.Bool
	at   atomic.Int64 // of the first announcement; zero: there was none
}

// listen is called before the table is set, and the loops know by that.
func (o *tellingOthers) listen(w *world, then func()) {
	o.said = make(chan struct{}, 100)
	w.router.cfg.Ledger.Announce(func(a ledger.Announcement) {
		o.at.CompareAndSwap(0, time.Now().UnixNano())
		o.said <- struct{}{}
		then()
		go func() {
			time.Sleep(150 * time.Millisecond)
			o.told.Store(true)
			a.Told()
		}()
	})
}

func (o *tellingOthers) early() bool {
	at := o.at.Load()
	return at == 0 || !o.told.Load() && time.Since(time.Unix(0, at)) < announceLimit
}

// TestARequestWaitsUntilOthersKnowWhereItGoes, and what came before it on the same
// connection does not.
func TestARequestWaitsUntilOthersKnowWhereItGoes(t *testing.T) {
	for _, known := range []bool{false, true} {
		var others tellingOthers
		w, _ := newLedgerWorld(t, propagating, func(w *world) { others.listen(w, func() {}) })
		w.names(w.base)
		w.script(w.fork, func(c *peer) {
			for {
				raw, err := readRequest(c.r)
				if err != nil {
					return
				}
				if strings.Contains(string(raw), "Traceparent") && others.early() {
					t.Error("the request comes before others have been told")
				}
				c.send("HTTP/1.1 200 OK\r\nX-Served-By: fork\r\nContent-Length: 0\r\n\r\n")
			}
		})
		c := w.dial(w.client)
		if known {
			// The fork's connection is there.
			c.send(get(tagged))
			c.response("GET")
		}
		body := strings.Repeat("x", 100<<10)
		c.send(get(untagged) + get(untagged))
		c.response("GET")
		c.response("GET")
		c.sendAside("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 102400\r\n" + tagged + traceparent + "\r\n" + body + get(untagged) + get(tagged+traceparent))
		for _, want := range []string{"fork", "base", "fork"} {
			if resp, _ := c.response("POST"); resp.Header.Get("X-Served-By") != want {
				t.Errorf("answered by %q, want %s", resp.Header.Get("X-Served-By"), want)
			}
		}
		if len(others.said) != 1 {
			t.Errorf("one hop of one trace is announced %d times", len(others.said))
		}
	}
}

// TestARequestThatWaitsIsSentAnewWhereItsConnectionEnds: not a byte of it has been
// sent, so this is safe whatever it does.
func TestARequestThatWaitsIsSentAnewWhereItsConnectionEnds(t *testing.T) {
	var first atomic.Pointer[peer]
	var others tellingOthers
	w, _ := newLedgerWorld(t, propagating, func(w *world) {
		others.listen(w, func() {
			if c := first.Swap(nil); c != nil {
				c.conn.Close()
			}
		})
	})
	w.names(w.base)
	var got atomic.Int32
	conns := w.script(w.fork, func(c *peer) {
		first.CompareAndSwap(nil, c)
		for {
			raw, err := readRequest(c.r)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(raw), "POST") && strings.HasSuffix(string(raw), "hello") {
				got.Add(1)
			}
			c.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	c := w.dial(w.client)
	c.send(get(tagged))
	c.response("GET")
	c.send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + tagged + traceparent + "\r\nhello")
	if resp, _ := c.response("POST"); resp.StatusCode != 200 || got.Load() != 1 || conns.Load() != 2 {
		t.Errorf("%s; the fork got %d requests, on %d connections", resp.Status, got.Load(), conns.Load())
	}
}

// TestAStreamWaitsUntilOthersKnowWhereItGoes, and streams without a key do not, on the
// same connection of the client's.
func TestAStreamWaitsUntilOthersKnowWhereItGoes(t *testing.T) {
	for _, tc := range []struct {
		name, dialled, want string
		headers             []string
	}{
		{"to the fork", "10.96.0.7:80", "fork", []string{"baggage", "sidetrack=" + key}},
		{"to the baseline", cartIPv4, "", []string{"baggage", "sidetrack=" + key}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var others tellingOthers
			release := make(chan struct{})
			w, l := newLedgerWorld(t, withCart, propagating, func(w *world) { others.listen(w, func() {}) })
			w.behindNode(w.router)
			tell := func(p *lab.Pod) http.Handler {
				inner := telling(p)
				return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Traceparent") != "" && others.early() {
						t.Error("the stream comes before others have been told")
					}
					if r.URL.Path == "/slow" {
						<-release
					}
					inner.ServeHTTP(rw, r)
				})
			}
			for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
				w.serveHTTP2(p, tell(p))
			}
			c := w.cartClient(tc.dialled, true)
			ask := func(method, path, body string, headers ...string) (string, string) {
				req, err := http.NewRequest(method, "http://cart"+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return "", ""
				}
				for i := 0; i < len(headers); i += 2 {
					req.Header.Set(headers[i], headers[i+1])
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					return "", ""
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Error(err)
				}
				return resp.Header.Get(lab.ServedBy), string(got)
			}
			primary, _ := ask("GET", "/", "")
			// An untagged stream is under way all the time.
			var slow sync.WaitGroup
			slow.Go(func() {
				if by, _ := ask("POST", "/slow", "untagged"); by != primary {
					t.Errorf("the untagged stream that was under way was answered by %q, want %s", by, primary)
				}
			})
			var tagged sync.WaitGroup
			body := strings.Repeat("0123456789", 3000)
			for i := range 8 {
				trace := fmt.Sprintf("00-4bf92f3577b34da6a3ce929d0e0e47%02x-00f067aa0ba902b7-01", i/2)
				tagged.Go(func() {
					by, got := ask("POST", "/", body, append([]string{"traceparent", trace}, tc.headers...)...)
					if got != body || tc.want != "" && by != tc.want {
						t.Errorf("answered by %q with %d bytes, want all %d by %q", by, len(got), len(body), tc.want)
					}
				})
				if by, got := ask("POST", "/", "untagged"); by != primary || got != "untagged" {
					t.Errorf("an untagged stream was answered by %q with %q, want %s", by, got, primary)
				}
			}
			tagged.Wait()
			for _, r := range w.records(l, pr42, 8) {
				if r.Error != "" || r.Status != 200 || r.Answer == nil || r.Answer.Pod == "" {
					t.Errorf("a record: %+v", r)
				}
			}
			close(release)
			slow.Wait()
			// All of that moves on.
			other := w.another(func(c *Config) { c.Ledger = l })
			w.moveAll(w.router, other, false)
			if by, _ := ask("GET", "/", ""); by != primary {
				t.Errorf("after the move an untagged stream is answered by %q, want %s", by, primary)
			}
			if by, got := ask("POST", "/", body, append([]string{"traceparent", strings.Fields(traceparent)[1]}, tc.headers...)...); got != body || tc.want != "" && by != tc.want {
				t.Errorf("after the move: answered by %q with %d bytes", by, len(got))
			}
		})
	}
}

// once is a listener that takes one connection and then is closed, or full.
type once struct {
	net.Listener
	taken atomic.Bool
	done  chan struct{}
	fill  func(net.Listener) // nil: it is closed
}

func (l *once) Accept() (net.Conn, error) {
	if l.taken.Swap(true) {
		<-l.done
		return nil, http.ErrServerClosed
	}
	c, err := l.Listener.Accept()
	if l.fill != nil {
		l.fill(l.Listener)
	} else {
		l.Listener.Close()
	}
	return c, err
}

// fill has a pod's listener drop SYNs from now on.
func (w *world) fill(l net.Listener) {
	raw, err := l.(syscall.Conn).SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }), err)
	}
	var c net.Conn
	if err == nil {
		c, err = w.runner.Dial("tcp", netip.AddrPortFrom(w.fork2.IPv4, 8080).String())
	}
	if err != nil {
		w.t.Errorf("fill a listener: %v", err)
		return
	}
	w.t.Cleanup(func() { c.Close() })
}

// TestAStreamDoesNotWaitWhereItsServerTakesOneConnectionAlone: it goes by that one.
func TestAStreamDoesNotWaitWhereItsServerTakesOneConnectionAlone(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full %t", full), func(t *testing.T) { testOneConnectionAlone(t, full) })
	}
}

func testOneConnectionAlone(t *testing.T, full bool) {
	var others tellingOthers
	w, l := newLedgerWorld(t, withCart, propagating, func(w *world) { others.listen(w, func() {}) })
	w.setDelays(func(d *delays) { d.second = defaultDelays().second })
	ln, err := w.fork2.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	one := &once{Listener: ln, done: make(chan struct{})}
	if full {
		one.fill = w.fill
	}
	s := &http.Server{Handler: telling(w.fork2), Protocols: new(http.Protocols), ReadHeaderTimeout: patience}
	s.Protocols.SetUnencryptedHTTP2(true)
	defer s.Close() // which waits for Accept
	defer close(one.done)
	go func() { _ = s.Serve(one) }()
	c := w.cartClient(netip.AddrPortFrom(w.fork2.IPv4, 8080).String(), true)
	if by := w.ask(c); by != "fork2" {
		t.Fatalf("answered by %q", by)
	}
	for range 3 {
		if by := w.ask(c, tagged, traceparent); by != "fork2" {
			t.Errorf("a stream with a key was answered by %q", by)
		}
	}
	for i, r := range w.records(l, pr42, 3) {
		if r.Error != "" || r.Status != 200 || r.Answer.Pod != "fork2" {
			t.Errorf("record %d: %+v", i, r)
		}
	}
}

// TestAStreamThatWaitsIsSentBeforeTheClientsEnd: a client may say that it will say
// nothing more while its stream is held.
func TestAStreamThatWaitsIsSentBeforeTheClientsEnd(t *testing.T) {
	var others tellingOthers
	w, _ := newLedgerWorld(t, propagating, func(w *world) { others.listen(w, func() {}) })
	w.serveHTTP2(w.base, telling(w.base))
	heard := make(chan bool, 1)
	w.script(w.fork, func(c *peer) {
		got := false
		f := wire.NewFramer(c.conn, c.r)
		c.expect(wire.ClientPreface)
		if err := f.WriteSettings(); err != nil {
			t.Error(err)
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				heard <- got
				return
			}
			got = got || frame.Header().Type == wire.FrameHeaders
		}
	})
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key, "traceparent", strings.Fields(traceparent)[1])...)
	if err := f.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-heard:
		if !got {
			t.Error("the fork has heard of the client's end and not of its stream")
		}
	case <-time.After(patience):
		t.Error("the fork does not hear of the client's end")
	}
}
