// SPDX-License-Identifier: Apache-2.0

package router

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
)

// announceLimit is how long a request waits at most for others to be told.
const announceLimit = 250 * time.Millisecond

func propagating(w *world) { w.input.Sandboxes[0].Propagate = true }

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
