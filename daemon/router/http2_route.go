// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// The other side of http2.Env: where streams go, what is counted and recorded of
// them, and who is told.

// sentRequest is a stream whose upstream is not connected yet.
type sentRequest struct {
	stream   uint32
	decision routing.Decision
	entry    *ledger.Entry // nil: it leaves none
	counted  bool
}

// watched is a stream that leaves a record.
type watched struct {
	entry *ledger.Entry
	up    *upstream // nil: nobody was asked
}

// greetingDelay is how long a fork's answer waits for the baseline's first words.
const greetingDelay = 200 * time.Millisecond

// refusal says why a stream's fork does not answer.
func (u *upstream) refusal(stream uint32) string {
	for i := range u.pending {
		if p := &u.pending[i]; p.stream == stream {
			return refusal(&p.decision)
		}
	}
	return "sidetrack: the sandbox's target cannot be reached."
}

// countPending counts what was sent to an upstream before it was known where it
// leads.
func (u *upstream) countPending() {
	for i := range u.pending {
		if p := &u.pending[i]; !p.counted {
			u.conn.loop.stats.request(&p.decision)
		}
	}
	u.pending = nil
}

// forgetEntry is told that a record is over.
func (u *upstream) forgetEntry(e *ledger.Entry) {
	for i := range u.pending {
		if p := &u.pending[i]; p.entry == e {
			p.entry = nil
		}
	}
}

// streamGoes tells where the stream of an entry, if it has one, is going, u being
// connected. It reports whether the stream is to be held until that is known where it
// has to be: then it is let go.
func (u *upstream) streamGoes(stream uint32, e *ledger.Entry, d *routing.Decision) (hold bool) {
	if e == nil {
		return false
	}
	c := u.conn
	l := c.loop
	known := l.router.cfg.Ledger.Going(c.table(), e, d, u.answering())
	if known == nil {
		return false
	}
	go func() {
		<-known
		l.post(func() {
			// Of one that is on its way to another process nothing is held.
			if !c.dead && !c.away && u.state == connected {
				if c.h2.relay.LetGo(u.link, stream); !c.dead {
					c.run()
				}
			}
		})
	}()
	return true
}

// pendingGo is streamGoes for those that have waited until u is connected.
func (u *upstream) pendingGo() {
	for i := 0; i < len(u.pending); i++ {
		p := &u.pending[i]
		if stream := p.stream; !u.streamGoes(stream, p.entry, &p.decision) && u.conn.h2 != nil {
			u.conn.h2.relay.LetGo(u.link, stream)
		}
	}
}

// mayWaitOn returns where a stream goes that was to go by cur and has to wait: another
// connection, on which it holds up nobody who has no key. Where there can be none it is
// cur, and the stream does not wait.
func (h *http2Conn) mayWaitOn(d *routing.Decision) *upstream {
	c := h.c
	if h.noSecond {
		return c.cur
	}
	fork := d.Verdict == routing.ToFork
	for _, u := range c.ups {
		if u != c.cur && h.fits(u, fork, d.FallBack, d.Endpoints) {
			return u
		}
	}
	if !h.room() {
		return c.cur
	}
	u := &upstream{conn: c, fork: fork, second: true}
	if fork {
		u.endpoints, u.fallBack = []netip.AddrPort{c.cur.addr}, d.FallBack
	}
	c.ups = append(c.ups, u)
	u.link = h.relay.NewSecond(u)
	u.dial()
	return u
}

// Moved follows a stream from a second connection to the first.
func (h *http2Conn) Moved(stream uint32, w *http2.Watch) {
	c := h.c
	x := w.Peer.(watched)
	w.Peer = watched{x.entry, c.cur}
	// What is on its way to a second connection leaves a record, or it need not wait; and
	// where it is connected its requests are counted.
	p := sentRequest{stream, routing.Decision{Verdict: x.entry.Verdict, Service: x.entry.Service}, x.entry, true}
	for i := range x.up.pending {
		if x.up.pending[i].stream == stream {
			p = x.up.pending[i]
			x.up.pending = slices.Delete(x.up.pending, i, i+1)
			break
		}
	}
	if c.cur.state != connected {
		c.cur.pending = append(c.cur.pending, p)
		return
	}
	if !p.counted {
		c.loop.stats.request(&p.decision)
	}
	c.cur.streamGoes(stream, p.entry, &p.decision)
}

// Route decides about a stream.
func (h *http2Conn) Route(req *http2.Request) http2.Route {
	c := h.c
	if c.dead {
		return http2.Route{Busy: true}
	}
	t := c.table()
	d := t.DecideRequest(c.ns.cookie, c.dest, req.Keys)
	var w *http2.Watch
	var e *ledger.Entry
	if c.loop.router.cfg.Ledger.Concerns(t, c.dest, &d) {
		if e = h.opened(t, &d, req); e != nil {
			w = &http2.Watch{}
		}
	}
	if d.Verdict == routing.Refuse {
		c.loop.stats.request(&d)
		if w != nil {
			w.Peer = watched{e, nil}
		}
		h.awaitGreeting()
		return http2.Route{Refusal: refusal(&d), Watch: w}
	}
	if d.Verdict == routing.ToBaseline && c.refused {
		// It is refused, as the connection would have been without us.
		c.lastOf(e, nobodyReached)
		c.why = resetForAnother
		c.abort()
		return http2.Route{Refusal: "sidetrack: the connection is refused."}
	}
	u := h.upstreamFor(&d)
	if u == nil {
		c.lastOf(e, "the connection has streams to too many forks already")
		return http2.Route{Busy: true}
	}
	hold, records := false, c.loop.router.cfg.Ledger
	if u == c.cur && e != nil && records.Waits(t, e, &d, u.known()) {
		u = h.mayWaitOn(&d)
	}
	if w != nil {
		w.Peer = watched{e, u}
		records.Begin(e)
	}
	if u.state == connected {
		c.loop.stats.request(&d)
		hold = u.streamGoes(req.Stream, e, &d)
	} else {
		u.pending = append(u.pending, sentRequest{req.Stream, d, e, false})
		hold = e != nil && records.Waits(t, e, &d, netip.AddrPort{})
	}
	if u != c.cur {
		h.awaitGreeting()
	}
	return http2.Route{Link: u.link, Inject: d.Inject, Hold: hold, Watch: w}
}

// awaitGreeting lets what others have to say wait for the primary's first words,
// but not forever.
func (h *http2Conn) awaitGreeting() {
	c := h.c
	if !h.relay.Awaiting() || c.timer.at != 0 {
		return
	}
	c.later(greetingDelay, func() {
		if h.relay.Greet(); !c.dead {
			c.run()
		}
	})
}

// opened begins the record of a stream that d is about, if it leaves one. d may be
// another decision then: see ledger.Open.
func (h *http2Conn) opened(t *routing.Table, d *routing.Decision, req *http2.Request) *ledger.Entry {
	c := h.c
	call := ledger.Call{
		Table: t, Source: c.ns.cookie, Dest: c.dest, Dialled: c.addr, Protocol: ledger.HTTP2,
		Keyed: req.Keys.Seen(), Traceparent: []byte(req.Traceparent), Spare: c.loop.spareEntry(),
	}
	if req.GRPC {
		call.Protocol = ledger.GRPC
	}
	e := c.loop.router.cfg.Ledger.Open(&call, d)
	if e != nil {
		c.loop.used(e)
		e.Ask([]byte(req.Method), []byte(req.Authority), []byte(req.Path))
	}
	return e
}

// Ended hands over the record of a stream.
func (h *http2Conn) Ended(w *http2.Watch, why string) {
	x := w.Peer.(watched)
	e := x.entry
	e.Status, e.GRPCStatus, e.HasGRPC, e.Sent, e.Received = w.Status, w.GRPCStatus, w.HasGRPC, w.Sent, w.Received
	if x.up != nil && (x.up.state == connected || x.up.state == closed) {
		e.Answer = x.up.answering()
	}
	if why != "" {
		e.Fail(why)
	}
	if x.up != nil {
		x.up.forgetEntry(e)
	}
	h.c.loop.finish(e)
}

// upstreamFor returns an upstream that a decision allows, an open one if there
// is any.
func (h *http2Conn) upstreamFor(d *routing.Decision) *upstream {
	c := h.c
	fork := d.Verdict == routing.ToFork
	if u := c.cur; h.fits(u, fork, d.FallBack, d.Endpoints) {
		return u
	}
	for _, u := range c.ups {
		if h.fits(u, fork, d.FallBack, d.Endpoints) {
			return u
		}
	}
	return h.newUpstream(d)
}

// newUpstream dials for a decision, and returns nil where there are too many already.
func (h *http2Conn) newUpstream(d *routing.Decision) *upstream {
	c := h.c
	if !h.room() {
		return nil
	}
	u := &upstream{conn: c, fork: d.Verdict == routing.ToFork}
	if u.fork {
		u.endpoints = d.Endpoints
		u.first = c.loop.random.IntN(len(d.Endpoints))
		u.fallBack = d.FallBack
	}
	c.ups = append(c.ups, u)
	u.link = h.relay.NewLink(u)
	u.dial()
	return u
}

// room reports whether there may be one upstream more, and closes an idle one if need
// be.
func (h *http2Conn) room() bool {
	c := h.c
	if len(c.ups) <= c.loop.router.cfg.HTTP2.Links {
		return true
	}
	for _, u := range slices.Backward(c.ups) {
		if u != c.cur && u.link.Streams() == 0 {
			h.relay.Close(u.link)
			h.discard(u)
			return true
		}
	}
	return false
}

func (h *http2Conn) fits(u *upstream, fork, fallBack bool, endpoints []netip.AddrPort) bool {
	return u != nil && u.usable() && u.serves(fork, endpoints) && u.link.Usable() && (!fork || u == h.c.cur || u.fallBack == fallBack)
}

// ToClient sends bytes to the client.
func (h *http2Conn) ToClient(b []byte) {
	if !h.c.dead && !h.heard {
		h.c.toClient(b)
	}
}

// ToLink sends bytes to an upstream.
func (h *http2Conn) ToLink(l *http2.Link, b []byte) {
	if h.c.dead {
		return
	}
	u := l.Peer.(*upstream)
	u.send(b)
	if u != h.c.cur && u.out.len() > maxLinkBytes {
		l.Full = true // until flush finds that it is not
	}
}

// Count counts what went another way than the plain one.
func (h *http2Conn) Count(why http2.Reason) {
	h.c.loop.stats.errors[http2Errors+errorReason(why)]++
}

// Now is the loop's clock.
func (h *http2Conn) Now() int64 { return h.c.loop.timers.now() }

// Drop closes an upstream that its server has ended, or whose server has broken the
// protocol.
func (h *http2Conn) Drop(l *http2.Link) {
	if u := l.Peer.(*upstream); !h.c.dead {
		h.lose(u)
	}
}
