// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// ConnFormat is the version of ConnState. It grows whenever a router that knows
// the one before would misunderstand what is said; a field that is merely new is
// refused by those who do not know it.
const ConnFormat = 1

// Moving is a client's connection on its way from one router to another, in
// another process. It has no bytes that are in neither socket.
type Moving struct {
	State ConnState
	// Client and Upstreams are sockets, the latter in the order of
	// State.Upstreams; Netns is the client's network namespace.
	Client, Netns int
	Upstreams     []int

	conn *conn
}

// ConnState is what a router must know of a connection to go on with it. Its
// values are those of ConnFormat, whatever the constants in the code become.
type ConnState struct {
	Netns routing.Cookie
	Name  string `json:",omitempty"` // of the namespace, for messages

	// Dialled is what the client dialled, and Dest is how the giver's table calls
	// it.
	Dialled netip.AddrPort
	Dest    routing.DestID
	Bind    netip.Addr `json:",omitzero"` // where to dial from

	Request    string              // what the client's next byte is, see phaseNames
	Left       int64               `json:",omitempty"`
	Chunks     http1.ChunkedState  `json:",omitzero"`
	Upgrade    bool                `json:",omitempty"`
	Answer     string              // what the upstream's next byte is, see answerNames
	AnswerLeft int64               `json:",omitempty"`
	AnswerRest http1.ChunkedState  `json:",omitzero"`
	Asked      []byte              `json:",omitempty"` // methods of the requests not yet answered
	Served     bool                `json:",omitempty"`
	Refused    bool                `json:",omitempty"`
	Doubtful   bool                `json:",omitempty"`
	Scan       *http1.ScannerState `json:",omitempty"`
	HTTP2      *http2.State        `json:",omitempty"` // of a connection that is HTTP/2

	Upstreams []UpstreamState
	// Current is the index of the upstream in use, -1 for none. Those of HTTP/2 are in
	// the order of its links, less a primary one that is gone.
	Current int
}

// UpstreamState is ConnState's part about an upstream, which is connected.
type UpstreamState struct {
	Addr     netip.AddrPort
	Fork     bool `json:",omitempty"`
	Served   bool `json:",omitempty"`
	FallBack bool `json:",omitempty"` // of HTTP/2
}

var (
	phaseNames  = map[phase]string{atHead: "head", inLength: "length", inChunks: "chunks", atAnswer: "answer", opaque: "opaque", inHTTP2: "http2"}
	answerNames = map[answerPhase]string{atAnswerHead: "head", inAnswerLength: "length", inAnswerChunks: "chunks", blind: "blind"}
)

func named[P comparable](names map[P]string, name string) (P, bool) {
	for p, n := range names {
		if n == name {
			return p, true
		}
	}
	var none P
	return none, false
}

// describe is what another router must know of c, which can move.
func (c *conn) describe() *Moving {
	m := &Moving{conn: c, Client: int(c.sock.fd), Netns: c.ns.fd}
	s := &m.State
	*s = ConnState{
		Netns: c.ns.cookie, Name: c.ns.name,
		Dialled: c.addr, Dest: c.dest, Bind: c.bind,
		Request: phaseNames[c.phase], Left: c.left, Upgrade: c.upgrade,
		Answer: answerNames[c.answer], AnswerLeft: c.rleft,
		Served: c.served, Refused: c.refused, Doubtful: c.doubtful,
		Current: -1,
	}
	if c.phase == inChunks {
		s.Chunks = c.chunks.State()
	}
	if c.answer == inAnswerChunks {
		s.AnswerRest = c.rchunks.State()
	}
	for i := range c.asked.n {
		s.Asked = append(s.Asked, byte(c.asked.methods[(c.asked.first+i)%maxAsked]))
	}
	if c.scan != nil {
		at := c.scan.State()
		s.Scan = &at
	}
	ups := c.ups
	if c.h2 != nil {
		ups, s.HTTP2 = c.h2.describe()
	}
	for i, u := range ups {
		if u == c.cur {
			s.Current = i
		}
		s.Upstreams = append(s.Upstreams, UpstreamState{Addr: u.addr, Fork: u.fork, Served: u.served, FallBack: u.fallBack})
		m.Upstreams = append(m.Upstreams, int(u.sock.fd))
	}
	return m
}

var errUnfit = errors.New("it does not fit together")

// conn makes of m what the loop works with. Nothing is watched yet.
func (m *Moving) revive(l *loop, ns *namespace) (*conn, error) {
	s := &m.State
	c := &conn{
		loop: l, ns: ns, addr: s.Dialled, bind: s.Bind,
		left: s.Left, upgrade: s.Upgrade, rleft: s.AnswerLeft,
		served: s.Served, refused: s.Refused, doubtful: s.Doubtful,
	}
	var ok bool
	if c.phase, ok = named(phaseNames, s.Request); !ok {
		return nil, fmt.Errorf("the state %q of a request is unknown", s.Request)
	}
	if c.answer, ok = named(answerNames, s.Answer); !ok {
		return nil, fmt.Errorf("the state %q of an answer is unknown", s.Answer)
	}
	var err error
	if c.chunks, err = http1.ResumeChunked(s.Chunks); err != nil {
		return nil, err
	}
	if c.rchunks, err = http1.ResumeChunked(s.AnswerRest); err != nil {
		return nil, err
	}
	if s.Scan != nil {
		if c.scan, err = http1.ResumeScanner(&l.router.cfg.KeyNames, *s.Scan); err != nil {
			return nil, err
		}
	}
	answering := c.answer == inAnswerLength || c.answer == inAnswerChunks
	if len(s.Upstreams) != len(m.Upstreams) || s.HTTP2 == nil && len(s.Upstreams) > maxUpstreams || (s.HTTP2 != nil) != (c.phase == inHTTP2) ||
		s.Current < -1 || s.Current >= len(s.Upstreams) || s.Current < 0 && s.HTTP2 == nil && (c.phase != atHead || c.answer != atAnswerHead || len(s.Asked) > 0) ||
		len(s.Asked) > maxAsked || answering && len(s.Asked) == 0 || s.Left < 0 || s.AnswerLeft < 0 || !s.Dialled.IsValid() {
		return nil, errUnfit
	}
	for _, method := range s.Asked {
		if method > byte(http1.ConnectMethod) {
			return nil, fmt.Errorf("the method %d is unknown", method)
		}
		c.asked.push(http1.Method(method))
	}
	// Where requests have gone that are under way is counted already.
	c.last.counted = true
	c.begun = c.served || c.phase != atHead || len(s.Asked) > 0
	c.sock = socket{fd: int32(m.Client), conn: c}
	c.ups = c.upsBuf[:0]
	for i, up := range s.Upstreams {
		if !up.Addr.IsValid() {
			return nil, errUnfit
		}
		u := &upstream{conn: c, state: connected, fork: up.Fork, addr: up.Addr, served: up.Served, fallBack: up.FallBack}
		if up.Fork {
			u.endpoints, u.tried = []netip.AddrPort{up.Addr}, 1
		}
		u.sock = socket{fd: int32(m.Upstreams[i]), upstream: u}
		c.ups = append(c.ups, u)
		if i == s.Current {
			c.cur = u
		}
	}
	if s.HTTP2 != nil {
		// What relays of a loop share may not be used elsewhere.
		if !l.call(func() { err = c.resumeHTTP2(s.HTTP2) }) {
			err = ErrClosed
		}
	}
	return c, err
}

// sockets are all that the loop watches for c.
func (c *conn) sockets() []*socket {
	all := []*socket{&c.sock}
	for _, u := range c.ups {
		all = append(all, &u.sock)
	}
	return all
}

// watchAll has the loop watch all sockets, or none.
func (c *conn) watchAll() error {
	all := c.sockets()
	for i, s := range all {
		// What is known of it is known anew: epoll tells what there is already.
		*s = socket{fd: s.fd, conn: s.conn, upstream: s.upstream}
		if err := c.loop.watch(s, connEvents); err != nil {
			for _, s := range all[:i] {
				c.loop.unwatch(s)
			}
			return err
		}
	}
	return nil
}

// unwatch takes a socket out of the loop that is not about to be closed: another
// process has it too, so that closing would not take it out of epoll's set.
func (l *loop) unwatch(s *socket) {
	// It fails only for a descriptor that is not watched: it is.
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, int(s.fd), nil)
	l.forget(s)
}

// letGo ends this process's part in a connection that no loop watches. With
// reset its peers learn of it; without, another process goes on with it.
func (c *conn) letGo(reset bool) {
	l := c.loop
	why := movedAway
	if reset {
		why = ""
	}
	c.endExchanges(why)
	if c.h2 != nil {
		c.h2.relay.Ended(why)
	}
	for _, s := range c.sockets() {
		if reset {
			resetFD(s.fd)
		} else {
			closeFD(s.fd)
		}
	}
	c.dead = true
	c.ups, c.cur, c.scan, c.h2 = nil, nil, nil, nil
	l.open.Add(-1)
	c.ns.release()
}

// groupByLoop calls f on each loop with its connections of ms. When a loop is
// over it is called here, since then nobody else works on them.
func groupByLoop(ms []*Moving, f func(l *loop, mine []*conn)) {
	for len(ms) > 0 {
		l := ms[0].conn.loop
		var mine []*conn
		ms = slices.DeleteFunc(slices.Clone(ms), func(m *Moving) bool {
			if m.conn.loop == l {
				mine = append(mine, m.conn)
			}
			return m.conn.loop == l
		})
		if !l.call(func() { f(l, mine) }) {
			<-l.done
			f(l, mine)
		}
	}
}
