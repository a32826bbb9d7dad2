// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// quiet is how long nothing may have been sent or received on a connection
	// that is idle. It is also how often connections that are not are looked at.
	quiet = 100 * time.Millisecond
	// unsure is quiet for a connection of which the kernel's ticks do not tell
	// whether it waits for an answer: most answers come sooner.
	unsure = 300 * time.Millisecond
	// leaveInterval is how often those are looked at that are only counted.
	leaveInterval = 5 * time.Second
	// calm is quiet for a connection that is declared to speak HTTP/2. There the
	// client often has the last word although nobody waits (it has acknowledged
	// SETTINGS or a PING, or opened a window), and the server although somebody does.
	// Without the last word it takes longer.
	calm     = time.Second
	lastWord = 5 * time.Second
	// tellInterval is how often the agent is told that the count has changed.
	tellInterval = time.Second
	// looks is how often the sockets of a namespace are listed for one change:
	// once at once, and once more for those whose connect(2) was under way.
	looks = 2
)

// coverage says which connections are decided upon once they are opened: by the
// table in force and by where the router listens.
type coverage struct {
	table     *routing.Table
	listening map[routing.Cookie]bool
}

// of says whether a new connection from ns to dst would be steered or
// redirected, and what is wanted of those that are there already.
func (c coverage) of(ns routing.Cookie, dst netip.AddrPort) (d routing.Dest, service routing.Name, covered bool) {
	if c.table == nil {
		return d, routing.Name{}, false
	}
	d, ok := c.table.LookupDest(dst, routing.TCP)
	if !ok {
		return d, routing.Name{}, false
	}
	service, _ = c.table.ServiceOf(d.Class)
	id := c.table.Identity(ns)
	var flow routing.FlowAnswer
	if id.Sandbox != 0 {
		flow = c.table.LookupFlow(ns, dst, routing.TCP)
	}
	switch {
	case flow.Verdict != routing.ToBaseline:
		covered = true
	case id.Sandbox == 0 || id.Inject || id.Grouped && flow.Reason == routing.NoRedirect:
		covered = d.Captured && c.listening[ns]
	}
	return d, service, covered
}

// gains returns the namespaces in which c covers something that old does not.
func (c coverage) gains(old coverage, all []pods.Namespace) []pods.Namespace {
	// All untagged namespaces in which the router has been listening before, or
	// has not been, are alike.
	type kind struct {
		identity        routing.Identity
		was             routing.Identity
		listened, hears bool
	}
	var oldIdentity func(routing.Cookie) routing.Identity
	if old.table != nil {
		oldIdentity = old.table.Identity
	} else {
		oldIdentity = func(routing.Cookie) routing.Identity { return routing.Identity{} }
	}
	known := map[kind]bool{}
	var out []pods.Namespace
	for _, ns := range all {
		k := kind{c.table.Identity(ns.Cookie), oldIdentity(ns.Cookie), old.listening[ns.Cookie], c.listening[ns.Cookie]}
		gain, ok := known[k]
		if !ok {
			for dst := range c.table.Dests() {
				if dst.Protocol != routing.TCP {
					continue
				}
				ap := netip.AddrPortFrom(dst.Addr, dst.Port)
				if _, _, now := c.of(ns.Cookie, ap); !now {
					continue
				}
				if _, _, before := old.of(ns.Cookie, ap); !before {
					gain = true
					break
				}
			}
			known[k] = gain
		}
		if gain {
			out = append(out, ns)
		}
	}
	return out
}

// idle reports whether nobody waits for anything on a connection. Nothing but
// the transport is known of it: what was sent is acknowledged, what was
// received has been read, the last word was the peer's, and it has been quiet
// for a moment.
//
// The kernel's times are in ticks (4 ms on many kernels), so a quick answer
// comes in the same tick as its request, and then they do not say which of the
// two was last. But a peer that has not answered acknowledges the request by
// itself, and does so with a delay of some 40 ms once a connection has had an
// answer. An acknowledgement that came much later is a keep-alive's. (On a
// connection's first exchanges the acknowledgement may come without a delay;
// a request that followed the answer before it within a tick is then taken for
// answered, after a longer while.)
//
// On one that is declared to speak HTTP/2 the last word tells little, so there it
// is silence alone that counts.
func idle(s *sockdiag.Socket, http2 bool) bool {
	i := &s.Info
	silent := min(i.Last_data_sent, i.Last_data_recv)
	switch {
	case s.State != sockdiag.Established, s.Unread > 0, s.Unsent > 0, i.Unacked > 0, i.Notsent_bytes > 0:
		return false
	case silent < uint32(quiet.Milliseconds()):
		return false
	case i.Bytes_received == 0 && i.Data_segs_out == 0:
		return true // never used
	case http2 && i.Last_data_recv < i.Last_data_sent:
		return silent >= uint32(calm.Milliseconds())
	case http2:
		return silent >= uint32(lastWord.Milliseconds())
	case i.Bytes_received == 0:
		return false
	case i.Data_segs_out == 0:
		return true // the peer greeted
	case i.Last_data_recv != i.Last_data_sent:
		return i.Last_data_recv < i.Last_data_sent // times ago
	}
	late := i.Last_data_recv - min(i.Last_data_recv, i.Last_ack_recv)
	return late >= 1000 || late == 0 && i.Last_data_recv >= uint32(unsure.Milliseconds())
}

// sweeper closes connections that were opened before they would have been
// captured or redirected. It has one goroutine.
type sweeper struct {
	mark   uint32
	cgroup string
	limit  time.Duration // how long the policy Idle waits; zero: for ever
	log    *slog.Logger
	said   bool // that this kernel cannot do it

	mu  sync.Mutex
	now coverage
	// gained counts the sweeps that have covered anything more, and looked is up to which
	// of them all connections have been looked for.
	gained, looked uint64
	todo           map[routing.Cookie]*place
	seen           map[routing.Cookie]bool // all namespaces of the last sweep; nil before the first
	left           map[routing.Name]int    // connections that are still uncovered, by Service
	closed         metrics.ClosedConnections

	changes chan struct{} // left has changed
	untold  bool
	told    time.Time

	wake    chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once
}

// place is a namespace in which the sweeper is at work.
type place struct {
	cookie routing.Cookie
	cgroup string   // that the sockets' owners are below; empty: the sweeper's
	fd     int      // its own
	before coverage // what was covered when the first of the changes came
	late   bool     // it was there before we knew of it
	looks  int      // how often to list sockets still
	diag   *sockdiag.Diag
	found  map[uint64]*found // by socket cookie
	rest   time.Time         // not to be looked at before, because that has failed
}

// found is a connection that is to be closed, or only counted.
type found struct {
	socket sockdiag.Socket
	next   time.Time // when to look again
	since  time.Time // when it was found
	late   bool      // made by a pod that we did not know yet
}

func newSweeper(mark uint32, cgroup string, limit time.Duration, log *slog.Logger) *sweeper {
	s := &sweeper{
		mark:    mark,
		cgroup:  cgroup,
		limit:   limit,
		log:     log,
		todo:    map[routing.Cookie]*place{},
		changes: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	s.stopped.Go(s.run)
	return s
}

func (s *sweeper) close() {
	s.once.Do(func() { close(s.stop) })
	s.stopped.Wait()
}

// uncovered returns how many connections to each Service still go where no tag
// is looked at.
func (s *sweeper) uncovered() map[routing.Name]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.left)
}

// counted reports whether uncovered counts for all that is covered.
func (s *sweeper) counted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looked == s.gained
}

// endings returns how many connections have been closed, by why.
func (s *sweeper) endings() metrics.ClosedConnections {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// sweep is called after every change of coverage, with all namespaces.
func (s *sweeper) sweep(now coverage, all []pods.Namespace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.now
	s.now = now
	there := map[routing.Cookie]bool{}
	for _, ns := range all {
		there[ns.Cookie] = true
	}
	for c, p := range s.todo {
		if !there[c] {
			p.looks = -1 // the goroutine lets it go
		}
	}
	gains := now.gains(before, all)
	if len(gains) > 0 {
		s.gained++
	}
	for _, ns := range gains {
		p := s.todo[ns.Cookie]
		if p == nil {
			fd, err := unix.FcntlInt(uintptr(ns.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				s.log.Error("connections from before a redirect are not looked for", "namespace", ns.Name, "err", err)
				continue
			}
			p = &place{cookie: ns.Cookie, cgroup: ns.Cgroup, fd: fd, before: before, found: map[uint64]*found{}}
			p.late = s.seen != nil && !s.seen[ns.Cookie]
			s.todo[ns.Cookie] = p
		} else if p.looks == 0 {
			p.late = false
		}
		if p.looks == 0 {
			p.before = before
		}
		p.looks = looks
	}
	s.seen = there
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sweeper) run() {
	timer := time.NewTimer(quiet)
	timer.Stop()
	defer func() {
		for _, p := range s.todo {
			p.letGo()
		}
	}()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-timer.C:
		}
		began := time.Now()
		if busy := s.pass(began); busy {
			// Looking at many connections must not take a processor.
			timer.Reset(max(quiet, 10*time.Since(began)))
		}
	}
}

// pass goes once through all places and reports whether it has to be done again.
func (s *sweeper) pass(now time.Time) bool {
	s.mu.Lock()
	places := make([]*place, 0, len(s.todo))
	var resting []*place
	list := map[*place]coverage{}
	for c, p := range s.todo {
		if p.looks < 0 || p.looks == 0 && len(p.found) == 0 {
			p.letGo()
			delete(s.todo, c)
			continue
		}
		if now.Before(p.rest) {
			resting = append(resting, p)
			continue
		}
		if p.looks > 0 {
			p.looks--
			list[p] = p.before
		}
		places = append(places, p)
	}
	cover, gained := s.now, s.gained
	s.mu.Unlock()

	var inside func(*sockdiag.Socket) bool
	if len(list) > 0 {
		inside = membersOf(s.cgroup)
	}
	left := map[routing.Name]int{}
	for _, p := range places {
		var before *coverage
		if b, ok := list[p]; ok {
			before = &b
		}
		mine := inside
		if p.cgroup != "" && before != nil {
			mine = membersOf(p.cgroup)
		}
		switch err := s.visit(p, cover, before, mine, now); {
		case errors.Is(err, sockdiag.ErrNoDiag):
			s.cannot(err)
			clear(p.found)
		case err != nil:
			// What has been found is still there, as far as anybody knows.
			s.log.Warn("connections from before a redirect are looked at again in a while", "err", err)
			s.mu.Lock()
			if p.rest = now.Add(leaveInterval); before != nil && p.looks >= 0 {
				p.looks++
			}
			s.mu.Unlock()
			if p.diag != nil {
				p.diag.Close()
				p.diag = nil
			}
		}
		p.count(cover, left)
	}
	for _, p := range resting {
		p.count(cover, left)
	}
	s.mu.Lock()
	s.untold = s.untold || !maps.Equal(s.left, left)
	s.left = left
	first := s.looked != gained
	s.looked = gained
	s.mu.Unlock()
	if first || s.untold && (len(left) == 0 || now.Sub(s.told) >= tellInterval) {
		s.untold, s.told = false, now
		select {
		case s.changes <- struct{}{}:
		default:
		}
	}
	return len(places)+len(resting) > 0
}

// count counts what has been found by the Service that it leads to.
func (p *place) count(cover coverage, left map[routing.Name]int) {
	for _, f := range p.found {
		if _, service, covered := cover.of(p.cookie, f.socket.Peer); covered {
			left[service]++
		}
	}
}

// visit closes what it may in a namespace. With before it first lists the sockets
// there that are inside and were not covered then.
func (s *sweeper) visit(p *place, cover coverage, before *coverage, inside func(*sockdiag.Socket) bool, now time.Time) error {
	if p.diag == nil {
		d, err := sockdiag.Open(p.fd)
		if err != nil {
			return err
		}
		p.diag = d
	}
	if before != nil {
		err := p.diag.List(func(t *sockdiag.Socket) {
			// A socket that is bound to a device other than lo is never steered.
			if t.Mark == s.mark || t.Device > 1 || p.found[t.Cookie] != nil || !inside(t) {
				return
			}
			if _, _, covered := cover.of(p.cookie, t.Peer); !covered {
				return
			}
			if _, _, covered := before.of(p.cookie, t.Peer); !covered {
				p.found[t.Cookie] = &found{socket: *t, since: now, late: p.late}
			}
		})
		if err != nil {
			return err
		}
	}
	for c, f := range p.found {
		dest, _, covered := cover.of(p.cookie, f.socket.Peer)
		if !covered {
			delete(p.found, c) // the redirect is gone again
			continue
		}
		policy, closed := dest.Existing, &s.closed.Idle
		// The policy is about connections from before a redirect. What a sandbox's
		// own pod dialled before it was known as such is not: it is tagged, however
		// busy it is.
		if f.late && cover.table.LookupFlow(p.cookie, f.socket.Peer, routing.TCP).Verdict != routing.ToBaseline {
			policy = routing.All
		}
		switch {
		case policy == routing.All:
			closed = &s.closed.All
		case policy == routing.Idle && s.limit > 0 && now.Sub(f.since) >= s.limit:
			policy, closed = routing.All, &s.closed.Limit
		}
		gone, ended := false, false
		if !now.Before(f.next) {
			var err error
			if gone, ended, err = p.end(f, policy, dest.HTTP2); errors.Is(err, sockdiag.ErrNoDestroy) {
				f.next = now.Add(leaveInterval)
				s.cannot(err)
			} else if err != nil {
				return err
			}
			if policy == routing.Leave {
				f.next = now.Add(leaveInterval)
			}
		}
		if ended {
			s.mu.Lock()
			*closed++
			s.mu.Unlock()
		}
		if gone {
			delete(p.found, c)
		}
	}
	return nil
}

// cannot says once what this kernel cannot do.
func (s *sweeper) cannot(err error) {
	if !s.said {
		s.log.Error("connections from before a redirect may stay on the baseline", "err", err)
	}
	s.said = true
}

// end closes a connection if its policy lets it, and reports whether it is gone,
// and whether that is its doing. It looks right before it closes, so that a request
// has the least chance to come in between.
func (p *place) end(f *found, policy routing.ExistingPolicy, http2 bool) (gone, ended bool, err error) {
	now, ok, err := p.diag.Query(&f.socket)
	if err != nil || !ok {
		return err == nil, false, err
	}
	if now.State != sockdiag.Established && now.State != sockdiag.SynSent {
		return true, false, nil
	}
	if policy == routing.All || policy == routing.Idle && idle(&now, http2) {
		err := p.diag.Destroy(&f.socket)
		return err == nil, err == nil, err
	}
	return false, false, nil
}

// membersOf tells the sockets of a cgroup and those below it, which the kernel's
// programs are run for, from others. In the host's network namespace there are
// many that are nobody's pod's.
func membersOf(cgroup string) func(*sockdiag.Socket) bool {
	if cgroup == "" {
		return func(*sockdiag.Socket) bool { return true }
	}
	if real, err := filepath.EvalSymlinks(cgroup); err == nil {
		cgroup = real // WalkDir does not follow the first step either
	}
	ids := map[uint64]bool{0: true}
	// A cgroup that vanishes meanwhile takes its sockets' owners with it.
	_ = filepath.WalkDir(cgroup, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			// A cgroup's id is its directory's inode number.
			ids[info.Sys().(*syscall.Stat_t).Ino] = true
		}
		return nil
	})
	return func(t *sockdiag.Socket) bool { return ids[t.Cgroup] }
}

func (p *place) letGo() {
	if p.diag != nil {
		p.diag.Close()
	}
	unix.Close(p.fd)
}
