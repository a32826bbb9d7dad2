// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// settled is how long a change may take to be in force and idle connections to
// be closed.
const settled = time.Second

// withoutSandboxes starts the shop and its agent before anybody has a sandbox.
func withoutSandboxes(t *testing.T) *shop {
	t.Helper()
	s := newShop(t)
	drop(t, s.dir, "sandbox-a.yaml")
	drop(t, s.dir, "sandbox-b.yaml")
	s.serveEcho()
	s.start()
	return s
}

// TestIdleConnectionsFromBeforeAreReplaced: each client holds a pool of idle
// connections to the baseline when the sandbox is created. Its next tagged
// requests reach the fork, and none fails.
func TestIdleConnectionsFromBeforeAreReplaced(t *testing.T) {
	const pool = 8
	for _, kind := range clientKinds {
		t.Run(kind, func(t *testing.T) {
			s := withoutSandboxes(t)
			c := startPool(t, s.client, kind)
			var fill, mixed []ask
			for i := range 2 * pool {
				// The wait makes the client open them all.
				fill = append(fill, ask{method: "GET", url: "http://" + webIP + "/?wait=50ms", want: "baseline"})
				a := ask{method: "GET", url: "http://" + webIP + "/?wait=10ms", want: "fork-a", headers: []string{"baggage: sidetrack=" + keyA}}
				if i%3 == 2 {
					a.want, a.headers = "baseline", nil
				}
				if i%4 == 3 {
					// Nobody may send this twice.
					a.method, a.body = "POST", 100
				}
				mixed = append(mixed, a)
			}
			for range 2 {
				c.mustSend(pool, fill)
				if n := s.established(t, webIP); n < pool {
					t.Errorf("the client holds %d connections, want %d", n, pool)
				}
				s.putSandbox("a", keyA)
				s.settle(t, keyA, "fork-a")
				c.mustSend(pool, mixed)
				// And once more, from no sandbox on.
				drop(t, s.dir, "sandbox-a.yaml")
				s.settle(t, keyA, "baseline")
			}
		})
	}
}

// settle waits until requests with a key go to a server, and idle connections from
// before have been replaced.
func (s *shop) settle(t *testing.T, key, server string) {
	t.Helper()
	eventually(t, func() error {
		return expect("who answers", s.clientServer(t, "x-sidetrack-key: "+key), server)
	})
	time.Sleep(settled)
	eventually(t, func() error {
		return expect("uncovered connections", s.agent.scrape().sum("sidetrack_uncovered_connections"), 0)
	})
}

// established counts the client's connections to an address.
func (s *shop) established(t *testing.T, ip string) int {
	t.Helper()
	n := 0
	for _, line := range sockets(t, s.client) {
		f := strings.Fields(line)
		if strings.HasPrefix(f[0], "tcp") && strings.Contains(f[2], ipHex(ip)) {
			n++
		}
	}
	return n
}

// TestAProxysUpstreamsFromBeforeAreReplaced: nginx keeps connections to the
// baseline for everybody.
func TestAProxysUpstreamsFromBeforeAreReplaced(t *testing.T) {
	programs.Need(t, "nginx")
	s := withoutSandboxes(t)
	s.startNginx(t, s.client, "proxy", "nginx-proxy.conf", "127.0.0.1:9080")
	c := startPool(t, s.client, "Go")
	url := "http://127.0.0.1:9080/?wait=20ms"
	for range 2 {
		c.mustSend(4, []ask{{"GET", url, "baseline", 0, nil}, {"GET", url, "baseline", 0, nil}, {"GET", url, "baseline", 0, nil}, {"GET", url, "baseline", 0, nil}})
		s.putSandbox("b", keyB)
		s.settle(t, keyB, "fork-b")
		c.mustSend(4, s.mixedOfB(url, 40))
		drop(t, s.dir, "sandbox-b.yaml")
		s.settle(t, keyB, "baseline")
	}
}

func (s *shop) mixedOfB(url string, n int) []ask {
	var asks []ask
	for i := range n {
		a := ask{method: "GET", url: url, want: "baseline"}
		if i%2 == 0 {
			a.want, a.headers = "fork-b", []string{"x-sidetrack-key: " + keyB}
		}
		asks = append(asks, a)
	}
	return asks
}

// TestCurlsConnectionFromBeforeIsReplaced within one run of curl.
func TestCurlsConnectionFromBeforeIsReplaced(t *testing.T) {
	programs.Need(t, "curl")
	s := withoutSandboxes(t)
	const report = "%{http_code} %header{x-served-by}\n"
	url := "http://" + webIP + "/"
	cmd := s.client.Command("curl", "-q", "-sS", "--rate", "7/m", "-o", "/dev/null", "-w", report, url,
		"--next", "-sS", "-o", "/dev/null", "-w", report, "-H", "x-sidetrack-key: "+keyA, url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	s.putSandbox("a", keyA)
	if err := cmd.Wait(); err != nil || out.String() != "200 baseline\n200 fork-a\n" {
		t.Errorf("curl: %v: %q", err, out.String())
	}
}

// TestBusyConnectionsFromBeforeFinishFirst: a server that thinks, one that
// sends slowly, a client that sends slowly. Then they are replaced as well.
func TestBusyConnectionsFromBeforeFinishFirst(t *testing.T) {
	s := withoutSandboxes(t)
	n := s.nextPort()
	conns := rawServer(t, s.base, n)
	address := fmt.Sprintf("%s:%d", wideIP, n)
	var wg sync.WaitGroup
	created, waiting := make(chan struct{}), make(chan struct{})
	begun := 0
	for name, steps := range map[string][]step{
		"a server that thinks before it answers": {c(get), {waits, ""}, sv(ok)},
		"a server that thinks about the second":  {c(get), sv(ok), c(get), {waits, ""}, sv(ok)},
		"a client that pauses within a body":     {c("POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\n\r\nhi"), {waits, ""}, c("ho"), sv(ok)},
		"a client that pauses within a head":     {c("GET / HTTP/1.1\r\nHo"), {waits, ""}, c("st: w\r\n\r\n"), sv(ok)},
	} {
		conn, err := s.client.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		e := &ends{client: conn, accepts: conns, wait: created, waiting: waiting}
		begun++
		if _, err := e.accept(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := (dialogue{steps: steps}).play(e, ""); err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			// Now it is idle. Its client is told so.
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadAll(conn); isTimeout(err) {
				t.Errorf("%s: the connection stays", name)
			}
		})
	}
	for range begun {
		select {
		case <-waiting:
		case <-time.After(patience):
			t.Error("a connection is not busy")
		}
	}
	s.putSandbox("a", keyA)
	time.Sleep(1500 * time.Millisecond)
	close(created)
	wg.Wait()
}

// TestNoRequestFailsWhileASandboxIsCreated: clients that pause now and then, as
// real ones do, while sandboxes come and go.
func TestNoRequestFailsWhileASandboxIsCreated(t *testing.T) {
	heavy(t)
	for _, kind := range []string{"requests", "httpx", "Java", "Node's fetch", "Go"} {
		t.Run(kind, func(t *testing.T) {
			s := withoutSandboxes(t)
			c := startPool(t, s.client, kind)
			random := rand.New(rand.NewPCG(1, 2))
			stop := time.Now().Add(5 * time.Second)
			done := make(chan error, 1)
			go func() {
				for round := 0; time.Now().Before(stop); round++ {
					var asks []ask
					for range 6 {
						asks = append(asks, ask{method: "GET", url: fmt.Sprintf("http://%s/?wait=%dms", webIP, random.IntN(30)), want: "baseline"})
					}
					if wrong, sample := c.send(6, asks); wrong > 0 {
						done <- fmt.Errorf("%d requests failed in round %d: %s", wrong, round, sample)
						return
					}
					time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
				}
				done <- nil
			}()
			for i := 0; time.Now().Before(stop); i++ {
				if i%2 == 0 {
					s.putSandbox("a", keyA)
				} else {
					drop(t, s.dir, "sandbox-a.yaml")
				}
				time.Sleep(500 * time.Millisecond)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPoliciesForConnectionsFromBefore: All closes at once what is busy too,
// Leave leaves even what is idle, and says so.
func TestPoliciesForConnectionsFromBefore(t *testing.T) {
	t.Run("All", func(t *testing.T) {
		s := withoutSandboxes(t)
		n := s.nextPort()
		conns := rawServer(t, s.base, n)
		conn, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		e := &ends{client: conn, accepts: conns}
		if err := (dialogue{steps: []step{c("GET / HTTP/1.1\r\nHost: w\r\n\r\n")}}).play(e, ""); err != nil {
			t.Fatal(err)
		}
		s.putSandbox("a", keyA, "existingConnections: All")
		if err := errors.Join(conn.SetReadDeadline(time.Now().Add(patience))); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("a busy connection stays: %v", err)
		}
	})
	t.Run("Leave", func(t *testing.T) {
		s := withoutSandboxes(t)
		n := s.nextPort()
		conns := rawServer(t, s.base, n)
		conn, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		e := &ends{client: conn, accepts: conns}
		if err := (dialogue{steps: again()}).play(e, ""); err != nil {
			t.Fatal(err)
		}
		s.putSandbox("a", keyA, "existingConnections: Leave")
		eventually(t, func() error {
			return expect("uncovered connections", s.agent.scrape().sum("sidetrack_uncovered_connections", `service="wide"`), 1)
		})
		if err := (dialogue{steps: again()}).play(e, ""); err != nil {
			t.Errorf("the connection that was to be left alone: %v", err)
		}
		conn.Close()
		eventually(t, func() error {
			return expect("uncovered connections", s.agent.scrape().sum("sidetrack_uncovered_connections"), 0)
		})
	})
	t.Run("connections of others are nobody's business", func(t *testing.T) {
		s := withoutSandboxes(t)
		stranger := s.MustPod("stranger")
		n := s.nextPort()
		conns := rawServer(t, s.base, n)
		var kept []*ends
		for _, w := range []way{
			{"a pod that is not known", stranger, s.base, "", wideIP},
			{"to another port", s.client, s.base, "", plainIP},
		} {
			port := n
			if w.ip == plainIP {
				port = 81
				conns = rawServer(t, s.base, port)
			}
			conn, err := w.from.Dial("tcp", fmt.Sprintf("%s:%d", w.ip, port))
			if err != nil {
				t.Fatal(err)
			}
			e := &ends{client: conn, accepts: conns}
			defer e.close()
			if err := (dialogue{steps: again()}).play(e, ""); err != nil {
				t.Fatal(err)
			}
			kept = append(kept, e)
		}
		s.putSandbox("a", keyA, "existingConnections: All")
		time.Sleep(settled)
		for _, e := range kept {
			if err := (dialogue{steps: again()}).play(e, ""); err != nil {
				t.Error(err)
			}
		}
	})
}

// ipHex is how /proc/net/tcp writes an IPv4 address.
func ipHex(ip string) string {
	var b [4]int
	if _, err := fmt.Sscanf(ip, "%d.%d.%d.%d", &b[0], &b[1], &b[2], &b[3]); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%02X%02X%02X%02X:", b[3], b[2], b[1], b[0])
}
