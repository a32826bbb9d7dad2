// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	wire "golang.org/x/net/http2"
	//lint:ignore SA1019 net/http's server takes no Upgrade
	upgrade "golang.org/x/net/http2/h2c"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// serveHTTP2 starts Go's servers, which speak HTTP/2 without TLS, on a port of
// their own.
func (s *shop) serveHTTP2(t *testing.T, handler func(name string) http.Handler) (port int) {
	t.Helper()
	port = s.nextPort()
	for name, p := range s.places() {
		h := &http.Server{Handler: handler(name), Protocols: new(http.Protocols), ReadHeaderTimeout: patience}
		h.Protocols.SetUnencryptedHTTP2(true)
		h.Protocols.SetHTTP1(true)
		s.serveOn(t, p, port, h)
	}
	return port
}

func (s *shop) serveOn(t *testing.T, p *lab.Pod, port int, h *http.Server) {
	t.Helper()
	l, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	go func() { _ = h.Serve(l) }()
}

// TestHTTP2WithPriorKnowledgeIsRoutedStreamByStream: by curl and h2load, over both
// families.
func TestHTTP2WithPriorKnowledgeIsRoutedStreamByStream(t *testing.T) {
	programs.Need(t, "curl", "h2load")
	both(t, func(t *testing.T, s *shop) {
		n := s.serveHTTP2(t, who)
		for _, host := range []string{wideIP, "[" + wideIP6 + "]"} {
			url := fmt.Sprintf("http://%s:%d/", host, n)
			for _, tt := range []struct {
				from *lab.Pod
				want string
			}{{s.client, "baseline"}, {s.tester, s.want("fork-a")}, {s.runner, s.want("fork-a")}} {
				out, err := tt.from.Command("curl", "-sS", "--http2-prior-knowledge", url).CombinedOutput()
				if want := tt.want + " HTTP/2.0\n"; err != nil || string(out) != want {
					t.Errorf("%s: curl: %v: %q, want %q", tt.from.Name, err, out, want)
				}
			}
			// Debian's curl does not use such a connection twice.
			for key, want := range map[string]string{keyA: s.want("fork-a"), keyB: s.want("fork-b"), "no-such-key-1234": "baseline"} {
				out, err := s.client.Command("curl", "-sS", "--http2-prior-knowledge", "-H", "baggage: sidetrack="+key, url).CombinedOutput()
				if want += " HTTP/2.0\n"; err != nil || string(out) != want {
					t.Errorf("curl with key %q: %v: %q, want %q", key, err, out, want)
				}
			}
			for _, key := range []string{"", "no-such-key-1234", keyA} {
				out, err := s.client.Command("h2load", "-n", "2000", "-c", "4", "-m", "10", "-H", "baggage: sidetrack="+key, url).CombinedOutput()
				if err != nil || !strings.Contains(string(out), "2000 succeeded, 0 failed, 0 errored") {
					t.Errorf("h2load: %v\n%s", err, out)
				}
			}
		}
	})
}

// TestUpgradesToHTTP2AreRoutedStreamByStream: nghttp and curl begin with HTTP/1.
func TestUpgradesToHTTP2AreRoutedStreamByStream(t *testing.T) {
	programs.Need(t, "curl", "nghttp")
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		for name, p := range s.places() {
			//lint:ignore SA1019 net/http's server takes no Upgrade
			s.serveOn(t, p, n, &http.Server{Handler: upgrade.NewHandler(who(name), &wire.Server{}), ReadHeaderTimeout: patience})
		}
		url := fmt.Sprintf("http://%s:%d/", wideIP, n)
		for _, tt := range []struct{ key, want string }{{"none", "baseline"}, {keyA, s.want("fork-a")}, {keyB, s.want("fork-b")}} {
			// The server says of an upgraded request what it was.
			want := tt.want + " HTTP/1.1\n" + strings.Repeat(tt.want+" HTTP/2.0\n", 2)
			out, err := s.client.Command("curl", "-sS", "--http2", "-H", "x-sidetrack-key: "+tt.key, url, url, url).CombinedOutput()
			if err != nil || string(out) != want {
				t.Errorf("curl with key %q: %v: %q, want %q", tt.key, err, out, want)
			}
			out, err = s.client.Command("nghttp", "-u", "-H", "x-sidetrack-key: "+tt.key, url, url+"a", url+"b").CombinedOutput()
			// It asks for all at once, and the server answers in any order.
			lines := slices.Sorted(strings.Lines(string(out)))
			if err != nil || strings.Join(lines, "") != want {
				t.Errorf("nghttp with key %q: %v: %q, want %q", tt.key, err, out, want)
			}
		}
	})
}

// TestNodesHTTP2IsRoutedStreamByStream: a server that speaks before the client,
// and WebSockets over HTTP/2.
func TestNodesHTTP2IsRoutedStreamByStream(t *testing.T) {
	programs.Need(t, "node")
	both(t, func(t *testing.T, s *shop) {
		n := fmt.Sprint(s.nextPort())
		for name, p := range s.places() {
			s.program(t, p.Command("node", testdata(t, "h2server.mjs"), name, n), p, "127.0.0.1:"+n)
		}
		args := []string{testdata(t, "h2client.mjs"), "http://" + wideIP + ":" + n, "10", "baseline="}
		if s.agent != nil {
			args = append(args, "fork-a="+keyA, "fork-b="+keyB)
		}
		out, err := s.client.Command("node", args...).CombinedOutput()
		if err != nil || string(out) != "OK\n" {
			t.Errorf("node: %v:\n%s", err, out)
		}
	})
}

// TestNginxWithHTTP2IsRoutedStreamByStream: large files of nginx at its own pace.
func TestNginxWithHTTP2IsRoutedStreamByStream(t *testing.T) {
	programs.Need(t, "nginx", "curl", "h2load")
	both(t, func(t *testing.T, s *shop) {
		n := fmt.Sprint(s.nextPort())
		files := map[string][]byte{}
		for name, p := range s.places() {
			conf, err := os.ReadFile(testdata(t, "nginx-h2c.conf"))
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(s.Dir(), "nginx-h2c-"+p.Name)
			if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
				t.Fatal(err)
			}
			files[name] = make([]byte, 5<<20)
			if _, err := rand.Read(files[name]); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "files", "large"), files[name], 0o600); err != nil {
				t.Fatal(err)
			}
			file := s.file("nginx-h2c-"+p.Name+".conf", strings.NewReplacer("DIR", dir, "NAME", name, "PORT", n).Replace(string(conf)))
			s.program(t, p.Command("nginx", "-p", dir, "-e", "stderr", "-c", file), p, "127.0.0.1:"+n)
		}
		url := "http://" + wideIP + ":" + n + "/"
		for _, tt := range []struct{ key, want string }{{"none", "baseline"}, {keyA, s.want("fork-a")}} {
			out, err := s.client.Command("curl", "-sS", "--http2-prior-knowledge", "-H", "x-sidetrack-key: "+tt.key, url+"files/large").Output()
			if want := files[tt.want]; err != nil || !bytes.Equal(out, want) {
				t.Errorf("curl with key %q: %v, %d bytes, want %d of %s", tt.key, err, len(out), len(want), tt.want)
			}
			out, err = s.client.Command("h2load", "-n", "5000", "-c", "4", "-m", "20", "-H", "x-sidetrack-key: "+tt.key, url).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "5000 succeeded, 0 failed, 0 errored") {
				t.Errorf("h2load with key %q: %v\n%s", tt.key, err, out)
			}
		}
	})
}

// TestEventsAndLongPollsOverHTTP2ArriveAsTheyAreSent: each event is there before
// the next one is sent, on streams of one connection that lead to different places,
// and a stream that the client gives up ends at its server.
func TestEventsAndLongPollsOverHTTP2ArriveAsTheyAreSent(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		next := map[string]chan string{}
		for name := range s.places() {
			next[name] = make(chan string)
		}
		var gaveUp atomic.Int32
		n := s.serveHTTP2(t, func(name string) http.Handler {
			return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Type", "text/event-stream")
				_ = http.NewResponseController(rw).Flush()
				for {
					select {
					case e := <-next[name]:
						fmt.Fprintf(rw, "data: %s from %s\n", e, name)
						_ = http.NewResponseController(rw).Flush()
					case <-r.Context().Done():
						gaveUp.Add(1)
						return
					}
				}
			})
		})
		tr := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return s.client.DialContext(ctx, network, addr)
		}}
		tr.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(tr.CloseIdleConnections)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		events := map[string]*bufio.Reader{}
		bodies := []io.Closer{}
		for key, name := range map[string]string{"": "baseline", keyA: s.want("fork-a"), keyB: s.want("fork-b")} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/events", wideIP, n), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Sidetrack-Key", key)
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, resp.Body)
			if s.agent != nil || key == "" {
				events[name] = bufio.NewReader(resp.Body)
			}
		}
		if s.agent != nil {
			for i := range 30 {
				for name, r := range events {
					next[name] <- fmt.Sprint(i)
					line, err := r.ReadString('\n')
					if want := fmt.Sprintf("data: %d from %s\n", i, name); err != nil || line != want {
						t.Fatalf("%q, %v, want %q", line, err, want)
					}
				}
			}
		}
		for _, b := range bodies {
			b.Close()
		}
		eventually(t, func() error {
			if n := gaveUp.Load(); n != 3 {
				return fmt.Errorf("%d servers have heard that the client gave up, want 3", n)
			}
			return nil
		})
	})
}
