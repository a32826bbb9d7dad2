// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// turn starts an agent that takes over from whichever runs, with the same
// arguments, and waits until `sidetrackd ready` says that it acts.
func (s *shop) turn(extra ...string) *agent {
	s.t.Helper()
	a := s.begin(extra...)
	a.probe()
	return a
}

// begin is turn without the wait.
func (s *shop) begin(extra ...string) *agent {
	s.t.Helper()
	if s.metrics == "" {
		s.metrics = freePort(s.t)
	}
	args := append([]string{"run", "--manifests", s.dir, "--cgroup", s.Cgroup, "--bpffs", s.BPFFS, "--metrics-address", s.metrics,
		"--handover-socket", s.socket(), "--ready-socket", s.readySocket(s.turns)}, extra...)
	a := runDaemon(s.t, s.World, args...)
	a.metrics = s.metrics
	a.readySocket = s.readySocket(s.turns)
	s.turns++
	s.agent = a
	return a
}

func (s *shop) socket() string {
	if s.run == "" {
		s.run = filepath.Join(s.t.TempDir(), "run")
	}
	return filepath.Join(s.run, "agent.sock")
}

func (s *shop) readySocket(n int) string {
	return filepath.Join(filepath.Dir(s.socket()), fmt.Sprintf("ready-%d.sock", n))
}

// probe waits until the agent's readiness probe succeeds.
func (a *agent) probe() {
	a.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := once(a.t, "ready", "--socket", a.readySocket)
		if err == nil {
			return
		}
		select {
		case <-a.done:
			a.t.Fatalf("sidetrackd ended before it was ready: %v\n%s", a.err, a.log.Tail(40))
		default:
		}
		if time.Now().After(end) {
			a.t.Fatalf("sidetrackd is not ready after 30 s: %s %v\n%s", out, err, a.log.Tail(40))
		}
	}
}

// ended waits until the agent has ended by itself, with exit status 0.
func (a *agent) ended() {
	a.t.Helper()
	select {
	case <-a.done:
		if a.err != nil {
			a.t.Errorf("sidetrackd ended with %v, want exit status 0\n%s", a.err, a.log.Tail(20))
		}
	case <-time.After(patience):
		a.t.Fatalf("sidetrackd is still there %s after it has handed over\n%s", patience, a.log.Tail(40))
	}
}

// TestAgentsTakeTurnsUnderLoad: two handovers, one after the other, and not one
// request fails or goes astray.
func TestAgentsTakeTurnsUnderLoad(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveAll()
	check := neighbours(t, s)
	a := s.turn()
	c := s.meet()
	l := s.startStrict()
	time.Sleep(500 * time.Millisecond)
	for range 2 {
		c.tick(300)
		l.lap("before")
		next := s.turn()
		c.still()
		l.lap("the handover")
		a.ended()
		a.wantLog("all connections have moved")
		c.still()
		a = next
	}
	time.Sleep(time.Second)
	l.stop()
	c.part()
	if err := check(); err != nil {
		t.Error(err)
	}
	m := a.scrape()
	if n := m.sum("sidetrack_router_connections_moved_total", `direction="in"`); n < keptConnections {
		t.Errorf("the last agent counts %v connections taken over, want %d at least", n, keptConnections)
	}
	a.stop()
	if leftover, err := filepath.Glob(filepath.Join(filepath.Dir(s.socket()), "*")); err != nil || len(leftover) > 0 {
		t.Errorf("left behind: %v %v", leftover, err)
	}
}

// TestAgentsTakeTurnsWhileObjectsChange: a sandbox comes and goes meanwhile, and
// the two agents may know of it at different times.
func TestAgentsTakeTurnsWhileObjectsChange(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveAll()
	a := s.turn()
	c := s.meet()
	l := s.startStrict()
	l.changing.Store(true)
	stop := make(chan struct{})
	var changes sync.WaitGroup
	changes.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(70 * time.Millisecond):
			}
			if i%2 == 0 {
				drop(t, s.dir, "sandbox-b.yaml")
			} else {
				s.putSandbox("b", keyB)
			}
		}
	})
	for range 2 {
		next := s.turn()
		a.ended()
		a = next
	}
	close(stop)
	changes.Wait()
	s.putSandbox("b", keyB)
	time.Sleep(1500 * time.Millisecond)
	l.changing.Store(false)
	time.Sleep(time.Second)
	l.stop()
	c.part()
	a.stop()
}

// TestKilledInTheMiddleOfATurn: whichever agent dies, and however soon, there is
// one that acts and everything goes where it should.
func TestKilledInTheMiddleOfATurn(t *testing.T) {
	heavy(t)
	for _, victim := range []string{"old", "new"} {
		t.Run(victim, func(t *testing.T) {
			s := newShop(t)
			s.serveAll()
			s.turn()
			rounds := 16
			for round := range rounds {
				// The other connections are what a handover has to move.
				for range 200 {
					c := s.mustStream(s.client, webIP+":80")
					if err := c.request(tags[1].header, "fork-a"); err != nil {
						t.Fatal(err)
					}
				}
				old := s.agent
				next := s.begin("--drain-timeout", "1s")
				time.Sleep(time.Duration(round) * 80 * time.Millisecond)
				dead := old
				if victim == "new" {
					dead, s.agent = next, old
				}
				dead.end()
				eventually(t, func() error {
					select {
					case <-s.agent.done:
						if victim == "old" || s.agent.err != nil {
							t.Fatalf("round %d: the other agent has ended: %v\n%s", round, s.agent.err, s.agent.log.Tail(20))
						}
						// It had handed over before the other one was killed, and was about to end.
						s.turn()
					default:
					}
					_, err := once(t, "ready", "--socket", s.agent.readySocket)
					return errors.Join(err, s.answers(s.client, tags[1].header, "fork-a"), s.answers(s.client, tags[2].header, "fork-b"))
				})
				err := errors.Join(s.answers(s.client, "", "baseline"), s.answers(s.tester, "", "fork-a"), s.answers(s.runner, "", "fork-a"))
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if status, _, err := s.agent.get("/readyz"); err != nil || status != http.StatusOK {
					t.Errorf("round %d: /readyz: %d %v", round, status, err)
				}
			}
		})
	}
}

// TestAnAgentThatHasTakenOverActsAgain: not the first agent but the second, which
// stays, sees its successors die, and a fresh one takes over in the end. Until a
// successor has been in force for a while, connections stay where they are.
func TestAnAgentThatHasTakenOverActsAgain(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveAll()
	s.turn()
	first := s.agent
	second := s.turn("--handover-stay")
	first.ended()
	c := s.meet()
	for round := range 3 {
		third := s.turn("--handover-stay")
		time.Sleep(time.Duration(round) * 100 * time.Millisecond)
		third.kill()
		s.agent = second
		second.wantLog("this one acts again")
		eventually(t, func() error {
			return errors.Join(s.answers(s.client, tags[1].header, "fork-a"), s.answers(s.client, "", "baseline"), s.answers(s.tester, "", "fork-a"))
		})
		c.still()
	}
	fourth := s.turn("--handover-stay")
	// It is ended from outside: what is still with it moves then.
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	second.ended()
	second.wantLog("all connections have moved")
	c.part()
	fourth.kill()
}

// answers sends a request over a new connection and wants it answered by a
// server.
func (s *shop) answers(from *lab.Pod, header, server string) error {
	conn, err := from.Dial("tcp", webIP+":80")
	if err != nil {
		return err
	}
	defer conn.Close()
	got, err := askOver(conn, bufio.NewReader(conn), header)
	if err != nil {
		return err
	}
	return expect("who answers "+from.Name, got, server)
}

// TestAnAgentWithoutASocketIsNotTakenOver: the new one says so, and harms
// nothing.
func TestAnAgentWithoutASocketIsNotTakenOver(t *testing.T) {
	s := newShop(t)
	s.serveAll()
	old := s.start()
	next := s.begin()
	select {
	case <-next.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("it neither takes over nor ends\n%s", next.log.Tail(20))
	}
	if next.err == nil {
		t.Error("exit status 0")
	}
	next.wantLog("another sidetrack agent is running", "cannot hand over", s.socket())
	if got := s.clientServer(t, "x-sidetrack-key: "+keyA); got != "fork-a" {
		t.Errorf("%s answered", got)
	}
	old.stop()
	s.turn().stop()
}

// TestAnAgentThatCannotBeInForceGivesWay: the one with the right settings takes
// over from the one that never got so far.
func TestAnAgentThatCannotBeInForceGivesWay(t *testing.T) {
	s := newShop(t)
	s.serveAll()
	stuck := s.begin("--max-backends", "1")
	stuck.wantLog("--max-backends")
	if out, err := once(t, "ready", "--socket", stuck.readySocket); err == nil || !strings.Contains(out, "--max-backends") {
		t.Errorf("ready: %v %s", err, out)
	}
	next := s.turn()
	stuck.ended()
	err := errors.Join(s.answers(s.client, tags[1].header, "fork-a"), s.answers(s.client, "", "baseline"), s.answers(s.tester, "", "fork-a"))
	if err != nil {
		t.Error(err)
	}
	next.stop()
}

// TestTurnsLeakNothing: descriptors, namespaces, sockets and pins are as many
// after several handovers as after one.
func TestTurnsLeakNothing(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveAll()
	clean := s.remains(t)
	a := s.turn()
	c := s.meet()
	next := func() {
		b := s.turn()
		a.ended()
		a = b
		c.still()
	}
	next()
	count := func() map[string]string {
		all := s.remains(t)
		for what, n := range descriptorsOf(t, a.cmd.Process.Pid) {
			all["descriptors of the agent: "+what] = strconv.Itoa(n)
		}
		// Listeners' ports differ from agent to agent.
		for k := range all {
			if strings.HasPrefix(k, "sockets in ") {
				all[k] = strconv.Itoa(strings.Count(all[k], "\n"))
			}
		}
		return all
	}
	var before map[string]string
	eventually(t, func() error { // what Go's runtime opens once
		before = count()
		time.Sleep(300 * time.Millisecond)
		if now := count(); differences(before, now) != "" {
			return errors.New(differences(before, now))
		}
		return nil
	})
	for range 5 {
		next()
	}
	eventually(t, func() error {
		if d := differences(before, count()); d != "" {
			return errors.New(d)
		}
		return nil
	})
	c.part()
	a.stop()
	if out, err := once(t, "uninstall", "--bpffs", s.BPFFS); err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	for _, one := range append(slices.Clone(c.pool), func() (all []*stream) {
		for _, one := range c.streams {
			all = append(all, one)
		}
		return all
	}()...) {
		one.conn.Close()
	}
	eventually(t, func() error {
		if d := differences(clean, s.remains(t)); d != "" {
			return errors.New(d)
		}
		return nil
	})
}

// descriptorsOf counts a process's descriptors by what they are.
func descriptorsOf(t *testing.T, pid int) map[string]int {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(to, "[")
		if !strings.HasSuffix(kind, ":") && !strings.HasPrefix(to, "anon_inode") {
			kind = to
		}
		all[kind]++
	}
	return all
}

// TestASignalAfterTheTurn: an agent that is to be ended from outside, and has
// handed over, ends at once.
func TestASignalAfterTheTurn(t *testing.T) {
	s := newShop(t)
	s.serveAll()
	a := s.turn("--drain-timeout", "60s")
	c := s.meet()
	next := s.turn()
	began := time.Now()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	a.ended()
	t.Logf("ended after %s", time.Since(began))
	c.part()
	next.stop()
}
