// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Config is what a Router needs to know.
type Config struct {
	// Loops is how many event loops serve; each keeps one core busy at most. Zero:
	// a quarter of the cores, at least one and at most four.
	Loops int
	// Mark is set on every socket before it connects, so that the kernel's programs
	// leave it alone. Zero sets none.
	Mark uint32
	// KeyNames says where routing keys are looked for. The zero value: the default.
	KeyNames routing.KeyNames
	// MaxHeadBytes is how long a request's head may be. Zero: 64 KiB.
	MaxHeadBytes int
	// HTTP2 bounds what a connection with HTTP/2 may cost.
	HTTP2 http2.Limits
	// V6OnlyDest finds what the client's socket with this cookie has dialled when
	// it came to the listener on ::1. It is called by the loops and must not block.
	V6OnlyDest func(socketCookie uint64) (routing.DestID, bool)
	// Ledger is told of every tagged request and connection; nil: nobody is.
	Ledger *ledger.Ledger
	// HoldSYNs makes what keeps clients' SYNs from the listeners until it is known
	// what becomes of them, for one loop; it knows SYNs of our own by Mark. Nil:
	// clients are connected before anything is dialled for them.
	HoldSYNs func() (*loader.SYNs, error)
	// MaxHeld is how many clients of one namespace may wait for their upstreams with
	// held SYNs at a time. Further SYNs are dropped, as a full backlog drops them.
	// Zero: 4096.
	MaxHeld int
	Logger  *slog.Logger
}

const (
	// DefaultMaxHeld is Config.MaxHeld where that is zero.
	DefaultMaxHeld = backlog

	defaultMaxHead = 64 << 10
	leastMaxHead   = 1 << 10
	maxLoops       = 64
	spareProcs     = 2
)

func (c *Config) complete() error {
	if c.Loops == 0 {
		c.Loops = min(max(runtime.NumCPU()/4, 1), 4)
	}
	if c.Loops < 0 || c.Loops > maxLoops {
		return fmt.Errorf("router: %d loops: want 1 to %d", c.Loops, maxLoops)
	}
	if c.MaxHeadBytes == 0 {
		c.MaxHeadBytes = defaultMaxHead
	}
	if c.MaxHeadBytes < leastMaxHead {
		return fmt.Errorf("router: heads of at most %d bytes: want at least %d", c.MaxHeadBytes, leastMaxHead)
	}
	if c.MaxHeld == 0 {
		c.MaxHeld = DefaultMaxHeld
	}
	if c.MaxHeld < 0 {
		return fmt.Errorf("router: %d held connections: want at least 1 (--max-held-connections)", c.MaxHeld)
	}
	if err := c.HTTP2.Validate(); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	c.HTTP2.Complete()
	if c.KeyNames.Members == nil && c.KeyNames.Header == "" {
		c.KeyNames = routing.DefaultKeyNames()
	}
	if err := c.KeyNames.Validate(); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// ErrClosed is returned by a Router that has been closed or is drained.
var ErrClosed = errors.New("router: closed")

// Router serves the connections that are captured. See the package's comment.
type Router struct {
	cfg   Config
	table atomic.Pointer[routing.Table]
	home  int // the network namespace that the router was made in
	loops []*loop

	mu         sync.Mutex
	namespaces map[routing.Cookie]*namespace
	draining   bool
	closed     bool

	parted chan struct{} // some loop has parted with a connection
}

// New makes a Router and starts its loops. It has an empty table and listens
// nowhere.
func New(cfg Config) (*Router, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("router: open the own network namespace: %w", err)
	}
	// A busy loop keeps one of the scheduler's processors to itself, even while it
	// waits (see waiter). Everybody else needs some as well, also where a cgroup's
	// CPU limit has made the runtime choose one: with none idle the scheduler takes a
	// loop's away 20 µs after it has begun to wait, and gives it back through two
	// threads.
	if want := cfg.Loops + spareProcs; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	r := &Router{cfg: cfg, home: home, namespaces: map[routing.Cookie]*namespace{}, parted: make(chan struct{}, 1)}
	r.table.Store(new(routing.Table))
	for range cfg.Loops {
		l, err := newLoop(r, home)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("router: %w", err), r.Close())
		}
		r.loops = append(r.loops, l)
		go l.run()
	}
	return r, nil
}

// SetTable puts a table in force for every decision from now on.
func (r *Router) SetTable(t *routing.Table) { r.table.Store(t) }

// Listen opens listeners in a namespace, or returns the ports of those that are
// open there.
func (r *Router) Listen(n Namespace) (Ports, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.draining {
		return Ports{}, ErrClosed
	}
	if ns := r.namespaces[n.Cookie]; ns != nil {
		return ns.ports, nil
	}
	ports, err := r.listen(n)
	if err != nil {
		return Ports{}, fmt.Errorf("router: listen in network namespace %s: %w", n.Name, err)
	}
	return ports, nil
}

func (r *Router) listen(n Namespace) (Ports, error) {
	fd, err := unix.FcntlInt(uintptr(n.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return Ports{}, fmt.Errorf("duplicate its descriptor: %w", err)
	}
	ns := newNamespace(n.Cookie, n.Name, fd)
	ns.home = r.loops[len(r.namespaces)%len(r.loops)]
	mark := r.cfg.Mark
	if ns.home.syns == nil {
		mark = 0
	}
	var whyNot error
	if err := inNamespace(fd, r.home, func() (err error) {
		ns.doors, ns.ports, whyNot, err = listenIn(mark)
		return err
	}); err != nil {
		ns.release()
		return Ports{}, err
	}
	if whyNot != nil {
		r.cfg.Logger.Warn(notHolding, "netns", n.Name, "err", whyNot)
	}
	if !ns.home.call(func() { err = ns.home.listen(ns) }) {
		for _, d := range ns.doors {
			d.closeAll()
		}
		err = ErrClosed
	}
	if err != nil {
		ns.release()
		return Ports{}, err
	}
	r.namespaces[n.Cookie] = ns
	return ns.ports, nil
}

// Unlisten closes a namespace's listeners. Its connections go on: those of a pod
// that is gone end by themselves, with its processes.
func (r *Router) Unlisten(cookie routing.Cookie) {
	r.mu.Lock()
	ns := r.namespaces[cookie]
	delete(r.namespaces, cookie)
	r.mu.Unlock()
	if ns == nil {
		return
	}
	ns.home.call(func() { ns.home.unlisten(ns) })
	ns.release()
}

// Drain closes the listeners and every connection on which nothing is under way,
// lets the others finish, and returns when none is left. When ctx is over first
// it resets the rest and returns ctx's error.
func (r *Router) Drain(ctx context.Context) error {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	r.unlistenAll()
	for _, l := range r.loops {
		l.call(func() {
			l.draining = true
			for c := l.conns.first; c != nil; {
				next := c.next
				c.drain()
				c = next
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for r.open() > 0 {
		select {
		case <-ctx.Done():
			for _, l := range r.loops {
				l.call(func() {
					for l.conns.first != nil {
						l.conns.first.abort()
					}
					for l.held.first != nil {
						l.held.first.turnAway(unix.ECONNREFUSED)
					}
				})
			}
			return fmt.Errorf("router: drain: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

func (r *Router) unlistenAll() {
	r.mu.Lock()
	var cookies []routing.Cookie
	for c := range r.namespaces {
		cookies = append(cookies, c)
	}
	r.mu.Unlock()
	for _, c := range cookies {
		r.Unlisten(c)
	}
}

// Close resets what is left and frees everything. It may be called again.
func (r *Router) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	r.unlistenAll()
	for _, l := range r.loops {
		l.post(func() { l.stopped = true })
	}
	for _, l := range r.loops {
		<-l.done
	}
	if err := unix.Close(r.home); err != nil {
		return fmt.Errorf("router: close the own network namespace: %w", err)
	}
	return nil
}

// Stats returns the counters.
func (r *Router) Stats() Stats {
	s := Stats{Requests: map[RequestKey]uint64{}, Opaque: map[RequestKey]uint64{}, Errors: map[string]uint64{}, Open: r.open()}
	for _, l := range r.loops {
		if !l.call(func() {
			l.stats.addTo(&s)
			for c := l.conns.first; c != nil; c = c.next {
				if c.h2 != nil {
					s.Streams += c.h2.relay.Open()
				}
			}
		}) {
			<-l.done
			l.stats.addTo(&s)
		}
	}
	return s
}

func (r *Router) open() int {
	n := 0
	for _, l := range r.loops {
		n += int(l.open.Load())
	}
	return n
}

// leastLoaded returns the loop that has the fewest connections; in doubt the one
// that asks, because giving one away costs a wake-up.
func (r *Router) leastLoaded(asking *loop) *loop {
	best, least := asking, asking.open.Load()
	for _, l := range r.loops {
		if n := l.open.Load(); n < least {
			best, least = l, n
		}
	}
	return best
}
