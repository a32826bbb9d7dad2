// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// serveHTTP2 starts servers that speak HTTP/1 and HTTP/2 without TLS.
func (w *world) serveHTTP2(p *lab.Pod, h http.Handler, change ...func(*http.Server)) *atomic.Int32 {
	w.t.Helper()
	var conns atomic.Int32
	for _, addr := range addressesOf(p) {
		ln, err := p.Listen("tcp", addr)
		if err != nil {
			w.t.Fatal(err)
		}
		s := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: patience, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				conns.Add(1)
			}
		}}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		for _, f := range change {
			f(s)
		}
		go func() {
			if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				w.t.Errorf("serve HTTP/2 in %s: %v", p.Name, err)
			}
		}()
		w.t.Cleanup(func() { s.Close() })
	}
	return &conns
}

// telling answers with the pod's name, the request's body, and a trailer.
func telling(p *lab.Pod) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Served-By", p.Name)
		w.Header().Set("X-Baggage", strings.Join(r.Header.Values("Baggage"), "|"))
		w.Header().Set("X-Proto", r.Proto)
		w.Header().Set("Trailer", "X-Read")
		n, err := io.Copy(w, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Read", fmt.Sprint(n))
	})
}

// http2 returns a client of p with one connection to the Service.
func (w *world) http2(p *lab.Pod) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return p.DialContext(ctx, network, w.captured(p))
		},
		Protocols:          new(http.Protocols),
		DisableCompression: true,
		MaxConnsPerHost:    1,
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

func TestEachStreamOfAConnectionGoesWhereItsKeyLeads(t *testing.T) {
	w := newWorld(t)
	conns := map[string]*atomic.Int32{}
	for _, p := range []*lab.Pod{w.base, w.fork, w.fork2} {
		conns[p.Name] = w.serveHTTP2(p, telling(p))
	}
	client := w.http2(w.client)
	ask := func(key string, size int) {
		body := make([]byte, size)
		if _, err := rand.Read(body); err != nil {
			t.Error(err)
		}
		want, req := "base", mustRequest(t, http.MethodPost, bytes.NewReader(body))
		switch key {
		case "key-of-pr-42":
			want = "fork"
			req.Header.Set("Baggage", "a=b,sidetrack="+key)
		case otherKey:
			want = "fork2"
			req.Header.Set("X-Sidetrack-Key", key)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d of %d bytes came back: %v", len(got), len(body), err)
		}
		if by, proto := resp.Header.Get("X-Served-By"), resp.Header.Get("X-Proto"); by != want || proto != "HTTP/2.0" {
			t.Errorf("a request with key %q was served by %s over %s, want %s over HTTP/2.0", key, by, proto, want)
		}
		if n := resp.Trailer.Get("X-Read"); n != fmt.Sprint(size) {
			t.Errorf("the trailer says %q, want %d", n, size)
		}
	}
	for _, key := range []string{"", key, "", otherKey, key, ""} {
		ask(key, 100)
	}
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			for j := range 5 {
				ask([]string{"", key, otherKey}[(i+j)%3], []int{0, 10, 70_000, 300_000}[(i+j)%4])
			}
		})
	}
	wg.Wait()
	for name, n := range conns {
		if n.Load() != 1 {
			t.Errorf("%d connections were made to %s, want 1", n.Load(), name)
		}
	}
	if got := w.router.Stats(); got.Open != 1 || len(got.Requests) != 3 {
		t.Errorf("%d connections, requests %v", got.Open, got.Requests)
	}
	client.CloseIdleConnections()
	w.noConnections()
}

func mustRequest(t *testing.T, method string, body io.Reader) *http.Request {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, "http://route.shop/a/path?with=query", body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
