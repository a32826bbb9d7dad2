// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
)

// takeFromUpstream reads from cur and passes on what it says. It reports
// whether anything has moved.
func (c *conn) takeFromUpstream() (moved bool) {
	l := c.loop
	for range turnReads {
		u := c.cur
		if u == nil || u.state != connected || c.out.len() > 0 {
			return moved
		}
		if u.eof {
			if u.sock.failed && c.end == sendFIN {
				c.end = sendRST
				return true
			}
			return moved
		}
		if !u.sock.readable {
			return moved
		}
		b := l.read
		kept := c.rin.len()
		if kept > 0 {
			whole := c.rin.room(&l.bufs, more(kept, l.router.cfg.MaxHeadBytes))
			b = whole[len(whole):cap(whole)]
		}
		n, e := recv(u.sock.fd, b)
		switch {
		case e == unix.EAGAIN:
			u.sock.readable = false
			return moved
		case e != noError:
			c.upstreamEnded(u, true)
			return true
		case n == 0:
			c.upstreamEnded(u, u.broken)
			return true
		}
		if n < len(b) && !u.sock.ending {
			u.sock.readable = false
		}
		moved = true
		c.dropRetry()
		if kept > 0 {
			c.rin.b = c.rin.b[:len(c.rin.b)+n]
			used := c.relay(c.rin.bytes())
			if c.dead {
				return true
			}
			c.rin.skip(&l.bufs, used)
			continue
		}
		used := c.relay(b[:n])
		if c.dead {
			return true
		}
		c.rin.add(&l.bufs, b[used:n])
	}
	return moved
}

// relay passes bytes of cur on to the client and finds out where answers end. It
// returns how many are done with; the rest is the beginning of a head.
func (c *conn) relay(b []byte) (n int) {
	l := c.loop
loop:
	for n < len(b) {
		switch c.answer {
		case atAnswerHead:
			if c.asked.len() == 0 {
				if c.greeting != nil {
					if k, ok := c.greetsOn(b[n:]); ok {
						n += k
						break loop
					}
				}
				if c.greets(b[n:]) {
					break loop
				}
				c.unasked(b[n:])
				if c.dead {
					return n
				}
				continue
			}
			out := l.resp.Parse(&c.rpartial, b[n:], c.asked.front())
			if out == http1.More && len(b)-n < l.router.cfg.MaxHeadBytes {
				break loop
			}
			c.rpartial = http1.Partial{}
			if out != http1.Complete {
				l.stats.errors[ambiguousAnswer]++
				c.doubt()
				continue
			}
			n += l.resp.Len
			c.answerBegins(&l.resp)
			if l.resp.HTTP2 && c.upgrade && c.h2c && c.asked.len() == 1 {
				c.becomeUpgraded(b[n:])
				c.toClient(b[:n])
				return len(b)
			}
			c.answerHead(&l.resp)
		case inAnswerLength:
			k := min(c.rleft, int64(len(b)-n))
			n += int(k)
			c.receivedMore(int(k))
			if c.rleft -= k; c.rleft == 0 {
				c.answered()
			}
		case inAnswerChunks:
			k, out := c.rchunks.Feed(b[n:], true)
			n += k
			c.receivedMore(k)
			switch out {
			case http1.Complete:
				c.answered()
			case http1.Ambiguous:
				l.stats.errors[ambiguousAnswer]++
				c.doubt()
			}
		case blind:
			if c.flow != nil {
				c.flow.Received += int64(len(b) - n)
			}
			c.receivedMore(len(b) - n)
			n = len(b)
		}
	}
	if n > 0 {
		c.toClient(b[:n])
	}
	return n
}

// answerHead follows an answer's head.
func (c *conn) answerHead(r *http1.Response) {
	c.served = true
	switch r.Framing {
	case http1.Interim:
	case http1.NoBody:
		c.answered()
	case http1.ByLength:
		c.answer, c.rleft = inAnswerLength, r.Length
	case http1.ByChunks:
		c.answer, c.rchunks = inAnswerChunks, http1.Chunked{}
	case http1.ByClose:
		// The client's end of it follows from the upstream's.
		c.answer = blind
	case http1.Tunnel:
		if c.upgrade && c.asked.len() == 1 {
			c.tunnels()
			c.asked.pop()
			c.becomeTunnel()
		} else {
			c.loop.stats.errors[ambiguousAnswer]++
			c.doubt()
		}
	}
}

// answered follows an answer's last byte.
func (c *conn) answered() {
	c.complete()
	c.asked.pop()
	c.answer = atAnswerHead
	c.cur.served, c.cur.retried = true, false
	c.held = false
	if c.asked.len() > 0 {
		return
	}
	if c.phase == atAnswer {
		c.phase = atHead
	}
	if c.loop.draining && c.phase == atHead && c.end == goOn {
		c.end = hangUp
	}
}

// doubt follows an answer that peers may frame differently. It is relayed as it
// is, and all that comes after it: no other upstream's answer may come between.
func (c *conn) doubt() {
	c.answer, c.doubtful = blind, true
	c.held = false
	c.endExchanges(doubtfulAnswers)
	if c.phase == atAnswer {
		c.phase = opaque
	}
}

// greets reports whether an upstream that speaks first may be an HTTP/2 server:
// they may send their SETTINGS before the client's preface has come (RFC 9113,
// section 3.4). Then its words wait for that, for a moment.
func (c *conn) greets(b []byte) bool {
	if c.phase != atHead || c.begun || c.in.len() > 0 && !c.waiting || !http2.Greeting(b) {
		return false
	}
	if c.timer.at == 0 {
		c.later(c.loop.delays.unlikely, func() {
			if c.phase == atHead && !c.begun && c.rin.len() > 0 {
				c.passGreeting()
				c.run()
			}
		})
	}
	return true
}

// passGreeting lets the client have what an HTTP/2 server, it seems, has said
// first. It would get that in any case. Only the client's first bytes say what the
// connection is, however late they come: were it taken for opaque because they
// are late, its tagged streams would reach the baseline.
func (c *conn) passGreeting() {
	n := http2.WholeFrames(c.rin.bytes())
	if n == 0 {
		c.serverSpeaksFirst()
		if !c.dead {
			c.toClient(c.rin.bytes())
		}
		if !c.dead {
			c.rin.drop(&c.loop.bufs)
		}
		return
	}
	c.greeting = append(c.greeting, c.rin.bytes()[:n]...)
	c.toClient(c.rin.bytes()[:n])
	if !c.dead {
		c.rin.skip(&c.loop.bufs, n)
	}
}

// greetsOn takes more of an upstream that has greeted. It returns how much of b
// the client may have.
func (c *conn) greetsOn(b []byte) (n int, ok bool) {
	const most = 16 << 10
	n = http2.WholeFrames(b)
	if len(c.greeting)+len(b) > most {
		return 0, false
	}
	c.greeting = append(c.greeting, b[:n]...)
	return n, true
}

// unasked deals with an upstream that speaks without having been asked: it is a
// server that speaks first, so this is not HTTP, or an HTTP server's farewell
// such as a 408.
func (c *conn) unasked(b []byte) {
	if c.phase != atHead {
		c.doubt()
		return
	}
	if c.served || bytes.HasPrefix(b, []byte("HTTP/")) {
		c.doubt()
		return
	}
	c.serverSpeaksFirst()
}

// serverSpeaksFirst makes the connection opaque.
func (c *conn) serverSpeaksFirst() {
	c.loop.stats.errors[serverFirst]++
	c.greeting = nil
	// Where it leads was decided when it was accepted, whatever the table says now.
	c.openBothWays(false)
}

// upstreamEnded follows cur's FIN or RST.
func (c *conn) upstreamEnded(u *upstream, reset bool) {
	l := c.loop
	if c.retry != nil && c.asked.len() == 1 && c.answer == atAnswerHead && !u.retried {
		// It has closed an idle connection while the request was on its way.
		l.stats.retries++
		u.dialAgain(c.retry)
		c.dropRetry()
		return
	}
	if u.unsent && c.asked.len() == 1 && c.answer == atAnswerHead && !u.retried {
		u.dialAgain(slices.Clone(u.out.bytes()))
		return
	}
	u.eof = true
	u.sock.readable = false
	if c.rin.len() > 0 {
		c.toClient(c.rin.bytes())
		if c.dead {
			return
		}
		c.rin.drop(&l.bufs)
	}
	if c.end == goOn {
		c.end = sendFIN
	}
	if reset {
		l.stats.errors[upstreamReset]++
		c.end, c.why = sendRST, answerReset
	}
}
