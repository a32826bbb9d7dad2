// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ways to load.
const (
	// keptAlive sends the next request on each connection as soon as the answer
	// is there: how much goes through.
	keptAlive = "kept-alive"
	// paced sends single requests at a low rate: how long one takes. Everything
	// runs on one core.
	paced = "paced"
	// pacedApart is paced with every hop between the two cores.
	pacedApart = "paced, two cores"
	// connecting opens a connection for each request.
	connecting = "connecting"
)

// Load is what the load generator is told.
type Load struct {
	Way         string
	Target      netip.AddrPort
	Host, Key   string
	Tagged      bool
	Want        string // the server that has to answer
	Connections int
	Rate        int // requests per second when paced
	Warmup, For time.Duration
	// Watch are the processes whose CPU time belongs to the result.
	Watch []int
}

// Measured is what the load generator answers.
type Measured struct {
	Requests int
	Seconds  float64
	// Errors are connections that failed, and FirstError says how.
	Errors     int
	FirstError string
	// WrongAnswer makes the whole run fail.
	WrongAnswer string
	// Median and P99 are nanoseconds between sending a request and having the
	// whole answer; when paced only.
	Median, P99 float64
	Used        Accounts
	Own         time.Duration // CPU time of the generator
}

// runLoad is the load generator's process.
func runLoad(args []string) error {
	if len(args) != 1 {
		return errors.New("load: want: what to do, as JSON")
	}
	var l Load
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	m, err := l.run()
	if wrong := (wrongAnswer{}); errors.As(err, &wrong) {
		m.WrongAnswer, err = wrong.reason, nil
	}
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(m); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

func (l *Load) run() (Measured, error) {
	c := &clients{load: l, check: checker{want: l.Want}, watch: append([]int{os.Getpid()}, l.Watch...)}
	c.head = requestHead(l.Host, l.Key, l.Tagged, l.Way == connecting)
	if l.Way == paced || l.Way == pacedApart {
		return c.paced()
	}
	var err error
	if c.p, err = newPoller(); err != nil {
		return Measured{}, err
	}
	return c.loop()
}

// clients are the load generator's connections.
type clients struct {
	load  *Load
	head  []byte
	check checker
	watch []int
	p     *poller
	conns map[int]*client

	answers    int
	errors     int
	firstError string
}

type client struct {
	fd        int
	connected bool
	asked     bool
	ended     bool // the answer is there; only the connection's end is not
	buf       []byte
	n         int
}

// window is the time that is measured.
type window struct {
	c       *clients
	start   time.Time
	before  Accounts
	answers int
	errors  int
}

func (c *clients) open() (w window, err error) {
	w.c = c
	w.before, err = takeAccounts(c.watch)
	w.answers, w.errors = c.answers, c.errors
	w.start = time.Now()
	return w, err
}

func (w window) close() (Measured, error) {
	d := time.Since(w.start)
	m := Measured{
		Requests: w.c.answers - w.answers, Seconds: d.Seconds(),
		Errors: w.c.errors - w.errors, FirstError: w.c.firstError,
	}
	after, err := takeAccounts(w.c.watch)
	if err != nil {
		return m, err
	}
	m.Used = after.since(w.before)
	m.Own, m.Used.Processes = m.Used.Processes[0], m.Used.Processes[1:]
	return m, nil
}

// loop keeps every connection busy until the time is over.
func (c *clients) loop() (Measured, error) {
	c.conns = map[int]*client{}
	for range c.load.Connections {
		if err := c.dial(make([]byte, 8<<10)); err != nil {
			return Measured{}, err
		}
	}
	var w window
	warm, end := time.Now().Add(c.load.Warmup), time.Time{}
	for {
		// Not to wait for ever lets a run end whose proxy has stopped answering.
		events, err := c.p.wait(100)
		if err != nil {
			return Measured{}, err
		}
		for i := range events {
			if err := c.ready(int(events[i].Fd)); err != nil {
				return Measured{}, err
			}
		}
		switch now := time.Now(); {
		case end.IsZero() && now.After(warm):
			if w, err = c.open(); err != nil {
				return Measured{}, err
			}
			end = now.Add(c.load.For)
		case !end.IsZero() && now.After(end):
			return w.close()
		}
	}
}

// dial opens one more connection; buf is its buffer.
func (c *clients) dial(buf []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	k := &client{fd: fd, buf: buf}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(c.load.Target.Port()), Addr: c.load.Target.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return c.failed(k, fmt.Errorf("connect: %w", err))
	}
	c.conns[fd] = k
	// Edge-triggered: writable comes once, when the connection stands.
	return c.p.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
}

// errLimit is how many failed connections end a run: something is wrong then
// that no figure can express.
const errLimit = 1000

// failed counts a connection that has failed and opens another one.
func (c *clients) failed(k *client, err error) error {
	unix.Close(k.fd)
	delete(c.conns, k.fd)
	c.errors++
	if c.firstError == "" {
		c.firstError = err.Error()
	}
	if c.errors == errLimit {
		return fmt.Errorf("%d connections have failed, the first with: %s", errLimit, c.firstError)
	}
	return c.dial(k.buf)
}

// ready goes on with one connection as far as possible.
func (c *clients) ready(fd int) error {
	k := c.conns[fd]
	if k == nil {
		return nil
	}
	if !k.connected {
		if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
			return c.failed(k, fmt.Errorf("connect: %w", syscall.Errno(errno)))
		}
		k.connected = true
	}
	if !k.asked {
		k.asked = true
		if n, errno := send(fd, c.head); errno != 0 || n != len(c.head) {
			return c.failed(k, fmt.Errorf("send: %d bytes: %w", n, errno))
		}
	}
	for {
		n, errno := recv(fd, k.buf[k.n:])
		switch {
		case errno == unix.EAGAIN:
			return nil
		case errno != 0:
			return c.failed(k, fmt.Errorf("receive: %w", errno))
		case n == 0 && k.ended:
			c.answers++
			unix.Close(fd)
			delete(c.conns, fd)
			return c.dial(k.buf)
		case n == 0:
			return c.failed(k, errors.New("receive: the connection has ended before the answer"))
		}
		k.n += n
		length, err := c.check.next(k.buf[:k.n])
		switch {
		case err != nil:
			return err
		case length == 0 && k.n < len(k.buf):
			continue
		case length != k.n || k.ended:
			return wrongAnswer{fmt.Sprintf("more bytes than one answer: %q", first(k.buf[:k.n], 200))}
		}
		if c.load.Way == connecting {
			// The server closes first, so that no port of the client's stays in
			// TIME_WAIT.
			k.ended = true
			continue
		}
		k.n = 0
		c.answers++
		if n, errno := send(fd, c.head); errno != 0 || n != len(c.head) {
			return c.failed(k, fmt.Errorf("send: %d bytes: %w", n, errno))
		}
		// The answer to that cannot be there yet; its coming is a new edge.
		return nil
	}
}

// paced measures single requests on one connection.
func (c *clients) paced() (Measured, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Measured{}, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return Measured{}, fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return Measured{}, fmt.Errorf("set SO_RCVTIMEO: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(c.load.Target.Port()), Addr: c.load.Target.Addr().As4()}); err != nil {
		return Measured{}, fmt.Errorf("connect: %w", err)
	}
	interval := time.Second / time.Duration(c.load.Rate)
	times := make([]time.Duration, 0, int(c.load.For/interval)+1)
	buf := make([]byte, 8<<10)
	next := time.Now()
	warm := next.Add(c.load.Warmup)
	end := warm.Add(c.load.For)
	var w window
	for next.Before(end) {
		if d := time.Until(next); d > 0 {
			sleep(d)
		}
		if w.c == nil && !next.Before(warm) {
			if w, err = c.open(); err != nil {
				return Measured{}, err
			}
		}
		sent := time.Now()
		if err := c.ask(fd, buf); err != nil {
			return Measured{}, err
		}
		if w.c != nil {
			times = append(times, time.Since(sent))
		}
		// A request that took long delays the next ones; none is sent in a burst.
		next = next.Add(interval)
		if now := time.Now(); now.After(next) {
			next = now
		}
	}
	if len(times) == 0 {
		return Measured{}, errors.New("nothing measured: the duration is too short")
	}
	m, err := w.close()
	slices.Sort(times)
	m.Median = float64(times[len(times)/2].Nanoseconds())
	m.P99 = float64(times[len(times)*99/100].Nanoseconds())
	return m, err
}

// ask sends one request and waits for the whole answer.
func (c *clients) ask(fd int, buf []byte) error {
	if n, errno := send(fd, c.head); errno != 0 || n != len(c.head) {
		return fmt.Errorf("send: %d bytes: %w", n, errno)
	}
	for have := 0; ; {
		n, errno := recv(fd, buf[have:])
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("receive: %w", errno)
		case n == 0:
			return errors.New("receive: the connection has ended before the answer")
		}
		have += n
		length, err := c.check.next(buf[:have])
		if err != nil {
			return err
		}
		if length != 0 {
			c.answers++
			return nil
		}
	}
}
