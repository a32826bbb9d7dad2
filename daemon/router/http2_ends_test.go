// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestAForkWithoutEndpointsIsUnavailableOverHTTP2(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP2(w.base, telling(w.base))
	w.input.Slices = w.input.Slices[:1]
	w.apply()
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key)...)
	f.answer(1, "503")
	f.await("the reason", func(fr wire.Frame) bool {
		d, ok := fr.(*wire.DataFrame)
		if ok && !strings.Contains(string(d.Data()), "sandbox shop/pr-42 redirects Service shop/route to Service shop/route-pr-42 port 80, but it has no ready endpoint") {
			t.Errorf("%q", d.Data())
		}
		return ok
	})
	f.headers(3, false, asking("baggage", "sidetrack="+key, "content-type", "application/grpc")...)
	f.await("an answer", func(fr wire.Frame) bool {
		h, ok := fr.(*wire.MetaHeadersFrame)
		if ok && (h.PseudoValue("status") != "200" || len(h.Fields) != 4 || h.Fields[2].Value != "14" || !h.StreamEnded()) {
			t.Errorf("%v", h.Fields)
		}
		return ok
	})
	f.headers(5, true, asking()...)
	f.answer(5, "200")
}

func TestAForkThatCannotBeReachedOverHTTP2(t *testing.T) {
	for _, policy := range []routing.UnavailablePolicy{routing.Reject, routing.Baseline} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			w := newWorld(t)
			w.serveHTTP2(w.base, telling(w.base))
			w.unreachable(w.client, netip.PrefixFrom(w.fork.IPv4, 32).String())
			w.input.Sandboxes[0].Redirects[0].Unavailable = policy
			w.apply()
			f := w.frames(w.dial(w.client))
			want := "503"
			if policy == routing.Baseline {
				want = "200"
			}
			for id := uint32(1); id < 20; id += 4 {
				f.headers(id, true, asking("baggage", "sidetrack="+key)...)
				f.answer(id, want)
				f.headers(id+2, true, asking()...)
				f.answer(id+2, "200")
			}
			verdict := routing.Refuse
			if policy == routing.Baseline {
				verdict = routing.ToBaseline
			}
			n := uint64(0)
			for k, count := range w.router.Stats().Requests {
				if k.Verdict == verdict && k.Reason == routing.Unavailable && k.Sandbox.Name == "pr-42" {
					n += count
				}
			}
			if n == 0 {
				t.Errorf("not counted as %v: %v", verdict, w.router.Stats().Requests)
			}
		})
	}
}

func TestAForkServesOverHTTP2WhereTheBaselineDoesNot(t *testing.T) {
	w := newWorld(t, connectedFirst)
	w.setDelays(func(d *delays) { d.refusal = patience })
	w.serveHTTP2(w.fork, telling(w.fork))
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key)...)
	f.answer(1, "200")
	// To everybody else the baseline refuses the connection.
	f.headers(3, true, asking()...)
	f.expectReset()
	// Also to who says nothing.
	w.setDelays(func(d *delays) { *d = defaultDelays() })
	w.frames(w.dial(w.client)).expectReset()
	g := w.frames(w.dial(w.client))
	g.headers(1, true, asking()...)
	g.expectReset()
	w.noConnections()
}

func TestAnInjectedPodsStreamsCarryItsKey(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		w.serveHTTP2(p, telling(p))
	}
	client := w.http2(w.runner)
	for _, tt := range []struct{ sent, by, arrived string }{
		{"", "fork", "sidetrack=" + key},
		{"a=b", "fork", "a=b,sidetrack=" + key},
		{"sidetrack=" + otherKey, "fork2", "sidetrack=" + otherKey},
		{"", "fork", "sidetrack=" + key},
	} {
		req := mustRequest(t, http.MethodGet, nil)
		if tt.sent != "" {
			req.Header.Set("Baggage", tt.sent)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if by, baggage := resp.Header.Get("X-Served-By"), resp.Header.Get("X-Baggage"); by != tt.by || baggage != tt.arrived {
			t.Errorf("baggage %q: %s got %q, want %s and %q", tt.sent, by, baggage, tt.by, tt.arrived)
		}
	}
}

func TestTheBaselinesEndDoesNotEndAForksStreams(t *testing.T) {
	for _, reset := range []bool{false, true} {
		w := newWorld(t)
		end := make(chan struct{})
		w.script(w.base, func(c *peer) {
			c.expect(wire.ClientPreface)
			f := newFrames(c)
			f.await("SETTINGS", func(fr wire.Frame) bool { return fr.Header().Type == wire.FrameSettings })
			_ = f.WriteSettings()
			<-end
			if reset {
				c.rst()
			}
		})
		finish := make(chan struct{})
		w.serveHTTP2(w.fork, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(rw).Flush()
			<-finish
			fmt.Fprint(rw, "finished")
		}))
		f := w.frames(w.dial(w.client))
		f.headers(1, true, asking("baggage", "sidetrack="+key)...)
		f.answer(1, "200")
		close(end)
		f.await("GOAWAY", func(fr wire.Frame) bool {
			g, ok := fr.(*wire.GoAwayFrame)
			if ok && (g.LastStreamID != 1 || g.ErrCode != wire.ErrCodeNo) {
				t.Errorf("%v", g)
			}
			return ok
		})
		close(finish)
		f.await("the rest", func(fr wire.Frame) bool {
			d, ok := fr.(*wire.DataFrame)
			return ok && string(d.Data()) == "finished"
		})
		if reset {
			f.expectReset()
		} else {
			f.expectEOF()
		}
		w.noConnections()
	}
}

func TestADrainEndsHTTP2ConnectionsWhenTheirStreamsHave(t *testing.T) {
	w := newWorld(t)
	finish := make(chan struct{})
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		w.serveHTTP2(p, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(rw).Flush()
			<-finish
			fmt.Fprint(rw, "finished")
		}))
	}
	busy := w.frames(w.dial(w.client))
	busy.headers(1, true, asking("baggage", "sidetrack="+key)...)
	busy.answer(1, "200")
	busy.headers(3, true, asking()...)
	busy.answer(3, "200")
	idle := w.frames(w.dial(w.client))
	idle.await("SETTINGS", func(fr wire.Frame) bool { return fr.Header().Type == wire.FrameSettings })
	done := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- w.router.Drain(ctx)
	}()
	for _, f := range []*frames{busy, idle} {
		for n := range 2 {
			f.await("GOAWAY", func(fr wire.Frame) bool {
				g, ok := fr.(*wire.GoAwayFrame)
				if ok && (n == 0) != (g.LastStreamID == 1<<31-1) {
					t.Errorf("%d: %v", n, g)
				}
				return ok
			})
		}
	}
	idle.expectEOF()
	idle.peer.conn.Close()
	close(finish)
	busy.expectEOF()
	busy.peer.conn.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnUpgradedConnectionIsRoutedStreamByStream(t *testing.T) {
	const plain = "HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
	for _, tt := range []struct{ first, settings string }{
		{"", plain},
		{key, plain},
		// What the relay cannot go along with, or a server should not. Were these
		// tunnels, the keys behind them would be seen by nobody.
		{"", "HTTP2-Settings: AAEAEAAA\r\n"}, // a table of 1 MiB
		{"", "HTTP2-Settings: AAEAEA\r\n"},
		{"", "HTTP2-Settings: ?\r\n"},
		{"", plain + plain},
		{"", ""},
	} {
		first := tt.first
		w := newWorld(t)
		for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
			w.script(p, func(c *peer) {
				raw, err := readRequest(c.r)
				f := newFrames(c)
				if err != nil {
					return // dialled in vain
				}
				if bytes.HasPrefix(raw, []byte("GET")) {
					c.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
					_ = f.WriteSettings()
					f.headers(1, true, ":status", "200", "x-served-by", p.Name)
					c.expect(wire.ClientPreface)
				} else {
					c.expect("SM\r\n\r\n") // the rest of the preface
				}
				for {
					fr, err := f.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := fr.(*wire.MetaHeadersFrame); ok {
						f.headers(h.StreamID, true, ":status", "200", "x-served-by", p.Name)
					}
				}
			})
		}
		c := w.dial(w.client)
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + tt.settings + "Baggage: sidetrack=" + first + "\r\n\r\n")
		c.expect("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		f := w.frames(c)
		f.headers(3, true, asking()...)
		f.headers(5, true, asking("baggage", "sidetrack="+key)...)
		f.headers(7, true, asking("baggage", "sidetrack="+otherKey)...)
		want := map[uint32]string{1: "base", 3: "base", 5: "fork", 7: "fork2"}
		if first != "" {
			want[1] = "fork"
		}
		for len(want) > 0 {
			f.await("an answer", func(fr wire.Frame) bool {
				h, ok := fr.(*wire.MetaHeadersFrame)
				if ok && h.Fields[1].Value != want[h.StreamID] {
					t.Errorf("stream %d: %v, want %s", h.StreamID, h.Fields, want[h.StreamID])
				}
				if ok {
					delete(want, h.StreamID)
				}
				return ok
			})
		}
		c.conn.Close()
		w.noConnections()
	}
}

func TestAnHTTP2ClientsFINAndRSTArePassedOn(t *testing.T) {
	w := newWorld(t)
	ended := make(chan error, 2)
	for _, p := range []string{"base", "fork"} {
		pod := w.base
		if p == "fork" {
			pod = w.fork
		}
		w.script(pod, func(c *peer) {
			c.expect(wire.ClientPreface)
			f := newFrames(c)
			_ = f.WriteSettings()
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					ended <- err
					return
				}
				if h, ok := fr.(*wire.MetaHeadersFrame); ok {
					f.headers(h.StreamID, false, ":status", "200")
				}
			}
		})
	}
	for _, reset := range []bool{false, true} {
		c := w.dial(w.client)
		f := w.frames(c)
		f.headers(1, true, asking()...)
		f.answer(1, "200")
		f.headers(3, true, asking("baggage", "sidetrack="+key)...)
		f.answer(3, "200")
		if reset {
			c.rst()
		} else if err := c.conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			err := <-ended
			if got := strings.Contains(err.Error(), "reset"); got != reset {
				t.Errorf("a server's connection ended with %v", err)
			}
		}
		w.noConnections()
	}
}

// TestAForkThatAsksAndDoesNotListenIsGivenUp: what it has to be answered would be
// kept for it without an end.
func TestAForkThatAsksAndDoesNotListenIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP2(w.base, telling(w.base))
	const most = 64 << 20
	sent := make(chan int, 1)
	w.script(w.fork, func(c *peer) {
		c.expect(wire.ClientPreface)
		_ = newFrames(c).WriteSettings()
		var pings bytes.Buffer
		asking := wire.NewFramer(&pings, nil)
		for pings.Len() < 64<<10 {
			_ = asking.WritePing(false, [8]byte{1})
		}
		n := 0
		for err := error(nil); err == nil && n < most; n += pings.Len() {
			_, err = c.conn.Write(pings.Bytes())
		}
		sent <- n
	})
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key)...)
	f.await("the end of the fork's stream", func(fr wire.Frame) bool {
		r, ok := fr.(*wire.RSTStreamFrame)
		return ok && r.StreamID == 1
	})
	if n := <-sent; n >= most {
		t.Errorf("a fork could send %d bytes of PINGs", n)
	}
	f.headers(3, true, asking()...)
	f.answer(3, "200")
	f.conn.Close()
	w.noConnections()
}

// TestAForkThatAllowsAllAndDoesNotReadStallsNobodyElse: as one that a debugger has
// stopped does. It may allow all at once of what has waited for that until then.
func TestAForkThatAllowsAllAndDoesNotReadStallsNobodyElse(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, uploads := range []int{1, 3} {
			t.Run(fmt.Sprintf("late %t, %d uploads", late, uploads), func(t *testing.T) { forkThatDoesNotRead(t, late, uploads) })
		}
	}
}

func forkThatDoesNotRead(t *testing.T, late bool, uploads int) {
	w := newWorld(t)
	w.serveHTTP2(w.base, telling(w.base))
	done, allow, allowed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	if !late {
		close(allow)
	}
	// What the kernel takes for the fork is little, and the router has to keep the rest.
	for p, file := range map[*lab.Pod]string{w.client: "tcp_wmem", w.fork: "tcp_rmem"} {
		if err := p.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/"+file, []byte("4096 16384 65536"), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	w.script(w.fork, func(c *peer) {
		c.expect(wire.ClientPreface)
		f := newFrames(c)
		<-allow
		_ = f.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1 << 30})
		_ = f.WriteWindowUpdate(0, 1<<30)
		close(allowed)
		<-done
	})
	client := w.http2(w.client)
	ended := make(chan error, uploads)
	var fed atomic.Int64
	var feeds []*io.PipeWriter
	for range uploads {
		r, feed := io.Pipe()
		feeds = append(feeds, feed)
		stuck := mustRequest(t, http.MethodPost, r)
		stuck.Header.Set("X-Sidetrack-Key", key)
		go func() {
			resp, err := client.Do(stuck)
			if err == nil {
				resp.Body.Close()
			}
			ended <- err
		}()
		go func() {
			b := make([]byte, 16<<10)
			for {
				n, err := feed.Write(b)
				fed.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
	}
	// It goes on until nobody takes any more: the fork's kernel, the router, the client.
	isStuck := func() {
		t.Helper()
		last, same := int64(-1), 0
		w.eventually("the upload is stuck", func() bool {
			n := fed.Load()
			if same++; n != last {
				last, same = n, 0
			}
			return n > 0 && same > 20
		})
	}
	isStuck()
	if late {
		close(allow)
	}
	<-allowed
	isStuck()
	for i := range 5 {
		body := bytes.Repeat([]byte("x"), 200_000)
		resp, err := client.Do(mustRequest(t, http.MethodPost, bytes.NewReader(body)))
		if err != nil {
			t.Fatalf("request %d beside a stream that is stuck at %d bytes: %v", i, fed.Load(), err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(got) != len(body) || resp.Header.Get("X-Served-By") != w.base.Name {
			t.Fatalf("request %d: %d bytes of %s, %v", i, len(got), resp.Header.Get("X-Served-By"), err)
		}
	}
	if len(ended) > 0 {
		t.Errorf("an upload has ended, with %v, before the requests beside it were answered", <-ended)
		uploads--
	}
	close(done) // its connection ends
	for range uploads {
		if err := <-ended; err == nil {
			t.Error("the request that was stuck has been answered")
		}
	}
	for _, feed := range feeds {
		feed.Close()
	}
	client.CloseIdleConnections()
	w.noConnections()
}
