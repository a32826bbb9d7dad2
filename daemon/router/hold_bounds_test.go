// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/loader"
)

// synByHand sends a SYN of no socket to the Service, and returns it and a function
// that sends it again. The pod's kernel resets what comes of it.
func (w *world) synByHand(port uint16) (key synKey, header []byte, again func()) {
	w.t.Helper()
	var raw int32
	if err := w.client.Do(func() error {
		var e unix.Errno
		if raw, e = newRawSocket(netip.IPv4Unspecified()); e != noError {
			return e
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { closeFD(raw) })
	from, to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), netip.MustParseAddrPort(w.captured(w.client))
	header = make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(header[0:], from.Port())
	binary.BigEndian.PutUint16(header[2:], to.Port())
	binary.BigEndian.PutUint32(header[tcpSeq:], 12345)
	header[12], header[tcpFlags] = tcpHeader/4<<4, 0x02
	binary.BigEndian.PutUint16(header[14:], 1024)
	again = func() {
		if e := sendRaw(raw, appendTCP(nil, from.Addr(), to.Addr(), 0, ownHops, header), to.Addr()); e != noError {
			w.t.Error(e)
		}
	}
	again()
	return synKey{from, to.Addr()}, header, again
}

// inHold runs f in the loop with a connection that is held, when its SYN has been
// let in.
func (w *world) inHold(key synKey, f func(c *conn)) {
	w.t.Helper()
	w.router.mu.Lock()
	ns := w.router.namespaces[cookie(w.t, w.client)]
	w.router.mu.Unlock()
	w.eventually("the SYN has been let in", func() (ok bool) {
		ns.home.call(func() {
			if c := ns.held[key]; c != nil && c.syn.passed != 0 {
				ok = true
				f(c)
			}
		})
		return ok
	})
}

// A client may send its SYN again sooner than clients do: its kernel's first
// time-out is for whoever owns the pod to choose (BPF_SOCK_OPS_TIMEOUT_INIT).
func TestASYNThatComesAgainSoonHasLostNoMark(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	key, _, again := w.synByHand(40001)
	for range 3 {
		w.inHold(key, func(c *conn) {
			c.syn.passed = c.loop.timers.now()
			again()
			c.loop.takeAllSYNs()
			c.syn.last += int64(time.Hour) // it is not to be taken for abandoned
		})
	}
	w.routed(untagged, "base")
	w.routed(tagged, "fork")
	if s := w.router.Stats(); s.Held != 3 || s.Errors["not_held"] != 0 {
		t.Errorf("%+v", s)
	}
}

// Where a rule takes the mark away and changes the hops as well.
func TestASYNThatComesAgainAllTheTimeHasLostItsMark(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	key, header, _ := w.synByHand(40001)
	w.inHold(key, func(c *conn) {
		in := &loader.SYN{From: key.from, To: c.syn.to, Hops: c.syn.hops, Header: header}
		for range maxEchoes {
			now := c.loop.timers.now()
			c.syn.passed = now
			c.again(in, now)
		}
	})
	w.routed(untagged, "base")
	w.routed(tagged, "fork")
	if s := w.router.Stats(); s.Held != 1 || s.Errors["not_held"] != 2 {
		t.Errorf("%+v", s)
	}
}

func TestClientsBeyondTheLimitAreHeardWhenThereIsRoom(t *testing.T) {
	const limit, clients = 2, 5
	w := newWorld(t, func(c *Config) { c.MaxHeld = limit })
	silent := w.route(w.base, unix.RTN_BLACKHOLE, w.client.IPv4.String()+"/32")
	w.names(w.base)
	connected := make(chan error)
	for range clients {
		go func() {
			c, err := w.client.DialContext(context.Background(), "tcp", w.captured(w.client))
			if err == nil {
				c.Close()
			}
			connected <- err
		}()
	}
	w.eventually("all have tried", func() bool {
		s := w.router.Stats()
		return s.Held == limit && s.Errors["syn_over_limit"] >= clients-limit
	})
	// Another pod's clients are not concerned.
	other := make(chan error)
	go func() {
		c, err := w.runner.DialContext(context.Background(), "tcp", w.captured(w.runner))
		if err == nil {
			c.Close()
		}
		other <- err
	}()
	w.names(w.fork)
	if err := <-other; err != nil {
		t.Error(err)
	}
	silent()
	for range clients {
		if err := <-connected; err != nil {
			t.Error(err)
		}
	}
	w.noConnections()
}
