// SPDX-License-Identifier: Apache-2.0

package router

import (
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// heap is what this process's Go code holds.
func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// held returns how much the loops' connections hold in buffers.
func (w *world) held() (total, most int) {
	for _, l := range w.router.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = c.next {
				n := cap(c.in.b) + cap(c.rin.b) + cap(c.out.b) + cap(c.retry)
				for _, u := range c.ups {
					n += cap(u.out.b)
				}
				total += n
				most = max(most, n)
			}
		})
	}
	return total, most
}

func TestClientsThatStopReadingCostLittle(t *testing.T) {
	const bound = 256 << 10
	w := newWorld(t)
	for _, p := range w.servers() {
		err := p.ServeHandler(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			for range 4096 {
				if _, err := io.WriteString(rw, strings.Repeat("x", 16<<10)); err != nil {
					return
				}
			}
		}), addressesOf(p)...)
		if err != nil {
			t.Fatal(err)
		}
	}
	const n = 20
	for i := range n {
		header := untagged
		if i%2 == 1 {
			header = tagged
		}
		c := w.dial(w.client)
		// It asks, asks for more, and reads nothing.
		go func() { _, _ = io.WriteString(c.conn, strings.Repeat(get(header), 3000)) }()
	}
	w.eventually("nothing moves any more", func() bool {
		before := w.router.Stats()
		time.Sleep(300 * time.Millisecond)
		after := w.router.Stats()
		return before.ToClients > 0 && before.ToClients == after.ToClients && before.FromClients == after.FromClients && after.Open == n
	})
	total, most := w.held()
	if most > bound {
		t.Errorf("one connection holds %d bytes, want %d at most", most, bound)
	}
	t.Logf("%d connections hold %d bytes, one %d at most", n, total, most)
}

func TestAServerThatStopsReadingHoldsTheClientBack(t *testing.T) {
	w := newWorld(t)
	stuck := make(chan bool)
	for _, p := range w.servers() {
		w.script(p, func(*peer) { <-stuck })
	}
	defer close(stuck)
	sent := make(chan int64, 2)
	for _, header := range []string{untagged, tagged} {
		c := w.dial(w.client)
		if err := c.conn.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		go func() {
			n, _ := io.Copy(c.conn, io.MultiReader(
				strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n"+header+"\r\n"),
				strings.NewReader(strings.Repeat("b", 100_000_000))))
			sent <- n
		}()
	}
	for range 2 {
		if n := <-sent; n > 90_000_000 {
			t.Errorf("the client could send %d bytes that nobody reads", n)
		}
	}
	if _, most := w.held(); most > 256<<10 {
		t.Errorf("one connection holds %d bytes", most)
	}
}

func TestAnswersOfOurOwnThatNobodyReadsCostLittle(t *testing.T) {
	w := newWorld(t)
	w.input.Slices[1] = endpoints("route-pr-42")
	w.apply()
	w.names(w.base)
	c := w.dial(w.client)
	const n = 100_000
	go func() {
		for range n / 100 {
			if _, err := io.WriteString(c.conn, strings.Repeat(get(tagged), 100)); err != nil {
				return
			}
		}
	}()
	w.eventually("nothing moves any more", func() bool {
		before := w.router.Stats().ToClients
		time.Sleep(200 * time.Millisecond)
		return before > 0 && before == w.router.Stats().ToClients
	})
	if _, most := w.held(); most > 256<<10 {
		t.Errorf("the connection holds %d bytes", most)
	}
	for i := range n {
		if resp, _ := c.response("GET"); resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("answer %d is %s", i, resp.Status)
		}
	}
}

func TestHeadsThatNeverEndCostLittle(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	for range 10 {
		c := w.dial(w.client)
		c.send("GET / HTTP/1.1\r\nX: " + strings.Repeat("v", 60_000))
	}
	w.eventually("all is read", func() bool { return w.router.Stats().FromClients == 10*60_019 })
	if _, most := w.held(); most > 128<<10 {
		t.Errorf("one connection holds %d bytes", most)
	}
}

func TestIdleConnectionsCostLittle(t *testing.T) {
	w := newWorld(t)
	w.names(w.base)
	before := heap()
	const n = 500
	peers := make([]*peer, n)
	for i := range peers {
		peers[i] = w.dial(w.client)
		peers[i].send(get(untagged))
		peers[i].response("GET")
	}
	if total, _ := w.held(); total > 0 {
		t.Errorf("%d idle connections hold %d bytes in buffers", n, total)
	}
	t.Logf("%d bytes of heap for each, the test's client and server included", (heap()-before)/n)
}
