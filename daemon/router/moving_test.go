// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// another makes a second router that has the same table. It listens nowhere.
func (w *world) another(change ...func(*Config)) *Router {
	w.t.Helper()
	cfg := Config{Loops: 2, Mark: 0x3053}
	for _, f := range change {
		f(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			w.t.Errorf("close the other router: %v", err)
		}
	})
	r.SetTable(w.table)
	return r
}

// across is what another process receives: the state as text, the descriptors
// duplicated.
func across(t *testing.T, m *Moving) *Moving {
	dup := func(fd int) int {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	text, err := json.Marshal(m.State)
	out := &Moving{Client: dup(m.Client), Netns: dup(m.Netns)}
	if err == nil {
		err = json.Unmarshal(text, &out.State)
	}
	if err != nil {
		t.Error(err)
	}
	for _, fd := range m.Upstreams {
		out.Upstreams = append(out.Upstreams, dup(fd))
	}
	return out
}

// move moves connections for a while, and returns how many.
func move(t *testing.T, from, to *Router, midway bool, d time.Duration) (moved int) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	for ctx.Err() == nil {
		once, more := context.WithTimeout(ctx, 50*time.Millisecond)
		for _, m := range from.Offer(once, 16, midway) {
			theirs, mine := []*Moving{across(t, m)}, []*Moving{m}
			if err := to.Receive(theirs[0]); err != nil {
				t.Errorf("receive: %v", err)
				from.Keep(mine)
				continue
			}
			from.Release(mine)
			to.Begin(theirs)
			moved++
		}
		more()
	}
	return moved
}

// moveAll moves until the first router has no connection.
func (w *world) moveAll(from, to *Router, midway bool) {
	w.t.Helper()
	w.eventually("every connection has moved", func() bool {
		move(w.t, from, to, midway, 30*time.Millisecond)
		return from.Stats().Open == 0
	})
}

// TestConnectionsGoToAndFroUnderLoad: requests go by their own keys while their
// connections move between two routers all the time.
func TestConnectionsGoToAndFroUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	other := w.another()
	ctx, cancel := context.WithCancel(context.Background())
	var clients, movers sync.WaitGroup
	var requests, moved atomic.Int64
	for i := range 40 {
		client := w.http(w.client)
		clients.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				req, _ := http.NewRequest("GET", "http://shop/", nil)
				want := w.base.Name
				switch n % 3 {
				case 1:
					req.Header.Set("baggage", "sidetrack="+key)
					want = w.fork.Name
				case 2:
					req.Header.Set("x-sidetrack-key", otherKey)
					want = w.fork2.Name
				}
				if n%4 == 0 {
					req.Method, req.Body = "POST", io.NopCloser(strings.NewReader(strings.Repeat("x", n%3000)))
					req.ContentLength = int64(n % 3000)
					if n%8 == 0 {
						req.ContentLength = -1
					}
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Errorf("request %d: %v", n, err)
					return
				}
				served := resp.Header.Get("X-Served-By")
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || served != want {
					t.Errorf("request %d: %s answered, and %v; want %s", n, served, err, want)
					return
				}
				requests.Add(1)
			}
		})
	}
	for _, way := range [][2]*Router{{w.router, other}, {other, w.router}} {
		movers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				moved.Add(int64(move(t, way[0], way[1], i%2 == 0, 20*time.Millisecond)))
			}
		})
	}
	w.eventually("connections have moved often enough", func() bool { return moved.Load() >= 100 || ctx.Err() != nil })
	cancel()
	clients.Wait()
	movers.Wait()
	t.Logf("%d requests, %d moves", requests.Load(), moved.Load())
	s, o := w.router.Stats(), other.Stats()
	if s.Given != o.Received || o.Given != s.Received {
		t.Errorf("given %d and %d, received %d and %d", s.Given, o.Given, o.Received, s.Received)
	}
	for reason, n := range s.Errors {
		if n += o.Errors[reason]; n > 0 && reason != "client_reset" {
			t.Errorf("%s: %d", reason, n)
		}
	}
}

// TestWhatIsNotHTTPMovesAtAnyByte: a stream that both sides fill goes to and fro.
func TestWhatIsNotHTTPMovesAtAnyByte(t *testing.T) {
	w := newWorld(t)
	w.mirror("")
	other := w.another()
	c := w.dial(w.client)
	c.send("\x00\x01")
	c.expect("\x00\x01")
	const size = 16 << 20
	sent, received := sha256.New(), sha256.New()
	var moved atomic.Int64
	go func() {
		chunk := make([]byte, 7001)
		// However few turns the movers get.
		for n := 0; n < size || moved.Load() < 2; n += len(chunk) {
			for i := range chunk {
				chunk[i] = byte(n + i*i)
			}
			sent.Write(chunk)
			if _, err := c.conn.Write(chunk); err != nil {
				t.Error(err)
				return
			}
		}
		_ = c.conn.CloseWrite()
	}()
	done := make(chan struct{})
	var movers sync.WaitGroup
	movers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				moved.Add(int64(move(t, w.router, other, false, 2*time.Millisecond) + move(t, other, w.router, false, 2*time.Millisecond)))
			}
		}
	})
	if _, err := io.Copy(received, c.r); err != nil {
		t.Error(err)
	}
	close(done)
	movers.Wait()
	if string(sent.Sum(nil)) != string(received.Sum(nil)) {
		t.Error("what came back is not what was sent")
	}
	t.Logf("%d moves", moved.Load())
	if moved.Load() < 2 {
		t.Errorf("it has moved %d times only", moved.Load())
	}
	w.noConnections()
}

// TestARequestOrAnswerInItsMiddleMoves: long ones, wherever they are.
func TestARequestOrAnswerInItsMiddleMoves(t *testing.T) {
	const chunked = "Transfer-Encoding: chunked\r\n\r\n"
	for _, tc := range []struct {
		name            string
		request, answer []string // a move after each piece
	}{
		{"a body with its length", []string{"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n01", "234", "56789"}, []string{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0", "12345678", "9"}},
		{"chunks", []string{"POST / HTTP/1.1\r\n" + chunked + "5\r", "\nab", "cde\r\n0\r\nTrailer", ": x\r\n\r\n"}, []string{"HTTP/1.1 200 OK\r\n" + chunked, "3;x=", "y\r\nabc\r\n", "0\r\n", "\r\n"}},
		{"a long wait", []string{"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"}, []string{"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"}},
		{"several requests", []string{"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nHEAD / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"},
			[]string{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"}},
		{"an upgrade", []string{"GET / HTTP/1.1\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"}, []string{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "\x00\x01", "\x02"}},
	} {
		for _, who := range []string{"", "x-sidetrack-key: " + key + "\r\n"} {
			t.Run(tc.name+" "+who, func(t *testing.T) {
				w := newWorld(t)
				first, rest, _ := strings.Cut(tc.request[0], "\r\n")
				request := append([]string{first + "\r\n" + who + rest}, tc.request[1:]...)
				whole := strings.Join(request, "")
				server := w.base
				if who != "" {
					server = w.fork
					// Those that follow have no key of their own.
					if n := strings.Count(whole, "HTTP/1.1\r\n"); n > 1 {
						whole = strings.ReplaceAll(strings.ReplaceAll(whole, who, ""), "HTTP/1.1\r\n", "HTTP/1.1\r\n"+who)
						request = []string{whole}
					}
				}
				after := "POST /after HTTP/1.1\r\n" + who + "Content-Length: 0\r\n\r\n"
				if tc.name == "an upgrade" {
					after = "after"
				}
				turn, taken := make(chan string), make(chan bool)
				if server != w.base {
					w.names(w.base)
				}
				w.script(server, func(p *peer) {
					p.expect(whole)
					for s := range turn {
						p.send(s)
						taken <- true
					}
					p.expect(after)
				})
				routers := []*Router{w.router, w.another(), w.another()}
				c := w.dial(w.client)
				at := 0
				next := func() {
					w.moveAll(routers[at], routers[(at+1)%3], true)
					at = (at + 1) % 3
				}
				for _, piece := range request {
					c.send(piece)
					w.eventually("the piece has been read", func() bool { return sumOf(routers).FromClients >= uint64(len(piece)) })
					next()
				}
				for _, piece := range tc.answer {
					turn <- piece
					<-taken
					c.expect(piece)
					next()
				}
				close(turn)
				c.send(after)
				w.eventually("the rest has been read", func() bool { return sumOf(routers).FromClients >= uint64(len(whole)+len(after)) })
			})
		}
	}
}

func sumOf(routers []*Router) (sum Stats) {
	for _, r := range routers {
		s := r.Stats()
		sum.FromClients += s.FromClients
		sum.ToClients += s.ToClients
		sum.Open += s.Open
	}
	return sum
}

// TestAKeyThatIsSplitByAMoveIsFound: of a stream that might be HTTP.
func TestAKeyThatIsSplitByAMoveIsFound(t *testing.T) {
	w := newWorld(t)
	w.mirror("")
	other := w.another()
	c := w.dial(w.client)
	const before = "GET /x HTTP/1.1\nHost: a\n\nGET /y HTTP/1.1\nbaggage: sidetr"
	c.send(before)
	c.expect(before)
	w.moveAll(w.router, other, false)
	const half = "ack=key-of"
	c.send(half)
	c.expect(half)
	w.moveAll(other, w.router, false)
	c.send("-pr-42\n\n")
	c.expectRST()
	if n := w.router.Stats().Errors["reset_key_in_opaque"]; n != 1 {
		t.Errorf("%d resets for a key, want 1", n)
	}
}

// TestNobodyNoticesAConnectionThatIsKept: a connection is offered, lies there,
// and nobody takes it.
func TestNobodyNoticesAConnectionThatIsKept(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	other := w.another()
	c := w.dial(w.client)
	ask := func(header, want string) {
		t.Helper()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n" + header + "\r\n")
		if resp, _ := c.response("GET"); resp.Header.Get("X-Served-By") != want {
			t.Errorf("%s answered, want %s", resp.Header.Get("X-Served-By"), want)
		}
	}
	ask("", "base")
	ask("x-sidetrack-key: "+key+"\r\n", "fork")
	ms := w.router.Offer(t.Context(), 10, false)
	if len(ms) != 1 || len(ms[0].Upstreams) != 2 {
		t.Fatalf("%d connections are offered: %+v", len(ms), ms)
	}
	theirs := across(t, ms[0])
	if err := other.Receive(theirs); err != nil {
		t.Fatal(err)
	}
	// What is sent meanwhile waits with the kernel.
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	other.Discard([]*Moving{theirs})
	w.router.Keep(ms)
	if resp, _ := c.response("GET"); resp.Header.Get("X-Served-By") != "base" {
		t.Errorf("%s answered, want base", resp.Header.Get("X-Served-By"))
	}
	ask("x-sidetrack-key: "+key+"\r\n", "fork")

	// It is not offered to the same process again, but to another.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if ms := w.router.Offer(ctx, 10, true); len(ms) > 0 {
		t.Errorf("%d connections are offered that nobody wanted", len(ms))
	}
	w.router.OfferAll()
	w.moveAll(w.router, other, false)
	ask("", "base")
	ask("x-sidetrack-key: "+key+"\r\n", "fork")
}

// TestTablesOfTwoRoutersDiffer: other numbers, a destination that has gone, and
// one that nobody knows.
func TestTablesOfTwoRoutersDiffer(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	ask := func(c *peer, header string) (status int, server string) {
		t.Helper()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n" + header + "\r\n")
		resp, _ := c.response("GET")
		return resp.StatusCode, resp.Header.Get("X-Served-By")
	}
	want := func(c *peer, header string, status int, server string) {
		t.Helper()
		if s, by := ask(c, header); s != status || by != server {
			t.Errorf("%q: %d by %q, want %d by %q", header, s, by, status, server)
		}
	}
	for _, tc := range []struct {
		name    string
		change  func(*routing.Input)
		refuse  bool
		remains string // who answers pr-43
	}{
		{"the same in another order", func(in *routing.Input) {
			in.Services = append([]routing.Service{{Name: routing.Name{Namespace: "shop", Name: "aaa"}, Addresses: w.base.Addrs()[:1], Ports: in.Services[0].Ports}}, in.Services...)
		}, false, "fork2"},
		{"one sandbox less", func(in *routing.Input) { in.Sandboxes = in.Sandboxes[:1] }, false, "base"},
		{"no sandbox", func(in *routing.Input) { in.Sandboxes = nil }, true, "base"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := w.dial(w.client)
			want(c, "", 200, "base")
			want(c, "x-sidetrack-key: "+otherKey+"\r\n", 200, "fork2")
			in := w.input
			in.Services, in.Sandboxes, in.Pods = slices.Clone(in.Services), slices.Clone(in.Sandboxes), nil
			tc.change(&in)

			// Without having been told, it takes only what its own table knows.
			stranger := w.another()
			table, problems := routing.Compile(in, nil)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			stranger.SetTable(table)
			ms := w.router.Offer(t.Context(), 1, false)
			theirs := across(t, ms[0])
			err := stranger.Receive(theirs)
			if refused := err != nil; refused != tc.refuse {
				t.Errorf("receive: %v", err)
			}
			if err == nil {
				stranger.Discard([]*Moving{theirs})
			}
			w.router.Keep(ms)
			w.router.OfferAll()

			d, _ := w.table.LookupDest(ms[0].State.Dialled, routing.TCP)
			known, _ := w.table.Remember(d.ID)
			table, _ = routing.Compile(in, routing.Recall([]routing.Remembered{known}))
			other := w.another()
			other.SetTable(table)
			w.moveAll(w.router, other, false)
			want(c, "x-sidetrack-key: "+otherKey+"\r\n", 200, tc.remains)
			want(c, "", 200, "base")
			if len(in.Sandboxes) > 0 {
				want(c, "x-sidetrack-key: "+key+"\r\n", 200, "fork")
			}
			c.conn.Close()
			w.eventually("the connection is gone", func() bool { return other.Stats().Open == 0 })
		})
	}
}

// TestWhatDoesNotFitTogetherIsRefused: states that no router gives away.
func TestWhatDoesNotFitTogetherIsRefused(t *testing.T) {
	w := newWorld(t)
	w.names(w.base)
	c := w.dial(w.client)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	c.response("GET")
	ms := w.router.Offer(t.Context(), 1, false)
	defer w.router.Keep(ms)
	other := w.another()
	open := descriptors(t)
	for name, damage := range map[string]func(*ConnState){
		"an unknown phase":     func(s *ConnState) { s.Request = "teapot" },
		"an unknown answer":    func(s *ConnState) { s.Answer = "" },
		"no such upstream":     func(s *ConnState) { s.Current = 1 },
		"a negative one":       func(s *ConnState) { s.Current = -2 },
		"no upstream":          func(s *ConnState) { s.Current, s.Request = -1, "opaque" },
		"too few sockets":      func(s *ConnState) { s.Upstreams = append(s.Upstreams, s.Upstreams[0]) },
		"too many sockets":     func(s *ConnState) { s.Upstreams = nil },
		"an unknown method":    func(s *ConnState) { s.Asked = []byte{200} },
		"many methods":         func(s *ConnState) { s.Asked = make([]byte, maxAsked+1) },
		"an answer to nothing": func(s *ConnState) { s.Answer = "length" },
		"a negative length":    func(s *ConnState) { s.Left = -1 },
		"chunks":               func(s *ConnState) { s.Chunks.State = 99 },
		"no address":           func(s *ConnState) { s.Upstreams[0].Addr = netip.AddrPort{} },
	} {
		m := across(t, ms[0])
		m.State.Upstreams = slices.Clone(m.State.Upstreams)
		damage(&m.State)
		if err := other.Receive(m); err == nil {
			other.Discard([]*Moving{m})
			t.Errorf("%s: no error", name)
		}
	}
	if n := other.Stats().Open; n != 0 {
		t.Errorf("%d connections are open", n)
	}
	if now := descriptors(t); now != open {
		t.Errorf("%d descriptors, before %d", now, open)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	runtime.GC()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestPeersEndsReachTheNewRouter: what a peer does while its connection is
// nobody's is seen by whoever gets it.
func TestPeersEndsReachTheNewRouter(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(*peer)
		want func(server *peer)
	}{
		{"FIN", func(c *peer) { _ = c.conn.CloseWrite() }, func(s *peer) { s.expectFIN() }},
		{"RST", func(c *peer) { c.rst() }, func(s *peer) { s.expectRST() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			ended := make(chan struct{})
			w.script(w.base, func(p *peer) {
				p.expect("\x00\x01")
				p.send("ok")
				tc.want(p)
				close(ended)
			})
			c := w.dial(w.client)
			c.send("\x00\x01")
			c.expect("ok")
			other := w.another()
			ms := w.router.Offer(t.Context(), 1, false)
			theirs := across(t, ms[0])
			if err := other.Receive(theirs); err != nil {
				t.Fatal(err)
			}
			w.router.Release(ms)
			tc.end(c)
			time.Sleep(10 * time.Millisecond)
			other.Begin([]*Moving{theirs})
			<-ended
			w.eventually("the connection is gone", func() bool { return other.Stats().Open == 0 })
		})
	}
}
