// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// A client's connect(2) ends as it would without the router: its SYN does not
// reach the listener before the router knows what it would have met.
//
//	hold      the SYN is here instead (loader.SYNs), and the default upstream is
//	          dialled. The client goes on to wait, and to send its SYN again
//	sendSYN   the upstream is there: the same SYN is sent again, with the mark by
//	          which it gets to the inner listener, and the kernel completes the
//	          handshake
//	turnAway  it is not: the client gets the RST, or the ICMP message, that it
//	          would have got
//	forget    nobody answers, neither it nor the client, or the client has gone
//
// What has no SYN here, because SYNs cannot be held in its namespace, is accepted
// first and dialled for then.

const (
	// maxSYNs is how many SYNs are dealt with at once, like maxAccepts.
	maxSYNs = 64
	// allSYNs is how often that is done where all are wanted that have come so far:
	// there are no more of them than the ring has room for.
	allSYNs = 64
	// holdSweep is how often it is looked for clients that have given up.
	holdSweep = time.Second
	// holdPatience is how much later than expected a SYN may be sent again.
	holdPatience = 2 * time.Second
	// firstRTO is when a SYN is sent again for the first time (RFC 6298). Each
	// further time comes at most as long after the one before as that came after the
	// first, and this.
	firstRTO = time.Second
	// A SYN that comes back without its mark is known by its hops. Where those are
	// changed as well, it is known by coming back maxEchoes times, each within
	// echoTime.
	echoTime  = 50 * time.Millisecond
	maxEchoes = 8
)

// notHolding is logged where SYNs are not held.
const notHolding = "clients are connected before the baseline is dialled; one that refuses will be a reset to them"

var errMarkLost = errors.New("packets lose the mark that they are sent with")

// synKey tells held SYNs of one namespace apart.
type synKey struct {
	from netip.AddrPort
	to   netip.Addr
}

// heldSYN is what is known of a connection that has not been accepted yet.
type heldSYN struct {
	key    synKey
	door   *door
	to     netip.AddrPort
	tos    uint8
	hops   uint8
	size   uint8
	header [60]byte // the TCP header; size bytes

	first, last int64 // when the client has sent it, by the loop's clock
	passed      int64 // when it was let in; zero: it was not
	echoes      uint8 // how often it came soon after that
}

func (h *heldSYN) tcp() []byte { return h.header[:h.size] }

// takeSYNs deals with what clients have sent, and reports whether there may be
// more.
func (l *loop) takeSYNs() bool {
	if l.syns == nil {
		return false
	}
	for range maxSYNs {
		ok, err := l.syns.Next(&l.syn)
		if err != nil {
			// The kernel and this program do not agree about memory that they share.
			panic("router: " + err.Error())
		}
		if !ok {
			return false
		}
		l.hold(&l.syn)
	}
	return true
}

// takeAllSYNs deals with what clients have sent before it is called.
func (l *loop) takeAllSYNs() {
	for range allSYNs {
		if !l.takeSYNs() {
			return
		}
	}
}

// hold begins a connection whose client has sent a SYN.
func (l *loop) hold(in *loader.SYN) {
	d := l.holding[in.Listener]
	switch {
	case d == nil:
		return // the listener was closed long ago
	case in.Early && d.ns.closed:
		return
	case in.Early:
		l.early(d, in)
		return
	case d.ns.closed || l.stopped:
		// As the kernel would, had the SYN come a moment later.
		l.refuse(d, in)
		return
	}
	ns, now := d.ns, l.timers.now()
	key := synKey{in.From, in.To.Addr()}
	if c := ns.held[key]; c != nil {
		if string(c.syn.tcp()[tcpSeq:tcpSeq+4]) == string(in.Header[tcpSeq:tcpSeq+4]) {
			c.again(in, now)
			return
		}
		c.forget() // another connection from the same port
	}
	if len(ns.held) >= l.router.cfg.MaxHeld {
		l.stats.errors[synOverLimit]++
		return
	}
	h := &heldSYN{key: key, door: d, to: in.To, tos: in.TOS, hops: in.Hops, first: now, last: now}
	h.size = uint8(copy(h.header[:], in.Header))
	a := arrival{ns: ns, fd: -1}
	if !l.originalDestination(&a, in.From, in.To) {
		l.stats.errors[unknownDestination]++
		l.refuse(d, in)
		return
	}
	c := a.conn(l)
	c.syn = h
	l.stats.held++
	l.open.Add(1)
	ns.hold()
	ns.held[key] = c
	l.held.add(c)
	if l.sweep.at == 0 {
		l.timers.set(&l.sweep, holdSweep)
	}
	c.dialDefault()
	c.proceed()
}

// refuse has the client's connect(2) fail at once.
func (l *loop) refuse(d *door, in *loader.SYN) {
	l.made = appendRefusal(l.made[:0], in.From, in.To, in.Header)
	sendRaw(d.raw, l.made, in.From.Addr())
}

// early deals with data that the listener was kept from. They will be sent again,
// and find the connection, unless there is none: then the client is told.
func (l *loop) early(d *door, in *loader.SYN) {
	if _, err := l.socketCookie(d.ns, in.To, in.From); !errors.Is(err, errNoSocket) {
		return
	}
	l.made = appendReset(l.made[:0], in.From, in.To, in.Header)
	sendRaw(d.raw, l.made, in.From.Addr())
}

// again is told that the client has sent its SYN once more.
func (c *conn) again(in *loader.SYN, now int64) {
	h := c.syn
	if h.passed == 0 {
		// Times and options are as in the last one.
		h.last, h.size = now, uint8(copy(h.header[:], in.Header))
		return
	}
	if now-h.passed < int64(echoTime) {
		h.echoes++
	} else {
		h.echoes = 0
	}
	if in.Hops == hopsOfEcho(h.hops) || h.echoes >= maxEchoes {
		// It has lost its mark on the way, by some rule of this namespace.
		c.loop.router.cfg.Logger.Warn(notHolding, "netns", c.ns.name, "err", errMarkLost)
		detachFilter(h.door.outer.fd)
	}
	h.last = now
	c.sendSYN()
}

// proceed does what is to be done when the upstream's state has changed.
func (c *conn) proceed() {
	if c.syn.passed != 0 {
		return // it is about to be accepted
	}
	for u := c.cur; u != nil && u.state != connected; u = c.cur {
		switch {
		case u.state == dialling:
			return
		case !u.fork:
			c.turnAway(u.err)
			return
		}
		c.remove(u)
		if c.table().DecideConnection(c.ns.cookie, c.dest).FallBack {
			c.cur = c.baseline()
		}
	}
	// Without an upstream as well: a request is told why.
	c.sendSYN()
}

// sendSYN lets the client's SYN in.
func (c *conn) sendSYN() {
	l, h := c.loop, c.syn
	h.passed = l.timers.now()
	l.made = appendTCP(l.made[:0], h.key.from.Addr(), h.key.to, h.tos, hopsOfEcho(h.hops), h.tcp())
	if e := sendRaw(h.door.raw, l.made, h.key.to); e != noError {
		l.stats.errors[synLost]++ // the client will send it again
		return
	}
	// On lo the handshake is over when the call returns; were it not, there would be
	// an event.
	l.acceptOne(&h.door.inner)
}

// turnAway has the client's connect(2) fail as the router's has.
func (c *conn) turnAway(e unix.Errno) {
	l, h := c.loop, c.syn
	switch e {
	case unix.ETIMEDOUT, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		// The client finds out by itself that nobody answers. And what is missing here
		// may be there when it sends its SYN again.
	default:
		if code, ok := unreachableFor(e); ok {
			l.made = appendUnreachable(l.made[:0], h.key.from, h.to, h.tcp(), code)
		} else {
			l.made = appendRefusal(l.made[:0], h.key.from, h.to, h.tcp())
		}
		sendRaw(h.door.raw, l.made, h.key.from.Addr())
	}
	c.forget()
}

// forget ends what was begun for a client that is not going to be accepted.
func (c *conn) forget() {
	l := c.loop
	for _, u := range c.ups {
		u.close(true)
	}
	c.ups, c.cur = nil, nil
	c.dead = true
	c.unhold()
	l.open.Add(-1)
	c.ns.release()
}

// unhold takes c out of the connections that wait to be accepted.
func (c *conn) unhold() {
	l, ns := c.loop, c.ns
	delete(ns.held, c.syn.key)
	l.held.remove(c)
	c.syn = nil
	if ns.closing && len(ns.held) == 0 {
		// Not at once: the listener may be in use further up.
		ns.hold()
		end := func() {
			if len(ns.held) == 0 { // or another one has come
				l.closeListeners(ns)
			}
			ns.release()
		}
		if !l.post(end) {
			end()
		}
	}
}

// admit begins to serve a held connection that has been accepted.
func (c *conn) admit(fd int32) {
	l := c.loop
	c.unhold()
	l.open.Add(-1)
	to := l.router.leastLoaded(l)
	to.open.Add(1)
	if to == l {
		c.begin(fd)
		return
	}
	for _, u := range c.ups {
		if u.state == connected {
			l.unwatch(&u.sock)
			u.sock.readable, u.sock.writable, u.sock.ending, u.sock.failed = false, false, false, false
		}
	}
	c.loop = to
	if !to.post(func() { c.beginElsewhere(fd) }) {
		to.open.Add(-1)
		for _, u := range c.ups {
			if u.state == connected {
				resetFD(u.sock.fd)
			}
		}
		resetFD(fd)
		c.ns.release()
	}
}

// beginElsewhere is begin for a connection whose upstream was another loop's.
func (c *conn) beginElsewhere(fd int32) {
	for _, u := range c.ups {
		if u.state != connected {
			continue
		}
		if c.loop.watch(&u.sock, connEvents) != nil {
			closeFD(u.sock.fd)
			u.state = closed
			u.broken = true
		}
	}
	c.begin(fd)
}

// sweepHeld forgets the clients that have given up.
func (l *loop) sweepHeld() {
	now := l.timers.now()
	for c := l.held.first; c != nil; {
		next, h := c.next, c.syn
		if now-h.last > h.last-h.first+int64(firstRTO+holdPatience) {
			l.stats.errors[synAbandoned]++
			c.forget()
		}
		c = next
	}
	if l.held.first != nil {
		l.timers.set(&l.sweep, holdSweep)
	}
}

// holdSYNs has the SYNs held that come to a door.
func (l *loop) holdSYNs(d *door) error {
	cookie, err := unix.GetsockoptUint64(int(d.outer.fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("ask for a listener's cookie: %w", err)
	}
	d.cookie = cookie
	l.holding[cookie] = d
	return l.syns.Attach(int(d.outer.fd))
}

// chooseByMark has the second of two sockets that listen at one address get what
// carries a mark, and the first one all else.
func chooseByMark(fd int32, mark uint32) error {
	const skbMark = 1<<32 - 0x1000 + 20 // SKF_AD_OFF + SKF_AD_MARK of linux/filter.h
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: skbMark},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: mark, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{
		Len: uint16(len(program)), Filter: unsafe.SliceData(program),
	}); err != nil {
		return fmt.Errorf("have SYNs chosen by their mark: %w", err)
	}
	return nil
}

// dest24 is the number of a destination that is in an address 127.a.b.c.
func dest24(a netip.Addr) (routing.DestID, bool) {
	if !a.Is4() || a.As4()[0] != 127 {
		return 0, false
	}
	b := a.As4()
	return routing.DestID(b[1])<<16 | routing.DestID(b[2])<<8 | routing.DestID(b[3]), true
}
