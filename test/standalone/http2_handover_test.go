// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// serveTalk starts HTTP/2 servers that answer each request with their name and
// then echo its body, line by line, for as long as it lasts.
func (s *shop) serveTalk(t *testing.T, port int) {
	t.Helper()
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		ln, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		server := &http.Server{Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Server", name)
			c := http.NewResponseController(w)
			b := make([]byte, 4096)
			for err := c.Flush(); err == nil; {
				var n int
				n, err = r.Body.Read(b)
				if n > 0 {
					_, _ = w.Write(b[:n])
					_ = c.Flush()
				}
			}
		})}
		server.Protocols.SetUnencryptedHTTP2(true)
		go func() { _ = server.Serve(ln) }()
		t.Cleanup(func() { server.Close() })
		return nil
	})
}

// h2c returns an HTTP/2 client of a pod that has one connection.
func h2c(t *testing.T, p *lab.Pod) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.DialContext(ctx, network, address)
		},
		Protocols:       new(http.Protocols),
		MaxConnsPerHost: 1,
	}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestHTTP2OutlivesItsAgents: streams to the baseline and to forks that are open for
// long, on one connection, and short requests beside them, while three agents take
// turns.
func TestHTTP2OutlivesItsAgents(t *testing.T) {
	s := newShop(t)
	port := s.nextPort()
	s.serveTalk(t, port)
	old := s.turn()
	url := fmt.Sprintf("http://%s:%d/", wideIP, port)
	client := h2c(t, s.client)
	type talk struct {
		say    *io.PipeWriter
		answer io.Reader
		server string
	}
	open := func(client *http.Client, header, server string) (talk, error) {
		r, w := io.Pipe()
		req, err := http.NewRequest(http.MethodPost, url, r)
		if err != nil {
			return talk{}, err
		}
		if name, value, ok := strings.Cut(strings.TrimSpace(header), ": "); ok {
			req.Header.Set(name, value)
		}
		resp, err := client.Do(req)
		if err != nil {
			return talk{}, err
		}
		return talk{w, resp.Body, server}, expect("server", resp.Header.Get("X-Server"), server)
	}
	exchange := func(k talk, text string) error {
		if _, err := io.WriteString(k.say, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(k.answer, got); err != nil {
			return err
		}
		return expect("the echo", string(got), text)
	}
	var talks []talk
	for _, g := range tags {
		k, err := open(client, g.header, g.server)
		if err != nil {
			t.Fatalf("to %s: %v", g.server, err)
		}
		talks = append(talks, k)
	}
	// Others come and go all the time, on connections of their own and on that one.
	stop := make(chan struct{})
	var load sync.WaitGroup
	var requests atomic.Int64
	for i := range 4 {
		c := client
		if i > 0 {
			c = h2c(t, s.client)
		}
		load.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				g := tags[n%len(tags)]
				k, err := open(c, g.header, g.server)
				if err == nil {
					err = exchange(k, fmt.Sprintf("request %d\n", n))
				}
				if err == nil {
					err = k.say.Close()
				}
				if err == nil {
					_, err = io.Copy(io.Discard, k.answer)
				}
				if err != nil {
					t.Errorf("request %d to %s: %v", n, g.server, err)
					return
				}
				requests.Add(1)
			}
		})
	}
	for turn := range 2 {
		before := requests.Load()
		next := s.turn()
		old.ended()
		old.wantLog("all connections have moved")
		old = next
		for _, k := range talks {
			if err := exchange(k, fmt.Sprintf("turn %d\n", turn)); err != nil {
				t.Errorf("the stream to %s: %v", k.server, err)
			}
		}
		t.Logf("%d requests during turn %d", requests.Load()-before, turn)
	}
	close(stop)
	load.Wait()
	for _, k := range talks {
		k.say.Close()
		if rest, err := io.ReadAll(k.answer); err != nil || len(rest) > 0 {
			t.Errorf("the stream to %s ends with %q and %v", k.server, rest, err)
		}
	}
	if n := old.scrape().sum("sidetrack_router_connections_moved_total", `direction="in"`); n < 4 {
		t.Errorf("the last agent counts %v connections taken over, want 4", n)
	}
	old.stop()
}
