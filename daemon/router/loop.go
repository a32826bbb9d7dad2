// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/conntrack"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// readSize is how much is read at once, and so how much can be left over of one
// read when a peer does not take it.
const readSize = 64 << 10

// loop owns a share of the connections and one thread. Only post, open and done
// may be used from elsewhere.
type loop struct {
	router *Router
	epoll  int
	home   int // the network namespace that the thread belongs to
	wakeFD int

	sockets   []slot
	free      []int32 // unused places in sockets
	timers    timers
	delays    delays
	bufs      pool
	conns     connList
	syns      *loader.SYNs     // nil: SYNs are not held
	conntrack *conntrack.Table // of the home namespace; nil: it cannot be asked
	holding   map[uint64]*door // whose SYNs are, by the outer listener's cookie
	held      connList         // connections that have not been accepted yet
	sweep     timer
	again     []*conn    // have more to do but have had their turn
	in        *namespace // where the thread is now; nil: at home
	stats     counters
	random    *rand.Rand

	complained time.Time // when it was last logged that connections are not accepted

	// read, made, req, keys and resp are for whoever is being served right now.
	read []byte
	made []byte
	req  http1.Request
	keys routing.KeySet
	resp http1.Response
	h2   *http2.Shared
	syn  loader.SYN

	// finished are the records to be made, which have waited for so many turns.
	finished   []*ledger.Entry
	unrecorded int
	spare      []*ledger.Entry

	waiter   waiter
	draining bool
	stopped  bool

	// parting are connections that another process may take over, up to wanted more
	// of them; see giveaway.go.
	parting []*conn
	wanted  int
	midway  bool

	open atomic.Int32 // connections
	done chan struct{}

	mu    sync.Mutex
	posts []func()
	over  bool // nobody takes posts any more
}

// slot is a place in a loop's table of sockets. The generation tells an event
// of a socket that has been closed from one of its successor in the same place.
type slot struct {
	s          *socket
	generation int32
}

// socket is a descriptor that a loop watches, and what epoll has last said of
// it. Epoll is edge-triggered: a flag stays until a call proves it wrong.
type socket struct {
	fd       int32
	slot     int32
	readable bool
	writable bool
	ending   bool // FIN or worse is there, behind what can be read
	failed   bool // the kernel has an error to tell, such as RST

	// Exactly one is set.
	conn     *conn
	upstream *upstream
	listener *door
	wake     *loop
	syns     bool
}

func newLoop(r *Router, home int) (*loop, error) {
	l := &loop{
		router: r, home: home, epoll: -1, wakeFD: -1,
		read:   make([]byte, readSize),
		delays: defaultDelays(), done: make(chan struct{}), holding: map[uint64]*door{},
		//nolint:gosec // which endpoint comes first is no secret
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
	}
	l.timers.start = time.Now()
	l.req.Names, l.req.Keys = &r.cfg.KeyNames, &l.keys
	l.h2 = http2.NewShared(r.cfg.HTTP2, &r.cfg.KeyNames)
	l.stats.init()
	l.sweep.fire = l.sweepHeld
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(l.epoll)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	if err := l.watch(&socket{fd: int32(l.wakeFD), wake: l}, unix.EPOLLIN); err != nil {
		unix.Close(l.epoll)
		unix.Close(l.wakeFD)
		return nil, err
	}
	if r.cfg.Ledger != nil {
		if l.conntrack, err = conntrack.Open(); err != nil {
			r.cfg.Logger.Warn(notNamed, "err", err)
		}
	}
	if r.cfg.HoldSYNs == nil {
		return l, nil
	}
	if l.syns, err = r.cfg.HoldSYNs(); err != nil {
		l.syns = nil
		r.cfg.Logger.Warn(notHolding, "err", err)
		return l, nil
	}
	if err := l.watch(&socket{fd: int32(l.syns.FD()), syns: true}, unix.EPOLLIN); err != nil {
		l.closeAll()
		return nil, err
	}
	return l, nil
}

// post has f run by the loop, in order. It returns false when the loop is over
// and never will.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return false
	}
	l.posts = append(l.posts, f)
	first := len(l.posts) == 1
	l.mu.Unlock()
	if first {
		l.wake()
	}
	return true
}

func (l *loop) wake() {
	one := uint64(1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(l.wakeFD), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
}

// call has f run by the loop and waits for it.
func (l *loop) call(f func()) bool {
	ran := make(chan struct{})
	if !l.post(func() { f(); close(ran) }) {
		return false
	}
	<-ran
	return true
}

// connEvents is what every connection is watched for, from its first to its
// last moment: one call for each socket.
const connEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// watch adds a socket to the loop.
func (l *loop) watch(s *socket, events uint32) error {
	if n := len(l.free); n > 0 {
		s.slot = l.free[n-1]
		l.free = l.free[:n-1]
	} else {
		s.slot = int32(len(l.sockets))
		l.sockets = append(l.sockets, slot{})
	}
	p := &l.sockets[s.slot]
	p.s = s
	ev := unix.EpollEvent{Events: events, Fd: s.slot, Pad: p.generation}
	if _, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.epoll), unix.EPOLL_CTL_ADD, uintptr(s.fd), uintptr(unsafe.Pointer(&ev)), 0, 0); e != noError {
		l.forget(s)
		return fmt.Errorf("watch a socket: %w", e)
	}
	return nil
}

// forget takes a socket out of the loop; the caller closes its descriptor, which
// takes it out of epoll's set.
func (l *loop) forget(s *socket) {
	p := &l.sockets[s.slot]
	p.s = nil
	p.generation++
	l.free = append(l.free, s.slot)
}

// enter brings the thread into a namespace, to make sockets there. It goes home
// before it waits or serves anything else but the same batch of events: a
// thread that stays keeps the namespace alive.
func (l *loop) enter(ns *namespace) unix.Errno {
	if l.in == ns {
		return noError
	}
	if e := setns(ns.fd); e != noError {
		return e
	}
	l.in = ns
	return noError
}

func (l *loop) leave() {
	if l.in == nil {
		return
	}
	if e := setns(l.home); e != noError {
		panic(fmt.Sprintf("router: cannot leave network namespace %s: %v", l.in.name, e))
	}
	l.in = nil
}

const maxEvents = 256

// run serves until close. It never recovers from a panic: when the process dies
// the kernel sends new connections straight to the baseline, whereas a loop in
// an unknown state could send one to the wrong place.
func (l *loop) run() {
	runtime.LockOSThread()
	defer close(l.done)
	events := make([]unix.EpollEvent, maxEvents)
	for !l.stopped {
		timeout := l.timers.wait()
		if len(l.again) > 0 {
			timeout = 0
		}
		if l.recordsSoon() && (timeout < 0 || timeout > holdFor) {
			timeout = holdFor
		}
		n := l.waiter.wait(l.epoll, events, timeout)
		if n == 0 {
			l.makeRecords()
		}
		for i := range n {
			l.event(&events[i])
		}
		if len(l.again) > 0 {
			l.turn()
		}
		l.timers.run()
		l.leave()
	}
	l.shut()
}

func (l *loop) event(ev *unix.EpollEvent) {
	p := &l.sockets[ev.Fd]
	s := p.s
	if s == nil || p.generation != ev.Pad {
		return // closed while this batch of events was served
	}
	if ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
		if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			s.ending = true
			s.failed = s.failed || ev.Events&unix.EPOLLERR != 0
		}
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		s.writable = true
	}
	switch {
	case s.conn != nil:
		s.conn.clientEvent()
	case s.upstream != nil:
		s.upstream.event()
	case s.listener != nil:
		l.accept(s)
	case s.syns:
		l.takeSYNs()
	case s.wake != nil:
		l.takePosts()
	}
}

func (l *loop) takePosts() {
	var count uint64
	unix.RawSyscall(unix.SYS_READ, uintptr(l.wakeFD), uintptr(unsafe.Pointer(&count)), unsafe.Sizeof(count))
	l.mu.Lock()
	posts := l.posts
	l.posts = nil
	l.mu.Unlock()
	for _, f := range posts {
		f()
	}
}

// turn gives those their next turn who had more to do than one event may take.
func (l *loop) turn() {
	again := l.again
	l.again = nil
	for _, c := range again {
		c.queued = false
		if !c.dead {
			c.run()
		}
	}
}

// shut resets every connection and closes what the loop owns.
func (l *loop) shut() {
	l.mu.Lock()
	l.over = true
	posts := l.posts
	l.posts = nil
	l.mu.Unlock()
	for _, f := range posts {
		f()
	}
	for c := l.conns.first; c != nil; c = l.conns.first {
		c.abort()
	}
	for c := l.held.first; c != nil; c = l.held.first {
		c.turnAway(unix.ECONNREFUSED)
	}
	if l.syns != nil {
		l.takeAllSYNs()
	}
	for _, d := range l.holding {
		if d.ns.last.at != 0 {
			l.timers.clear(&d.ns.last)
			d.ns.last.fire()
		}
	}
	for _, c := range l.parting {
		c.letGo(true)
	}
	l.parting = nil
	l.makeRecords()
	l.leave()
	l.closeAll()
}

// closeAll closes what is the loop's own.
func (l *loop) closeAll() {
	if l.syns != nil {
		if err := l.syns.Close(); err != nil {
			l.router.cfg.Logger.Warn("the ring of SYNs is not closed", "err", err)
		}
	}
	if l.conntrack != nil {
		l.conntrack.Close()
	}
	unix.Close(l.epoll)
	unix.Close(l.wakeFD)
}

func (l *loop) table() *routing.Table { return l.router.table.Load() }
