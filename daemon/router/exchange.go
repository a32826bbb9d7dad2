// SPDX-License-Identifier: Apache-2.0

package router

import (
	"strconv"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// A request that leaves a record has an exchange from the moment that its head is
// sent until its answer's last byte has been, or is not to be expected any more. A
// connection with untagged requests alone has none, and what is said here costs it
// one comparison for each request and answer.

// exchange is a request whose record is being made.
type exchange struct {
	entry *ledger.Entry
	// turn is which of the connection's requests it is.
	turn uint64
	// status is there, and what follows the answer's head is the answer's end.
	answering, untilClose bool
}

// Why an exchange ended otherwise than with its answer.
const (
	callerReset     = "the caller reset the connection"
	noAnswer        = "the connection ended before there was an answer"
	answerReset     = "the answering side reset the connection"
	answerCut       = "the connection ended before the answer did"
	doubtfulAnswers = "answers on this connection cannot be told apart, so this one's is not known"
	notHTTPAnyMore  = "the connection is no HTTP any more"
	notFramed       = "the request cannot be framed beyond doubt, and the router answered it: "
	keyInBytes      = "there is a routing key in bytes that are no request that can be routed, so the connection was reset"
	movedAway       = "another agent has taken the connection over; how it ended is not known"
	nobodyReached   = "no endpoint can be reached"
	sentAway        = "the router has ended the connection, because the caller or the baseline has broken the protocol or passed a bound"
	resetForAnother = "the connection was reset, because another of its streams was for the baseline, which cannot be reached"
)

// opened begins the record of the request that has just been parsed and that d is
// about, if it leaves one. d may be another decision then: see ledger.Open.
func (c *conn) opened(t *routing.Table, d *routing.Decision) *ledger.Entry {
	l := c.loop
	r := &l.req
	e := l.router.cfg.Ledger.Open(&ledger.Call{
		Table: t, Source: c.ns.cookie, Dest: c.dest, Dialled: c.addr, Protocol: ledger.HTTP1,
		Keyed: l.keys.Seen(), Traceparent: r.Traceparent, Spare: l.spareEntry(),
	}, d)
	if e != nil {
		l.used(e)
		e.Ask(r.Verb, r.Authority, r.Target)
		e.Sent = int64(r.Len)
	}
	return e
}

// goes tells where the request of an entry, if it has one, is going by d, u being
// connected, and keeps u from sending it before that is known where it has to be.
func (c *conn) goes(e *ledger.Entry, d *routing.Decision, u *upstream) {
	l := c.loop
	known := l.router.cfg.Ledger.Going(c.table(), e, d, u.answering())
	if known == nil {
		return
	}
	if u.gates++; u.gates == 1 {
		u.unsent = u.out.len() == 0
	}
	dials := u.dials
	go func() {
		<-known
		l.post(func() {
			if c.dead || u.state != connected || u.dials != dials {
				return
			}
			if u.gates--; u.gates == 0 {
				u.unsent = false
				c.run()
			}
		})
	}()
}

// reached follows that cur is connected: what was sent before goes now, and it is known
// to whom.
func (c *conn) reached() {
	if x := c.sending(); x != nil {
		x.entry.Answer = c.cur.answering()
		c.goes(x.entry, &c.last.decision, c.cur)
	}
	if c.flow != nil {
		c.flow.Answer = c.cur.answering()
	}
}

// record keeps the exchange of the request that was sent to u last. What comes of
// its body is added to it.
func (c *conn) record(e *ledger.Entry, u *upstream) {
	e.Answer = u.answering()
	if c.answer == blind {
		// Nobody can tell which answer is its.
		e.Fail(doubtfulAnswers)
		c.loop.finish(e)
		return
	}
	c.loop.router.cfg.Ledger.Begin(e)
	c.exchanges = append(c.exchanges, exchange{entry: e, turn: c.asked.asked - 1})
}

// exchange returns the one that the next answer belongs to, or nil; valid until
// another one begins or ends.
func (c *conn) exchange() *exchange {
	if len(c.exchanges) > 0 {
		if x := &c.exchanges[0]; x.turn == c.asked.answered {
			return x
		}
	}
	return nil
}

// sending returns the exchange whose body is being read, or nil; valid like the other.
func (c *conn) sending() *exchange {
	if n := len(c.exchanges); n > 0 {
		if x := &c.exchanges[n-1]; x.turn+1 == c.asked.asked {
			return x
		}
	}
	return nil
}

// sentMore counts bytes of the caller behind a head.
func (c *conn) sentMore(n int) {
	if x := c.sending(); x != nil {
		x.entry.Sent += int64(n)
	}
}

// receivedMore counts bytes of an answer.
func (c *conn) receivedMore(n int) {
	if x := c.exchange(); x != nil {
		x.entry.Received += int64(n)
	}
}

// answerBegins notes an answer's head.
func (c *conn) answerBegins(r *http1.Response) {
	x := c.exchange()
	if x == nil {
		return
	}
	x.entry.Received += int64(r.Len)
	x.entry.Answer = c.cur.answering()
	if r.Framing != http1.Interim {
		x.entry.Status, x.answering = r.Status, true
		x.untilClose = r.Framing == http1.ByClose || r.Framing == http1.Tunnel
	}
}

// complete ends the exchange that the answer which has just ended belongs to.
func (c *conn) complete() {
	if e := c.take(); e != nil {
		c.loop.finish(e)
	}
}

// take returns the record that the next answer belongs to, or nil, and forgets it.
func (c *conn) take() *ledger.Entry {
	x := c.exchange()
	if x == nil {
		return nil
	}
	e := x.entry
	// The first place is the next one's: most connections need no other.
	c.exchanges = c.exchanges[:copy(c.exchanges, c.exchanges[1:])]
	return e
}

// tunnels goes on with the record of the request after whose answer the connection
// is no HTTP any more: it ends with the connection.
func (c *conn) tunnels() {
	if e := c.take(); e != nil {
		c.flow = e
	}
}

// endExchanges ends all that are left: their answers will not come. why is empty
// where the connection has ended as connections do.
func (c *conn) endExchanges(why string) {
	if len(c.exchanges) == 0 && c.flow == nil {
		return
	}
	for _, x := range c.exchanges {
		switch {
		case x.untilClose && (why == "" || why == callerReset):
			// That was its end.
		case why != "":
			x.entry.Fail(why)
		case x.answering:
			x.entry.Fail(answerCut)
		default:
			x.entry.Fail(noAnswer)
		}
		c.loop.finish(x.entry)
	}
	c.exchanges = nil
	if e := c.flow; e != nil {
		c.flow = nil
		if why != "" && why != callerReset {
			e.Fail(why)
		}
		c.loop.finish(e)
	}
}

// refusedRequest records a request that the router has answered with 503. e may be
// nil.
func (c *conn) refusedRequest(e *ledger.Entry, received int, why string) {
	if e == nil {
		return
	}
	e.Verdict, e.Reason = c.last.decision.Verdict, c.last.decision.Reason
	e.Status, e.Received = 503, int64(received)
	if why != "" {
		e.Fail(why)
	}
	c.loop.finish(e)
}

// lastOf records a request that was read and went nowhere. e may be nil.
func (c *conn) lastOf(e *ledger.Entry, why string) {
	if e != nil {
		e.Fail(why)
		c.loop.finish(e)
	}
}

// openFlow begins the record of a connection that is no HTTP, where its source is
// tagged.
func (c *conn) openFlow(d *routing.Decision) {
	if e := c.connection(d); e != nil {
		e.Answer = c.cur.answering()
		c.flow = e
	}
}

// refuseFlow records a connection of a tagged source that goes nowhere.
func (c *conn) refuseFlow(d *routing.Decision, why string) {
	if e := c.connection(d); e != nil {
		c.lastOf(e, why)
	}
}

// refusedSilent records that a connection is ended on which nobody has said
// anything, because there is nobody to answer.
func (c *conn) refusedSilent() {
	d := c.table().DecideConnection(c.ns.cookie, c.dest)
	why := "the redirect's target has no ready endpoint"
	if d.Verdict != routing.Refuse {
		why = nobodyReached
	}
	c.refuseFlow(&d, why)
}

func (c *conn) connection(d *routing.Decision) *ledger.Entry {
	return c.loop.router.cfg.Ledger.OpenConnection(&ledger.Call{
		Table: c.table(), Source: c.ns.cookie, Dest: c.dest, Dialled: c.addr,
	}, d)
}

// refuseKeyed records that bytes with a routing key were answered by the router,
// because nobody can tell where the request in them ends.
func (c *conn) refuseKeyed(b []byte, status, why string) {
	l := c.loop
	if l.router.cfg.Ledger == nil {
		return
	}
	find := func(value []byte) bool {
		l.keys.Reset()
		l.keys.Add(&l.router.cfg.KeyNames, routing.InHeader, value)
		d := c.table().DecideRequest(c.ns.cookie, c.dest, &l.keys)
		return d.Sandbox != nil
	}
	if s := http1.NewScanner(&l.router.cfg.KeyNames); s.Scan(b, find) || s.End(find) {
		e := c.refuseFound(notFramed + why)
		if e == nil {
			return
		}
		e.Protocol, e.Sent = ledger.HTTP1, int64(len(b))
		e.Status, _ = strconv.Atoi(status[:3])
		l.finish(e)
	}
}

// refuseFound begins the record of bytes that go nowhere, whose key is in l.keys.
func (c *conn) refuseFound(why string) *ledger.Entry {
	d := c.table().DecideRequest(c.ns.cookie, c.dest, &c.loop.keys)
	d.Verdict = routing.Refuse
	e := c.connection(&d)
	if e != nil {
		e.Fail(why)
	}
	return e
}

const (
	// A record is made when its request is over and the loop has nothing else to do: it
	// would take longer than all else that is done for a lonely request, because the
	// code and the memory are not at hand. At the latest it is made after so many turns
	// of the loop, or when so many wait.
	recordTurns = 64
	recordBatch = 64
)

// finish has a record made soon. Its entry is not to be changed any more.
func (l *loop) finish(e *ledger.Entry) {
	// Until then it is under way to whoever asks.
	l.router.cfg.Ledger.Begin(e)
	e.End()
	l.finished = append(l.finished, e)
}

// makeRecords makes those that wait.
func (l *loop) makeRecords() {
	for i, e := range l.finished {
		if l.router.cfg.Ledger.Finish(e) && len(l.spare) < recordBatch {
			l.spare = append(l.spare, e)
		}
		l.finished[i] = nil
	}
	l.finished, l.unrecorded = l.finished[:0], 0
}

// recordsSoon reports whether the loop is to wait only for a moment, because there are
// records to be made, and makes them where they have waited long enough.
func (l *loop) recordsSoon() bool {
	if len(l.finished) == 0 {
		return false
	}
	if l.unrecorded++; l.unrecorded > recordTurns || len(l.finished) >= recordBatch {
		l.makeRecords()
		return false
	}
	return true
}

// spareEntry returns an entry that may be used again, or nil. It stays the loop's
// until used is called.
func (l *loop) spareEntry() *ledger.Entry {
	if n := len(l.spare); n > 0 {
		return l.spare[n-1]
	}
	return nil
}

// used is told which entry a request has got, of those that could have been the spare
// one.
func (l *loop) used(e *ledger.Entry) {
	if n := len(l.spare); n > 0 && l.spare[n-1] == e {
		l.spare = l.spare[:n-1]
	}
}
