// SPDX-License-Identifier: Apache-2.0

// Package flows follows the tagged flows of this node's pods to their end, and tells the
// ledger: who called whom, which pod answers, how long it lasted and what it carried.
//
// It owns which flows are followed, and the sockets by which the kernel tells of ends: one
// in each namespace of a pod that is a sandbox's own and whose flows no router decides
// about, and none anywhere else. While there is one, the kernel has work with each TCP
// socket of the host that ends, in whichever namespace: see decision 15. It decides nothing about traffic. It follows TCP in
// pods that have a network of their own; of all else it tells as it begins. A Follower's
// methods may be called concurrently, Watch and Close by one goroutine at a time.
package flows

import (
	"cmp"
	"container/list"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/conntrack"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// hold is how long a flow may be over without having had a record while it was
	// under way: of most, one says all.
	hold = 50 * time.Millisecond
	// lookEvery bounds how often it is looked which pods open flows lead to: the kernel
	// looks at all connections of the host for it. A flow waits for that for patience at most.
	lookEvery = 100 * time.Millisecond
	patience  = time.Second
	// gather and pause are how long the ends of one namespace, and all of them, are
	// gathered while they follow on one another.
	gather = 2 * time.Millisecond
	pause  = 20 * time.Millisecond
	// defaultMost is how many flows are followed at a time, some 300 bytes each, and
	// defaultBuffer the room for messages about ends in one namespace, which the kernel
	// takes when it needs it.
	defaultMost   = 16384
	defaultBuffer = 4 << 20
	// mostWaiting is how many ends wait to be sifted, some 120 bytes each. Beyond, they
	// wait in the kernel, which says what it drops.
	mostWaiting = 16384
	// defaultGrace is how long after ends were lost it is still waited for that of a flow
	// whose socket is not to be seen. One that the peer has reset and the application has
	// not closed yet is not, and its end is told in time.
	defaultGrace = 10 * time.Second
)

// Reader tells of flows as they begin: loader.FlowReader.
type Reader interface {
	Read() (loader.Flow, error)
	Flush() error
	Close() error
}

// Config is what a Follower needs.
type Config struct {
	Reader Reader
	Ledger *ledger.Ledger
	Logger *slog.Logger
	// Most is how many flows are followed at a time; the oldest are let go of. Buffer
	// is the room for messages in each namespace. Zero: 16384, and 4 MiB.
	Most, Buffer int

	// For tests.
	gather, grace time.Duration
	waiting       int
}

// Follower follows flows. See the package's comment.
type Follower struct {
	cfg       Config
	log       *slog.Logger
	flushed   chan struct{} // one for each Flush
	stop      chan struct{}
	deaf      chan struct{} // closed when nothing is heard any more of what begins
	running   sync.WaitGroup
	host      fileID
	tracks    sync.Mutex       // held while asking conntrack
	conntrack *conntrack.Table // nil: it cannot be asked

	mu      sync.Mutex
	table   *routing.Table
	places  map[routing.Cookie]*place
	known   map[uint64]*flow // by socket
	order   *list.List       // of *flow, the oldest first
	held    []*flow          // those that may need a record while under way, in order
	over    []over
	waiting int           // see mostWaiting
	room    *sync.Cond    // less is waiting
	wake    chan struct{} // there is something in held
	ended   chan struct{} // there is something in over
	lastAsk time.Time
}

// flow is one that is followed.
type flow struct {
	ledger.Flow
	began  time.Time // At, by the monotonic clock as well
	socket uint64
	place  *place
	at     *list.Element
	told   bool // it has a record already
	gone   bool // nothing is expected of it any more
}

// over is what is told of ends in one namespace.
type over struct {
	place *place
	ends  []sockdiag.End
	// With alive, ends are missing. These are the sockets that there were at a time.
	alive map[uint64]bool
	at    time.Time
}

// New begins to follow flows that Reader tells of. Close ends it, and the Reader.
func New(cfg Config) *Follower {
	cfg.Most = cmp.Or(cfg.Most, defaultMost)
	cfg.Buffer = cmp.Or(cfg.Buffer, defaultBuffer)
	cfg.gather = cmp.Or(cfg.gather, gather)
	cfg.waiting = cmp.Or(cfg.waiting, mostWaiting)
	cfg.grace = cmp.Or(cfg.grace, defaultGrace)
	f := &Follower{
		cfg: cfg, log: cfg.Logger, flushed: make(chan struct{}), stop: make(chan struct{}), deaf: make(chan struct{}),
		table: new(routing.Table), places: map[routing.Cookie]*place{}, known: map[uint64]*flow{}, order: list.New(),
		wake: make(chan struct{}, 1), ended: make(chan struct{}, 1),
	}
	f.room = sync.NewCond(&f.mu)
	f.host, _ = identify("/proc/self/ns/net")
	var err error
	if f.conntrack, err = conntrack.Open(); err != nil {
		f.log.Warn("the pod that a flow to a Service's own address leads to is named only where a socket load balancer has chosen it", "err", err)
	}
	f.running.Go(f.read)
	f.running.Go(f.sift)
	f.running.Go(f.look)
	return f
}

// Close ends it. Flows that are under way leave no further record.
func (f *Follower) Close() error {
	close(f.stop)
	err := f.cfg.Reader.Close()
	f.mu.Lock()
	for _, p := range f.places {
		p.end()
	}
	f.room.Broadcast()
	f.mu.Unlock()
	f.running.Wait()
	if f.conntrack != nil {
		f.conntrack.Close()
	}
	return err
}

// read takes in flows as they begin.
func (f *Follower) read() {
	for {
		begun, err := f.cfg.Reader.Read()
		switch {
		case err == nil:
			f.begin(&begun)
		case errors.Is(err, loader.ErrFlushed):
			select {
			case f.flushed <- struct{}{}:
			case <-f.stop:
			case <-f.deaf:
			}
		case errors.Is(err, os.ErrClosed):
			return
		default:
			f.log.Error("flows leave no records any more", "err", err)
			f.giveUp()
			return
		}
	}
}

// giveUp ends all that has been for flows, of which none is heard any more.
func (f *Follower) giveUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isDeaf() {
		return
	}
	close(f.deaf)
	for c, p := range f.places {
		delete(f.places, c)
		p.end()
	}
	f.over, f.waiting = nil, 0
	f.room.Broadcast()
	now := time.Now()
	for _, n := range f.known {
		f.lost(n, "what it carried is not known: the agent has lost sight of flows", now)
	}
}

func (f *Follower) isDeaf() bool {
	select {
	case <-f.deaf:
		return true
	default:
		return false
	}
}

func (f *Follower) begin(b *loader.Flow) {
	begun := ledger.Flow{
		At: b.At, Source: b.Source, Sandbox: b.Sandbox, Dialled: b.Dialled, Protocol: b.Protocol,
		Datagrams: b.Datagrams, Verdict: b.Verdict, Reason: b.Reason, Endpoint: b.Endpoint,
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.places[b.Source]
	if p == nil || b.Protocol != routing.TCP || b.Verdict == routing.Refuse {
		f.cfg.Ledger.AddFlow(begun)
		return
	}
	if before := f.known[b.Socket]; before != nil {
		f.unknown(before, "refused, or given up: its socket has connected anew; what it may have carried until then is not known", b.At)
	}
	begun.ID = f.cfg.Ledger.FlowID()
	// All its records have one time, which a clock that is set does not change.
	begun.At = begun.At.Round(0)
	n := &flow{Flow: begun, began: b.At, socket: b.Socket, place: p}
	n.at = f.order.PushBack(n)
	f.known[b.Socket] = n
	f.held = append(f.held, n)
	notify(f.wake)
	if len(f.known) > f.cfg.Most {
		oldest := f.order.Front().Value.(*flow)
		f.open(oldest)
		f.forget(oldest)
		f.cfg.Ledger.MissedEnds(1)
	}
}

// forget stops expecting anything of a flow. The caller holds the lock, here and below.
func (f *Follower) forget(n *flow) {
	if !n.gone {
		n.gone = true
		f.order.Remove(n.at)
		delete(f.known, n.socket)
	}
}

// open makes a record of a flow that is under way, unless there is one.
func (f *Follower) open(n *flow) {
	if n.told || n.gone {
		return
	}
	n.told = true
	last := n.Flow
	last.Open = true
	f.cfg.Ledger.AddFlow(last)
}

// unknown makes a flow's last record, without what it has carried.
func (f *Follower) unknown(n *flow, why string, at time.Time) {
	f.forget(n)
	n.Lasted = max(at.Sub(n.began), 0)
	n.Error = why
	f.cfg.Ledger.AddFlow(n.Flow)
}

// lost is unknown where that should not be, which is counted.
func (f *Follower) lost(n *flow, why string, at time.Time) {
	f.unknown(n, why, at)
	f.cfg.Ledger.MissedEnds(1)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Watch has flows followed in those of some namespaces in which pods of a sandbox are
// whose flows the table decides about; routed says in which of them the router decides instead. Call
// it before the table is in force: of what begins before, the end is not told.
func (f *Follower) Watch(t *routing.Table, all []pods.Namespace, routed func(routing.Cookie) bool) {
	wanted := map[routing.Cookie]bool{}
	var missing []*pods.Namespace
	f.mu.Lock()
	f.table = t
	deaf := f.isDeaf()
	for i := range all {
		ns := &all[i]
		id := t.Identity(ns.Cookie)
		if deaf || id.Sandbox == 0 || id.Inject && routed(ns.Cookie) || ns.Cookie.IsHostPod() {
			continue
		}
		wanted[ns.Cookie] = true
		if f.places[ns.Cookie] == nil {
			missing = append(missing, ns)
		}
	}
	for c, p := range f.places {
		if wanted[c] {
			continue
		}
		delete(f.places, c)
		p.end()
	}
	f.mu.Unlock()
	for _, ns := range missing {
		p, err := f.openPlace(ns)
		if err != nil {
			f.log.Error("what flows of a pod carry is not known", "namespace", ns.Name, "err", err)
			continue
		}
		if p == nil {
			continue
		}
		f.mu.Lock()
		if f.isDeaf() {
			p.end()
		} else {
			f.places[ns.Cookie] = p
		}
		f.mu.Unlock()
		f.running.Go(func() { f.hear(p) })
	}
}

type fileID struct{ dev, ino uint64 }

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return fileID{uint64(st.Dev), st.Ino}, err
}

// answering finds out who answers a connection from one address to another, where that
// is not to be seen. Where it is not sure it may be known later: connection
// tracking knows a connection once its SYN is on the way.
func (f *Follower) answering(t *routing.Table, from, to netip.AddrPort) (by netip.AddrPort, sure bool) {
	if !to.IsValid() || to.Port() == 0 {
		return netip.AddrPort{}, false
	}
	if _, pod := t.PodAt(to); pod || f.conntrack == nil || from.Addr().Is4() != to.Addr().Is4() {
		return to, true
	}
	f.tracks.Lock()
	defer f.tracks.Unlock()
	if by, err := f.conntrack.Answering(from, to); err == nil {
		return by, true
	}
	return to, false
}
