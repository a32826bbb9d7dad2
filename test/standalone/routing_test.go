// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// TestEachRequestGoesByItsOwnKey: every client program against every kind of
// server, over pools of connections that all requests share.
func TestEachRequestGoesByItsOwnKey(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveAllKinds(t)
		for _, kind := range clientKinds {
			t.Run(kind, func(t *testing.T) {
				c := startPool(t, s.client, kind)
				for server, url := range serverURLs {
					if wrong, sample := c.send(6, s.mixed(url, 150)); wrong > 0 {
						t.Errorf("to %s: %d requests went wrong: %s", server, wrong, sample)
					}
				}
			})
		}
		t.Run("curl", func(t *testing.T) {
			programs.Need(t, "curl")
			for server, url := range serverURLs {
				s.curl(t, server, s.mixed(url, 60))
			}
		})
		t.Run("wrk", func(t *testing.T) {
			programs.Need(t, "wrk")
			for server, url := range serverURLs {
				s.wrk(t, s.client, server, url)
			}
		})
		t.Run("nginx as a proxy", func(t *testing.T) {
			s.startNginx(t, s.client, "proxy", "nginx-proxy.conf", "127.0.0.1:9083")
			c := startPool(t, s.client, "Go")
			for server, port := range map[string]int{"Go": 9080, "nginx": 9082, "Python": 9083} {
				if wrong, sample := c.send(8, s.mixed(fmt.Sprintf("http://127.0.0.1:%d/", port), 400)); wrong > 0 {
					t.Errorf("to %s: %d requests went wrong: %s", server, wrong, sample)
				}
			}
		})
	})
}

// curl sends all requests in one run, which uses one connection.
func (s *shop) curl(t *testing.T, server string, asks []ask) {
	t.Helper()
	var conf bytes.Buffer
	for i, a := range asks {
		if i > 0 {
			conf.WriteString("next\n")
		}
		fmt.Fprintf(&conf, "url = \"%s\"\nrequest = \"%s\"\nsilent\noutput = \"/dev/null\"\n", a.url, a.method)
		fmt.Fprintf(&conf, "header = \"X-Expect: %s\"\nheader = \"X-Number: %d\"\n", a.want, i)
		for _, h := range a.headers {
			fmt.Fprintf(&conf, "header = \"%s\"\n", h)
		}
		if a.body > 0 {
			fmt.Fprintf(&conf, "data = \"%s\"\n", strings.Repeat("x", a.body))
		}
		conf.WriteString(`write-out = "%{http_code} %header{x-served-by} %header{x-number} connects=%{num_connects}\n"` + "\n")
	}
	cmd := s.client.Command("curl", "-q", "-K", "-")
	cmd.Stdin = &conf
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != len(asks) {
		t.Errorf("to %s: curl: %v\n%.500s", server, err, out)
		return
	}
	connects := 0
	for i, a := range asks {
		var n int
		prefix := fmt.Sprintf("200 %s %d connects=", a.want, i)
		if _, err := fmt.Sscanf(lines[i], prefix+"%d", &n); err != nil {
			t.Errorf("to %s: curl said %q, want %q", server, lines[i], prefix)
			return
		}
		connects += n
	}
	if connects != 1 {
		t.Errorf("to %s: curl made %d connections, want 1", server, connects)
	}
}

func (s *shop) wrk(t *testing.T, p *lab.Pod, server, url string) {
	t.Helper()
	cmd := p.Command("wrk", "-t1", "-c16", "-d1s", "-s", testdata(t, "mix.lua"), url)
	cmd.Env = append(cmd.Environ(), "KEY_A="+keyA, "KEY_B="+keyB, "WANT_A="+s.want("fork-a"), "WANT_B="+s.want("fork-b"))
	out, err := cmd.CombinedOutput()
	i := strings.Index(string(out), "result ")
	var requests, wrong, errors int
	if i >= 0 {
		_, err = fmt.Sscanf(string(out[i:]), "result %d %d %d", &requests, &wrong, &errors)
	}
	if err != nil || i < 0 || requests == 0 || wrong > 0 || errors > 0 {
		t.Errorf("to %s: wrk: %v: %d of %d requests misrouted, %d errors\n%s", server, err, wrong, requests, errors, out)
	}
	t.Logf("to %s: %d requests, %d misrouted", server, requests, wrong)
}

// TestAHundredThousandRequestsOverSharedConnections counts what is misrouted,
// at both ends.
func TestAHundredThousandRequestsOverSharedConnections(t *testing.T) {
	heavy(t)
	s := newShop(t)
	seen := s.serveEcho()
	s.start()
	const total, workers = 100_000, 32
	tags := s.tags()
	results := make(chan error, workers)
	for w := range workers {
		go func() { results <- s.hammer(tags, w, total/workers) }()
	}
	for range workers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	t.Logf("the servers have seen %d requests, %d of them misrouted", seen.requests.Load(), seen.misrouted.Load())
	if n := seen.misrouted.Load(); n != 0 {
		t.Errorf("%d requests came to the wrong server", n)
	}
	if n := seen.requests.Load(); n != total {
		t.Errorf("the servers have seen %d requests, want %d", n, total)
	}
}

// hammer sends n requests of all shapes over one connection.
func (s *shop) hammer(tags []tag, worker, n int) error {
	conn, err := s.client.Dial("tcp", webIP+":80")
	if err != nil {
		return err
	}
	defer conn.Close()
	random := rand.New(rand.NewPCG(2, uint64(worker)))
	e := newExchanger(conn)
	for i := range n {
		tg := tags[random.IntN(len(tags))]
		x := exchange{number: worker*1_000_000 + i, want: tg.want, headers: tg.headers, method: "GET"}
		switch random.IntN(8) {
		case 0:
			x.method, x.body = "POST", random.Int64N(4000)
		case 1:
			x.method, x.body, x.chunked = "POST", random.Int64N(4000), true
		case 2:
			x.method = "HEAD"
		case 3:
			x.size = random.Int64N(20000)
		case 4:
			x.size, x.sizeChunked = random.Int64N(20000), true
		case 5:
			x.status = "204"
		}
		if err := e.do(x); err != nil {
			return fmt.Errorf("connection %d, request %d (%+v): %w", worker, i, x, err)
		}
	}
	return nil
}
