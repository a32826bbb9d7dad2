// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// phase is what the client's next byte is.
type phase uint8

const (
	atHead    phase = iota // of a request's head
	inLength               // of a body with Content-Length
	inChunks               // of a chunked body
	atAnswer               // not to be read before the answer to CONNECT or Upgrade is there
	opaque                 // none of our business
	inHTTP2                // HTTP/2, see http2.go
	discarded              // read and thrown away: the client has been answered and sent away
	unread                 // not to be read any more
)

// answerPhase is what the upstream's next byte is.
type answerPhase uint8

const (
	atAnswerHead   answerPhase = iota
	inAnswerLength             //
	inAnswerChunks             //
	blind                      // to be relayed as it is until the upstream closes
)

// ending is what becomes of the client's side when it has taken all it is owed.
type ending uint8

const (
	goOn        ending = iota
	sendFIN            // as the upstream did
	sendRST            // as the upstream did, once the client has what came before it
	hangUp             // close
	sendAwayFIN        // after an answer of our own: FIN, then discard what still comes
)

// conn is a client's connection and all that is done for it.
type conn struct {
	loop *loop
	ns   *namespace
	sock socket

	dest routing.DestID // what addr is called by the table of generation
	addr netip.AddrPort // as the client dialled it

	generation uint64

	bind netip.Addr // where to dial from; the zero Addr: the kernel's choice

	// From the client.
	phase   phase
	in      buffer        // read, not consumed
	partial http1.Partial // of the head that in begins with
	left    int64         // of a body with Content-Length
	chunks  http1.Chunked // of a chunked body
	upgrade bool          // after this body comes the answer that decides
	begun   bool          // a request's head has been read
	waiting bool          // in is the beginning of a head; more must come
	held    bool          // in's head waits for the answers to the requests before it
	fin     bool          // the client has sent FIN
	finSeen bool          // and that has been dealt with
	scan    *http1.Scanner
	h2      *http2Conn // what is known of it when it is HTTP/2

	h2c         bool   // the last request offers to go on with HTTP/2
	h2cSettings []byte // its HTTP2-Settings

	// Where it goes. cur is the upstream that the last request went to; at first
	// the default one.
	ups    []*upstream
	upsBuf [2]*upstream
	cur    *upstream

	// What cur owes.
	asked   askedQueue
	last    request // the last one that was sent
	retry   []byte  // the only request outstanding, if it may be sent once more
	served  bool    // an answer has been relayed: this is HTTP beyond doubt
	refused bool    // the default upstream cannot be reached

	// To the client.
	answer    answerPhase
	rin       buffer // the beginning of an answer's head
	greeting  []byte // what the client has of a server that has spoken first and may be HTTP/2's
	rpartial  http1.Partial
	rleft     int64
	rchunks   http1.Chunked
	doubtful  bool // answers cannot be told apart: cur is the only upstream from now on
	out       buffer
	end       ending
	finSent   bool
	resetting bool

	// What the ledger is to be told, see exchange.go.
	exchanges []exchange    // in the order of their requests
	flow      *ledger.Entry // of the connection, where it is no HTTP or has become a tunnel
	why       string        // it ended, if not as connections do

	syn *heldSYN // it has not been accepted yet

	timer  timer
	queued bool // in loop.again
	dead   bool

	// On the way to another process, see giveaway.go.
	away         bool   // nobody watches it
	declined     bool   // the other process did not take it
	turns        uint32 // calls of run
	stalledTurns uint32
	stalledSince int64

	prev, next *conn // in loop.conns or loop.held
}

// request is what must be remembered of one that was sent.
type request struct {
	decision  routing.Decision
	counted   bool
	method    http1.Method
	hasBody   bool
	keepAlive bool
}

// Patience. What decides about a client that is slow is also in delays.
const (
	acceptPause = 50 * time.Millisecond
	// lingerDelay is how long a client that has been sent away may go on sending.
	lingerDelay = 10 * time.Second
	// An RST waits for the client's kernel to take what came before it.
	resetPoll  = 10 * time.Millisecond
	resetPolls = 1000
	// forkDialLimit is how long one endpoint of a fork is tried.
	forkDialLimit = 3 * time.Second
)

// delays are how long somebody, mostly a client, may take for something before it is
// taken for one that is not going to do it. Tests of who is slow change them.
type delays struct {
	// refusal is how long a client that says nothing is left connected to a baseline
	// that has refused: it may be about to send a tagged request.
	refusal time.Duration
	// refusedHead is the same for a client that has sent a part of a head.
	refusedHead time.Duration
	// unlikely is how long a client may pause after bytes that do not look like HTTP
	// before they are taken for another protocol's.
	unlikely time.Duration
	// drain is how long a drain lets a new client wait with its first request.
	drain time.Duration
	// second is how long a second connection to an HTTP/2 server is tried until that says
	// that it serves it: the streams for it could have gone by the first.
	second time.Duration
}

func defaultDelays() delays {
	return delays{
		refusal: 100 * time.Millisecond, refusedHead: 3 * time.Second,
		unlikely: 100 * time.Millisecond, drain: 500 * time.Millisecond, second: time.Second,
	}
}

// turnReads is how many reads each side of a connection gets in one turn.
const turnReads = 4

// conn makes a connection of an arrival.
func (a *arrival) conn(l *loop) *conn {
	c := &conn{loop: l, ns: a.ns, dest: a.dest, addr: a.addr, bind: a.bind}
	c.ups = c.upsBuf[:0]
	return c
}

// adopt begins to serve a connection for which nothing has been dialled yet.
func (l *loop) adopt(a arrival) {
	c := a.conn(l)
	// Dialling right away lets a server speak first, and hides the handshake
	// behind the client's own first steps.
	if !l.stopped {
		c.dialDefault()
	}
	c.begin(a.fd)
}

// begin begins to serve a client's socket.
func (c *conn) begin(fd int32) {
	l := c.loop
	c.sock = socket{fd: fd, conn: c}
	if l.stopped || l.watch(&c.sock, connEvents) != nil {
		for _, u := range c.ups {
			u.close(true)
		}
		c.dead = true
		l.open.Add(-1)
		resetFD(fd)
		c.ns.release()
		return
	}
	l.conns.add(c)
	if u := c.cur; u == nil {
		c.refused = true
		c.later(l.delays.refusal, c.refuseSilent)
	} else if u.state == dialFailed || u.state == connected && u.sock.readable {
		c.run()
	}
	if !c.dead && l.draining {
		c.drain()
	}
}

// table returns the table in force. A destination that has left the table may
// come back under another id while a connection to it lives on.
func (c *conn) table() *routing.Table {
	t := c.loop.table()
	if g := t.Generation(); g != c.generation {
		c.generation = g
		if d, ok := t.LookupDest(c.addr, routing.TCP); ok {
			c.dest = d.ID
		}
	}
	return t
}

func (c *conn) clientEvent() {
	if c.sock.failed && !c.mayTake() {
		// The client has reset the connection. What it sent before that is read first
		// where that is possible: then the RST shows as an error of the read.
		c.loop.stats.errors[clientReset]++
		c.why = callerReset
		c.abort()
		return
	}
	c.run()
}

// run moves bytes until nothing more can be moved or it is somebody else's turn.
func (c *conn) run() {
	if c.syn != nil {
		c.proceed()
		return
	}
	c.turns++
	if c.h2 != nil {
		c.h2.run()
		return
	}
	for range turnReads {
		if c.cur != nil && c.cur.state == dialFailed {
			c.unreachable()
			if c.dead {
				return
			}
		}
		c.flush()
		moved := !c.dead && c.takeFromClient()
		moved = !c.dead && c.takeFromUpstream() || moved
		if c.dead {
			return
		}
		if c.h2 != nil {
			c.h2.run()
			return
		}
		if !moved {
			c.conclude()
			if c.loop.wanted > 0 && c.canPart(c.loop.midway, false) {
				c.loop.part(c)
			}
			return
		}
	}
	c.goOn()
}

// goOn lets others have their turn before c has its next one.
func (c *conn) goOn() {
	if !c.queued {
		c.queued = true
		c.loop.again = append(c.loop.again, c)
	}
}

// flush sends what waits in both directions.
func (c *conn) flush() {
	if c.out.len() > 0 && c.sock.writable {
		if c.toClient(nil); c.out.len() == 0 {
			c.held = false
		}
	}
	if u := c.cur; !c.dead && u != nil && u.out.len() > 0 && u.state == connected && u.gates == 0 && u.sock.writable {
		u.send(nil)
	}
}

// toClient sends b to the client, behind what waits already.
func (c *conn) toClient(b []byte) {
	l := c.loop
	l.stats.toClients += uint64(len(b))
	for c.out.len() > 0 && c.sock.writable {
		n, e := send(c.sock.fd, c.out.bytes())
		if !c.sent(n, e, c.out.len()) {
			return
		}
		c.out.skip(&l.bufs, n)
	}
	if len(b) > 0 && c.out.len() == 0 {
		// Whether the socket takes anything is for the call to say.
		n, e := send(c.sock.fd, b)
		if !c.sent(n, e, len(b)) {
			return
		}
		b = b[n:]
	}
	c.out.add(&l.bufs, b)
}

// sent looks at the result of a send to the client of want bytes.
func (c *conn) sent(n int, e unix.Errno, want int) bool {
	switch {
	case e == noError && n == want:
	case e == noError || e == unix.EAGAIN:
		c.sock.writable = false
	default:
		// The client has gone; whoever still works for it must know.
		c.loop.stats.errors[clientReset]++
		c.why = callerReset
		c.abort()
		return false
	}
	return true
}

// conclude draws the consequences when all that could be moved has been.
func (c *conn) conclude() {
	if c.fin && !c.finSeen && (c.in.len() == 0 || c.waiting) && !c.held {
		c.finish()
		if c.dead {
			return
		}
	}
	if c.out.len() > 0 {
		return
	}
	switch c.end {
	case goOn:
	case hangUp:
		c.close()
	case sendFIN:
		c.passFIN()
	case sendRST:
		c.passRST()
	case sendAwayFIN:
		if !c.finSent {
			c.finSent = true
			shutdownWrite(c.sock.fd)
			c.later(lingerDelay, c.close)
		}
		if c.fin {
			c.close()
		}
	}
}

// finish deals with the client's FIN, which comes after all its bytes.
func (c *conn) finish() {
	if c.waiting {
		// Half a head that will never be whole. Whoever it is for may make something
		// of it, but not if it carries a key.
		c.becomeOpaque(true)
		if !c.dead {
			c.run()
		}
		return
	}
	c.finSeen = true
	switch {
	case c.end == sendAwayFIN || c.end == hangUp:
		return
	case c.cur == nil:
		c.abort()
		return
	case c.phase == atHead && c.asked.len() == 0 && c.served && !c.doubtful && c.answer == atAnswerHead:
		// The client is done and nobody owes it anything.
		if c.end == goOn {
			c.end = hangUp
		}
		return
	}
	c.scanEnd()
	if c.dead {
		return
	}
	if c.phase != discarded {
		c.phase = unread
	}
	c.dropOthers()
	c.cur.sendFIN()
	if c.finSent {
		c.close()
	}
}

// passFIN tells the client that the upstream will send no more.
func (c *conn) passFIN() {
	if c.finSent {
		return
	}
	if c.finSeen || c.phase == atHead || c.phase == unread || c.phase == atAnswer {
		// Nothing is under way to the upstream, so it is closed as a server's process
		// would close it. If the client has sent something meanwhile it gets RST.
		c.close()
		return
	}
	c.finSent = true
	shutdownWrite(c.sock.fd)
}

// passRST resets the client, but not before its kernel has everything that came
// before: an RST overtakes what is still in our queue.
func (c *conn) passRST() {
	if c.resetting {
		return
	}
	c.resetting = true
	polls := 0
	var poll func()
	poll = func() {
		if polls++; unacknowledged(c.sock.fd) == 0 || polls > resetPolls {
			c.abort()
			return
		}
		c.later(resetPoll, poll)
	}
	c.phase = unread
	poll()
}

// later runs f after a while, unless another use of the timer comes before.
func (c *conn) later(d time.Duration, f func()) {
	c.timer.fire = f
	c.loop.timers.set(&c.timer, d)
}

func (c *conn) refuseSilent() {
	if c.cur == nil && c.phase == atHead && !c.served {
		c.refusedSilent()
		c.abort()
	}
}

// abort resets everybody.
func (c *conn) abort() {
	if c.dead {
		return
	}
	for _, u := range c.ups {
		u.close(true)
	}
	c.bury()
	resetFD(c.sock.fd)
}

// close closes everybody, with FIN.
func (c *conn) close() {
	if c.dead {
		return
	}
	for _, u := range c.ups {
		u.close(false)
	}
	c.bury()
	closeFD(c.sock.fd)
}

// bury gives back what the connection has borrowed, all but the descriptor.
func (c *conn) bury() {
	l := c.loop
	c.dead = true
	c.endExchanges(c.why)
	if c.h2 != nil {
		c.h2.relay.Ended(c.why)
	}
	c.ups, c.cur = nil, nil
	l.timers.clear(&c.timer)
	l.forget(&c.sock)
	c.in.drop(&l.bufs)
	c.rin.drop(&l.bufs)
	c.out.drop(&l.bufs)
	c.dropRetry()
	c.scan, c.h2, c.greeting = nil, nil, nil
	l.conns.remove(c)
	l.open.Add(-1)
	c.ns.release()
}

// idle reports whether nothing is under way.
func (c *conn) idle() bool {
	return c.phase == atHead && c.asked.len() == 0 && c.in.len() == 0 && c.out.len() == 0 &&
		c.answer == atAnswerHead && !c.sock.readable && (c.cur == nil || c.cur.out.len() == 0)
}

// drain closes the connection when nothing is under way; otherwise answered does
// when that is done. A client that has not asked anything yet has probably just
// dialled in order to.
func (c *conn) drain() {
	switch {
	case c.h2 != nil:
		c.h2.beginDrain()
		if !c.dead {
			c.run()
		}
	case !c.idle():
	case c.served || c.cur == nil:
		c.close()
	default:
		c.later(c.loop.delays.drain, func() {
			if c.idle() {
				c.close()
			}
		})
	}
}

// connList is a list of a loop's connections.
type connList struct{ first *conn }

func (l *connList) add(c *conn) {
	c.next = l.first
	if l.first != nil {
		l.first.prev = c
	}
	l.first = c
}

func (l *connList) remove(c *conn) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// maxAsked is how many requests may be outstanding on one connection.
const maxAsked = 64

// askedQueue remembers the methods of the requests that have not been answered.
type askedQueue struct {
	methods [maxAsked]http1.Method
	first   uint8
	n       uint8

	asked, answered uint64 // how many were pushed and popped
}

func (q *askedQueue) len() int            { return int(q.n) }
func (q *askedQueue) front() http1.Method { return q.methods[q.first] }

func (q *askedQueue) push(m http1.Method) {
	q.methods[(q.first+q.n)%maxAsked] = m
	q.n++
	q.asked++
}

func (q *askedQueue) pop() {
	q.first = (q.first + 1) % maxAsked
	q.n--
	q.answered++
}
