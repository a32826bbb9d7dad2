// SPDX-License-Identifier: Apache-2.0

package router

import (
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// http2Conn is a client's connection that is HTTP/2: the sockets' side of a
// http2.Relay. The connection's cur is the primary link.
type http2Conn struct {
	c     *conn
	relay *http2.Relay
	ups   []*upstream // of those that are being served
	after ending      // what comes when the streams that are left have ended
	drain uint8       // how often the client was asked to open no more streams
	heard bool        // the client has what the relay says now
	// noSecond says that the server does not serve another connection: see mayWaitOn.
	noSecond bool
}

const (
	// maxLinkBytes is how much may wait for an upstream other than the primary before
	// the relay keeps the streams' data, and for the client before nothing more is read
	// that might add to it.
	maxLinkBytes = 256 << 10
	// maxBuffers is how many times HTTP2.BufferBytes may wait in the relay before
	// nothing more is read from the client: by then so many streams are stuck that its
	// window for the connection has not held it back.
	maxBuffers = 8
)

// isHTTP2 finds out whether b begins with HTTP/2's preface. It reports whether
// nothing else is to be made of b now.
func (c *conn) isHTTP2(b []byte) bool {
	n := min(len(b), len(http2.Preface))
	if string(b[:n]) != http2.Preface[:n] {
		return false
	}
	if n < len(http2.Preface) {
		if n > len("PRI ") || c.greeting != nil {
			c.wait()
			return true
		}
		return false
	}
	c.becomeHTTP2()
	return true
}

// becomeHTTP2 follows the client's preface, which has not been consumed.
func (c *conn) becomeHTTP2() {
	l := c.loop
	h := &http2Conn{c: c}
	if !c.refused {
		c.dialDefault()
	}
	switch {
	case c.cur != nil && !c.refused:
		h.relay = http2.New(l.h2, h)
	case c.table().DecideConnection(c.ns.cookie, c.dest).Verdict == routing.ToBaseline:
		// To all but a tagged request this is a connection that is refused.
		h.relay = http2.Alone(l.h2, h, true)
		h.abortUnlessBegun()
		h.begin()
		return
	default:
		h.relay = http2.Alone(l.h2, h, false)
		c.refused = false
	}
	l.timers.clear(&c.timer)
	h.begin()
	if c.greeting != nil && c.cur != nil {
		// The client has that already.
		h.heard = true
		h.relay.FromLink(c.cur.link, c.greeting)
		h.heard = false
	}
	c.greeting = nil
}

// becomeUpgraded follows an answer with which cur accepts to go on with HTTP/2. b
// is what has come behind the answer.
func (c *conn) becomeUpgraded(b []byte) {
	h := &http2Conn{c: c}
	h.relay = http2.Upgraded(c.loop.h2, h, c.h2cSettings)
	c.tunnels()
	c.asked.pop()
	h.begin()
	c.rin.drop(&c.loop.bufs)
	c.rin.add(&c.loop.bufs, b)
}

// begin goes over to HTTP/2.
func (h *http2Conn) begin() {
	c := h.c
	c.dropOthers()
	c.dropRetry()
	c.h2c, c.h2cSettings = false, nil
	c.phase, c.answer = inHTTP2, blind
	c.waiting, c.held, c.begun = false, false, true
	c.partial, c.rpartial = http1.Partial{}, http1.Partial{}
	if u := c.cur; u != nil {
		u.link = h.relay.Primary()
		u.link.Peer = u
	}
	c.h2 = h
}

// run is conn.run.
func (h *http2Conn) run() {
	c := h.c
	for range turnReads {
		h.dealWithUnreachable()
		if c.dead {
			return
		}
		h.flush()
		if c.rin.len() > 0 && !c.dead {
			h.takeGreeting()
		}
		moved := !c.dead && h.takeFromClient()
		h.ups = append(h.ups[:0], c.ups...)
		for _, u := range h.ups {
			moved = !c.dead && h.takeFrom(u) || moved
		}
		if c.dead {
			return
		}
		if h.relay.Over() {
			h.sendAway()
			return
		}
		if !moved {
			h.conclude()
			if c.loop.wanted > 0 && c.canPart(c.loop.midway, false) {
				c.loop.part(c)
			}
			return
		}
	}
	c.goOn()
}

// flush sends what waits in all directions.
func (h *http2Conn) flush() {
	c := h.c
	if c.out.len() > 0 && c.sock.writable {
		c.toClient(nil)
	}
	for i := 0; !c.dead && i < len(c.ups); i++ {
		u := c.ups[i]
		if u.out.len() > 0 && u.state == connected && u.sock.writable {
			u.send(nil)
		}
		if !c.dead && u.link.Full && u.out.len() <= maxLinkBytes/2 {
			h.relay.Resumed(u.link)
		}
	}
}

// mayTake reports whether bytes of the client can be dealt with now.
func (h *http2Conn) mayTake() bool {
	c := h.c
	if c.end != goOn || c.out.len() > maxLinkBytes || h.relay.Buffered() > maxBuffers*c.loop.router.cfg.HTTP2.BufferBytes {
		return false
	}
	if u := c.cur; u != nil && !u.eof && (u.broken || u.out.len() > 0 && u.state == connected) {
		return false
	}
	for _, u := range c.ups {
		// Data do not come so far: see ToLink.
		if u.out.len() > 2*maxLinkBytes {
			return false
		}
	}
	return true
}

// takeGreeting takes what the primary has said before the client's preface was
// there.
func (h *http2Conn) takeGreeting() {
	c := h.c
	n := h.relay.FromLink(c.cur.link, c.rin.bytes())
	if c.dead || c.cur == nil {
		return
	}
	c.cur.in.add(&c.loop.bufs, c.rin.bytes()[n:])
	c.cur.paused = h.relay.Paused()
	c.rin.drop(&c.loop.bufs)
}

// sendAway ends the connection when the client has been told.
func (h *http2Conn) sendAway() {
	c := h.c
	h.relay.Ended(sentAway)
	c.h2 = nil
	c.sendAway()
	c.run()
}

// takeFromClient is conn.takeFromClient.
func (h *http2Conn) takeFromClient() (moved bool) {
	c := h.c
	l := c.loop
	for range turnReads {
		if !h.mayTake() {
			return moved
		}
		kept := c.in.len()
		if kept > 0 && !c.waiting {
			n := h.relay.FromClient(c.in.bytes())
			if c.dead {
				return true
			}
			c.in.skip(&l.bufs, n)
			c.waiting = c.in.len() > 0 && !h.relay.Paused()
			moved = true
			continue
		}
		if !c.sock.readable || c.fin {
			return moved
		}
		n, e := h.read(&c.sock, &c.in)
		switch {
		case e == unix.EAGAIN:
			return moved
		case e != noError:
			l.stats.errors[clientReset]++
			c.why = callerReset
			c.abort()
			return true
		case n == 0:
			c.fin = true
			return true
		}
		moved = true
		l.stats.fromClients += uint64(n)
		if kept > 0 {
			c.waiting = false
			continue
		}
		used := h.relay.FromClient(l.read[:n])
		if c.dead {
			return true
		}
		c.in.add(&l.bufs, l.read[used:n])
		c.waiting = used < n && !h.relay.Paused()
	}
	return moved
}

// read reads from a socket: behind what is kept of it or, if that is nothing,
// into the loop's buffer.
func (h *http2Conn) read(s *socket, kept *buffer) (int, unix.Errno) {
	l := h.c.loop
	b := l.read
	if kept.len() > 0 {
		whole := kept.room(&l.bufs, max(kept.len(), minBuffer/2))
		b = whole[len(whole):cap(whole)]
	}
	n, e := recv(s.fd, b)
	if e != noError || n < len(b) && !s.ending || n == 0 {
		// That was all: the next byte comes with an event of its own.
		s.readable = false
	}
	if e == noError && kept.len() > 0 {
		kept.b = kept.b[:len(kept.b)+n]
	}
	return n, e
}

// takeFrom reads from an upstream and passes on what it says.
func (h *http2Conn) takeFrom(u *upstream) (moved bool) {
	c := h.c
	l := c.loop
	for range turnReads {
		if c.dead || u.state != connected || u.eof || !u.sock.readable && !u.paused || c.out.len() > 0 || u != c.cur && h.relay.Midway() {
			return moved
		}
		kept := u.in.len()
		if u.paused {
			used := h.relay.FromLink(u.link, u.in.bytes())
			if moved = true; c.dead || u.state != connected {
				return true
			}
			u.paused = h.relay.Paused()
			u.in.skip(&l.bufs, used)
			continue
		}
		n, e := h.read(&u.sock, &u.in)
		switch {
		case e == unix.EAGAIN:
			return moved
		case e != noError || n == 0:
			h.ended(u, e != noError || u.broken)
			return true
		}
		moved = true
		b := l.read[:n]
		if kept > 0 {
			b = u.in.bytes()
		}
		used := h.relay.FromLink(u.link, b)
		if c.dead || u.state != connected {
			return true
		}
		u.paused = h.relay.Paused()
		if u.timer.at != 0 && u.link.Proven() {
			l.timers.clear(&u.timer)
		}
		if kept > 0 {
			u.in.skip(&l.bufs, used)
		} else {
			u.in.add(&l.bufs, b[used:])
		}
	}
	return moved
}

// ended follows an upstream's FIN or RST.
func (h *http2Conn) ended(u *upstream, reset bool) {
	c := h.c
	if reset {
		c.loop.stats.errors[upstreamReset]++
	}
	u.eof = true
	if u != c.cur {
		h.lose(u)
		h.relay.LinkEnded(u.link)
		return
	}
	if h.relay.LinkEnded(u.link) {
		if h.after = sendFIN; reset {
			h.after = sendRST
		}
		u.close(false)
		c.remove(u)
		return
	}
	if c.dead {
		return
	}
	// To the client that is the end of its connection.
	if c.why = answerCut; reset {
		c.why = answerReset
	}
	if u.in.len() > 0 {
		c.toClient(u.in.bytes())
		if c.dead {
			return
		}
		u.in.drop(&c.loop.bufs)
	}
	if c.end = sendFIN; reset {
		c.end = sendRST
	}
}

// lose closes an upstream other than cur that its server has ended. Who does that to a
// second connection before anything was answered there is not asked for another one.
func (h *http2Conn) lose(u *upstream) {
	h.noSecond = h.noSecond || u.second && !u.link.Answered()
	h.discard(u)
}

// discard closes an upstream other than cur.
func (h *http2Conn) discard(u *upstream) {
	u.close(false)
	h.c.remove(u)
}

// comesBack reports whether streams may come yet that now wait on a second connection.
func (h *http2Conn) comesBack() bool {
	for _, u := range h.c.ups {
		if u.link.Waiting() && !u.link.Proven() {
			return true
		}
	}
	return false
}

// conclude draws the consequences when all that could be moved has been.
func (h *http2Conn) conclude() {
	c := h.c
	if c.fin && !c.finSeen && (c.in.len() == 0 || c.waiting) {
		c.finSeen = true
		if c.cur != nil {
			c.cur.send(c.in.bytes())
		}
		c.in.drop(&c.loop.bufs)
		c.phase = unread
		if len(c.ups) == 0 && c.end == goOn {
			c.end = hangUp
		}
	}
	for _, u := range c.ups {
		// What has been held up goes first.
		if c.finSeen && !u.wantFIN && !u.link.Waiting() && (u != c.cur || !h.comesBack()) {
			u.sendFIN()
		}
	}
	if c.end == goOn && h.relay.Open() == 0 {
		switch {
		case h.after != goOn:
			c.end = h.after
		case h.drain > 1:
			h.sendAway()
			return
		case c.cur == nil && c.finSeen:
			c.end = hangUp
		}
	}
	if c.out.len() > 0 {
		return
	}
	switch c.end {
	case sendFIN:
		c.phase = unread
		c.passFIN()
	case sendRST:
		c.passRST()
	case hangUp:
		c.close()
	}
}

// beginDrain asks the client to open no more streams, at first in a way that lets
// those through that are on their way. When the last stream has ended conclude
// closes the connection.
func (h *http2Conn) beginDrain() {
	h.drain++
	h.relay.Drain(h.drain > 1)
	if c := h.c; !c.dead && h.drain == 1 {
		c.later(c.loop.delays.drain, func() {
			h.beginDrain()
			if !c.dead {
				c.run()
			}
		})
	}
}

func (h *http2Conn) dealWithUnreachable() {
	for i := 0; i < len(h.c.ups); {
		if u := h.c.ups[i]; u.state == dialFailed {
			h.unreachable(u)
			i = 0
			continue
		}
		i++
	}
}

// unreachable deals with an upstream none of whose addresses can be reached.
func (h *http2Conn) unreachable(u *upstream) {
	c := h.c
	if u.second {
		h.noSecond = true
		u.out.drop(&c.loop.bufs)
		c.remove(u)
		h.relay.LinkEnded(u.link)
		u.countPending()
		return
	}
	primary := u == c.cur
	if primary && !u.fork && u.link.Streams() > 0 {
		c.why = nobodyReached
		c.abort()
		return
	}
	for i := range u.pending {
		d := &u.pending[i].decision
		if d.Verdict != routing.ToFork {
			continue
		}
		d.Verdict, d.Reason = routing.Refuse, routing.Unavailable
		if u.fallBack {
			d.Verdict = routing.ToBaseline
		}
		if e := u.pending[i].entry; e != nil {
			e.Decided(c.table(), c.dest, d)
			if !u.fallBack {
				e.Fail(nobodyReached)
			}
		}
	}
	if u.fork && u.fallBack {
		u.fork = false
		u.dial()
		return
	}
	c.remove(u)
	switch {
	case u.fork, primary:
		h.relay.LinkFailed(u.link, u.refusal)
	default:
		// A client tries again what was on it.
		h.relay.LinkEnded(u.link)
	}
	u.countPending()
	if primary && !u.fork && !c.dead {
		c.refused = true
		h.abortUnlessBegun()
	}
}

// abortUnlessBegun resets a connection whose baseline has refused it, unless a
// stream for a fork comes very soon.
func (h *http2Conn) abortUnlessBegun() {
	if h.relay.Begun() {
		return
	}
	h.c.later(h.c.loop.delays.refusal, func() {
		if !h.relay.Begun() {
			h.c.abort()
		}
	})
}
