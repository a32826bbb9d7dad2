// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestHalfClosedClientsGetTheirAnswers(t *testing.T) {
	for _, header := range []string{untagged, tagged} {
		w := newWorld(t)
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				b, err := io.ReadAll(c.r) // until FIN
				if err != nil || len(b) == 0 {
					return
				}
				c.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			})
		}
		c := w.dial(w.client)
		c.send(get(header))
		if err := c.conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		c.expectFIN()
		w.noConnections()
	}
}

func TestAHalfRequestIsPassedOnWithItsFIN(t *testing.T) {
	w := newWorld(t)
	got := make(chan string, 2)
	w.script(w.base, func(c *peer) {
		b, _ := io.ReadAll(c.r)
		got <- string(b)
		if len(b) == 0 {
			return
		}
		c.send("HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	})
	c := w.dial(w.client)
	const half = "GET / HTTP/1.1\r\nHost: a\r\nX: y"
	c.send(half)
	if err := c.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if resp, _ := c.response("GET"); resp.StatusCode != 400 {
		t.Errorf("answered %s", resp.Status)
	}
	if b := <-got; b != half {
		t.Errorf("the baseline received %q, want %q", b, half)
	}
	c.expectFIN()
	w.noConnections()

	c = w.dial(w.client)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n" + tagged)
	if err := c.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.expectRST()
	if b := <-got; b != "" {
		t.Errorf("half a tagged request reached the baseline: %q", b)
	}
}

func TestServersMayCloseTheirHalf(t *testing.T) {
	w := newWorld(t)
	received := make(chan int, 1)
	w.script(w.base, func(c *peer) {
		c.send("first and last words")
		if err := c.conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		b, _ := io.ReadAll(c.r)
		received <- len(b)
	})
	c := w.dial(w.client)
	c.expect("first and last words")
	c.expectFIN()
	c.send(strings.Repeat("x", 500_000))
	if err := c.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n := <-received; n != 500_000 {
		t.Errorf("%d bytes arrived after the server's FIN, want 500000", n)
	}
	w.noConnections()
}

func TestAClientsResetReachesTheServer(t *testing.T) {
	for _, header := range []string{untagged, tagged} {
		w := newWorld(t)
		reset := make(chan error, 4)
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				if _, err := readRequest(c.r); err != nil {
					return
				}
				c.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
				_, err := c.r.ReadByte()
				reset <- err
			})
		}
		c := w.dial(w.client)
		c.send(get(header))
		c.expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")
		c.rst()
		if err := <-reset; err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("the server saw %v, want a reset", err)
		}
		w.noConnections()
	}
}

func TestAClientsResetIsNoticedWhileItsRequestIsHeld(t *testing.T) {
	w := newWorld(t)
	w.names(w.fork)
	gone := make(chan error, 1)
	w.script(w.base, func(c *peer) {
		if _, err := readRequest(c.r); err != nil {
			return
		}
		_, err := c.r.ReadByte()
		gone <- err
	})
	c := w.dial(w.client)
	c.send(get(untagged) + get(tagged))
	w.eventually("both are read", func() bool { return w.router.Stats().FromClients == uint64(len(get(untagged)+get(tagged))) })
	c.rst()
	if err := <-gone; err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the server saw %v, want a reset", err)
	}
	w.noConnections()
}

func TestAServersResetReachesTheClientAfterItsData(t *testing.T) {
	for _, header := range []string{untagged, tagged} {
		w := newWorld(t)
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + strings.Repeat("x", 200_000)
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				if _, err := readRequest(c.r); err != nil {
					return
				}
				c.send(answer)
				// The router has it all before the RST overtakes it.
				c.acknowledged()
				c.rst()
			})
		}
		c := w.dial(w.client)
		c.send(get(header))
		time.Sleep(150 * time.Millisecond) // for the reset to come while nobody reads
		if b := string(c.expectRST()); b != answer {
			t.Errorf("%d bytes arrived before the reset, want %d", len(b), len(answer))
		}
		w.noConnections()
	}
}

func TestAnIdleBaselineThatClosesClosesTheClient(t *testing.T) {
	w := newWorld(t)
	bye := make(chan bool)
	w.script(w.base, func(c *peer) {
		for {
			if _, err := readRequest(c.r); err != nil {
				return
			}
			c.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			if <-bye {
				return
			}
		}
	})
	c := w.dial(w.client)
	c.send(get(untagged))
	c.response("GET")
	bye <- true
	c.expectFIN()
	w.noConnections()
}

func TestAnotherIdleUpstreamMayCloseUnnoticed(t *testing.T) {
	w := newWorld(t)
	bye := make(chan bool)
	conns := w.script(w.fork, func(c *peer) {
		if _, err := readRequest(c.r); err != nil {
			return
		}
		c.send("HTTP/1.1 200 OK\r\nX-Served-By: fork\r\nContent-Length: 0\r\n\r\n")
		if <-bye {
			// A farewell that nobody has asked for.
			c.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	w.names(w.base)
	c := w.dial(w.client)
	for i := range int32(6) {
		c.send(get(tagged))
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" || conns.Load() != i+1 {
			t.Fatalf("request %d was served by %s over connection %d", i, resp.Header.Get(lab.ServedBy), conns.Load())
		}
		c.send(get(untagged))
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "base" {
			t.Fatalf("served by %s", resp.Header.Get(lab.ServedBy))
		}
		bye <- i%2 == 0
		w.eventually("the router has seen it", func() bool { return w.upstreams() == 1 })
	}
}

func TestARequestThatMeetsAClosingUpstreamIsSentAgain(t *testing.T) {
	for _, tc := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
		w := newWorld(t)
		var requests atomic.Int32
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				for served := 0; ; served++ {
					if _, err := readRequest(c.r); err != nil {
						return
					}
					requests.Add(1)
					if served == 1 {
						// As if it had closed just before the request came.
						c.rst()
						return
					}
					c.send("HTTP/1.1 200 OK\r\nX-Served-By: " + p.Name + "\r\nContent-Length: 0\r\n\r\n")
				}
			})
		}
		c := w.dial(w.client)
		for range 2 {
			c.send(get(tc.header))
			if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != tc.want {
				t.Errorf("served by %s, want %s", resp.Header.Get(lab.ServedBy), tc.want)
			}
		}
		if n := w.router.Stats().Retries; n != 1 {
			t.Errorf("%d retries counted, want 1", n)
		}
		// A request that is not safe is not sent twice.
		before := requests.Load()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + tc.header + "\r\n")
		c.expectRST()
		if n := requests.Load() - before; n != 1 {
			t.Errorf("a POST was sent %d times", n)
		}
		w.noConnections()
	}
}

func TestAFreshUpstreamThatFailsIsNotTriedAgain(t *testing.T) {
	w := newWorld(t)
	n := w.script(w.base, func(c *peer) {
		if _, err := readRequest(c.r); err == nil {
			c.rst()
		}
	})
	c := w.dial(w.client)
	c.send(get(untagged))
	c.expectRST()
	if n.Load() != 1 {
		t.Errorf("the request was sent %d times", n.Load())
	}
}

func TestANamespaceWhoseLoopbackIsDownIsServed(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	w.router.Unlisten(cookie(t, w.client))
	if err := w.client.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(lo)
	}); err != nil {
		t.Fatal(err)
	}
	w.listen(w.client)
	c := w.dial(w.client)
	c.send(get(tagged))
	if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" {
		t.Errorf("served by %s", resp.Header.Get(lab.ServedBy))
	}
}

func TestUnlistenLeavesConnections(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	c := w.dial(w.client)
	c.send(get(untagged))
	c.response("GET")
	w.router.Unlisten(cookie(t, w.client))
	if _, err := w.client.Dial("tcp", w.captured(w.client)); err == nil {
		t.Error("the listener is still there")
	}
	c.send(get(tagged))
	if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" {
		t.Errorf("served by %s", resp.Header.Get(lab.ServedBy))
	}
	// And it can be listened in again.
	w.listen(w.client)
	c = w.dial(w.client)
	c.send(get(untagged))
	c.response("GET")
}

func TestADrainLetsRequestsFinish(t *testing.T) {
	w := newWorld(t)
	release := make(chan bool)
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			for {
				raw, err := readRequest(c.r)
				if err != nil {
					return
				}
				if strings.Contains(string(raw), "/slow") {
					c.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
					<-release
					c.send("ow")
					continue
				}
				c.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
	}
	idle, busy, fresh := w.dial(w.client), w.dial(w.client), w.dial(w.client)
	idle.send(get(tagged))
	idle.response("GET")
	busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	busy.expect("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
	w.eventually("all are accepted", func() bool { return w.router.Stats().Open == 3 })
	done := make(chan error, 1)
	go func() { done <- w.router.Drain(context.Background()) }()
	idle.expectFIN()
	fresh.expectFIN()
	select {
	case err := <-done:
		t.Fatalf("the drain has ended with a request under way: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	release <- true
	busy.expect("ow")
	busy.expectFIN()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := w.router.Listen(Namespace{}); !errors.Is(err, ErrClosed) {
		t.Errorf("listening after a drain: %v", err)
	}
}

func TestAClientThatHasJustDialledMayAskDuringADrain(t *testing.T) {
	w := newWorld(t)
	w.setDelays(func(d *delays) { d.drain = patience }) // however slow this machine is
	w.names(w.base, w.fork)
	c := w.dial(w.client)
	done := make(chan error, 1)
	go func() { done <- w.router.Drain(context.Background()) }()
	w.eventually("the listener is closed", func() bool {
		probe, err := w.client.Dial("tcp", w.captured(w.client))
		if err == nil {
			probe.Close()
		}
		return err != nil
	})
	c.send(get(tagged))
	if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" {
		t.Errorf("answered %s by %q", resp.Status, resp.Header.Get(lab.ServedBy))
	}
	c.expectFIN()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestADrainThatTakesTooLongResetsTheRest(t *testing.T) {
	w := newWorld(t)
	w.mirror("hello")
	c := w.dial(w.client)
	c.expect("hello")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := w.router.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the drain ended with %v", err)
	}
	c.expectRST()
	w.noConnections()
}

func TestCloseIsFinalAndMayBeCalledTwice(t *testing.T) {
	w := newWorld(t)
	w.mirror("hello")
	c := w.dial(w.client)
	c.expect("hello")
	for range 2 {
		if err := w.router.Close(); err != nil {
			t.Error(err)
		}
	}
	c.expectRST()
	if s := w.router.Stats(); s.Accepted != 1 || s.Open != 0 {
		t.Errorf("after closing: %+v", s)
	}
	w.router.Unlisten(1)
	if err := w.router.Drain(context.Background()); err != nil {
		t.Error(err)
	}
}
