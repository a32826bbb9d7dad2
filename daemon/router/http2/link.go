// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"slices"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Link is a connection to a server.
type Link struct {
	// Peer is the caller's: whatever stands for the connection.
	Peer any
	// Full says that the connection does not take what it has been sent. It is the
	// caller's to set, at any time; when it is over Resumed is to be called. Until then
	// data, and streams, wait here as if the server had allowed no more. It means
	// nothing for the primary link.
	Full bool

	relay *Relay
	in    reader
	out   outlet
	enc   *encoder // of blocks to it; nil: the client's go on as they come

	// What it has announced.
	table   uint32
	initial int64 // a stream's window
	widest  int64 // that it has been
	frame   int
	most    int // streams
	settled bool
	unacked int // SETTINGS of the client that it has not acknowledged; of the primary link

	streams  int
	last     uint32 // the newest stream that it knows of
	poisoned bool   // its header blocks cannot be followed any more
	gone     bool
	closing  bool // it takes no new streams
	second   bool // it leads where the primary one does
	answered bool // some stream of it has been

	serves uint32 // the newest stream that it is going to serve, by its own word

	// Of a link other than the primary.
	window  int64 // what it may be sent
	spent   int64 // what it has sent and may send again
	blocked []*stream
	waiting []*stream
	room    int64 // what it may send
	answers int   // to its SETTINGS, and to PINGs of which the client has too many
}

const (
	// assumedStreams is how many streams are opened on a link that has not said yet
	// how many it allows (RFC 9113, section 6.5.2).
	assumedStreams = 100
	anyNumber      = 1 << 30
	maxPings       = 16
	// maxAnswers is how often the relay answers a link itself. Who asks and does not
	// read would have any number of answers kept.
	maxAnswers = 100_000
)

func (r *Relay) newLink() *Link {
	l := &Link{relay: r, table: initialTable, initial: initialWindow, widest: initialWindow, frame: leastMaxFrame, most: assumedStreams, window: initialWindow, serves: maxWindow}
	l.in.init(r.sh)
	return l
}

// NewLink makes a link besides the primary one. Its connection need not be there
// yet.
func (r *Relay) NewLink(peer any) *Link {
	l := r.newLink()
	l.Peer = peer
	l.enc = r.sh.newEncoder(initialTable)
	l.room = linkWindow
	r.others = append(r.others, l)
	l.out.write(r.sh, []byte(Preface))
	r.writeSettings(l)
	_ = r.sh.to(&l.out).WriteWindowUpdate(0, linkWindow-initialWindow)
	return l
}

// NewSecond makes a link to where the primary one leads, for streams that have to wait:
// on the primary they would hold up all others. A server may accept a second connection
// and never read it, because it serves one at a time. So no stream is opened on this one
// before the server's SETTINGS have come, which it sends first of all (RFC 9113, section
// 3.4). Until then the streams can be had back: when the link ends, those go by the
// primary one behind which no other has been opened there; the others are refused, as
// streams are that no server has seen (section 8.7).
func (r *Relay) NewSecond(peer any) *Link {
	l := r.NewLink(peer)
	l.second = true
	return l
}

// Proven reports whether streams are opened on the link, see NewSecond.
func (l *Link) Proven() bool { return !l.second || l.settled }

// Answered reports whether any stream of the link has been answered.
func (l *Link) Answered() bool { return l.answered }

func (l *Link) secondary() bool { return l != l.relay.primary }

// Usable reports whether new streams can be opened on the link.
func (l *Link) Usable() bool { return !l.gone && !l.closing }

// Streams returns how many streams are open on the link.
func (l *Link) Streams() int { return l.streams }

// Waiting reports whether streams are held up that the server has not been told of.
func (l *Link) Waiting() bool { return len(l.waiting) > 0 }

// writeSettings tells a link what the client has announced.
func (r *Relay) writeSettings(l *Link) {
	settings := append([]wire.Setting{{ID: wire.SettingEnablePush}}, r.clientSetting...)
	_ = r.sh.to(&l.out).WriteSettings(settings...)
}

// linkFrame deals with a frame of a link that belongs to no header block.
func (r *Relay) linkFrame(l *Link, h head, raw []byte) {
	payload := raw[headLen:]
	switch h.typ {
	case wire.FrameData:
		r.linkData(l, h, raw)
		return
	case wire.FrameRSTStream:
		r.linkReset(l, h, raw)
		return
	case wire.FrameSettings:
		r.linkSettings(l, h, raw)
		return
	case wire.FrameWindowUpdate:
		if l.secondary() {
			r.linkWindowUpdate(l, h, payload)
			return
		}
	case wire.FramePing:
		if l.secondary() {
			r.linkPing(l, h, payload, raw)
			return
		}
	case wire.FrameGoAway:
		if l.secondary() {
			r.linkGoAway(l, payload)
			return
		}
		r.primaryGoAway(l, raw)
		return
	}
	if o := r.passOn(l, h); o != nil {
		o.lend(r.sh, raw)
	}
}

func (r *Relay) linkData(l *Link, h head, raw []byte) {
	r.receives(l, h)
	if !l.secondary() && !r.split {
		r.delivered(l, h.length)
		r.out.lend(r.sh, raw)
		r.serverSends(l, h)
		return
	}
	s := r.streamOf(l, h.stream)
	if !l.secondary() {
		if s == nil {
			// The client has given the stream up. It may have no room for this, because of
			// others.
			l.spent += int64(h.length)
			return
		}
		r.download(l, s, raw, h.flags.Has(wire.FlagDataEndStream))
		return
	}
	if l.room -= int64(h.length); l.room < 0 {
		r.breakLink(l, wire.ErrCodeFlowControl)
		return
	}
	if s == nil {
		l.spent += int64(h.length)
		return
	}
	if s.room -= int64(h.length); s.serverEnded || !s.answered || r.widest+s.room < 0 {
		// A client would take it for an error of the connection.
		r.breakLink(l, wire.ErrCodeProtocol)
		return
	}
	s.serverEnded = h.flags.Has(wire.FlagDataEndStream)
	r.download(l, s, raw, s.serverEnded)
}

// serverSends follows a DATA frame that has been passed on.
func (r *Relay) serverSends(l *Link, h head) {
	if h.flags.Has(wire.FlagDataEndStream) {
		if s := r.streamOf(l, h.stream); s != nil {
			s.serverDone = true
			r.finish(s)
		}
	}
}

func (r *Relay) linkReset(l *Link, h head, raw []byte) {
	if l.secondary() && len(raw) != headLen+4 {
		r.breakLink(l, wire.ErrCodeFrameSize)
		return
	}
	s := r.streamOf(l, h.stream)
	if s == nil {
		if !l.secondary() {
			r.out.lend(r.sh, raw)
		}
		return
	}
	if len(raw) == headLen+4 {
		// A server that is overloaded refuses streams, which is no fault of the client's.
		switch wire.ErrCode(binary.BigEndian.Uint32(raw[headLen:])) {
		case wire.ErrCodeNo, wire.ErrCodeRefusedStream:
		default:
			r.spend(resetCost)
		}
	}
	if s.watch != nil && len(raw) == headLen+4 {
		// Without an error it is how a server says, behind its whole answer, that it wants no
		// more of the request (RFC 9113, section 8.1). Before that the answer is cut.
		code := wire.ErrCode(binary.BigEndian.Uint32(raw[headLen:]))
		if code != wire.ErrCodeNo || !s.answeredWhole() {
			r.unwatch(s, resetBy(code))
		}
	}
	if len(s.down) > 0 && len(raw) == headLen+4 {
		r.stallOf(l, s, download{reset: true, code: wire.ErrCode(binary.BigEndian.Uint32(raw[headLen:]))})
		return
	}
	r.out.lend(r.sh, raw)
	r.forget(s)
}

func (r *Relay) linkSettings(l *Link, h head, raw []byte) {
	payload := raw[headLen:]
	if h.flags.Has(wire.FlagSettingsAck) || h.stream != 0 || len(payload)%6 != 0 {
		switch {
		case !l.secondary():
			l.unacked = max(l.unacked-1, 0)
			r.out.lend(r.sh, raw)
		case len(payload)%6 != 0 || h.stream != 0:
			r.breakLink(l, wire.ErrCodeProtocol)
		}
		return
	}
	if !l.settled {
		l.settled, l.most = true, anyNumber
		for _, s := range l.waiting {
			r.discharge(s)
		}
	}
	before := l.initial
	for i := 0; i < len(payload); i += 6 {
		value := binary.BigEndian.Uint32(payload[i+2:])
		switch wire.SettingID(binary.BigEndian.Uint16(payload[i:])) {
		case wire.SettingHeaderTableSize:
			l.table = min(l.table, value)
			if l.enc != nil {
				l.enc.resize(l.table)
			}
			if !l.secondary() {
				r.in.allow(min(value, r.sh.limits.TableBytes))
			}
		case wire.SettingInitialWindowSize:
			if value <= maxWindow {
				l.initial = int64(value)
				l.widest = max(l.widest, l.initial)
			}
		case wire.SettingMaxFrameSize:
			if value >= leastMaxFrame && value < 1<<24 {
				l.frame = int(value)
			}
		case wire.SettingMaxConcurrentStreams:
			l.most = int(min(value, anyNumber))
		}
	}
	if !l.secondary() {
		r.passSettings(&r.out, raw)
		if l.initial != before {
			for _, s := range r.streams {
				if s.link != nil && s.link != l {
					r.widen(s)
				}
			}
		}
		return
	}
	if _ = r.sh.to(&l.out).WriteSettingsAck(); !r.answered(l) {
		return
	}
	if l.initial != before {
		for _, s := range r.streamsOf(l) {
			r.sendUp(s)
		}
	}
	r.openHeld(l)
}

// streamsOf returns the open streams of a link in the order of their opening.
func (r *Relay) streamsOf(l *Link) []*stream {
	var all []*stream
	for _, s := range r.streams {
		if s.link == l {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *stream) int { return int(a.id) - int(b.id) })
	return all
}

func (r *Relay) linkWindowUpdate(l *Link, h head, payload []byte) {
	if len(payload) != 4 {
		r.breakLink(l, wire.ErrCodeFrameSize)
		return
	}
	n := int64(binary.BigEndian.Uint32(payload) & maxWindow)
	if h.stream != 0 {
		if s := r.streamOf(l, h.stream); s != nil {
			if s.maySend += n; l.initial+s.maySend > maxWindow {
				r.breakLink(l, wire.ErrCodeFlowControl)
				return
			}
			r.sendUp(s)
		}
		return
	}
	if l.window += n; l.window > maxWindow {
		r.breakLink(l, wire.ErrCodeFlowControl)
		return
	}
	blocked := l.blocked
	l.blocked = nil
	for _, s := range blocked {
		s.up.queued = false
	}
	for _, s := range blocked {
		r.sendUp(s)
	}
}

// unblock forgets what waits of a stream for its link.
func (l *Link) unblock(s *stream) {
	r := l.relay
	r.discharge(s)
	r.buffered -= len(s.up.data)
	r.waiting -= blockSize(s.up.trailers)
	if s.up.queued {
		l.blocked = slices.DeleteFunc(l.blocked, func(x *stream) bool { return x == s })
	}
	if s.held != nil {
		r.waiting -= blockSize(s.held.fields)
		l.waiting = slices.DeleteFunc(l.waiting, func(x *stream) bool { return x == s })
	}
}

// linkPing has the client answer a link's ping, or brings it the link's answer to
// its own. An answer to nothing goes nowhere.
func (r *Relay) linkPing(l *Link, h head, payload, raw []byte) {
	if len(payload) != 8 {
		r.breakLink(l, wire.ErrCodeFrameSize)
		return
	}
	if h.flags.Has(wire.FlagPingAck) {
		for i, p := range r.asked {
			if p.link == l && string(p.data[:]) == string(payload) {
				r.asked = slices.Delete(r.asked, i, i+1)
				r.out.lend(r.sh, raw)
				return
			}
		}
		return
	}
	p := ping{link: l, data: [8]byte(payload)}
	if len(r.pings) >= maxPings {
		_ = r.sh.to(&l.out).WritePing(true, p.data)
		r.answered(l)
		return
	}
	r.pings = append(r.pings, p)
	r.out.lend(r.sh, raw)
}

// answered counts an answer of the relay's own to a link other than the primary. It
// reports whether that is still there.
func (r *Relay) answered(l *Link) bool {
	if l.answers++; l.answers > maxAnswers {
		r.breakLink(l, wire.ErrCodeEnhanceYourCalm)
	}
	return !l.gone
}

// heard notes that the client is being told something of a link's streams.
func (r *Relay) heard(l *Link) {
	if l == r.primary {
		l = nil
	}
	r.talker = l
}

// linkBlock deals with a header block of a link.
func (r *Relay) linkBlock(l *Link, h head, raw, fixed, block []byte) {
	if l.poisoned {
		r.out.lend(r.sh, raw)
		return
	}
	s := r.streamOf(l, h.stream)
	anew := l.secondary() || r.enc != nil || s != nil && len(s.down) > 0
	watch := s != nil && s.watch != nil
	if err := r.sh.decode(&l.in, block, anew || watch); err != nil {
		r.astray(l, &l.in, raw)
		return
	}
	if r.sh.tooLarge {
		r.tooMuch(l, HeadersTooLong)
		return
	}
	if watch && h.typ == wire.FrameHeaders {
		s.watch.Received += int64(len(raw))
		s.watch.look(r.sh.fields)
	}
	end := h.flags.Has(wire.FlagHeadersEndStream) && h.typ == wire.FrameHeaders
	if l.secondary() {
		if h.typ == wire.FramePushPromise || s != nil && s.serverEnded {
			r.breakLink(l, wire.ErrCodeProtocol)
			return
		}
		if s == nil {
			return
		}
		s.serverEnded = end
	}
	r.heard(l)
	if s != nil {
		s.answered = s.answered || h.typ == wire.FrameHeaders && (!anew || !interim(r.sh.fields))
		l.answered = l.answered || s.answered
	}
	if h.typ == wire.FramePushPromise && len(fixed) == 4 {
		r.promised(l, binary.BigEndian.Uint32(fixed)&maxWindow)
	}
	switch {
	case !anew:
		r.out.lend(r.sh, raw)
	case s != nil && len(s.down) > 0:
		r.stallOf(l, s, download{fields: append([]hpack.HeaderField{}, r.sh.fields...), head: h, fixed: slices.Clone(fixed), end: end})
		return
	default:
		r.sendBlock(h, fixed, r.sh.fields)
	}
	if end && s != nil {
		s.serverDone = true
		r.finish(s)
	}
}

// sendBlock sends a header block to the client.
func (r *Relay) sendBlock(h head, fixed []byte, fields []hpack.HeaderField) {
	if r.enc == nil {
		if r.primary.poisoned {
			// What the client's decoder knows cannot be told.
			r.fail(wire.ErrCodeInternal, ServerError)
			return
		}
		r.enc = r.sh.newEncoder(r.clientTable)
	}
	r.sh.writeBlock(&r.out, h.typ, h.flags&^(wire.FlagHeadersPadded|wire.FlagHeadersEndHeaders), h.stream, fixed, r.sh.encode(r.enc, fields), r.clientMax)
}

// interim reports whether a response is one of the class 1xx: another follows.
func interim(fields []hpack.HeaderField) bool {
	return len(fields) > 0 && fields[0].Name == ":status" && len(fields[0].Value) == 3 && fields[0].Value[0] == '1'
}

// promised follows a stream that the primary link opens itself.
func (r *Relay) promised(l *Link, id uint32) {
	if id&1 == 1 || id == 0 || r.streams[id] != nil {
		return // the client will say what it thinks of that
	}
	if len(r.streams) >= r.sh.limits.Streams {
		r.fail(wire.ErrCodeEnhanceYourCalm, TooManyStreams)
		return
	}
	r.newStream(id, l).clientDone = true
}

// openOn opens a stream on a link other than the primary.
func (r *Relay) openOn(l *Link, s *stream, flags wire.Flags, prio []byte, fields []hpack.HeaderField, end, hold bool) {
	s.clientDone = false
	o := &opening{flags: flags &^ (wire.FlagHeadersPadded | wire.FlagHeadersEndHeaders | wire.FlagHeadersEndStream), prio: prio, fields: fields, hold: hold}
	if hold || l.Full || l.streams > l.most || len(l.waiting) > 0 || !l.Proven() {
		o.prio, o.fields = slices.Clone(prio), slices.Clone(fields)
		if !r.keepBlock(fields, waitingRequests) {
			r.env.Count(TooManyStreams)
			_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeRefusedStream)
			r.unwatch(s, resetBy(wire.ErrCodeRefusedStream))
			r.forget(s)
			return
		}
		s.held = o
		s.up.end = end
		l.waiting = append(l.waiting, s)
		return
	}
	r.open(l, s, o, end)
}

func (r *Relay) open(l *Link, s *stream, o *opening, end bool) {
	flags := o.flags
	if end {
		flags |= wire.FlagHeadersEndStream
		s.clientDone = true
	}
	l.last = s.id
	r.sh.writeBlock(&l.out, wire.FrameHeaders, flags, s.id, o.prio, r.sh.encode(l.enc, o.fields), l.frame)
	if s.room > 0 {
		// The client has said so while the stream was held.
		_ = r.sh.to(&l.out).WriteWindowUpdate(s.id, uint32(min(s.room, maxWindow)))
	}
	if !end {
		r.widen(s)
	}
}

// Resumed goes on with a link that was full.
func (r *Relay) Resumed(l *Link) {
	l.Full = false
	r.openHeld(l)
	for _, s := range r.streamsOf(l) {
		r.sendUp(s)
	}
	r.flush()
}

// LetGo goes on with a stream that was to be held, if it is still there.
func (r *Relay) LetGo(l *Link, stream uint32) {
	if s := r.streamOf(l, stream); s != nil && s.held != nil && s.held.hold {
		s.held.hold = false
		r.openHeld(l)
		r.flush()
	}
}

// openHeld opens the streams that have waited to be let go, or for others to end. A
// server takes them in their order alone (RFC 9113, section 5.1.1).
func (r *Relay) openHeld(l *Link) {
	for len(l.waiting) > 0 && l.Proven() && !l.Full && l.streams-len(l.waiting) < l.most && !l.gone && !l.waiting[0].held.hold {
		s := l.waiting[0]
		l.waiting = slices.Delete(l.waiting, 0, 1)
		o := s.held
		s.held = nil
		r.waiting -= blockSize(o.fields)
		end := s.up.end && len(s.up.data) == 0 && s.up.trailers == nil
		if end {
			s.up.end = false
		}
		r.open(l, s, o, end)
		if !end {
			r.sendUp(s)
		}
	}
}
