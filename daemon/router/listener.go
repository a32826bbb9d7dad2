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

// accept takes connections from a namespace's listener.
func (l *loop) accept(ns *namespace, s *socket) {
	for range maxAccepts {
		fd, peer, e := accept(s.fd)
		switch e {
		case noError:
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			// The listener stays ready; without a pause the loop would spin.
			l.stats.errors[acceptFailed]++
			l.pause(s, e)
			return
		default:
			l.stats.errors[acceptFailed]++
			continue // a connection that was reset before it was accepted
		}
		l.stats.accepted++
		a := arrival{ns: ns, fd: fd}
		if !l.originalDestination(&a, s, peer) {
			l.stats.errors[unknownDestination]++
			resetFD(fd)
			continue
		}
		ns.hold()
		to := l.router.leastLoaded(l)
		to.open.Add(1)
		if to == l {
			l.adopt(a)
		} else if !to.post(func() { to.adopt(a) }) {
			to.open.Add(-1)
			resetFD(fd)
			ns.release()
		}
	}
}

// pause stops listening for a moment.
func (l *loop) pause(s *socket, why unix.Errno) {
	ns := s.listener
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
func (l *loop) originalDestination(a *arrival, s *socket, peer netip.AddrPort) bool {
	table := l.table()
	if table == nil {
		return false
	}
	if s == a.ns.v6 {
		cookie, err := l.socketCookie(a.ns, peer, netip.AddrPortFrom(netip.IPv6Loopback(), a.ns.ports.V6))
		if err != nil || l.router.cfg.V6OnlyDest == nil {
			return false
		}
		id, ok := l.router.cfg.V6OnlyDest(cookie)
		if !ok {
			return false
		}
		a.dest = id
	} else {
		to := localAddr(a.fd).Addr()
		if !to.Is4() || to.As4()[0] != 127 {
			return false
		}
		b := to.As4()
		a.dest = routing.DestID(b[1])<<16 | routing.DestID(b[2])<<8 | routing.DestID(b[3])
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
func (l *loop) listen(ns *namespace, v4, v6 int32) error {
	ns.v4 = &socket{fd: v4, listener: ns}
	if err := l.watch(ns.v4, unix.EPOLLIN); err != nil {
		closeFD(v4)
		if v6 >= 0 {
			closeFD(v6)
		}
		return err
	}
	if v6 < 0 {
		return nil
	}
	ns.v6 = &socket{fd: v6, listener: ns}
	if err := l.watch(ns.v6, unix.EPOLLIN); err != nil {
		closeFD(v6)
		ns.v6 = nil
		l.unlisten(ns)
		return err
	}
	return nil
}

// unlisten stops it. The kernel would reset what has not been accepted yet, so
// that is done first.
func (l *loop) unlisten(ns *namespace) {
	if ns.closed {
		return
	}
	ns.closed = true
	for _, s := range []*socket{ns.v4, ns.v6} {
		if s != nil {
			l.accept(ns, s)
			l.forget(s)
			closeFD(s.fd)
		}
	}
	if ns.diag >= 0 {
		unix.Close(ns.diag)
	}
}
