// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

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
