// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Receive prepares to go on with a connection of another process. It is not
// served, and neither peer notices anything, before Begin; Discard gives it up
// again. All its descriptors become the router's, whatever is returned. An error
// says why this router cannot serve it: then the other one should.
func (r *Router) Receive(m *Moving) (err error) {
	defer func() {
		if err != nil {
			m.closeAll()
		}
	}()
	dest, err := r.destinationOf(&m.State)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	ns := r.namespaces[m.State.Netns]
	if ns != nil {
		ns.hold()
	}
	r.mu.Unlock()
	if ns != nil {
		unix.Close(m.Netns)
	} else {
		// There is nothing to listen for in it any more, or not yet.
		ns = newNamespace(m.State.Netns, m.State.Name, m.Netns)
		ns.closed = true
	}
	m.Netns = -1
	c, err := m.revive(r.leastLoaded(r.loops[0]), ns)
	if err != nil {
		ns.release()
		return err
	}
	c.dest = dest
	for _, s := range c.sockets() {
		if err := unix.SetNonblock(int(s.fd), true); err != nil {
			ns.release()
			return fmt.Errorf("one of its sockets: %w", err)
		}
	}
	c.away = true
	c.loop.open.Add(1)
	m.conn = c
	return nil
}

var errUnknownDestination = errors.New("its destination is not in this table")

// destinationOf finds out what the table calls the destination that another
// process's table calls s.Dest.
func (r *Router) destinationOf(s *ConnState) (routing.DestID, error) {
	t := r.table.Load()
	if d, ok := t.LookupDest(s.Dialled, routing.TCP); ok {
		return d.ID, nil
	}
	// It has left the table, but is remembered.
	if key, ok := t.Dest(s.Dest); ok && key.Addr == s.Dialled.Addr() && key.Port == s.Dialled.Port() {
		return s.Dest, nil
	}
	return 0, errUnknownDestination
}

// closeAll closes the descriptors of a connection that stays where it is.
func (m *Moving) closeAll() {
	for _, fd := range append([]int{m.Client, m.Netns}, m.Upstreams...) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Begin goes on with connections that have been received.
func (r *Router) Begin(ms []*Moving) {
	groupByLoop(ms, func(l *loop, mine []*conn) {
		for _, c := range mine {
			l.stats.received++
			l.keep(c)
		}
	})
}

// Discard gives up connections that have been received and not begun with.
func (r *Router) Discard(ms []*Moving) {
	groupByLoop(ms, func(_ *loop, mine []*conn) {
		for _, c := range mine {
			c.letGo(false)
		}
	})
}
