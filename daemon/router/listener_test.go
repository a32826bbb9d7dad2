// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestConnectionsThatNobodyHasCapturedAreRefused(t *testing.T) {
	w := newWorld(t)
	w.names(w.base)
	for name, addr := range map[string]string{
		"the pod's own address":  fmt.Sprintf("%s:%d", w.client.IPv4, w.ports[w.client].V4),
		"a number nobody has":    fmt.Sprintf("127.200.200.200:%d", w.ports[w.client].V4),
		"::1 without a redirect": fmt.Sprintf("[::1]:%d", w.ports[w.client].V6),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := w.client.Dial("tcp", addr)
			if err != nil {
				return // the RST was faster than the dialler, or not even lo was reached
			}
			defer c.Close()
			newPeer(t, c).expectRST()
		})
	}
	if n := w.router.Stats().Errors["unknown_destination"]; n < 2 || n > 3 {
		t.Errorf("%d counted, want 2 at least", n)
	}
	t.Run("from another pod it is not even reached", func(t *testing.T) {
		_, err := w.fork.Dial("tcp", fmt.Sprintf("%s:%d", w.client.IPv4, w.ports[w.client].V4))
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("dialling gave %v, want a refusal", err)
		}
	})
}

func TestSocketsThatSpeakOnlyIPv6AreServed(t *testing.T) {
	var dial func(*world) (net.Conn, error)
	w := newWorld(t, func(c *Config) { dial = byIPv6(c) })
	w.names(w.base, w.fork)
	for range 3 {
		conn, err := dial(w)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := newPeer(t, conn)
		for _, step := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
			c.send(get(step.header))
			resp, body := c.response("GET")
			if resp.Header.Get(lab.ServedBy) != step.want {
				t.Errorf("served by %q, want %s", resp.Header.Get(lab.ServedBy), step.want)
			}
			if step.want == "base" && !strings.Contains(body, "["+w.client.IPv6.String()+"]") {
				t.Errorf("the baseline does not see the client's IPv6 address: %s", body)
			}
		}
	}
}

func TestASourceAddressThatTheClientHasChosenIsKept(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	chosen := netip.MustParseAddr("10.77.99.1")
	if err := w.client.AddAddr(chosen); err != nil {
		t.Fatal(err)
	}
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: chosen.AsSlice()}}
	conn, err := w.client.DialWith(context.Background(), d, "tcp", w.captured(w.client))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := newPeer(t, conn)
	for _, header := range []string{untagged, tagged} {
		c.send(get(header))
		if _, body := c.response("GET"); !strings.Contains(body, chosen.String()+":") {
			t.Errorf("the server does not see %s: %s", chosen, body)
		}
	}
}

func TestListeningTwiceIsListeningOnce(t *testing.T) {
	w := newWorld(t)
	before := w.ports[w.client]
	w.listen(w.client)
	if w.ports[w.client] != before || before.V4 < firstPort || before.V6 < firstPort {
		t.Errorf("ports were %+v and are %+v", before, w.ports[w.client])
	}
}

func TestTheAgentsThreadsStayAtHome(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		c := w.dial(w.client)
		c.send(get(tagged))
		c.response("GET")
	}
	w.eventually("every thread is at home", func() bool {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && ns != home {
				return false
			}
		}
		return true
	})
}

func TestConnectionsAreSharedAmongLoops(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Loops = 3 })
	w.names(w.base)
	for range 9 {
		c := w.dial(w.client)
		c.send(get(untagged))
		c.response("GET")
	}
	for i, l := range w.router.loops {
		if n := l.open.Load(); n != 3 {
			t.Errorf("loop %d has %d of 9 connections", i, n)
		}
	}
}

func TestAnIdleConnectionKeepsNoBuffers(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Loops = 1 })
	w.names(w.base, w.fork)
	c := w.dial(w.client)
	for _, header := range []string{untagged, tagged} {
		raw := get(header)
		c.send(raw[:20])
		time.Sleep(5 * time.Millisecond)
		c.send(raw[20:])
		c.response("GET")
	}
	l := w.router.loops[0]
	l.call(func() {
		c := l.conns.first
		if c.in.b != nil || c.rin.b != nil || c.out.b != nil || c.retry != nil {
			t.Errorf("the connection keeps buffers: %v %v %v %v", c.in.b, c.rin.b, c.out.b, c.retry)
		}
		for _, u := range c.ups {
			if u.out.b != nil {
				t.Errorf("an upstream keeps a buffer")
			}
		}
	})
}
