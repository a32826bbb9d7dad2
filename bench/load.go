// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ways to load.
const (
	// keptAlive sends the next request on each connection as soon as the answer
	// is there: how much goes through.
	keptAlive = "kept-alive"
	// paced sends single requests at a low rate, to all paths in turn: how long one
	// takes. Everything runs on one core.
	paced = "paced"
	// pacedApart is paced with every hop between the two cores.
	pacedApart = "paced, two cores"
	// connecting opens a connection for each request.
	connecting = "connecting"
)

// Load is what the load generator is told.
type Load struct {
	Way         string
	Paths       []Path // one, unless paced
	Host, Key   string
	Connections int // of a path; one when paced
	Rate        int // requests per second of all paths together when paced
	Warmup, For time.Duration
	// Watch are the processes whose CPU time belongs to the result.
	Watch []int
}

// Path is where requests start from and go to.
type Path struct {
	Netns, Cgroup string // empty: the generator's own
	Target        netip.AddrPort
	Tagged        bool
	Want          string // the server that has to answer
}

// Measured is what the load generator answers. When paced there is one for each
// path.
type Measured struct {
	Requests int
	Seconds  float64
	// Errors are connections that failed, and FirstError says how.
	Errors     int
	FirstError string
	// Median and P99 are nanoseconds between sending a request and having the
	// whole answer; when paced only.
	Median, P99 float64
	Used        Accounts
	Own         time.Duration // CPU time of the generator
}

// said is all that the load generator says.
type said struct {
	Measured []Measured
	// WrongAnswer makes the whole run fail.
	WrongAnswer string
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
	// A path's namespace is its thread's.
	runtime.LockOSThread()
	m, err := l.run()
	out := said{Measured: m}
	if wrong := (wrongAnswer{}); errors.As(err, &wrong) {
		out.WrongAnswer, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

func (l *Load) run() ([]Measured, error) {
	if l.Way == paced || l.Way == pacedApart {
		return l.paced()
	}
	if len(l.Paths) != 1 {
		return nil, fmt.Errorf("load: %d paths at once", len(l.Paths))
	}
	p := &l.Paths[0]
	c := &clients{load: l, target: p.Target, check: checker{want: p.Want}}
	c.head = requestHead(l.Host, l.Key, p.Tagged, l.Way == connecting)
	if err := p.enter(); err != nil {
		return nil, err
	}
	var err error
	if c.p, err = newPoller(); err != nil {
		return nil, err
	}
	m, err := c.loop()
	return []Measured{m}, err
}

// enter brings this thread to where a path starts. A socket belongs for good to
// the namespace and the cgroup that it is made in.
func (p *Path) enter() error {
	if p.Cgroup != "" {
		if err := enterCgroup(p.Cgroup); err != nil {
			return err
		}
	}
	if p.Netns == "" {
		return nil
	}
	fd, err := unix.Open(p.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", p.Netns, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", p.Netns, err)
	}
	return nil
}

// watched are the processes whose CPU times are taken, the generator first.
func (l *Load) watched() []int { return append([]int{os.Getpid()}, l.Watch...) }

// clients are the load generator's connections.
type clients struct {
	load   *Load
	target netip.AddrPort
	head   []byte
	check  checker
	p      *poller
	conns  map[int]*client

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
	load   *Load
	start  time.Time
	before Accounts
}

func (l *Load) open() (w window, err error) {
	w.load = l
	w.before, err = takeAccounts(l.watched())
	w.start = time.Now()
	return w, err
}

func (w window) close() (Measured, error) {
	m := Measured{Seconds: time.Since(w.start).Seconds()}
	after, err := takeAccounts(w.load.watched())
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
			if w, err = c.load.open(); err != nil {
				return Measured{}, err
			}
			end = now.Add(c.load.For)
			c.answers, c.errors, c.firstError = 0, 0, ""
		case !end.IsZero() && now.After(end):
			m, err := w.close()
			m.Requests, m.Errors, m.FirstError = c.answers, c.errors, c.firstError
			return m, err
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
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(c.target.Port()), Addr: c.target.Addr().As4()})
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
