// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/base64"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// maxRetry is how long a request may be that is kept to be sent again.
const maxRetry = 16 << 10

// mayTake reports whether bytes of the client can be dealt with now. As long as
// they cannot they stay with the kernel, which tells the client to slow down.
func (c *conn) mayTake() bool {
	switch {
	case c.held, c.phase == atAnswer, c.phase == unread:
		return false
	case c.end == sendRST, c.end == hangUp:
		return false
	case c.end == sendFIN && c.phase == atHead:
		// The upstream has closed. Only what had begun before may go on.
		return false
	}
	return c.cur == nil || c.cur.out.len() == 0 && !c.cur.broken
}

// takeFromClient reads from the client and passes on what it can. It reports
// whether anything has moved.
func (c *conn) takeFromClient() (moved bool) {
	l := c.loop
	for range turnReads {
		if !c.mayTake() || c.h2 != nil {
			return moved
		}
		kept := c.in.len()
		if kept > 0 && !c.waiting {
			n := c.consume(c.in.bytes())
			if c.dead {
				return true
			}
			c.in.skip(&l.bufs, n)
			if n > 0 {
				moved = true
			}
			if n > 0 || c.waiting {
				continue
			}
			return moved
		}
		if !c.sock.readable || c.fin {
			return moved
		}
		b := l.read
		if kept > 0 {
			whole := c.in.room(&l.bufs, more(kept, l.router.cfg.MaxHeadBytes))
			b = whole[len(whole):cap(whole)]
		}
		n, e := recv(c.sock.fd, b)
		switch {
		case e == unix.EAGAIN:
			c.sock.readable = false
			return moved
		case e != noError:
			l.stats.errors[clientReset]++
			c.why = callerReset
			c.abort()
			return true
		case n == 0:
			c.fin = true
			c.sock.readable = false
			return true
		}
		if n < len(b) && !c.sock.ending {
			// That was all: the next byte comes with an event of its own.
			c.sock.readable = false
		}
		moved = true
		l.stats.fromClients += uint64(n)
		c.waiting = false
		if kept > 0 {
			c.in.b = c.in.b[:len(c.in.b)+n]
			continue
		}
		used := c.consume(b[:n])
		if c.dead {
			return true
		}
		c.in.add(&l.bufs, b[used:n])
	}
	return moved
}

// more is how much room a head of which kept bytes have come gets for the next.
func more(kept, limit int) int { return min(max(kept, minBuffer/2), limit-kept) }

// consume deals with bytes of the client and returns how many are done with.
// The rest is for later: the beginning of a head (waiting), or a request that
// cannot be sent yet (held), or what comes after a request whose answer decides
// (atAnswer).
func (c *conn) consume(b []byte) (n int) {
	// b[from:n] goes to cur and has not been sent: requests that come together go
	// together.
	from := 0
	for n < len(b) && !c.dead {
		switch c.phase {
		case atHead:
			if n == 0 && !c.begun {
				if c.isHTTP2(b) {
					return 0
				}
				if c.greeting != nil {
					c.serverSpeaksFirst()
					continue
				}
			}
			n, from = c.consumeHead(b, n, from)
			if c.phase == atHead && (c.waiting || c.held) {
				c.pass(b[from:n])
				return n
			}
		case inLength:
			k := min(c.left, int64(len(b)-n))
			n += int(k)
			c.sentMore(int(k))
			if c.left -= k; c.left == 0 {
				c.requestDone()
			}
		case inChunks:
			k, out := c.chunks.Feed(b[n:], false)
			n += k
			c.sentMore(k)
			switch out {
			case http1.Complete:
				c.requestDone()
			case http1.Ambiguous:
				c.pass(b[from:n])
				from = n
				c.badChunk()
			}
		case opaque:
			if c.scan != nil && c.scan.Scan(b[n:], c.leadsElsewhere) {
				c.keyInOpaque()
				return n
			}
			if c.flow != nil {
				c.flow.Sent += int64(len(b) - n)
			}
			n = len(b)
		case discarded:
			n = len(b)
			from = n
		default:
			c.pass(b[from:n])
			return n
		}
	}
	if !c.dead {
		c.pass(b[from:n])
	}
	return n
}

// pass sends bytes to cur.
func (c *conn) pass(b []byte) {
	if len(b) > 0 {
		c.cur.send(b)
	}
}

// consumeHead deals with the head at b[n:]. It returns n and from as they are
// then.
func (c *conn) consumeHead(b []byte, n, from int) (int, int) {
	l := c.loop
	out := l.req.Parse(&c.partial, b[n:])
	limit := l.router.cfg.MaxHeadBytes
	if out == http1.Complete && l.req.Len <= limit {
		c.partial = http1.Partial{}
		c.begun = true
		if c.timer.at != 0 {
			l.timers.clear(&c.timer)
		}
		return c.consumeRequest(b, n, from)
	}
	if out == http1.More && len(b)-n < limit {
		c.wait()
		return n, from
	}
	if c.asked.len() > 0 && !c.doubtful {
		// Whatever comes of it comes after the answers that are outstanding.
		c.hold()
		return n, from
	}
	c.pass(b[from:n])
	foreign := c.partial.Foreign && !c.served
	switch {
	case out == http1.NotHTTP:
		l.stats.errors[notHTTP]++
		c.becomeOpaque(!foreign)
	case !http1.ContainsValue(&l.router.cfg.KeyNames, b[n:]):
		l.stats.errors[ambiguousPassed]++
		c.becomeOpaque(true)
	case out == http1.Ambiguous:
		l.stats.errors[ambiguousRefused]++
		c.refuse(badRequest, l.req.Reason, b[n:])
	default:
		l.stats.errors[headTooLarge]++
		c.refuse(fieldsTooLarge, "its head is too large", b[n:])
	}
	return n, n
}

// consumeRequest deals with the request whose head is at b[n:] and has been
// parsed.
func (c *conn) consumeRequest(b []byte, n, from int) (int, int) {
	l := c.loop
	r := &l.req
	t := c.table()
	d := t.DecideRequest(c.ns.cookie, c.dest, &l.keys)
	var e *ledger.Entry
	if l.router.cfg.Ledger.Concerns(t, c.dest, &d) {
		e = c.opened(t, &d)
	}
	busy := c.asked.len() > 0
	if busy && (c.asked.len() == maxAsked || c.cur.state == dialling) {
		c.hold()
		return n, from
	}
	fork := d.Verdict == routing.ToFork
	u := c.cur
	if d.Verdict == routing.Refuse || u == nil || !u.usable() || !u.serves(fork, d.Endpoints) {
		switch {
		case c.doubtful:
			l.stats.errors[doubtfulAnswer]++
			c.lastOf(e, doubtfulAnswers)
			c.abort()
			return n, n
		case busy:
			c.hold()
			return n, from
		}
		c.pass(b[from:n])
		from = n
		if d.Verdict == routing.Refuse {
			if c.out.len() > 0 {
				// The client does not read the answers that it has.
				c.hold()
				return n, n
			}
			l.stats.request(&d)
			if e != nil {
				// Whoever has the answer may ask for the record.
				l.router.cfg.Ledger.Begin(e)
			}
			c.last = request{decision: d, counted: true, method: r.Method, hasBody: r.Framing != http1.NoBody, keepAlive: r.KeepAlive}
			c.refusedRequest(e, c.unavailable(r.Expect), "")
			return n + r.Len, n + r.Len
		}
		if !fork && c.refused && !c.served {
			c.lastOf(e, nobodyReached)
			c.abort()
			return n, n
		}
		u = c.upstreamFor(&d)
		c.cur = u
	}
	c.last = request{decision: d, method: r.Method, hasBody: r.Framing != http1.NoBody, keepAlive: r.KeepAlive}
	if c.answer != blind {
		c.asked.push(r.Method)
	}
	if e != nil {
		// Those before it do not wait with it.
		c.pass(b[from:n])
		from = n
		c.record(e, u)
		if u.state == connected {
			c.goes(e, &d, u)
		}
	}
	if u.state == connected {
		c.count()
	}
	c.dropRetry()
	head := b[n : n+r.Len]
	n += r.Len
	if d.Inject != "" {
		c.pass(b[from : n-len(head)])
		l.made = r.AppendWithMember(l.made[:0], head, l.router.cfg.KeyNames.Members[0], d.Inject)
		head = l.made
		u.send(head)
		from = n
	}
	c.upgrade = r.Upgrade || r.Method == http1.ConnectMethod
	if c.h2c, c.h2cSettings = r.HTTP2, nil; r.HTTP2 {
		// A server does not accept what is malformed. Should it, the settings are said
		// again behind the preface.
		c.h2cSettings, _ = base64.RawURLEncoding.DecodeString(string(r.HTTP2Settings))
	}
	switch r.Framing {
	case http1.ByLength:
		c.phase, c.left = inLength, r.Length
	case http1.ByChunks:
		c.phase, c.chunks = inChunks, http1.Chunked{}
	default:
		if u.served && !busy && !c.upgrade && (r.Method == http1.SafeMethod || r.Method == http1.HeadMethod) && len(head) <= maxRetry {
			c.retry = append(l.bufs.get(len(head)), head...)
		}
		c.requestDone()
	}
	return n, from
}

// requestDone follows a request's last byte.
func (c *conn) requestDone() {
	c.phase = atHead
	// An answer that came before the body's end has decided already.
	if c.upgrade && c.answer != blind && c.asked.len() > 0 {
		c.phase = atAnswer
	}
}

// hold leaves a request unread until the answers before it are there.
func (c *conn) hold() {
	c.held = true
	c.partial = http1.Partial{}
}

// wait leaves the beginning of a head where it is until there is more of it.
func (c *conn) wait() {
	c.waiting = true
	if c.refused && !c.served {
		c.later(c.loop.delays.refusedHead, c.refuseSilent)
	}
	if c.partial.Unlikely && !c.served && c.asked.len() == 0 {
		c.later(c.loop.delays.unlikely, func() {
			if c.waiting && c.partial.Unlikely && c.phase == atHead {
				c.loop.stats.errors[notHTTP]++
				c.becomeOpaque(true)
				if !c.dead {
					c.run()
				}
			}
		})
	}
}

// count counts the last request, once it is known where it has gone.
func (c *conn) count() {
	if !c.last.counted {
		c.last.counted = true
		c.loop.stats.request(&c.last.decision)
	}
}

func (c *conn) dropRetry() {
	if c.retry != nil {
		c.loop.bufs.put(c.retry)
		c.retry = nil
	}
}

// badChunk deals with a chunked body that has gone wrong in the middle.
func (c *conn) badChunk() {
	l := c.loop
	if c.cur.fork {
		// What follows the bad chunk may be the next request to one peer and the
		// rest of this one to another.
		l.stats.errors[ambiguousRefused]++
		if c.asked.len() == 1 && c.answer == atAnswerHead && c.rin.len() == 0 {
			if x := c.exchange(); x != nil {
				x.entry.Status = 400
				x.entry.Fail(notFramed + "a chunk of its body is malformed")
			}
			c.refuse(badRequest, "a chunk of its body is malformed", nil)
		} else {
			c.abort()
		}
		return
	}
	l.stats.errors[ambiguousPassed]++
	c.dropOthers()
	c.phase = opaque
	c.scan = http1.NewScanner(&l.router.cfg.KeyNames)
}
