// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"io"
	"testing"
	"time"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestAnHTTP2ServerMaySpeakFirst(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		w.script(p, func(c *peer) {
			f := newFrames(c)
			_ = f.WriteSettings(wire.Setting{ID: wire.SettingMaxConcurrentStreams, Val: 7})
			c.expect(wire.ClientPreface)
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
	for _, pause := range []time.Duration{0, 20 * time.Millisecond, 3 * defaultDelays().unlikely} {
		c := w.dial(w.client)
		time.Sleep(pause) // for the server to be first, or not; and the router out of patience
		f := w.frames(c)
		f.headers(1, true, asking()...)
		f.headers(3, true, asking("baggage", "sidetrack="+key)...)
		for range 2 {
			f.await("an answer", func(fr wire.Frame) bool {
				h, ok := fr.(*wire.MetaHeadersFrame)
				if ok && (h.StreamID == 3) != (h.Fields[1].Value == "fork") {
					t.Errorf("stream %d: %v", h.StreamID, h.Fields)
				}
				return ok
			})
		}
		c.conn.Close()
	}
	w.noConnections()
}

func TestAServerWhoseGreetingLooksLikeHTTP2IsHeard(t *testing.T) {
	w := newWorld(t)
	const greeting = "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05"
	w.script(w.base, func(c *peer) {
		c.send(greeting)
		c.expect("hello")
		c.send("bye")
	})
	c := w.dial(w.client)
	c.expect(greeting)
	c.send("hello")
	c.expect("bye")
	c.expectFIN()
}

func TestAServerWhoseGreetingLooksLikeHTTP2AtFirstIsHeardOnce(t *testing.T) {
	w := newWorld(t)
	w.script(w.base, func(c *peer) {
		for _, part := range []string{"\x00\x00", "\x06", "and what else is to be said"} {
			c.send(part)
			time.Sleep(defaultDelays().unlikely / 10) // for the parts to come one by one
		}
		c.expect("hello")
		c.send("bye")
	})
	c := w.dial(w.client)
	c.expect("\x00\x00\x06and what else is to be said")
	c.send("hello")
	c.expect("bye")
	c.expectFIN()
}

func TestAServerThatGoesOnAfterItsGreetingIsHeardOnce(t *testing.T) {
	w := newWorld(t)
	const greeting, more = "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x10\x00"
	prefaces := make(chan string, 1)
	w.script(w.base, func(c *peer) {
		c.send(greeting)
		time.Sleep(3 * defaultDelays().unlikely) // for the router to be out of patience
		c.send(more[:5])
		time.Sleep(defaultDelays().unlikely / 10)
		c.send(more[5:] + more[:7])
		c.expect(<-prefaces)
		c.send(more[7:])
		c.expectFIN()
	})
	for _, preface := range []string{wire.ClientPreface + greeting, "hello"} {
		c := w.dial(w.client)
		c.expect(greeting + more)
		c.send(preface)
		prefaces <- preface
		c.expect(more)
		c.conn.Close()
	}
}

func TestAForkDoesNotWaitForABaselineThatSaysNothing(t *testing.T) {
	w := newWorld(t)
	w.script(w.base, func(c *peer) { _, _ = io.Copy(io.Discard, c.r) })
	w.serveHTTP2(w.fork, telling(w.fork))
	w.input.Slices = append(w.input.Slices[:2:2], endpoints("route-pr-43"))
	w.apply()
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key)...)
	f.answer(1, "200")
	g := w.frames(w.dial(w.client))
	g.headers(1, true, asking("baggage", "sidetrack="+otherKey)...)
	g.answer(1, "503")
}

// TestABaselineThatSpeaksHTTP1AloneIsHeard: its words are no frames, and it goes.
func TestABaselineThatSpeaksHTTP1AloneIsHeard(t *testing.T) {
	const words = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	w := newWorld(t)
	w.script(w.base, func(c *peer) {
		c.expect(wire.ClientPreface)
		c.send(words)
		if err := c.conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		// Bytes that were not read would make it a RST.
		_, _ = io.Copy(io.Discard, c.r)
	})
	w.serveHTTP2(w.fork, telling(w.fork))
	for _, more := range [][]string{nil, {"baggage", "sidetrack=" + key}} {
		c := w.dial(w.client)
		f := newFrames(c)
		begin := bytes.NewBufferString(wire.ClientPreface)
		f.Framer = wire.NewFramer(begin, nil)
		if err := f.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		f.headers(1, true, asking(more...)...)
		c.send(begin.String()) // at once: the baseline is quick to end it
		if got, err := io.ReadAll(c.r); string(got) != words || err != nil {
			t.Errorf("with %q the client has got %q, %v", more, got, err)
		}
		c.conn.Close()
	}
	w.noConnections()
}
