// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Connections go to another process while it and this one serve. Whoever has a
// connection watches it; on the way nobody does, and what peers send waits in
// the kernel:
//
//	Offer     the loop stops watching it; no byte of it is in this process
//	          (its sockets are sent to the other process)
//	Release   the other one goes on: this process closes its descriptors
//	Keep      or it does not: the loop watches again
//
// Best is the moment between two requests. Connections whose request or answer
// is long are moved in its middle, if asked for: then the place in the framing
// goes along.

// stalledFor is how long nothing may have happened on a connection that waits
// for an answer before it counts as one that waits long: until then the router
// may have to send the request again.
const stalledFor = time.Second

// Offer stops serving up to most connections and returns them. It waits for one
// until ctx is over. With midway also those may be among them that are in the
// middle of a request or an answer. Only one call at a time.
func (r *Router) Offer(ctx context.Context, most int, midway bool) []*Moving {
	share := max(most/len(r.loops), 1)
	select {
	case <-r.parted:
	default:
	}
	for _, l := range r.loops {
		l.call(func() { l.offer(share, midway) })
	}
	select {
	case <-r.parted:
	case <-ctx.Done():
	}
	var out []*Moving
	for _, l := range r.loops {
		l.call(func() {
			for _, c := range l.parting {
				out = append(out, c.describe())
			}
			l.parting, l.wanted = nil, 0
		})
	}
	return out
}

// Release closes this process's descriptors of connections that the other one
// goes on with.
func (r *Router) Release(ms []*Moving) {
	groupByLoop(ms, func(l *loop, mine []*conn) {
		for _, c := range mine {
			l.stats.given++
			c.dropRetry()
			c.letGo(false)
		}
	})
}

// Keep goes on with connections that nobody has taken. They are not offered
// again before the next OfferAll.
func (r *Router) Keep(ms []*Moving) {
	groupByLoop(ms, func(l *loop, mine []*conn) {
		for _, c := range mine {
			c.declined = true
			l.keep(c)
		}
	})
}

// OfferAll forgets which connections nobody has taken: somebody else may.
func (r *Router) OfferAll() {
	for _, l := range r.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = c.next {
				c.declined = false
			}
		})
	}
}

// Open returns how many connections of clients there are.
func (r *Router) Open() int { return r.open() }

// offer parts with up to n connections now, and with others as soon as they can
// be parted with.
func (l *loop) offer(n int, midway bool) {
	l.wanted, l.midway = n, midway
	for c := l.conns.first; c != nil && l.wanted > 0; {
		next := c.next
		if c.canPart(midway, true) {
			l.part(c)
		}
		c = next
	}
}

// part stops serving c.
func (l *loop) part(c *conn) {
	for _, s := range c.sockets() {
		l.unwatch(s)
	}
	l.conns.remove(c)
	c.away = true
	l.parting = append(l.parting, c)
	l.wanted--
	select {
	case l.router.parted <- struct{}{}:
	default:
	}
}

func (l *loop) keep(c *conn) {
	if l.stopped || c.watchAll() != nil {
		c.letGo(true)
		return
	}
	c.away = false
	l.conns.add(c)
	if l.draining {
		c.drain()
	}
}

// canPart reports whether this process holds no byte of c and nothing about it
// is about to change by itself. looking says that c is not being served.
func (c *conn) canPart(midway, looking bool) bool {
	if c.dead || c.away || c.queued || c.declined || c.held || c.waiting || c.fin || c.finSent || c.resetting ||
		c.end != goOn || c.timer.at != 0 || c.in.len() > 0 || c.rin.len() > 0 || c.greeting != nil || c.out.len() > 0 {
		return false
	}
	for _, u := range c.ups {
		if u.state != connected || u.eof || u.broken || u.wantFIN || u.out.len() > 0 || u.in.len() > 0 {
			return false
		}
	}
	switch {
	case c.h2 != nil:
		return c.h2.canPart(midway)
	case c.phase == atHead && c.asked.len() == 0 && c.answer == atAnswerHead:
		// With nobody to turn to, the first request decides about the rest.
		return c.cur != nil || c.served
	case c.cur == nil || c.phase == discarded || c.phase == unread:
		return false
	case c.phase == opaque && c.answer == blind:
		return true
	case !midway:
		return false
	case c.h2c && c.upgrade:
		return false // what the answer means depends on what is not said in ConnState
	case c.retry == nil:
		return true
	case !looking:
		return false
	}
	// A request of which nothing has been heard yet.
	now := c.loop.timers.now()
	if c.turns != c.stalledTurns || c.stalledSince == 0 {
		c.stalledTurns, c.stalledSince = c.turns, now
	}
	return now-c.stalledSince >= int64(stalledFor)
}

// Destinations returns what the table knows of the destinations of open
// connections, for another process that is about to get them.
func (r *Router) Destinations() []routing.Remembered {
	t := r.table.Load()
	known := map[routing.DestID]bool{}
	var out []routing.Remembered
	for _, l := range r.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = c.next {
				c.table() // brings c.dest up to date
				if known[c.dest] {
					continue
				}
				known[c.dest] = true
				if d, ok := t.Remember(c.dest); ok {
					out = append(out, d)
				}
			}
		})
	}
	return out
}

// Listening returns the namespaces with listeners.
func (r *Router) Listening() []routing.Cookie {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.namespaces))
}
