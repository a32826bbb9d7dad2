// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// endpoint is a client or a server at the other end of one of a relay's
// connections. It is strict: it speaks through x/net's Framer, checks what it
// reads with that, and keeps account of all windows.
type endpoint struct {
	t    testing.TB
	name string

	toRelay   bytes.Buffer // written, not delivered
	fromRelay bytes.Buffer // delivered, not read
	all       []byte       // everything delivered

	write *wire.Framer
	read  *wire.Framer
	enc   *hpack.Encoder
	block bytes.Buffer

	client      bool
	prefaced    bool
	maySendConn int64
	mayGetConn  int64
	peerInitial int64
	peerFrame   int
	table       uint32
	myInitial   int64
	unpaid      int64 // received and not given back, of the connection

	streams  map[uint32]*side
	last     uint32
	settings []wire.Setting // the peer's, in the order of their coming
	acks     int
	pings    []string
	pongs    []string
	goAways  []wire.GoAwayFrame
	frames   int
	others   []string // frames of other types
	ended    bool     // its connection has been closed by the relay
}

// side is what an endpoint knows of a stream.
type side struct {
	sent, got message
	maySend   int64
	mayGet    int64
	unpaid    int64
}

// message is one direction of a stream.
type message struct {
	blocks []string
	data   []byte
	end    bool
	reset  bool
	code   wire.ErrCode
}

func newEndpoint(t testing.TB, name string, client bool) *endpoint {
	e := &endpoint{
		t: t, name: name, client: client, streams: map[uint32]*side{},
		maySendConn: initialWindow, mayGetConn: initialWindow, peerInitial: initialWindow, myInitial: initialWindow, peerFrame: leastMaxFrame, table: initialTable,
	}
	e.write = wire.NewFramer(&e.toRelay, nil)
	e.read = wire.NewFramer(nil, &e.fromRelay)
	e.read.ReadMetaHeaders = hpack.NewDecoder(initialTable, nil)
	e.read.MaxHeaderListSize = 8 << 20
	e.enc = hpack.NewEncoder(&e.block)
	if client {
		e.toRelay.WriteString(Preface)
	}
	e.must(e.write.WriteSettings())
	return e
}

func (e *endpoint) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatalf("%s: %v", e.name, err)
	}
}

func (e *endpoint) stream(id uint32) *side {
	s := e.streams[id]
	if s == nil {
		s = &side{maySend: e.peerInitial, mayGet: e.myInitial}
		e.streams[id] = s
	}
	return s
}

// text is a header block for comparing.
func text(fields []hpack.HeaderField) string {
	var b bytes.Buffer
	for _, f := range fields {
		fmt.Fprintf(&b, "%s=%s", f.Name, f.Value)
		if f.Sensitive {
			b.WriteString(" (never indexed)")
		}
		b.WriteString("; ")
	}
	return b.String()
}

// headers sends a header block.
func (e *endpoint) headers(id uint32, end bool, fields ...hpack.HeaderField) {
	e.t.Helper()
	e.block.Reset()
	for _, f := range fields {
		e.must(e.enc.WriteField(f))
	}
	b := e.block.Bytes()
	first := b[:min(len(b), 16000)]
	e.must(e.write.WriteHeaders(wire.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(first) == len(b)}))
	for b = b[len(first):]; len(b) > 0; {
		n := min(len(b), 16000)
		e.must(e.write.WriteContinuation(id, n == len(b), b[:n]))
		b = b[n:]
	}
	s := e.stream(id)
	s.sent.blocks = append(s.sent.blocks, text(fields))
	s.sent.end = s.sent.end || end
	e.last = max(e.last, id)
}

// data sends as much of n bytes as the windows allow, and returns how much.
func (e *endpoint) data(id uint32, n int, end bool) int {
	e.t.Helper()
	s := e.stream(id)
	allowed := int(max(min(int64(n), s.maySend, e.maySendConn), 0))
	b := make([]byte, allowed)
	for i := range b {
		b[i] = byte(len(s.sent.data) + i + int(id)*7)
	}
	end = end && allowed == n
	for sent := 0; ; {
		k := min(allowed-sent, e.peerFrame)
		last := sent+k == allowed
		if k == 0 && !(last && end) {
			break
		}
		e.must(e.write.WriteData(id, last && end, b[sent:sent+k]))
		if sent += k; last {
			break
		}
	}
	s.maySend -= int64(allowed)
	e.maySendConn -= int64(allowed)
	s.sent.data = append(s.sent.data, b...)
	s.sent.end = s.sent.end || end
	return allowed
}

func (e *endpoint) reset(id uint32, code wire.ErrCode) {
	e.t.Helper()
	e.must(e.write.WriteRSTStream(id, code))
	s := e.stream(id)
	s.sent.reset, s.sent.code = true, code
}

// pay gives back all that has been received, so that more may come.
func (e *endpoint) pay() {
	e.t.Helper()
	if e.unpaid > 0 {
		e.must(e.write.WriteWindowUpdate(0, uint32(e.unpaid)))
		e.mayGetConn += e.unpaid
		e.unpaid = 0
	}
	for id, s := range e.streams {
		if s.unpaid > 0 && !s.got.end && !s.got.reset && !s.sent.reset {
			e.must(e.write.WriteWindowUpdate(id, uint32(s.unpaid)))
			s.mayGet += s.unpaid
		}
		s.unpaid = 0
	}
}

// whole reports whether a frame, with the rest of its header block, is there.
func whole(b []byte) bool {
	for {
		if len(b) < headLen {
			return false
		}
		h := parseHead(b)
		if len(b) < headLen+h.length {
			return false
		}
		block := h.typ == wire.FrameHeaders || h.typ == wire.FrameContinuation
		if !block || h.flags.Has(wire.FlagHeadersEndHeaders) {
			return true
		}
		b = b[headLen+h.length:]
	}
}

// take reads what has been delivered.
func (e *endpoint) take() {
	e.t.Helper()
	if !e.client && !e.prefaced {
		if e.fromRelay.Len() < len(Preface) {
			return
		}
		if got := string(e.fromRelay.Next(len(Preface))); got != Preface {
			e.t.Fatalf("%s: %q instead of the preface", e.name, got)
		}
		e.prefaced = true
	}
	for whole(e.fromRelay.Bytes()) {
		f, err := e.read.ReadFrame()
		if err != nil {
			e.t.Fatalf("%s reads a frame: %v (%v)", e.name, err, e.read.ErrorDetail())
		}
		e.takeFrame(f)
	}
}

func (e *endpoint) takeFrame(f wire.Frame) {
	e.t.Helper()
	id := f.Header().StreamID
	if _, ok := f.(*wire.SettingsFrame); !ok && e.frames == 0 {
		e.t.Fatalf("%s: the first frame is %v, not SETTINGS", e.name, f.Header())
	}
	e.frames++
	if kind := f.Header().Type; !e.client && id > e.last && kind != wire.FrameHeaders && kind != wire.FramePriority && kind < wire.FrameContinuation {
		e.t.Fatalf("%s: %v on a stream that has not been opened", e.name, f.Header())
	}
	switch f := f.(type) {
	case *wire.DataFrame:
		s := e.stream(id)
		n := int64(f.Header().Length)
		s.mayGet -= n
		s.unpaid += n
		e.mayGetConn -= n
		e.unpaid += n
		if s.mayGet < 0 || e.mayGetConn < 0 {
			e.t.Fatalf("%s: stream %d: %d bytes of data are more than the window (stream %d, connection %d)", e.name, id, n, s.mayGet, e.mayGetConn)
		}
		if s.got.end || s.got.reset || len(s.got.blocks) == 0 {
			e.t.Fatalf("%s: stream %d: data where none may be: %+v", e.name, id, s.got)
		}
		s.got.data = append(s.got.data, f.Data()...)
		s.got.end = f.StreamEnded()
	case *wire.MetaHeadersFrame:
		s := e.stream(id)
		if s.got.end || s.got.reset {
			e.t.Fatalf("%s: stream %d: a header block after the end", e.name, id)
		}
		if !e.client && len(s.got.blocks) == 0 {
			if id <= e.last {
				e.t.Fatalf("%s: stream %d is opened after %d", e.name, id, e.last)
			}
			e.last = id
		}
		s.got.blocks = append(s.got.blocks, text(f.Fields))
		s.got.end = f.StreamEnded()
	case *wire.RSTStreamFrame:
		s := e.stream(id)
		s.got.reset, s.got.code = true, f.ErrCode
	case *wire.SettingsFrame:
		if f.IsAck() {
			e.acks++
			return
		}
		e.must(f.ForeachSetting(func(x wire.Setting) error {
			e.settings = append(e.settings, x)
			switch x.ID {
			case wire.SettingInitialWindowSize:
				for _, s := range e.streams {
					s.maySend += int64(x.Val) - e.peerInitial
				}
				e.peerInitial = int64(x.Val)
			case wire.SettingMaxFrameSize:
				e.peerFrame = int(x.Val)
			case wire.SettingHeaderTableSize:
				// x/net's decoder takes a lower size with a higher one behind it for an error.
				e.table = min(e.table, x.Val)
				e.enc.SetMaxDynamicTableSize(e.table)
			}
			return nil
		}))
		e.must(e.write.WriteSettingsAck())
	case *wire.PingFrame:
		if f.IsAck() {
			e.pongs = append(e.pongs, string(f.Data[:]))
			return
		}
		e.pings = append(e.pings, string(f.Data[:]))
		e.must(e.write.WritePing(true, f.Data))
	case *wire.WindowUpdateFrame:
		n := int64(f.Increment)
		if id == 0 {
			if e.maySendConn += n; e.maySendConn > maxWindow {
				e.t.Fatalf("%s: the connection's window overflows", e.name)
			}
			return
		}
		s := e.stream(id)
		if s.maySend += n; s.maySend > maxWindow {
			e.t.Fatalf("%s: stream %d: the window overflows", e.name, id)
		}
	case *wire.GoAwayFrame:
		g := *f
		e.goAways = append(e.goAways, g)
	default:
		e.others = append(e.others, fmt.Sprint(f.Header()))
	}
}

// scene is a relay between a client and servers.
type scene struct {
	t       testing.TB
	relay   *Relay
	client  *endpoint
	servers map[string]*endpoint
	links   map[string]*Link
	kept    map[*endpoint][]byte // not consumed by the relay
	paused  map[*endpoint]bool
	routes  map[string]string // key to server; "" is the primary, "-" nowhere
	inject  string
	counts  [Reasons]int
	now     int64
	names   routing.KeyNames
	routed  map[uint32]string
	hold    func(stream uint32) bool // nil: none
	held    []uint32
	// second has those streams to the baseline wait on a second link to it, until one has
	// ended that was not proven.
	second bool
	watch  bool // all streams
	ended  []ended
	limits Limits
	moves  int
}

const (
	keyA    = "key-of-a"
	keyB    = "key-of-b"
	keyNone = "key-of-nobody-ready"
)

func newScene(t testing.TB, limits Limits) *scene {
	s := &scene{
		t: t, client: newEndpoint(t, "client", true), servers: map[string]*endpoint{}, links: map[string]*Link{}, kept: map[*endpoint][]byte{}, paused: map[*endpoint]bool{},
		routes: map[string]string{keyA: "a", keyB: "b", keyNone: "-"}, names: routing.DefaultKeyNames(), routed: map[uint32]string{},
	}
	limits.Complete()
	s.limits = limits
	s.servers["base"] = newEndpoint(t, "base", false)
	s.relay = New(NewShared(limits, &s.names), s)
	s.links["base"] = s.relay.Primary()
	return s
}

func (s *scene) Route(req *Request) Route {
	to := "base"
	req.Keys.Keys(func(key []byte) bool {
		if r, ok := s.routes[string(key)]; ok {
			to = r
			return false
		}
		return true
	})
	s.routed[req.Stream] = to
	hold := s.hold != nil && s.hold(req.Stream)
	if hold && s.second && to == "base" {
		to = "second"
		s.routed[req.Stream] = to
	}
	var w *Watch
	if s.watch || to == "second" {
		w = &Watch{Peer: req.Stream}
	}
	if to == "-" {
		return Route{Refusal: "sidetrack: nobody is ready.", Watch: w}
	}
	l := s.links[to]
	if l == nil || !l.Usable() {
		s.servers[to] = newEndpoint(s.t, to, false)
		if to == "second" {
			l = s.relay.NewSecond(to)
		} else {
			l = s.relay.NewLink(to)
		}
		s.links[to] = l
	}
	if hold && to != "base" {
		s.held = append(s.held, req.Stream)
	}
	return Route{Link: l, Inject: s.inject, Hold: hold, Watch: w}
}

// letGo has the stream go on that has been held for longest.
func (s *scene) letGo() {
	if len(s.held) > 0 {
		id := s.held[0]
		s.held = s.held[1:]
		s.relay.LetGo(s.links[s.routed[id]], id)
	}
}

func (s *scene) ToClient(b []byte) {
	s.client.fromRelay.Write(b)
	s.client.all = append(s.client.all, b...)
}

func (s *scene) ToLink(l *Link, b []byte) {
	for name, x := range s.links {
		if x == l {
			s.servers[name].fromRelay.Write(b)
			s.servers[name].all = append(s.servers[name].all, b...)
		}
	}
}

func (s *scene) Drop(l *Link) {
	for name, x := range s.links {
		if x == l {
			s.servers[name].ended = true
		}
	}
}

func (s *scene) Moved(stream uint32, w *Watch) {
	if s.routed[stream] != "second" || w.Peer != stream {
		s.t.Fatalf("stream %d, of %v, has moved from %s", stream, w.Peer, s.routed[stream])
	}
	s.routed[stream] = "base"
}

// endSecond has the second link end. Nothing more is heard of its server.
func (s *scene) endSecond() {
	s.second = s.second && s.links["second"].Proven()
	s.servers["second"].ended = true
	s.relay.LinkEnded(s.links["second"])
}

func (s *scene) Ended(w *Watch, why string) { s.ended = append(s.ended, ended{*w, why}) }

// ended is what an Env was told of a watched stream.
type ended struct {
	watch Watch
	why   string
}

func (s *scene) Count(why Reason) { s.counts[why]++ }
func (s *scene) Now() int64       { return s.now }

// deliver gives the relay up to n bytes of what an endpoint has written. It
// reports whether there were any.
func (s *scene) deliver(e *endpoint, n int) bool {
	var b []byte
	if !s.paused[e] {
		b = e.toRelay.Next(n)
	}
	if len(b) == 0 && !s.paused[e] || e.ended {
		return false
	}
	in := append(s.kept[e], b...)
	var used int
	if e.client {
		used = s.relay.FromClient(in)
	} else {
		used = s.relay.FromLink(s.links[e.name], in)
	}
	if used < 0 || used > len(in) {
		s.t.Fatalf("%d of %d bytes used", used, len(in))
	}
	s.kept[e], s.paused[e] = slices.Clone(in[used:]), s.relay.Paused()
	for i := range in {
		in[i] = 0xee // nobody may hold on to it
	}
	return true
}

// endpoints are all, in a fixed order.
func (s *scene) endpoints() []*endpoint {
	all := []*endpoint{s.client}
	for _, name := range []string{"base", "a", "b", "second"} {
		if e := s.servers[name]; e != nil {
			all = append(all, e)
		}
	}
	return all
}

// settle delivers everything until nothing moves.
func (s *scene) settle() {
	s.t.Helper()
	for moved := true; moved; {
		moved = false
		for _, e := range s.endpoints() {
			moved = s.deliver(e, 64<<10) || moved
			e.take()
		}
	}
}

func get(fields ...hpack.HeaderField) []hpack.HeaderField {
	return append([]hpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "route.shop"}, {Name: ":path", Value: "/"},
	}, fields...)
}

func keyed(key string) []hpack.HeaderField {
	if key == "" {
		return get()
	}
	return get(hpack.HeaderField{Name: "baggage", Value: "sidetrack=" + key})
}

func status(code string, fields ...hpack.HeaderField) []hpack.HeaderField {
	return append([]hpack.HeaderField{{Name: ":status", Value: code}}, fields...)
}
