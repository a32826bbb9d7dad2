// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
			a.t.Fatalf("sidetrackd ended before it was ready: %v\n%s", a.err, a.log.tail(40))
		default:
		}
		if time.Now().After(end) {
			a.t.Fatalf("sidetrackd is not ready after 30 s: %s %v\n%s", out, err, a.log.tail(40))
		}
	}
}

// ended waits until the agent has ended by itself, with exit status 0.
func (a *agent) ended(patience time.Duration) {
	a.t.Helper()
	select {
	case <-a.done:
		if a.err != nil {
			a.t.Errorf("sidetrackd ended with %v, want exit status 0\n%s", a.err, a.log.tail(20))
		}
	case <-time.After(patience):
		a.t.Fatalf("sidetrackd is still there %s after it has handed over\n%s", patience, a.log.tail(40))
	}
}

// strict is traffic of which no part may fail or go astray: one thousand
// connections that are never replaced, 2,000 requests/s on them, new connections
// and flows besides.
type strict struct {
	s        *shop
	stopping chan struct{}
	wg       sync.WaitGroup
	requests atomic.Int64
	failures atomic.Int64
	slowest  atomic.Int64 // answer, in nanoseconds
	once     sync.Once
	// changing is set while sandbox b comes and goes: its requests may be answered
	// by either side then.
	changing atomic.Bool
}

const (
	keptConnections = 1000
	keptRate        = 2000
)

func (l *strict) fail(format string, args ...any) {
	if n := l.failures.Add(1); n <= 20 {
		l.s.t.Errorf(format, args...)
	}
}

// tags are what requests carry, and who is to answer them.
var tags = []struct{ header, server string }{
	{"", "baseline"},
	{"baggage: sidetrack=" + keyA + "\r\n", "fork-a"},
	{"x-sidetrack-key: " + keyB + "\r\n", "fork-b"},
	{"tracestate: a=b,sidetrack=" + keyA + "\r\n", "fork-a"},
}

func (s *shop) startStrict() *strict {
	s.t.Helper()
	l := &strict{s: s, stopping: make(chan struct{})}
	// At most some dozens dial at a time: the listen queues of this process are
	// not what is tested.
	slots := make(chan struct{}, 32)
	var open sync.WaitGroup
	for i := range keptConnections {
		open.Add(1)
		l.wg.Go(func() { l.keep(i, slots, &open) })
	}
	open.Wait()
	l.repeat(5*time.Millisecond, "new connection", func(n int) error {
		tag := tags[n%len(tags)]
		network, address := "tcp", webIP+":80"
		if n%3 == 0 {
			// Of a socket with IPV6_V6ONLY, which comes to the router in another way.
			network, address = "tcp6", "["+webIP6+"]:80"
		}
		conn, err := s.client.Dial(network, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		return l.ask(conn, bufio.NewReader(conn), n)(tag.header+"Connection: close\r\n", tag.server)
	})
	for name, who := range map[string]*lab.Pod{"flow": s.tester, "request of an injected pod": s.runner} {
		l.repeat(10*time.Millisecond, name, func(n int) error {
			conn, err := who.Dial("tcp", webIP+":80")
			if err != nil {
				return err
			}
			defer conn.Close()
			if who == s.tester && conn.RemoteAddr().String() != webIP+":80" {
				return fmt.Errorf("getpeername shows %s", conn.RemoteAddr())
			}
			return l.ask(conn, bufio.NewReader(conn), n)("Connection: close\r\n", "fork-a")
		})
	}
	s.t.Cleanup(l.stop)
	return l
}

// ask returns a function that sends one request and wants it answered by a
// server.
func (l *strict) ask(conn net.Conn, r *bufio.Reader, n int) func(header, want string) error {
	return func(header, want string) error {
		before := l.changing.Load()
		began := time.Now()
		defer func() {
			took := int64(time.Since(began))
			for slowest := l.slowest.Load(); took > slowest && !l.slowest.CompareAndSwap(slowest, took); slowest = l.slowest.Load() {
			}
		}()
		got, err := askOver(conn, r, header+"X-Number: "+strconv.Itoa(n)+"\r\n")
		l.requests.Add(1)
		switch {
		case err != nil:
			return err
		case got == want:
			return nil
		case want == "fork-b" && got == "baseline" && (before || l.changing.Load()):
			return nil
		}
		return fmt.Errorf("%s answered, want %s", got, want)
	}
}

// keep is one client with one connection, from beginning to end.
func (l *strict) keep(i int, slots chan struct{}, open *sync.WaitGroup) {
	slots <- struct{}{}
	conn, err := l.s.client.Dial("tcp", webIP+":80")
	<-slots
	open.Done()
	if err != nil {
		l.fail("dial: %v", err)
		return
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	const pace = time.Second * keptConnections / keptRate
	next := time.Now().Add(pace * time.Duration(i) / keptConnections)
	for n := i; ; n++ {
		select {
		case <-l.stopping:
			return
		case <-time.After(time.Until(next)):
		}
		next = next.Add(pace)
		tag := tags[n%len(tags)]
		if err := l.ask(conn, r, n)(tag.header, tag.server); err != nil {
			l.fail("connection %d, request %d: %v", i, n, err)
			return
		}
	}
}

func (l *strict) repeat(pace time.Duration, name string, f func(n int) error) {
	l.wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.stopping:
				return
			case <-time.After(pace):
			}
			if err := f(n); err != nil {
				l.fail("%s %d: %v", name, n, err)
			}
		}
	})
}

// lap says how slow the slowest answer since the last lap was.
func (l *strict) lap(what string) {
	l.s.t.Logf("%s: %d requests so far, the slowest answer took %s", what, l.requests.Load(), time.Duration(l.slowest.Swap(0)).Round(time.Millisecond))
}

// stop ends the traffic, and the test if any of it failed.
func (l *strict) stop() {
	l.once.Do(func() {
		close(l.stopping)
		l.wg.Wait()
		l.s.t.Logf("%d requests, %d failures; the slowest took %s", l.requests.Load(), l.failures.Load(), time.Duration(l.slowest.Load()).Round(time.Millisecond))
	})
}

// companions are connections of other kinds that live through everything.
type companions struct {
	s       *shop
	streams map[string]*stream
	pool    []*stream // idle
	ticks   []*ticker
}

type stream struct {
	conn net.Conn
	r    *bufio.Reader
}

func (c *stream) exchange(send, want string) error {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.conn, send); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.r, got); err != nil {
		return err
	}
	return expect("received", string(got), want)
}

// ticker is an answer that takes its time.
type ticker struct {
	stream
	server string
	done   chan error
}

// ticks answers with a line every 20 ms.
func ticks(name string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set(lab.ServedBy, name)
		n, err := strconv.Atoi(r.URL.Query().Get("ticks"))
		if err != nil {
			return // the usual empty answer
		}
		for i := range n {
			fmt.Fprintf(rw, "tick %d of %s\n", i, name)
			if err := http.NewResponseController(rw).Flush(); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

const echoPort, upgradePort = wideFirst + 300, wideFirst + 301

// serveAll starts the servers of requests, of streams, and of upgrades.
func (s *shop) serveAll() {
	s.t.Helper()
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(
			p.ServeHandler(ticks(name), ":80", ":8080"),
			p.ServeConns(func(c net.Conn) {
				// The greeting comes first, as PostgreSQL's does not and MySQL's does.
				defer c.Close()
				_, _ = io.WriteString(c, name+"\n")
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
			}, fmt.Sprintf(":%d", echoPort)),
			p.ServeConns(func(c net.Conn) {
				defer c.Close()
				r := bufio.NewReader(c)
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"+name+"\n")
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{r})
			}, fmt.Sprintf(":%d", upgradePort)),
		)
	})
}

func (s *shop) mustStream(p *lab.Pod, address string) *stream {
	s.t.Helper()
	conn, err := p.Dial("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return &stream{conn, bufio.NewReader(conn)}
}

// meet opens the companions' connections.
func (s *shop) meet() *companions {
	s.t.Helper()
	c := &companions{s: s, streams: map[string]*stream{}}
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	opaque := s.mustStream(s.client, fmt.Sprintf("%s:%d", wideIP, echoPort))
	must(opaque.exchange("", "baseline\n"))
	c.streams["a stream that is not HTTP"] = opaque
	injected := s.mustStream(s.runner, fmt.Sprintf("%s:%d", wideIP, echoPort))
	must(injected.exchange("", "fork-a\n"))
	c.streams["a stream of an injected pod"] = injected
	flow := s.mustStream(s.tester, fmt.Sprintf("%s:%d", wideIP, echoPort))
	must(flow.exchange("", "fork-a\n"))
	c.streams["a flow"] = flow
	for _, tag := range tags[:3] {
		up := s.mustStream(s.client, fmt.Sprintf("%s:%d", wideIP, upgradePort))
		must(up.exchange("GET / HTTP/1.1\r\nHost: web\r\n"+tag.header+"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
			"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"+tag.server+"\n"))
		c.streams["a WebSocket to "+tag.server] = up
	}
	// IPV6_V6ONLY and all: whatever way it came, it goes on.
	for _, ip := range []string{webIP, "[" + webIP6 + "]", s.base.IPv4.String()} {
		port := ":80"
		if ip == s.base.IPv4.String() {
			port = ":8080"
		}
		for range 20 {
			c.pool = append(c.pool, s.mustStream(s.client, ip+port))
		}
	}
	for i, p := range c.pool {
		if i%2 == 0 {
			continue // it has never been used
		}
		tag := tags[i%len(tags)]
		must(p.request(tag.header, tag.server))
	}
	return c
}

func (c *stream) request(header, want string) error {
	got, err := askOver(c.conn, c.r, header)
	if err != nil {
		return err
	}
	return expect("server", got, want)
}

// still wants every stream to be where it was.
func (c *companions) still() {
	c.s.t.Helper()
	for name, one := range c.streams {
		text := fmt.Sprintf("\x00\x01 %d\n", time.Now().UnixNano())
		if err := one.exchange(text, text); err != nil {
			c.s.t.Errorf("%s: %v", name, err)
		}
	}
}

// tick begins an answer that takes n ticks.
func (c *companions) tick(n int) {
	c.s.t.Helper()
	for _, tag := range tags[:3] {
		t := &ticker{stream: *c.s.mustStream(c.s.client, webIP+":80"), server: tag.server, done: make(chan error, 1)}
		c.ticks = append(c.ticks, t)
		go func() { t.done <- t.read(n, tag.header) }()
	}
}

func (t *ticker) read(n int, header string) error {
	if err := t.conn.SetDeadline(time.Now().Add(patience + time.Duration(n)*100*time.Millisecond)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(t.conn, "GET /?ticks=%d HTTP/1.1\r\nHost: web\r\n%s\r\n", n, header); err != nil {
		return err
	}
	resp, err := http.ReadResponse(t.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", len(body), err)
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "tick %d of %s\n", i, t.server)
	}
	return expect("whole answer", string(body), want.String())
}

// part wants the ticks to have come whole, and the idle pool to be of use.
func (c *companions) part() {
	c.s.t.Helper()
	for _, t := range c.ticks {
		if err := <-t.done; err != nil {
			c.s.t.Errorf("a long answer of %s: %v", t.server, err)
		}
	}
	c.ticks = nil
	c.still()
	for i, p := range c.pool {
		tag := tags[(i/2)%len(tags)]
		if err := p.request(tag.header, tag.server); err != nil {
			c.s.t.Errorf("idle connection %d: %v", i, err)
		}
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
		a.ended(30 * time.Second)
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
		a.ended(30 * time.Second)
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
				select {
				case <-s.agent.done:
					if victim == "old" {
						t.Fatalf("round %d: the new agent has ended: %v\n%s", round, s.agent.err, s.agent.log.tail(20))
					}
					// It had handed over and ended before the other one was killed.
					s.turn()
				default:
				}
				s.agent.probe()
				eventually(t, 10*time.Second, func() error {
					return errors.Join(s.answers(s.client, tags[1].header, "fork-a"), s.answers(s.client, tags[2].header, "fork-b"))
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
	first.ended(30 * time.Second)
	c := s.meet()
	for round := range 3 {
		third := s.turn("--handover-stay")
		time.Sleep(time.Duration(round) * 200 * time.Millisecond)
		third.kill()
		s.agent = second
		second.wantLog("this one acts again")
		eventually(t, 10*time.Second, func() error {
			return errors.Join(s.answers(s.client, tags[1].header, "fork-a"), s.answers(s.client, "", "baseline"), s.answers(s.tester, "", "fork-a"))
		})
		c.still()
	}
	fourth := s.turn("--handover-stay")
	// It is ended from outside: what is still with it moves then.
	if err := second.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	second.ended(20 * time.Second)
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
		t.Fatalf("it neither takes over nor ends\n%s", next.log.tail(20))
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
		a.ended(30 * time.Second)
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
	eventually(t, 10*time.Second, func() error { // what Go's runtime opens once
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
	eventually(t, 10*time.Second, func() error {
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
	eventually(t, 10*time.Second, func() error {
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
	a.ended(20 * time.Second)
	t.Logf("ended after %s", time.Since(began))
	c.part()
	next.stop()
}
