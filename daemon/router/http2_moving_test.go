// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// TestHTTP2ConnectionsGoToAndFroUnderLoad: streams go by their own keys while their
// connections move between two routers all the time.
func TestHTTP2ConnectionsGoToAndFroUnderLoad(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		w.serveHTTP2(p, telling(p))
	}
	other := w.another()
	ctx, cancel := context.WithCancel(context.Background())
	var clients, movers sync.WaitGroup
	var requests, moved atomic.Int64
	body := bytes.Repeat([]byte("0123456789"), 2000)
	for i := range 8 {
		client := w.http2(w.client)
		for j := range 4 { // streams at a time
			clients.Go(func() {
				for n := i + j; ctx.Err() == nil; n++ {
					size := []int{0, 100, len(body)}[n%7%3]
					req := mustRequest(t, http.MethodPost, bytes.NewReader(body[:size]))
					want := w.base.Name
					// Some connections have never seen a key.
					switch {
					case i%4 == 0:
					case n%3 == 1:
						req.Header.Set("Baggage", "sidetrack="+key)
						want = w.fork.Name
					case n%3 == 2:
						req.Header.Set("X-Sidetrack-Key", otherKey)
						want = w.fork2.Name
					}
					req.Header.Set("X-Again", fmt.Sprint(n%10))
					resp, err := client.Do(req)
					if err != nil {
						t.Errorf("request %d: %v", n, err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if by := resp.Header.Get("X-Served-By"); err != nil || by != want || !bytes.Equal(got, body[:size]) || resp.Trailer.Get("X-Read") != fmt.Sprint(size) {
						t.Errorf("request %d: %s answered with %d bytes, %v, and %v; want %s and %d", n, by, len(got), resp.Trailer, err, want, size)
						return
					}
					requests.Add(1)
				}
			})
		}
	}
	for _, way := range [][2]*Router{{w.router, other}, {other, w.router}} {
		movers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				moved.Add(int64(move(t, way[0], way[1], i%2 == 0, 20*time.Millisecond)))
			}
		})
	}
	w.eventually("connections have moved often enough", func() bool { return moved.Load() >= 100 || t.Failed() })
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

// TestAStreamOutlivesItsRouter: a stream that is open for long, with nothing on it
// at the moment, goes on at the other router, and so does one to a fork.
func TestAStreamOutlivesItsRouter(t *testing.T) {
	w := newWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork} {
		w.serveHTTP2(p, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("X-Served-By", p.Name)
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
			// An echo, line by line.
			b := make([]byte, 1024)
			for {
				n, err := r.Body.Read(b)
				if n > 0 {
					_, _ = rw.Write(b[:n])
					_ = http.NewResponseController(rw).Flush()
				}
				if err != nil {
					return
				}
			}
		}))
	}
	other := w.another()
	client := w.http2(w.client)
	type talk struct {
		say  *io.PipeWriter
		resp *http.Response
	}
	open := func(key, want string) talk {
		r, say := io.Pipe()
		req := mustRequest(t, http.MethodPost, r)
		if key != "" {
			req.Header.Set("X-Sidetrack-Key", key)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { say.Close(); resp.Body.Close() })
		if by := resp.Header.Get("X-Served-By"); by != want {
			t.Fatalf("%s answered, want %s", by, want)
		}
		return talk{say, resp}
	}
	talks := []talk{open("", w.base.Name)}
	exchange := func(text string) {
		t.Helper()
		for i, k := range talks {
			if _, err := io.WriteString(k.say, text); err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(k.resp.Body, got); err != nil || string(got) != text {
				t.Fatalf("stream %d: %q and %v, want %q", i, got, err, text)
			}
		}
	}
	exchange("before")
	w.moveAll(w.router, other, true)
	exchange("after")
	// The first stream with a key comes at the second router.
	talks = append(talks, open(key, w.fork.Name))
	exchange("split")
	w.moveAll(other, w.router, true)
	exchange("back again")
	for i, k := range talks {
		k.say.Close()
		if rest, err := io.ReadAll(k.resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("stream %d ends with %q and %v", i, rest, err)
		}
	}
}

// TestAStreamThatMovesLeavesARecordThatSaysSo: how it ends is not known to the
// router that gives it away.
func TestAStreamThatMovesLeavesARecordThatSaysSo(t *testing.T) {
	w, l := newLedgerWorld(t)
	finish := make(chan struct{})
	w.serveHTTP2(w.fork, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(rw).Flush()
		<-finish
	}))
	w.serveHTTP2(w.base, telling(w.base))
	other := w.another()
	req := mustRequest(t, http.MethodGet, nil)
	req.Header.Set("X-Sidetrack-Key", key)
	resp, err := w.http2(w.client).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w.moveAll(w.router, other, true)
	if r := w.records(l, pr42, 1)[0]; r.Error != movedAway || r.Status != http.StatusOK {
		t.Errorf("the record: %+v", r)
	}
	close(finish)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
}

// TestAnOfferOfHTTP2StaysUntilItIsAnswered: the other process would take the answer
// for a tunnel's, and look for no keys behind it.
func TestAnOfferOfHTTP2StaysUntilItIsAnswered(t *testing.T) {
	w := newWorld(t)
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	w.script(w.base, func(c *peer) {
		if _, err := readRequest(c.r); err != nil {
			return
		}
		asked <- struct{}{}
		<-answer
		f := newFrames(c)
		c.send(switching)
		_ = f.WriteSettings()
		f.headers(1, true, ":status", "200")
		_, _ = io.Copy(io.Discard, c.r)
	})
	w.serveHTTP2(w.fork, telling(w.fork))
	c := w.dial(w.client)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 1\r\n\r\nx")
	<-asked
	other := w.another()
	if n := move(t, w.router, other, true, 300*time.Millisecond); n != 0 {
		t.Errorf("%d connections have moved", n)
	}
	close(answer)
	c.expect(switching)
	f := w.frames(c)
	f.answer(1, "200")
	f.headers(3, true, asking("baggage", "sidetrack="+key)...)
	f.await("the fork's answer", func(fr wire.Frame) bool {
		h, ok := fr.(*wire.MetaHeadersFrame)
		return ok && h.StreamID == 3 && slices.Contains(h.Fields, hpack.HeaderField{Name: "x-served-by", Value: w.fork.Name})
	})
	c.conn.Close()
	w.noConnections()
}
