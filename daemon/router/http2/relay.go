// SPDX-License-Identifier: Apache-2.0

package http2

import (
	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Env is what a Relay asks and tells whoever owns the connections. None of its
// methods may call the Relay, but for NewLink, NewSecond and Close.
type Env interface {
	// Route says where a new stream goes. The request is valid during the call.
	Route(*Request) Route
	// ToClient and ToLink send bytes, behind all that was sent before. They are
	// valid during the call.
	ToClient(b []byte)
	ToLink(l *Link, b []byte)
	// Drop closes a link that no stream uses any more. Nothing is heard of it
	// afterwards.
	Drop(l *Link)
	// Ended is told of a watched stream's end, and why it came before the answer's;
	// empty: it did not.
	Ended(w *Watch, why string)
	// Moved is told that a watched stream goes by the primary link after all, before
	// anything of it is sent: see NewSecond.
	Moved(stream uint32, w *Watch)
	// Count counts something that went another way than the plain one.
	Count(why Reason)
	// Now is a clock in nanoseconds.
	Now() int64
}

// Request is a stream's request as far as routing is concerned.
type Request struct {
	Stream uint32
	Keys   *routing.KeySet
	GRPC   bool // its content-type says that it is a gRPC call
	Head   bool // its method is HEAD

	// Method, Authority, Path and Traceparent are fields of these names, the latter
	// empty when there are several.
	Method, Authority, Path, Traceparent string
}

// Route is the answer to a Request: a link, or a refusal.
type Route struct {
	Link *Link
	// Inject, when not empty, is the value of a baggage member to add.
	Inject string
	// Refusal says why there is no link.
	Refusal string
	// Busy says that there can be no link now, and that the client may try again.
	Busy bool
	// Hold has the stream wait, and what is opened on the same link after it, until it
	// is let go (see Relay.LetGo). It means nothing for the primary link, whose streams
	// are opened in the order in which they come.
	Hold bool
	// Watch is filled in with what becomes of the stream; nil: nobody wants to know.
	Watch *Watch
}

// Relay relays one client's connection. See the package's comment.
type Relay struct {
	sh  *Shared
	env Env

	in  reader // from the client
	out outlet // to the client

	primary *Link
	others  []*Link // at least one of which some stream has used
	split   bool    // a stream has had another link than the primary

	streams  map[uint32]*stream
	watching int    // how many of them are watched
	last     uint32 // the client's newest stream
	places   *ownership
	poisoned bool // the client has sent something that cannot be followed
	swallow  int  // the client's next acknowledgements, which are of SETTINGS of the relay's own
	mute     bool // the client is told nothing before a stream has been routed

	// goAway is the newest stream that is served, as the client has been told.
	goAway   uint32
	draining bool

	// What the client has announced.
	clientTable   uint32
	clientWindow  int64 // of a stream
	widest        int64 // that it has been
	clientMax     int
	clientSetting []wire.Setting // for links to come; no two of one id

	enc *encoder // of blocks to the client; nil: the primary's go on as they come

	windows

	pings []ping // of links other than the primary
	asked []ping // of the client's, to such links
	// talker is the link that the client has heard of last, unless it is the primary
	// one. A client measures with its PINGs how quick the answers are that it gets, and
	// a server counts those that come without any as an attack.
	talker *Link

	budget

	paused bool // see Paused
	over   bool // nothing is relayed any more
}

// ping is one that a link has sent and the client has not answered.
type ping struct {
	data [8]byte
	link *Link
}

// reader reads one peer's frames.
type reader struct {
	dec     *hpack.Decoder // knows the peer's table
	table   uint32         // how large that is at most, by the peer's own word
	allowed uint32         // how large it may be
	// A header block that has begun and not ended: all its frames, and the block
	// itself.
	first head
	long  bool // one of the frames is longer than the client may send
	raw   []byte
	block []byte
	skip  int // what stands in raw's first frame before the block
	// A frame whose payload is dealt with as it comes.
	left    int
	pieces  pieces
	to      *outlet // of passPieces
	data    piecewise
	preface int // how much of the preface is still to come
}

func (in *reader) init(sh *Shared) {
	in.dec = hpack.NewDecoder(initialTable, sh.emit)
	in.table, in.allowed = initialTable, initialTable
}

// pieces is what is done with a frame's pieces.
type pieces uint8

const (
	passPieces pieces = iota // as they are
	dropPieces               // thrown away
	dataPieces               // each becomes a frame
)

// piecewise is a DATA frame that becomes several.
type piecewise struct {
	stream uint32
	left   int // bytes of data that are still to come; then comes padding
	end    bool
}

// New makes a Relay for a client that is about to send its preface.
func New(sh *Shared, env Env) *Relay {
	r := &Relay{sh: sh, env: env, streams: map[uint32]*stream{}}
	r.clientTable, r.clientWindow, r.clientMax = initialTable, initialWindow, leastMaxFrame
	r.widest = initialWindow
	r.windows.init()
	r.in.init(sh)
	// A client takes anything before its server's SETTINGS for an error (RFC 9113,
	// section 3.4), and other links may be quicker than the primary.
	r.out.shut = true
	r.in.preface = len(Preface)
	r.goAway = maxWindow
	r.budget.init(sh.limits.ControlRate, env.Now())
	r.primary = r.newLink()
	return r
}

// Alone makes a Relay without a primary link: what would be for it is answered
// by the relay. With mute it tells the client nothing before a stream has been
// routed.
func Alone(sh *Shared, env Env, mute bool) *Relay {
	r := New(sh, env)
	r.primary.gone, r.mute = true, mute
	r.divide(1)
	r.greet()
	return r
}

// Upgraded makes a Relay for a client whose first request was HTTP/1 and has been
// answered with 101 by the primary link: it is stream 1 now (RFC 7540, section
// 3.2). settings is the decoded HTTP2-Settings of the request; what is malformed is
// ignored. A server that makes use of a larger table than allowed cannot be followed:
// its blocks go on as they come, until one of another link is to come between.
func Upgraded(sh *Shared, env Env, settings []byte) *Relay {
	r := New(sh, env)
	r.applySettings(settings[:len(settings)/6*6])
	r.last, r.primary.last = 1, 1
	r.newStream(1, r.primary).clientDone = true
	return r
}

// Awaiting reports whether the client waits for the primary's first frame.
func (r *Relay) Awaiting() bool { return r.out.shut }

// Greet says the first thing in the place of a primary that is slow to. Its own
// SETTINGS come later, as a change.
func (r *Relay) Greet() {
	if r.out.shut {
		r.swallow++
		r.greet()
		r.flush()
	}
}

// greet is the first thing that the client hears, in the primary link's place.
func (r *Relay) greet() {
	if r.out.shut {
		early := r.out.open()
		_ = r.sh.to(&r.out).WriteSettings()
		r.out.follow(r.sh, early)
	}
}

// Primary returns the link that what is no stream's goes to.
func (r *Relay) Primary() *Link { return r.primary }

// Over reports whether the relay has given up. It has told the client; the
// connections are to be closed.
func (r *Relay) Over() bool { return r.over }

// Begun reports whether the client has opened a stream.
func (r *Relay) Begun() bool { return r.last > 0 }

// Drain asks the client to open no more streams. It is called twice: at first
// those that are on their way are served still, with final no more.
func (r *Relay) Drain(final bool) {
	r.draining = true
	last := uint32(maxWindow)
	if final {
		last = r.last
	}
	if last < r.goAway || !final {
		r.goAway = min(r.goAway, last)
		_ = r.sh.to(&r.out).WriteGoAway(r.goAway, wire.ErrCodeNo, nil)
	}
	r.flush()
}

// Buffered returns how many bytes wait for links, or for the primary's first
// frame, about.
func (r *Relay) Buffered() int { return r.buffered + len(r.out.after) }

// Midway reports whether the client has got a part of a frame of the primary
// link, or nothing of it yet: nothing can come between, or before, so nothing
// should be read from other links.
func (r *Relay) Midway() bool { return r.out.closed() }

// Open returns how many streams are under way.
func (r *Relay) Open() int { return len(r.streams) }

// blocksAtOnce is how many bytes of header blocks are encoded anew before it is looked whether
// they are taken. A field that takes a byte of what is read may take some thousand in what
// is sent, since the tables differ.
const blocksAtOnce = 256 << 10

// Paused reports whether the call of FromClient or FromLink before it has left more than
// the beginning of a frame, because of what it has given to be sent: the rest is to be
// given again, without anything more, once that is on its way.
func (r *Relay) Paused() bool { return r.paused }

// FromClient takes bytes from the client and returns how many are done with. The
// rest is the beginning of a frame, unless the relay is Paused.
func (r *Relay) FromClient(b []byte) int {
	n := r.feed(nil, &r.in, b)
	r.flush()
	return n
}

// FromLink takes bytes from a link.
func (r *Relay) FromLink(l *Link, b []byte) int {
	n := r.feed(l, &l.in, b)
	r.flush()
	return n
}

// feed deals with the frames at b's beginning.
func (r *Relay) feed(from *Link, in *reader, b []byte) (n int) {
	r.sh.blocks, r.paused = 0, false
	for n < len(b) && !r.over && (from == nil || !from.gone) {
		if r.sh.blocks > blocksAtOnce {
			r.paused = true
			return n
		}
		if in.preface > 0 {
			k := min(in.preface, len(b)-n)
			at := len(Preface) - in.preface
			if string(b[n:n+k]) != Preface[at:at+k] {
				r.poisoned = true
			}
			in.preface -= k
			r.primary.out.lend(r.sh, b[n:n+k])
			n += k
			continue
		}
		if in.left > 0 {
			k := min(in.left, len(b)-n)
			in.left -= k
			r.piece(from, in, b[n:n+k])
			n += k
			continue
		}
		if len(b)-n < headLen {
			return n
		}
		h := parseHead(b[n:])
		size := headLen + h.length
		if len(b)-n >= size {
			early := r.first(from)
			r.frame(from, in, h, b[n:n+size])
			r.out.follow(r.sh, early)
			n += size
			continue
		}
		var early []byte
		if !in.waits(h) {
			early = r.first(from)
		}
		taken := r.begin(from, in, h, b[n:])
		r.out.follow(r.sh, early)
		if taken == 0 {
			return n
		}
		n += taken
	}
	if r.over {
		return len(b)
	}
	return n
}

// first follows the first frame of the primary link.
func (r *Relay) first(from *Link) (early []byte) {
	if from == r.primary {
		return r.out.open()
	}
	return nil
}

// waits reports whether begin waits for the whole of a frame.
func (in *reader) waits(h head) bool {
	return in.raw != nil || in.headers(h.typ) || h.typ != wire.FrameData && h.length <= waitFor
}

// waitFor is how long a frame may be for which is waited until it is whole.
const waitFor = 32 << 10

// begin deals with a frame of which only a part has come. It returns how much of
// that is done with; 0: the rest is waited for.
func (r *Relay) begin(from *Link, in *reader, h head, b []byte) int {
	if in.raw != nil && (h.typ != wire.FrameContinuation || h.stream != in.first.stream) {
		// The block will never end.
		r.astray(from, in, nil)
	}
	if in.raw != nil || in.headers(h.typ) {
		if len(in.raw)+h.length > r.sh.limits.HeaderBytes {
			r.tooMuch(from, HeadersTooLong)
		}
		return 0
	}
	if from != nil && from.secondary() && h.length > leastMaxFrame {
		r.breakLink(from, wire.ErrCodeFrameSize)
		return 0
	}
	if h.typ == wire.FrameData {
		return r.beginData(from, in, h, b)
	}
	if h.length <= waitFor {
		return 0
	}
	// Too long for anything that matters here.
	in.left = h.length
	if o := r.passOn(from, h); o != nil {
		o.lend(r.sh, b[:headLen])
		o.midway = true
		in.pieces, in.to = passPieces, o
	} else {
		in.pieces = dropPieces
	}
	return headLen
}

// headers reports whether a frame of this type begins a header block.
func (in *reader) headers(t wire.FrameType) bool {
	return t == wire.FrameHeaders || t == wire.FramePushPromise
}

// passOn returns where a frame goes that is none of the relay's business.
func (r *Relay) passOn(from *Link, h head) *outlet {
	switch {
	case from == nil:
		s := r.streams[h.stream]
		if l := r.owner(h.stream); l != nil && (s == nil || s.held == nil) {
			return &l.out
		}
		// To a server that has not been told of the stream a frame on it is an error of the
		// connection (RFC 9113, section 5.1, "idle").
		return nil
	case from.secondary() && h.typ == wire.FramePriority:
		return nil // not a server's to send
	case from == r.primary:
		return &r.out
	case h.stream == 0 || r.streamOf(from, h.stream) == nil:
		// What another server has to say about itself says nothing about the one that
		// the client thinks it talks to.
		return nil
	}
	return &r.out
}

// piece deals with a piece of a frame.
func (r *Relay) piece(from *Link, in *reader, b []byte) {
	switch in.pieces {
	case passPieces:
		in.to.lendPart(r.sh, b)
		if in.left == 0 {
			in.to.endPart(r.sh)
		}
	case dataPieces:
		n := min(len(b), in.data.left)
		in.data.left -= n
		pad := len(b) - n
		end := in.data.end && in.data.left == 0 && n > 0
		if from == nil {
			r.uploadPiece(in.data.stream, b[:n], pad, end)
		} else {
			r.downloadPiece(from, in.data.stream, b[:n], pad, end)
		}
	case dropPieces:
	}
}

// frame deals with a whole frame.
func (r *Relay) frame(from *Link, in *reader, h head, raw []byte) {
	if from != nil && from.secondary() && h.length > leastMaxFrame {
		r.breakLink(from, wire.ErrCodeFrameSize)
		return
	}
	if in.raw != nil || in.headers(h.typ) || h.typ == wire.FrameContinuation {
		r.headerFrame(from, in, h, raw)
		return
	}
	if from == nil {
		r.clientFrame(h, raw)
	} else {
		r.linkFrame(from, h, raw)
	}
}

// settleAll copies what is lent.
func (r *Relay) settleAll() {
	r.out.settle(r.sh, 0)
	r.primary.out.settle(r.sh, 0)
	for _, l := range r.others {
		l.out.settle(r.sh, 0)
	}
}

// flush sends what has been collected.
func (r *Relay) flush() {
	r.giveBack()
	r.flushLink(r.primary)
	for i := 0; i < len(r.others); i++ {
		l := r.others[i]
		r.flushLink(l)
		if l.closing && l.streams == 0 {
			r.lose(l)
			r.env.Drop(l)
			i--
		}
	}
	if r.mute && !r.over {
		r.out.settle(r.sh, 0)
		return
	}
	if b := r.out.take(); len(b) > 0 {
		r.env.ToClient(b)
	}
	r.out.reuse(r.sh)
}

func (r *Relay) flushLink(l *Link) {
	if b := l.out.take(); len(b) > 0 && !l.gone {
		r.env.ToLink(l, b)
	}
	l.out.reuse(r.sh)
}

// fail gives up: the client is told, and all connections are to be closed.
func (r *Relay) fail(code wire.ErrCode, why Reason) {
	if r.over {
		return
	}
	if r.out.shut {
		r.out.after = nil
		r.greet()
	}
	if !r.out.midway {
		// Writing to memory does not fail.
		_ = r.sh.to(&r.out).WriteGoAway(r.last, code, nil)
	}
	r.over = true
	r.env.Count(why)
}

// tooMuch follows a peer that has passed a bound.
func (r *Relay) tooMuch(from *Link, why Reason) {
	if from == nil || from == r.primary {
		r.fail(wire.ErrCodeEnhanceYourCalm, why)
		return
	}
	r.env.Count(why)
	r.breakLink(from, wire.ErrCodeEnhanceYourCalm)
}
