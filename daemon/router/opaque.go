// SPDX-License-Identifier: Apache-2.0

package router

import (
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// becomeOpaque gives up reading: from the next byte on everything goes to the
// default upstream, both ways. With scan the client's bytes are still searched
// for routing keys, because an HTTP server might find a request among them, and a
// tagged one must not be served by the baseline.
func (c *conn) becomeOpaque(scan bool) {
	l := c.loop
	if c.refused && !c.served {
		c.abort()
		return
	}
	was := c.cur
	if !c.doubtful {
		c.dialDefault()
	}
	d := c.table().DecideConnection(c.ns.cookie, c.dest)
	if c.cur == nil || c.doubtful && c.cur.fork != (d.Verdict == routing.ToFork) {
		l.stats.connection(&d)
		c.refuseFlow(&d, "")
		c.abort()
		return
	}
	if c.cur != was && c.rin.len() > 0 {
		c.rin.drop(&l.bufs)
	}
	c.openBothWays(scan)
}

// openBothWays copies everything to and from cur from now on.
func (c *conn) openBothWays(scan bool) {
	l := c.loop
	d := c.table().DecideConnection(c.ns.cookie, c.dest)
	if c.cur.fork != (d.Verdict == routing.ToFork) {
		// The table has changed since it was dialled, or the fork was out of reach
		// and its owner wants the baseline then.
		d.Verdict = routing.ToBaseline
		if c.cur.fork {
			d.Verdict = routing.ToFork
		} else if d.Sandbox != nil {
			d.Reason = routing.Unavailable
		}
	}
	l.stats.connection(&d)
	c.endExchanges(notHTTPAnyMore)
	c.openFlow(&d)
	c.dropOthers()
	c.dropRetry()
	l.timers.clear(&c.timer)
	c.phase, c.answer = opaque, blind
	c.waiting, c.held = false, false
	c.partial = http1.Partial{}
	c.scan = nil
	if scan {
		c.scan = http1.NewScanner(&l.router.cfg.KeyNames)
	}
}

// becomeTunnel follows an answer after which the connection is no HTTP any more.
// Where it leads has been decided by a request, so nothing is searched.
func (c *conn) becomeTunnel() {
	c.loop.stats.tunnels++
	c.dropOthers()
	c.phase, c.answer = opaque, blind
	c.held = false
	c.scan = nil
}

// leadsElsewhere reports whether a request with this key would not go where the
// connection goes.
func (c *conn) leadsElsewhere(value []byte) bool {
	l := c.loop
	t := c.table()
	l.keys.Reset()
	l.keys.Add(&l.router.cfg.KeyNames, routing.InHeader, value)
	d := t.DecideRequest(c.ns.cookie, c.dest, &l.keys)
	// What it was is still in l.keys when the answer is yes.
	return d.Verdict != routing.ToBaseline && d.Sandbox != t.DecideConnection(c.ns.cookie, c.dest).Sandbox
}

// scanEnd is a scan of the client's bytes at their end.
func (c *conn) scanEnd() {
	if c.scan != nil && c.scan.End(c.leadsElsewhere) {
		c.keyInOpaque()
	}
}

// keyInOpaque ends a connection in whose bytes leadsElsewhere has found a key.
func (c *conn) keyInOpaque() {
	c.loop.stats.errors[keyInOpaque]++
	if e := c.refuseFound(keyInBytes); e != nil {
		c.loop.finish(e)
	}
	c.abort()
}
