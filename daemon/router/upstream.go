// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// upstreamState is how far an upstream's connection is.
type upstreamState uint8

const (
	dialling upstreamState = iota
	connected
	dialFailed
	closed
)

// upstream is a connection to the baseline or to a fork, for one client's
// connection alone.
type upstream struct {
	conn  *conn
	sock  socket
	state upstreamState
	fork  bool
	addr  netip.AddrPort
	// second says that it leads where cur does, for HTTP/2's streams that have to wait.
	second bool

	answers netip.AddrPort // who has been found to answer; the zero AddrPort: nobody has asked
	// gates is how many things have to happen before anything more is sent, and dials
	// how often it was dialled: those of an earlier connection count no more.
	gates, dials int
	unsent       bool // what waits for that is a request of which nothing has been sent

	endpoints []netip.AddrPort // of the fork; the table's
	first     int              // the endpoint that was tried first
	tried     int

	out     buffer // not sent yet
	wantFIN bool   // FIN goes after out
	finSent bool
	eof     bool // it has sent FIN or RST
	broken  bool // sending has failed
	served  bool // it has answered a request
	retried bool

	err   unix.Errno // why the last dial has failed
	timer timer

	// When it speaks HTTP/2, see http2.go.
	link     *http2.Link
	in       buffer        // the beginning of a frame or, when it is paused, more
	paused   bool          // see http2.Relay.Paused
	pending  []sentRequest // to be counted when it is connected
	fallBack bool          // its streams may go to the baseline instead
}

// maxUpstreams bounds how many one client's connection may have open. Beyond it
// the oldest idle one goes.
const maxUpstreams = 8

// dialDefault makes cur the upstream for what is no request: the baseline or,
// where the source itself is tagged, the fork. cur stays nil when the answer is
// that there is none.
func (c *conn) dialDefault() {
	d := c.table().DecideConnection(c.ns.cookie, c.dest)
	if d.Verdict == routing.Refuse {
		c.cur = nil
		return
	}
	c.cur = c.upstreamFor(&d)
}

// upstreamFor returns an upstream that a decision allows, an open one if there
// is any.
func (c *conn) upstreamFor(d *routing.Decision) *upstream {
	fork := d.Verdict == routing.ToFork
	if u := c.cur; u != nil && u.usable() && u.serves(fork, d.Endpoints) {
		return u
	}
	for _, u := range c.ups {
		if u.usable() && u.serves(fork, d.Endpoints) {
			return u
		}
	}
	if len(c.ups) >= maxUpstreams {
		for _, u := range c.ups {
			if u != c.cur {
				u.close(false)
				c.remove(u)
				break
			}
		}
	}
	u := &upstream{conn: c, fork: fork}
	if fork {
		u.endpoints = d.Endpoints
		u.first = c.loop.random.IntN(len(d.Endpoints))
		u.fallBack = d.FallBack
	}
	c.ups = append(c.ups, u)
	u.dial()
	return u
}

// baseline is upstreamFor the baseline.
func (c *conn) baseline() *upstream {
	return c.upstreamFor(&routing.Decision{Verdict: routing.ToBaseline})
}

func (u *upstream) usable() bool {
	return (u.state == connected || u.state == dialling) && !u.eof && !u.broken && !u.wantFIN
}

// serves reports whether u leads to the baseline, or to one of these endpoints
// of a fork.
func (u *upstream) serves(fork bool, endpoints []netip.AddrPort) bool {
	if u.fork != fork {
		return false
	}
	if !fork || len(u.endpoints) == len(endpoints) && &u.endpoints[0] == &endpoints[0] {
		return true
	}
	for _, e := range endpoints {
		if e == u.addr {
			return true
		}
	}
	return false
}

func (c *conn) remove(u *upstream) {
	for i := range c.ups {
		if c.ups[i] == u {
			c.ups = append(c.ups[:i], c.ups[i+1:]...)
			break
		}
	}
	if c.cur == u {
		c.cur = nil
	}
}

// dropOthers closes all upstreams but cur.
func (c *conn) dropOthers() {
	for i := len(c.ups) - 1; i >= 0; i-- {
		if u := c.ups[i]; u != c.cur {
			u.close(false)
			c.remove(u)
		}
	}
}

// dial begins to connect: to the baseline as it was dialled, or to the fork's
// next endpoint. Failure shows in the state.
func (u *upstream) dial() {
	for {
		u.addr = u.conn.addr
		if u.fork {
			if u.tried == len(u.endpoints) {
				u.state = dialFailed
				return
			}
			u.addr = u.endpoints[(u.first+u.tried)%len(u.endpoints)]
			u.tried++
		}
		e := u.dialOnce()
		if e == noError {
			u.state = dialling
			return
		}
		u.conn.loop.stats.dialFailed(e)
		u.err = e
		if !u.fork {
			u.state = dialFailed
			return
		}
	}
}

func (u *upstream) dialOnce() unix.Errno {
	c := u.conn
	u.answers, u.gates, u.unsent = netip.AddrPort{}, 0, false
	u.dials++
	l := c.loop
	if e := l.enter(c.ns); e != noError {
		return e
	}
	fd, e := newSocket(u.addr.Addr())
	if e != noError {
		return e
	}
	// The mark must be there first: without it the capture program would send our
	// own connection back to us.
	if mark := l.router.cfg.Mark; mark != 0 {
		e = setInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int32(mark))
	}
	// The client's own probes end here, so these must find out that a server's host
	// has gone.
	for _, o := range [...]struct {
		level, option int
		value         int32
	}{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.SOL_TCP, unix.TCP_KEEPIDLE, 60}, {unix.SOL_TCP, unix.TCP_KEEPINTVL, 15},
	} {
		if e == noError {
			e = setInt(fd, o.level, o.option, o.value)
		}
	}
	if e == noError && c.bind.IsValid() && c.bind.Is4() == u.addr.Addr().Is4() {
		e = bindSource(fd, c.bind)
	}
	if e == noError {
		if e = connect(fd, u.addr); e == unix.EINPROGRESS {
			e = noError
		}
	}
	if e != noError {
		closeFD(fd)
		return e
	}
	u.sock = socket{fd: fd, upstream: u}
	if err := l.watch(&u.sock, connEvents); err != nil {
		closeFD(fd)
		return unix.ENOMEM
	}
	limit := time.Duration(0) // the kernel's own
	switch {
	case u.fork:
		limit = forkDialLimit
	}
	if u.second {
		limit = l.delays.second
	}
	if limit > 0 {
		u.timer.fire = u.giveUp
		l.timers.set(&u.timer, limit)
	}
	return noError
}

// giveUp follows that connecting has taken too long or, of a second connection, what
// the server has to say first.
func (u *upstream) giveUp() {
	if l := u.conn.loop; u.state == connected && u.sock.readable {
		// It is there and has not been read, because the client does not take what comes
		// before it.
		l.timers.set(&u.timer, l.delays.second)
		return
	}
	u.failed(unix.ETIMEDOUT)
}

// dialAgain connects anew to where u was connected, to send a request once more.
func (u *upstream) dialAgain(request []byte) {
	bufs := &u.conn.loop.bufs
	u.closeSocket(false)
	u.out.drop(bufs)
	u.out.add(bufs, request)
	u.broken, u.served, u.retried = false, false, true
	if u.fork {
		u.first, u.tried = u.first+u.tried-1, 0
	}
	u.dial()
}

// event is what the loop calls when epoll has something to say.
func (u *upstream) event() {
	c := u.conn
	if u.state == dialling {
		if !u.sock.writable && !u.sock.ending {
			return
		}
		// A dial that has failed shows as one that has ended, too.
		if u.sock.ending {
			if e := socketError(u.sock.fd); e != noError {
				u.failed(e)
				return
			}
		}
		u.state = connected
		if !u.second {
			c.loop.timers.clear(&u.timer)
		}
		if u.wantFIN {
			u.sendFIN() // the client has said all it had to say meanwhile
		}
		if u == c.cur {
			c.reached()
			c.held = false
			if c.asked.len() > 0 {
				c.count()
			}
		}
		u.pendingGo()
		u.countPending()
	}
	if u == c.cur || c.h2 != nil {
		c.run()
		return
	}
	if u.sock.readable {
		// Nobody has asked it anything. It closes, or sends a farewell such as a 408;
		// it is dialled again when there is need.
		u.close(false)
		c.remove(u)
	}
}

// failed goes on to the next endpoint, or reports that there is none.
func (u *upstream) failed(e unix.Errno) {
	c := u.conn
	c.loop.stats.dialFailed(e)
	u.err = e
	u.closeSocket(false)
	u.state = dialFailed
	if u.fork {
		u.dial()
		if u.state == dialling {
			return
		}
	}
	if u == c.cur || c.h2 != nil {
		c.run()
		return
	}
	c.remove(u)
}

// send sends b behind what waits already. What the socket does not take waits.
func (u *upstream) send(b []byte) {
	l := u.conn.loop
	if u.broken {
		return
	}
	if u.state == connected && u.gates == 0 {
		for u.out.len() > 0 && u.sock.writable {
			n, e := send(u.sock.fd, u.out.bytes())
			if !u.sent(n, e, u.out.len()) {
				return
			}
			u.out.skip(&l.bufs, n)
		}
		if u.out.len() == 0 && len(b) > 0 {
			n, e := send(u.sock.fd, b)
			if !u.sent(n, e, len(b)) {
				return
			}
			b = b[n:]
		}
	}
	u.out.add(&l.bufs, b)
	if u.out.len() == 0 && u.wantFIN {
		u.sendFIN()
	}
}

func (u *upstream) sent(n int, e unix.Errno, want int) bool {
	switch {
	case e == noError && n == want:
	case e == noError || e == unix.EAGAIN:
		u.sock.writable = false
	default:
		// It may have answered before it went: that is still to be read.
		u.broken = true
		if u.eof {
			u.conn.end = sendRST
		}
		u.sock.readable, u.sock.ending = true, true
		u.out.drop(&u.conn.loop.bufs)
		return false
	}
	return true
}

// sendFIN sends FIN after all that waits.
func (u *upstream) sendFIN() {
	u.wantFIN = true
	if u.state == connected && u.out.len() == 0 && !u.finSent && !u.broken {
		u.finSent = true
		shutdownWrite(u.sock.fd)
	}
}

// closeSocket closes the socket only: u can be dialled again.
func (u *upstream) closeSocket(reset bool) {
	l := u.conn.loop
	l.timers.clear(&u.timer)
	if u.state != dialling && u.state != connected {
		return
	}
	l.forget(&u.sock)
	if reset {
		resetFD(u.sock.fd)
	} else {
		closeFD(u.sock.fd)
	}
	u.state = closed
}

func (u *upstream) close(reset bool) {
	u.closeSocket(reset)
	u.state = closed
	u.out.drop(&u.conn.loop.bufs)
	u.in.drop(&u.conn.loop.bufs)
}
