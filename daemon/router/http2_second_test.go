// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// oneAtATime is an HTTP/2 server with one thread: it takes no connection, and reads none,
// before the one before has ended. The kernel accepts them all the same.
type oneAtATime struct {
	net.Listener
	free chan struct{} // has a value while no connection is being served

	mu    sync.Mutex
	asked []string // path and body, in their order
	conns int
}

func (w *world) serveOneAtATime(p *lab.Pod) *oneAtATime {
	w.t.Helper()
	ln, err := p.Listen("tcp", ":8080")
	if err != nil {
		w.t.Fatal(err)
	}
	o := &oneAtATime{Listener: ln, free: make(chan struct{}, 1)}
	o.free <- struct{}{}
	tell := telling(p)
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.t.Errorf("%s: %v", r.URL.Path, err)
		}
		o.mu.Lock()
		o.asked = append(o.asked, fmt.Sprintf("%s %d", r.URL.Path, len(body)))
		o.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		tell.ServeHTTP(rw, r)
	})
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(o); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			w.t.Errorf("the server has ended: %v", err)
		}
	}()
	w.t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return o
}

// Accept returns a connection when the one before has been closed.
func (o *oneAtATime) Accept() (net.Conn, error) {
	<-o.free
	c, err := o.Listener.Accept()
	if err != nil {
		o.free <- struct{}{}
		return nil, err
	}
	o.mu.Lock()
	o.conns++
	o.mu.Unlock()
	return &onlyConn{Conn: c, closed: sync.OnceFunc(func() { o.free <- struct{}{} })}, nil
}

// onlyConn is the connection that is being served.
type onlyConn struct {
	net.Conn
	closed func()
}

func (c *onlyConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

func (o *oneAtATime) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

// secondWorld is one whose sandbox has others told, and whose service is fork2 alone.
func secondWorld(t *testing.T) (*world, *ledger.Ledger, *oneAtATime, string) {
	t.Helper()
	var others tellingOthers
	w, l := newLedgerWorld(t, withCart, propagating, func(w *world) { others.listen(w, func() {}) })
	w.setDelays(func(d *delays) { d.second = defaultDelays().second })
	t.Cleanup(w.closeClients)
	return w, l, w.serveOneAtATime(w.fork2), netip.AddrPortFrom(w.fork2.IPv4, 8080).String()
}

// closeClients has a server that serves one connection at a time come to its end.
func (w *world) closeClients() {
	for _, l := range w.router.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = l.conns.first {
				c.abort()
			}
		})
	}
}

// TestAServerThatServesOneConnectionAtATimeAnswersStreamsThatWait: it is connected to a
// second time and does not know.
func TestAServerThatServesOneConnectionAtATimeAnswersStreamsThatWait(t *testing.T) {
	w, l, server, addr := secondWorld(t)
	c := w.cartClient(addr, true)
	post := func(path, body string, headers ...string) {
		t.Helper()
		req := mustRequest(t, http.MethodPost, strings.NewReader(body))
		req.URL.Path = path
		req.GetBody = nil // the client has it once and cannot send it again
		for _, h := range headers {
			name, value, _ := strings.Cut(strings.TrimSpace(h), ": ")
			req.Header.Set(name, value)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != body || resp.Header.Get(lab.ServedBy) != "fork2" || resp.Trailer.Get("X-Read") != fmt.Sprint(len(body)) {
			t.Errorf("%s: %d bytes and %v from %q, trailers %v", path, len(got), err, resp.Header.Get(lab.ServedBy), resp.Trailer)
		}
	}
	body := strings.Repeat("0123456789", 20_000)
	post("/untagged", "a")
	post("/waits", body, tagged, traceparent)
	post("/behind", body)
	// It is not tried again on this connection of the client's.
	post("/again", body, tagged, strings.Replace(traceparent, "4736", "4737", 1))
	want := []string{"/untagged 1", "/waits 200000", "/behind 200000", "/again 200000"}
	if got := server.all(); !slices.Equal(got, want) {
		t.Errorf("the server was asked %q, want %q", got, want)
	}
	for _, r := range w.records(l, pr42, 2) {
		if r.Error != "" || r.Status != 200 || r.Answer == nil || r.Answer.Pod != "fork2" || r.SentBytes < int64(len(body)) {
			t.Errorf("a record: %+v", r)
		}
	}
	counted := uint64(0)
	for _, n := range w.router.Stats().Requests {
		counted += n
	}
	if counted != 4 {
		t.Errorf("%d requests are counted", counted)
	}
	// What waits at the server has nothing to say when its turn comes.
	c.CloseIdleConnections()
	w.noConnections()
	w.eventually("the server has seen the second connection", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.conns == 2
	})
	c2 := w.cartClient(addr, true)
	if by := w.ask(c2); by != "fork2" {
		t.Errorf("answered by %q", by)
	}
	if got := server.all(); len(got) != 5 || server.conns != 3 {
		t.Errorf("the server was asked %q, on %d connections", got, server.conns)
	}
}

// TestUntaggedStreamsPassOneThatWaitsForASecondConnection: the one that waits is refused
// then, which says that nobody has seen it, and can be asked again.
func TestUntaggedStreamsPassOneThatWaitsForASecondConnection(t *testing.T) {
	w, l, server, addr := secondWorld(t)
	w.setDelays(func(d *delays) { d.second = patience })
	f := w.frames(w.dialAt(w.client, addr))
	ask := func(id uint32, path string, more ...string) {
		f.headers(id, true, append([]string{":method", "GET", ":scheme", "http", ":authority", "cart", ":path", path}, more...)...)
	}
	tag := []string{"baggage", "sidetrack=" + key, "traceparent", strings.Fields(traceparent)[1]}
	ask(1, "/1")
	f.answer(1, "200")
	ask(3, "/3", tag...)
	ask(5, "/5")
	ask(7, "/7", tag...)
	f.answer(5, "200")      // at once
	server.Listener.Close() // which resets what waits there
	f.await("stream 3 is refused", func(fr wire.Frame) bool {
		r, ok := fr.(*wire.RSTStreamFrame)
		if ok && (r.StreamID != 3 || r.ErrCode != wire.ErrCodeRefusedStream) {
			t.Errorf("%v", r)
		}
		return ok
	})
	f.answer(7, "200")
	ask(9, "/3", tag...)
	f.answer(9, "200")
	want := []string{"/1 0", "/5 0", "/7 0", "/3 0"}
	if got := server.all(); !slices.Equal(got, want) {
		t.Errorf("the server was asked %q, want %q", got, want)
	}
	all := w.records(l, pr42, 3)
	for i, want := range []bool{false, true, true} {
		if r := all[i]; (r.Error == "" && r.Status == 200 && r.Answer != nil) != want {
			t.Errorf("record %d: %+v", i, r)
		}
	}
}

// TestAStreamThatGoesBackComesBeforeTheClientsEnd: a client may say that it will say
// nothing more while its stream waits.
func TestAStreamThatGoesBackComesBeforeTheClientsEnd(t *testing.T) {
	w, _, server, addr := secondWorld(t)
	f := w.frames(w.dialAt(w.client, addr))
	f.headers(1, true, asking()...)
	f.answer(1, "200")
	f.headers(3, true, asking("baggage", "sidetrack="+key, "traceparent", strings.Fields(traceparent)[1])...)
	if err := f.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the server has got the stream", func() bool { return len(server.all()) == 2 })
}

// TestASecondConnectionOfAnInjectedPodIsToItsFork, which may serve one at a time as well.
func TestASecondConnectionOfAnInjectedPodIsToItsFork(t *testing.T) {
	for _, one := range []bool{false, true} {
		t.Run(fmt.Sprintf("one at a time %t", one), func(t *testing.T) {
			var others tellingOthers
			w, l := newLedgerWorld(t, propagating, func(w *world) { others.listen(w, func() {}) })
			t.Cleanup(w.closeClients)
			if one {
				w.setDelays(func(d *delays) { d.second = defaultDelays().second })
				w.serveOneAtATime(w.fork)
			} else {
				w.serveHTTP2(w.fork, telling(w.fork))
			}
			f := w.frames(w.dial(w.runner))
			f.headers(1, true, asking()...) // of no trace
			f.answer(1, "200")
			f.headers(3, true, asking("traceparent", strings.Fields(traceparent)[1])...)
			f.answer(3, "200")
			for _, r := range w.records(l, pr42, 2) {
				if r.Error != "" || r.Status != 200 || r.Answer == nil || r.Answer.Pod != "fork" {
					t.Errorf("a record: %+v", r)
				}
			}
		})
	}
}

// TestAClientThatReadsNothingIsNoSignOfAServerThatDoesNotServe: nothing is read of the
// second connection before the client has taken what came on the first.
func TestAClientThatReadsNothingIsNoSignOfAServerThatDoesNotServe(t *testing.T) {
	var others tellingOthers
	w, l := newLedgerWorld(t, withCart, propagating, func(w *world) { others.listen(w, func() {}) })
	const size = 8 << 20
	conns := w.serveHTTP2(w.fork2, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/much" {
			_, _ = rw.Write(make([]byte, size))
		}
	}))
	f := w.frames(w.dialAt(w.client, netip.AddrPortFrom(w.fork2.IPv4, 8080).String()))
	if err := f.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: size}); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteWindowUpdate(0, size); err != nil {
		t.Fatal(err)
	}
	f.headers(1, true, ":method", "GET", ":scheme", "http", ":authority", "cart", ":path", "/much")
	w.eventually("the client is behind", func() bool {
		total, _ := w.held()
		return total > 0
	})
	f.headers(3, true, asking("baggage", "sidetrack="+key, "traceparent", strings.Fields(traceparent)[1])...)
	w.eventually("the server has spoken on a second connection, and its time is over", func() (over bool) {
		for _, l := range w.router.loops {
			l.call(func() {
				for c := l.conns.first; c != nil; c = c.next {
					for _, u := range c.ups {
						if over = u.second && u.sock.readable; over {
							u.giveUp()
							return
						}
					}
				}
			})
			if over {
				break
			}
		}
		return over
	})
	f.answer(3, "200")
	if r := w.records(l, pr42, 1)[0]; r.Error != "" || conns.Load() != 2 || w.upstreams() != 2 {
		t.Errorf("the record: %+v; %d connections to the server, %d of them left", r, conns.Load(), w.upstreams())
	}
}

// TestASecondConnectionThatHasGivenWayIsNoSignOfAServerThatDoesNotServe: it was idle,
// since the client had given up what was on it, and another was needed more.
func TestASecondConnectionThatHasGivenWayIsNoSignOfAServerThatDoesNotServe(t *testing.T) {
	const third = "key-of-pr-44"
	var others tellingOthers
	w, _ := newLedgerWorld(t, func(w *world) {
		w.router.cfg.HTTP2.Links = 1
		looking := sandbox("pr-44", third)
		looking.Redirects, looking.Observe, looking.Propagate = nil, []string{"route"}, true
		w.input.Sandboxes = append(w.input.Sandboxes, looking)
		w.setDelays(func(d *delays) { d.second = patience })
		others.listen(w, func() {})
	})
	asked := make(chan string, 10)
	conns := w.serveHTTP2(w.base, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + " from " + r.RemoteAddr
		if r.URL.Path == "/never" {
			<-r.Context().Done()
		}
	}))
	// The head is the end of its answer: then its connection may give way.
	w.serveHTTP2(w.fork2, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	f := w.frames(w.dial(w.client))
	tag := func(path, key, trace string) []string {
		return []string{":method", "GET", ":scheme", "http", ":authority", "route.shop", ":path", path, "baggage", "sidetrack=" + key, "traceparent", strings.Replace(strings.Fields(traceparent)[1], "4736", trace, 1)}
	}
	server := func(path string) (from string) {
		t.Helper()
		w.eventually("the server is asked for "+path, func() bool { return len(asked) > 0 })
		got, from, _ := strings.Cut(<-asked, " from ")
		if got != path {
			t.Fatalf("the server was asked for %s, want %s", got, path)
		}
		return from
	}
	f.headers(1, true, asking()...)
	f.answer(1, "200")
	primary := server("/")
	f.headers(3, true, tag("/never", third, "0003")...)
	if server("/never") == primary {
		t.Fatal("what has to wait goes by the first connection")
	}
	if err := f.WriteRSTStream(3, wire.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	f.headers(5, true, tag("/fork", otherKey, "0005")...)
	f.answer(5, "200")
	f.headers(7, true, tag("/again", third, "0007")...)
	f.answer(7, "200")
	if server("/again") == primary || conns.Load() != 3 {
		t.Errorf("what has to wait goes by the first connection after a second one has given way; the server has got %d", conns.Load())
	}
}
