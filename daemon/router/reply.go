// SPDX-License-Identifier: Apache-2.0

package router

import (
	"strconv"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// What the router answers itself.
const (
	badRequest     = "400 Bad Request"
	fieldsTooLarge = "431 Request Header Fields Too Large"
	unavailable503 = "503 Service Unavailable"
)

// refuse answers a request that carries a key and cannot be framed beyond doubt.
// Where it ends is not known, so the connection ends with it.
//
// keyed are the bytes in which the key is, if the ledger does not know of the
// request.
func (c *conn) refuse(status, reason string, keyed []byte) {
	c.refuseKeyed(keyed, status, reason)
	c.reply(status, "sidetrack: this request carries a routing key and cannot be routed: "+reason+".\n", false, false)
}

// unavailable answers the last request, whose fork cannot be reached, and returns
// how long the answer is.
func (c *conn) unavailable(expect bool) int {
	text := refusal(&c.last.decision) + "\n"
	keep := c.last.keepAlive && !c.last.hasBody && !expect && !c.loop.draining && !c.fin
	c.served = true
	return c.reply(unavailable503, text, c.last.method == http1.HeadMethod, keep)
}

// refusal says why a decision's fork does not answer.
func refusal(d *routing.Decision) string {
	why := "it has no ready endpoint"
	switch {
	case d.Refused != "":
		why = "may not: " + d.Refused
	case len(d.Endpoints) > 0:
		why = "none of its endpoints can be reached"
	}
	sandbox := "sandbox "
	if d.Sandbox != nil {
		sandbox = d.Sandbox.Title()
	}
	return "sidetrack: " + sandbox + " redirects Service " + d.Service.String() + " to " + d.Target + ", but " + why + "."
}

// reply sends an answer of the router's own. Without keep the client is sent
// away.
func (c *conn) reply(status, text string, head, keep bool) (sent int) {
	l := c.loop
	b := append(l.made[:0], "HTTP/1.1 "...)
	b = append(b, status...)
	b = append(b, "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(text)), 10)
	if keep {
		b = append(b, "\r\nConnection: keep-alive\r\n\r\n"...)
	} else {
		b = append(b, "\r\nConnection: close\r\n\r\n"...)
	}
	if !head {
		b = append(b, text...)
	}
	l.made = b[:0]
	if !keep {
		c.sendAway()
	}
	c.toClient(b)
	return len(b)
}

// sendAway ends the connection behind an answer. What the client still sends is
// read and thrown away, for a while: closing with unread bytes would make an RST
// of it, which could overtake the answer.
func (c *conn) sendAway() {
	for _, u := range c.ups {
		u.close(false)
	}
	c.endExchanges("")
	c.ups, c.cur = c.ups[:0], nil
	c.asked = askedQueue{}
	c.dropRetry()
	c.scan = nil
	c.waiting, c.held = false, false
	c.partial = http1.Partial{}
	c.phase, c.end = discarded, sendAwayFIN
}

// unreachable deals with cur when none of its addresses can be reached.
func (c *conn) unreachable() {
	l := c.loop
	u := c.cur
	switch {
	case c.asked.len() == 0 && u.out.len() == 0 && c.phase == atHead && !c.fin:
		// Nobody needed it yet. A server that refuses is a connection that is refused,
		// except to a tagged request.
		c.remove(u)
		if u.fork && c.table().DecideConnection(c.ns.cookie, c.dest).FallBack {
			c.cur = c.baseline()
			return
		}
		c.refused = true
		if c.in.len() == 0 {
			c.later(c.loop.delays.refusal, c.refuseSilent)
		} else {
			c.later(c.loop.delays.refusedHead, c.refuseSilent)
		}
	case !u.fork || c.phase == opaque || c.asked.len() == 0:
		c.why = nobodyReached
		c.abort()
	case c.last.decision.FallBack:
		waiting, fin := u.out, u.wantFIN
		u.out = buffer{}
		c.remove(u)
		c.cur = c.baseline()
		if c.cur.out.len() == 0 {
			c.cur.out = waiting
		} else {
			c.cur.out.add(&l.bufs, waiting.bytes())
			waiting.drop(&l.bufs)
		}
		c.last.decision.Verdict, c.last.decision.Reason = routing.ToBaseline, routing.Unavailable
		if x := c.exchange(); x != nil {
			x.entry.Decided(c.table(), c.dest, &c.last.decision)
		}
		if c.cur.state == connected {
			c.reached()
			c.count()
			c.cur.send(nil)
		}
		if fin {
			c.cur.sendFIN()
		}
	default:
		c.last.decision.Verdict, c.last.decision.Reason = routing.Refuse, routing.Unavailable
		c.count()
		u.close(false)
		c.remove(u)
		e := c.take()
		if c.asked.pop(); c.phase == atAnswer {
			c.phase = atHead
		}
		c.held = false
		c.refusedRequest(e, c.unavailable(false), nobodyReached)
	}
}
