// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// maxAccepts is how many connections one event of a listener takes, so that a
// storm of new ones does not starve those that are there.
const maxAccepts = 64

// lastSYNs is how long a door refuses SYNs when its listeners are closed.
const lastSYNs = time.Second

// complainEvery bounds how often it is logged that connections are not accepted.
const complainEvery = 10 * time.Second

// arrival is a connection that has been accepted and not been given to a loop
// yet.
type arrival struct {
	ns   *namespace
	fd   int32
	dest routing.DestID
	addr netip.AddrPort // as dialled
	bind netip.Addr     // the source address that the client has chosen, if it has
}

// door is where the clients of a namespace come in by one protocol.
type door struct {
	ns *namespace
	// outer is the listener that clients dial. Where SYNs are held, it gets none of
	// them but those that carry no mark of ours, and these are kept from it.
	outer socket
	// inner listens at the same address, and gets the SYNs that do: the kernel
	// chooses by the mark. No descriptor: SYNs are not held.
	inner socket
	// raw sends packets of our own; -1: SYNs are not held.
	raw    int32
	cookie uint64 // of outer
}

func (d *door) holds() bool { return d.inner.fd >= 0 }

// listeners returns the sockets that there are. The outer one comes first: closed
// before the other one, it leaves nobody to those that it was to be kept from.
func (d *door) listeners() []*socket {
	if d.holds() {
		return []*socket{&d.outer, &d.inner}
	}
	return []*socket{&d.outer}
}

// closeAll closes the descriptors.
func (d *door) closeAll() {
	for _, fd := range []int32{d.outer.fd, d.inner.fd, d.raw} {
		if fd >= 0 {
			closeFD(fd)
		}
	}
}

// accept takes connections from a listener.
func (l *loop) accept(s *socket) {
	for range maxAccepts {
		if !l.acceptOne(s) {
			return
		}
	}
}

// acceptOne takes one, and reports whether there may be more.
func (l *loop) acceptOne(s *socket) bool {
	ns := s.listener.ns
	fd, peer, e := accept(s.fd)
	switch e {
	case noError:
	case unix.EAGAIN:
		return false
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		// The listener stays ready; without a pause the loop would spin.
		l.stats.errors[acceptFailed]++
		l.pause(s, e)
		return false
	default:
		l.stats.errors[acceptFailed]++
		return true // a connection that was reset before it was accepted
	}
	l.stats.accepted++
	to := localAddr(fd)
	if s == &s.listener.outer && s.listener.holds() {
		detachFilter(fd) // it has its listener's
	}
	if c := ns.held[synKey{peer, to.Addr()}]; c != nil && c.syn.passed != 0 {
		c.admit(fd)
		return true
	}
	l.stats.errors[notHeld]++
	a := arrival{ns: ns, fd: fd}
	if !l.originalDestination(&a, peer, to) {
		l.stats.errors[unknownDestination]++
		resetFD(fd)
		return true
	}
	ns.hold()
	best := l.router.leastLoaded(l)
	best.open.Add(1)
	if best == l {
		l.adopt(a)
	} else if !best.post(func() { best.adopt(a) }) {
		best.open.Add(-1)
		resetFD(fd)
		ns.release()
	}
	return true
}

// pause stops listening for a moment.
func (l *loop) pause(s *socket, why unix.Errno) {
	ns := s.listener.ns
	if now := time.Now(); now.Sub(l.complained) > complainEvery {
		l.complained = now
		l.router.cfg.Logger.Warn("cannot accept connections", "netns", ns.name, "error", why)
	}
	ev := unix.EpollEvent{Fd: s.slot, Pad: l.sockets[s.slot].generation}
	if unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, int(s.fd), &ev) != nil {
		return
	}
	t := new(timer)
	t.fire = func() {
		if !ns.closed {
			ev.Events = unix.EPOLLIN
			// It fails only for a descriptor that is not watched: it is.
			_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, int(s.fd), &ev)
		}
	}
	l.timers.set(t, acceptPause)
}

// originalDestination finds out what the client has dialled. The capture program
// has put the destination's id into the address that the connection came to, or,
// where that address had to be ::1, has noted it under the client's socket.
func (l *loop) originalDestination(a *arrival, peer, to netip.AddrPort) bool {
	table := l.table()
	if table == nil {
		return false
	}
	if to.Addr() == netip.IPv6Loopback() {
		cookie, err := l.socketCookie(a.ns, peer, to)
		if err != nil || l.router.cfg.V6OnlyDest == nil {
			return false
		}
		id, ok := l.router.cfg.V6OnlyDest(cookie)
		if !ok {
			return false
		}
		a.dest = id
	} else {
		id, ok := dest24(to.Addr())
		if !ok {
			return false
		}
		a.dest = id
	}
	key, ok := table.Dest(a.dest)
	if !ok {
		return false
	}
	a.addr = netip.AddrPortFrom(key.Addr, key.Port)
	if !peer.Addr().IsLoopback() {
		a.bind = peer.Addr()
	}
	return true
}

// listen starts to accept for a namespace.
func (l *loop) listen(ns *namespace) error {
	for i, d := range ns.doors {
		d.ns = ns
		err := l.watchDoor(d)
		if err != nil {
			for _, rest := range ns.doors[i+1:] {
				rest.closeAll()
			}
			ns.doors = ns.doors[:i]
			l.closeListeners(ns)
			return err
		}
	}
	return nil
}

// watchDoor watches a door's listeners, or closes it.
func (l *loop) watchDoor(d *door) error {
	var err error
	if d.holds() {
		err = l.holdSYNs(d)
	}
	watched := 0
	for _, s := range d.listeners() {
		s.listener = d
		if err == nil {
			if err = l.watch(s, unix.EPOLLIN); err == nil {
				watched++
			}
		}
	}
	if err != nil {
		for _, s := range d.listeners()[:watched] {
			l.forget(s)
		}
		delete(l.holding, d.cookie)
		d.closeAll()
	}
	return err
}

// unlisten stops it. The kernel would reset what has not been accepted yet, so
// that is done first; and refuse whoever sends its SYN again, so it waits for
// those that are held.
func (l *loop) unlisten(ns *namespace) {
	if ns.closed || ns.closing {
		return
	}
	l.takeAllSYNs()
	if len(ns.held) > 0 {
		ns.closing = true
		return
	}
	l.closeListeners(ns)
}

// closeListeners closes what clients come in by. Those that come later are refused
// by the kernel; those whose SYN had been kept from the listener already, by us.
func (l *loop) closeListeners(ns *namespace) {
	if ns.closed {
		return
	}
	ns.closed = true
	held := false
	for _, d := range ns.doors {
		held = held || d.holds()
		for _, s := range d.listeners() {
			// There are no more of them than the backlog has room for.
			for range backlog {
				if !l.acceptOne(s) {
					break
				}
			}
			l.forget(s)
			closeFD(s.fd)
			s.fd = -1
		}
	}
	if ns.diag >= 0 {
		unix.Close(ns.diag)
		ns.diag = -1
	}
	if !held {
		l.closeDoors(ns)
		return
	}
	// No SYN comes any more but one that has found the listener before and is with
	// it on another CPU in this moment. So the doors stay a little longer.
	l.takeAllSYNs()
	ns.hold()
	ns.last.fire = func() {
		l.closeDoors(ns)
		ns.release()
	}
	l.timers.set(&ns.last, lastSYNs)
}

// closeDoors closes what is left of doors when their listeners are closed.
func (l *loop) closeDoors(ns *namespace) {
	for _, d := range ns.doors {
		delete(l.holding, d.cookie)
		d.closeAll()
	}
	ns.doors = nil
}
