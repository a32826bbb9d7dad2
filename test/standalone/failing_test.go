// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// askOver sends one small request over a connection.
func askOver(conn net.Conn, r *bufio.Reader, headers string) (server string, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web\r\n"+headers+"\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get(lab.ServedBy), err
}

// load is traffic that goes on while the agent dies and comes back.
type load struct {
	kept  []*visits // requests over connections that are kept
	fresh *visits   // each over a connection of its own
	flows *visits   // tagged flows
	stop  func()
}

// startLoad sends about 5,000 untagged requests/s over 16 kept connections,
// besides 250 new connections/s and 100 tagged flows/s.
func (s *shop) startLoad(rate int) *load {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	l := &load{stop: sync.OnceFunc(func() { close(stop); wg.Wait() })}
	const kept = 16
	for range kept {
		v := &visits{}
		l.kept = append(l.kept, v)
		wg.Go(func() { s.keepAsking(v, stop, time.Second*kept/time.Duration(rate)) })
	}
	l.fresh = worker(&wg, stop, 3*time.Millisecond, func() (string, error) {
		conn, err := s.client.Dial("tcp", webIP+":80")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return askOver(conn, bufio.NewReader(conn), "Connection: close\r\n")
	})
	l.flows = worker(&wg, stop, 10*time.Millisecond, func() (string, error) {
		conn, err := s.tester.Dial("tcp", webIP+":80")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return askOver(conn, bufio.NewReader(conn), "Connection: close\r\n")
	})
	return l
}

// keepAsking is one client with one connection, which it replaces when it fails
// and now and then for no reason, so that it comes to be captured.
func (s *shop) keepAsking(v *visits, stop <-chan struct{}, pace time.Duration) {
	var conn net.Conn
	var r *bufio.Reader
	next := time.Now()
	for n := 0; ; {
		select {
		case <-stop:
			if conn != nil {
				conn.Close()
			}
			return
		default:
		}
		time.Sleep(time.Until(next))
		next = next.Add(pace)
		began := time.Now()
		var err error
		server := ""
		if conn == nil {
			if conn, err = s.client.Dial("tcp", webIP+":80"); err == nil {
				r = bufio.NewReader(conn)
			}
		}
		if err == nil {
			server, err = askOver(conn, r, "")
		}
		if n++; conn != nil && (err != nil || n%200 == 0) {
			conn.Close()
			conn = nil
		}
		v.add(visit{began, time.Now(), server, err})
	}
}

// failures are the visits since a time that failed, or were answered by another
// server than the one wanted.
func failures(all []visit, want string) (failed []visit, astray []visit) {
	for _, v := range all {
		if v.err != nil {
			failed = append(failed, v)
		} else if v.server != want {
			astray = append(astray, v)
		}
	}
	return failed, astray
}

// TestKillingTheAgentUnderLoad: new connections reach the baseline after 100 ms
// at most; redirected flows do not notice; a restart takes everything up again.
// A busy machine is forgiven one slow moment: the fastest of three counts.
func TestKillingTheAgentUnderLoad(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeHandler(who(name), ":80", ":8080") })
	check := neighbours(t, s)
	a := s.start()
	l := s.startLoad(5000)
	defer l.stop()
	began := time.Now()
	time.Sleep(500 * time.Millisecond)
	fastest := time.Hour
	for round := range 3 {
		killed := time.Now()
		a.kill()
		time.Sleep(700 * time.Millisecond)
		alone := time.Now()
		if got := s.clientServer(t, "x-sidetrack-key: "+keyA); got != "baseline" {
			t.Errorf("round %d: without the agent %s answered a tagged request", round, got)
		}
		window := time.Duration(0)
		failed, astray := failures(l.fresh.since(killed), "baseline")
		for _, v := range failed {
			window = max(window, v.from.Sub(killed))
		}
		if len(astray) > 0 {
			t.Errorf("round %d: %d new connections were answered by %s", round, len(astray), astray[0].server)
		}
		broken, requests := 0, 0
		for _, v := range l.kept {
			all := v.since(killed.Add(-50 * time.Millisecond))
			failed, astray := failures(all, "baseline")
			requests += len(all)
			broken += len(failed)
			for i, f := range failed {
				if i > 0 {
					window = max(window, f.from.Sub(killed))
				}
			}
			if len(astray) > 0 {
				t.Errorf("round %d: %d requests were answered by %s", round, len(astray), astray[0].server)
			}
		}
		t.Logf("round %d: %d of %d new connections failed, the last one %s after the kill; %d of %d requests on kept connections",
			round, len(failed), len(l.fresh.since(killed)), window.Round(time.Millisecond), broken, requests)
		fastest = min(fastest, window)

		a = s.start()
		restarted := time.Now()
		if got := s.clientServer(t, "x-sidetrack-key: "+keyA); got != "fork-a" {
			t.Errorf("round %d: after the restart %s answered a tagged request", round, got)
		}
		time.Sleep(900 * time.Millisecond)
		for _, v := range append(slices.Clone(l.kept), l.fresh) {
			if failed, astray := failures(v.since(alone), "baseline"); len(failed)+len(astray) > 0 {
				t.Errorf("round %d: %d requests failed and %d went astray between %s after the kill and the restart after %s: %v",
					round, len(failed), len(astray), alone.Sub(killed), restarted.Sub(killed), append(failed, astray...)[0])
				break
			}
		}
		if err := check(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if fastest > 100*time.Millisecond {
		t.Errorf("new connections failed for %s after the kill, want 100ms at most", fastest)
	}
	l.stop()
	if failed, astray := failures(l.flows.since(began), "fork-a"); len(failed)+len(astray) > 0 {
		t.Errorf("%d tagged flows failed and %d went astray, the first: %v", len(failed), len(astray), append(failed, astray...)[0])
	}
	total := 0
	for _, v := range l.kept {
		total += len(v.since(began))
	}
	t.Logf("%d requests and %d new connections in %s", total, len(l.fresh.since(began)), time.Since(began).Round(time.Millisecond))
}

// clientServer says who answers the client over a new connection.
func (s *shop) clientServer(t *testing.T, header string) string {
	t.Helper()
	conn, err := s.client.Dial("tcp", webIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if header != "" {
		header += "\r\n"
	}
	server, err := askOver(conn, bufio.NewReader(conn), header)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// remains lists what an agent can leave behind.
func (s *shop) remains(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(s.BPFFS, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			all["pin "+path] = d.Type().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range countAttached(t, s.Cgroup) {
		all["programs at "+name] = fmt.Sprint(n)
	}
	for _, p := range []*lab.Pod{s.client, s.tester, s.runner, s.base} {
		all["sockets in "+p.Name] = strings.Join(sockets(t, p), "\n")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Name) {
			n++
		}
	}
	all["mounts of this world"] = fmt.Sprint(n)
	temp, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range temp {
		if strings.Contains(f.Name(), "sidetrackd") {
			all["temporary file "+f.Name()] = ""
		}
	}
	return all
}

func TestFiftyKillsLeakNothing(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveSeen()
	check := neighbours(t, s)
	clean := s.remains(t)
	s.start().kill()
	before := s.remains(t)
	var after map[string]string
	for i := range 50 {
		a := s.start()
		if i%10 == 0 {
			if got := s.clientServer(t, "x-sidetrack-key: "+keyB); got != "fork-b" {
				t.Errorf("start %d: a tagged request reached %s", i, got)
			}
		}
		if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
			t.Errorf("start %d: a tagged flow reached %s", i, got.Server)
		}
		a.kill()
	}
	eventually(t, func() error {
		after = s.remains(t)
		if !maps.Equal(before, after) {
			return fmt.Errorf("after 50 kills %s", differences(before, after))
		}
		return nil
	})
	if err := check(); err != nil {
		t.Error(err)
	}
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("killed, and a tagged flow reached %s: the pins are no use", got.Server)
	}
	out, err := once(t, "uninstall", "--bpffs", s.BPFFS)
	if err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	if after = s.remains(t); !maps.Equal(clean, after) {
		t.Errorf("after uninstall %s", differences(clean, after))
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "baseline" {
		t.Errorf("uninstalled, and a flow reached %s", got.Server)
	}
	if out, err := once(t, "uninstall", "--bpffs", s.BPFFS); err != nil {
		t.Errorf("uninstall of nothing: %v\n%s", err, out)
	}
}

func differences(before, after map[string]string) string {
	var b strings.Builder
	for k, v := range before {
		if after[k] != v {
			fmt.Fprintf(&b, "%s was %q and is %q\n", k, v, after[k])
		}
	}
	for k, v := range after {
		if _, there := before[k]; !there {
			fmt.Fprintf(&b, "%s is new: %q\n", k, v)
		}
	}
	return b.String()
}

// TestASecondAgentRefuses, with the same bpffs and with one of its own, and
// disturbs nothing. Nor can the first be uninstalled under its feet.
func TestASecondAgentRefuses(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start()
	// Right after its start it looks for connections from before.
	time.Sleep(settled)
	before := s.remains(t)
	for name, bpffs := range map[string]string{"the same bpffs": s.BPFFS, "another bpffs": filepath.Join(s.BPFFS, "second")} {
		t.Run(name, func(t *testing.T) {
			if bpffs != s.BPFFS {
				if err := os.Mkdir(bpffs, 0o700); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(bpffs)
			}
			out, err := once(t, "run", "--manifests", s.dir, "--cgroup", s.Cgroup, "--bpffs", bpffs, "--metrics-address", freePort(t))
			if err == nil || !strings.Contains(strings.ToLower(out), "another") && !strings.Contains(strings.ToLower(out), "already") {
				t.Errorf("the second agent: %v\n%s", err, out)
			}
			t.Logf("it says: %s", out)
		})
	}
	if out, err := once(t, "uninstall", "--bpffs", s.BPFFS); err == nil {
		t.Errorf("a running agent was uninstalled:\n%s", out)
	}
	eventually(t, func() error {
		if after := s.remains(t); !maps.Equal(before, after) {
			return fmt.Errorf("the first agent's state has changed: %s", differences(before, after))
		}
		return nil
	})
	if got := s.clientServer(t, "x-sidetrack-key: "+keyB); got != "fork-b" {
		t.Errorf("a tagged request reached %s", got)
	}
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("a tagged flow reached %s", got.Server)
	}
}

// TestSIGTERMDrains: requests under way are finished, no new one fails, and the
// exit status is 0. Flow redirects stay.
func TestSIGTERMDrains(t *testing.T) {
	s := newShop(t)
	s.serveEcho()
	a := s.start()
	slow := make(chan error, 3)
	for _, tg := range []tag{{"baseline", nil}, {"fork-a", []string{"x-sidetrack-key: " + keyA}}, {"fork-b", []string{"x-sidetrack-key: " + keyB}}} {
		go func() {
			client := s.client.Client()
			req, err := http.NewRequest(http.MethodGet, "http://"+webIP+"/?wait=1500ms&size=100000", http.NoBody)
			if err != nil {
				slow <- err
				return
			}
			for _, h := range tg.headers {
				name, value, _ := strings.Cut(h, ": ")
				req.Header.Set(name, value)
			}
			resp, err := client.Do(req)
			if err != nil {
				slow <- err
				return
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			slow <- errors.Join(err, expect("bytes", n, 100000), expect("server", resp.Header.Get(lab.ServedBy), tg.want))
		}()
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	fresh := worker(&wg, stop, 2*time.Millisecond, func() (string, error) {
		conn, err := s.client.Dial("tcp", webIP+":80")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return askOver(conn, bufio.NewReader(conn), "")
	})
	began := time.Now()
	time.Sleep(300 * time.Millisecond)
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-slow; err != nil {
			t.Errorf("a request under way: %v", err)
		}
	}
	select {
	case <-a.done:
		if a.err != nil {
			t.Errorf("exit: %v, want status 0\n%s", a.err, a.log.Tail(10))
		}
	case <-time.After(patience):
		t.Errorf("still there %s after SIGTERM, with nothing under way\n%s", patience, a.log.Tail(10))
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	wg.Wait()
	if failed, astray := failures(fresh.since(began), "baseline"); len(failed)+len(astray) > 0 {
		t.Errorf("%d new requests failed, %d went astray, the first: %v", len(failed), len(astray), append(failed, astray...)[0])
	}
	if status, _, err := a.get("/readyz"); err == nil {
		t.Errorf("/readyz still answers: %d", status)
	}
	conn, err := s.tester.Dial("tcp", webIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if server, err := askOver(conn, bufio.NewReader(conn), ""); err != nil || server != "fork-a" {
		t.Errorf("drained, and a tagged flow reached %s, %v", server, err)
	}
}

// TestTheLeaseEndsFlowRedirects when no agent has been there for long.
func TestTheLeaseEndsFlowRedirects(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	// Long enough for a busy machine to do what is done within it.
	const lease = 8 * time.Second
	a := s.start("--lease=" + lease.String())
	time.Sleep(lease + time.Second)
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("the agent lives, and a flow reached %s: the lease is not renewed", got.Server)
	}
	a.kill()
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("a moment after the kill a flow reached %s", got.Server)
	}
	time.Sleep(lease + time.Second)
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "baseline" {
		t.Errorf("after the lease a flow reached %s", got.Server)
	}
	s.start()
	if got := s.tester.MustGet("http://" + webIP + "/"); got.Server != "fork-a" {
		t.Errorf("after a restart a flow reached %s", got.Server)
	}
}
