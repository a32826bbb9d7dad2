// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"slices"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// windows is the flow control that the relay does itself (RFC 9113, section 5.2).
//
// Streams of the primary link are its own business, and so is the connection, as
// long as there is no other link. With others:
//
// Upload. What the client sends to another link is given back to its connection
// window at once, but for a part of it while too much is waiting already; the stream's window at the
// client follows the one that the link gives, which may differ in the beginning.
// What the link does not allow yet waits in the stream.
//
// Download. A link may send linkWindow bytes more than the client has taken from
// it. What the client gives back pays the primary's bytes first, then those of
// the others, and what is beyond goes to the primary. So the primary may at any
// time send as much as the client allows and the others have taken, and what
// exceeds the client's window waits in the stream that it belongs to.
type windows struct {
	clientConn int64 // what the client may be sent
	owed       int64 // what it has been sent of the primary's and not given back
	owedOthers int64 // of others'

	refundable int64 // to the client's sending, by the next flush
	withheld   int64 // the same, once less is waiting
	buffered   int   // bytes that wait for links
	waiting    int   // bytes of header blocks that do, about
	stalled    []*stream
	kept       int // bytes that wait for the client, about
}

// linkWindow is how much a link other than the primary may send before the
// client has taken it.
const linkWindow = 256 << 10

// linkPiece is how much of what waits is sent to a link before it is asked whether it
// is full, about.
const linkPiece = 64 << 10

func (w *windows) init() { w.clientConn = initialWindow }

// mostWithheld is how much is not given back while too much is waiting: half of the
// smallest connection window that there is (RFC 9113, section 6.9.2). With all of it the
// client could send nothing to anybody, because of a fork that takes nothing.
const mostWithheld = initialWindow / 2

// refund gives bytes that the client has sent back to its connection window.
func (r *Relay) refund(n int) {
	back := int64(n)
	if r.buffered > r.sh.limits.BufferBytes {
		kept := min(back, mostWithheld-r.withheld)
		r.withheld += kept
		back -= kept
	}
	r.refundable += back
}

// giveBack sends what is to be given back.
func (r *Relay) giveBack() {
	if r.withheld > 0 && r.buffered <= r.sh.limits.BufferBytes/2 {
		r.refundable += r.withheld
		r.withheld = 0
	}
	if r.refundable > 0 && !r.over {
		_ = r.sh.to(&r.out).WriteWindowUpdate(0, uint32(min(r.refundable, maxWindow)))
		r.refundable = 0
	}
	if p := r.primary; p.spent > 0 && !p.gone {
		_ = r.sh.to(&p.out).WriteWindowUpdate(0, uint32(p.spent))
		p.spent = 0
	}
	for _, l := range r.others {
		if l.spent >= linkWindow/4 && !l.gone {
			_ = r.sh.to(&l.out).WriteWindowUpdate(0, uint32(l.spent))
			l.room += l.spent
			l.spent = 0
		}
	}
}

// clientWindowUpdate follows what the client allows. It reports whether the
// frame has been dealt with.
func (r *Relay) clientWindowUpdate(h head, payload []byte) bool {
	r.spend(1)
	if len(payload) != 4 {
		return false
	}
	n := int64(binary.BigEndian.Uint32(payload) & maxWindow)
	if h.stream != 0 {
		if s := r.streams[h.stream]; s != nil {
			s.room += n
		}
		return false
	}
	r.clientConn += n
	paid := min(n, r.owed)
	r.owed -= paid
	if !r.split {
		return false
	}
	if r.clientConn > maxWindow {
		r.fail(wire.ErrCodeFlowControl, ClientError)
		return true
	}
	others := min(n-paid, r.owedOthers)
	r.owedOthers -= others
	if n > 0 && others == n {
		r.resume()
		return true
	}
	if others == 0 {
		r.resume()
		return false
	}
	_ = r.sh.to(&r.primary.out).WriteWindowUpdate(0, uint32(n-others))
	r.resume()
	return true
}

// delivered follows payload of a DATA frame to the client.
func (r *Relay) delivered(l *Link, n int) {
	r.clientConn -= int64(n)
	r.earn(1 + int64(n)/dataWorth)
	if l != nil {
		r.heard(l)
	}
	if l == r.primary {
		r.owed += int64(n)
		return
	}
	r.owedOthers += int64(n)
	if l != nil {
		l.spent += int64(n)
	}
}

// uploadWhole passes a DATA frame of the client on as it came, if it can.
func (r *Relay) uploadWhole(s *stream, h head, raw []byte, end bool) bool {
	l, n := s.link, int64(h.length)
	if l.Full || s.held != nil || !s.up.empty() || n > l.window || n > l.initial+s.maySend || h.length > l.frame {
		return false
	}
	l.window -= n
	s.maySend -= n
	s.mayTake -= n
	r.refund(h.length)
	l.out.lend(r.sh, raw)
	if end {
		s.clientDone = true
		r.finish(s)
		return true
	}
	r.widen(s)
	return true
}

// uploadPiece is upload of a piece of a frame.
func (r *Relay) uploadPiece(id uint32, data []byte, pad int, end bool) {
	s := r.streams[id]
	switch {
	case s == nil || s.link == nil:
		r.refund(len(data) + pad)
	case s.link == r.primary:
		// It has gone there in the middle of the frame.
		r.toPrimary(s, data, pad, end)
	default:
		r.upload(s, data, pad, end)
	}
}

// upload takes data of the client for a link other than the primary. Padding is
// not passed on.
func (r *Relay) upload(s *stream, data []byte, pad int, end bool) {
	s.mayTake -= int64(len(data) + pad)
	r.buffered += len(data)
	s.up.data = append(s.up.data, data...)
	s.up.end = s.up.end || end
	if s.held != nil && !s.link.Proven() {
		s.charged += int64(len(data) + pad)
		return
	}
	r.refund(len(data) + pad)
	r.sendUp(s)
}

// discharge gives back what could not be as long as it was not known which way its
// stream would go.
func (r *Relay) discharge(s *stream) {
	if s.charged > 0 {
		r.refund(int(s.charged))
		s.charged = 0
	}
}

// How many times BufferBytes may wait for links of header blocks. The client cannot
// be slowed down for these: they may wait for the ends of streams that it has still
// to send. A request that is one too many is refused, and the client goes on;
// trailers are not.
const (
	waitingRequests = 8
	waitingTrailers = 2 * waitingRequests
)

// keepBlock counts a header block of the client that has to wait, unless too much
// does.
func (r *Relay) keepBlock(fields []hpack.HeaderField, buffers int) bool {
	n := blockSize(fields)
	if r.waiting+n > buffers*r.sh.limits.BufferBytes {
		return false
	}
	r.waiting += n
	return true
}

// sendUp sends what waits of a stream's upload, as far as the link allows.
func (r *Relay) sendUp(s *stream) {
	l, u := s.link, &s.up
	if s.held != nil {
		return
	}
	sent := 0
	for sent < len(u.data) && !l.Full {
		n := int(min(int64(len(u.data)-sent), l.window, l.initial+s.maySend, int64(l.frame)))
		if n <= 0 {
			break
		}
		last := u.end && u.trailers == nil && sent+n == len(u.data)
		r.sh.writeData(&l.out, s.id, last, u.data[sent:sent+n])
		sent += n
		l.window -= int64(n)
		s.maySend -= int64(n)
		if last {
			u.end = false
			s.clientDone = true
		}
		// A server may allow at once all that has waited here, which is then to find out in
		// time that the connection takes no more of it.
		if l.out.size() >= linkPiece {
			r.flushLink(l)
		}
	}
	r.buffered -= sent
	if sent == len(u.data) {
		u.data = nil
	} else {
		u.data = u.data[:copy(u.data, u.data[sent:])]
		if l.window <= 0 && !u.queued {
			u.queued = true
			l.blocked = append(l.blocked, s)
		}
	}
	if len(u.data) == 0 && !s.clientDone {
		switch {
		case u.trailers != nil:
			flags := wire.Flags(0)
			if u.end {
				flags = wire.FlagHeadersEndStream
				s.clientDone = true
			}
			r.sh.writeBlock(&l.out, wire.FrameHeaders, flags, s.id, nil, r.sh.encode(l.enc, u.trailers), l.frame)
			r.waiting -= blockSize(u.trailers)
			u.trailers, u.end = nil, false
		case u.end:
			u.end = false
			s.clientDone = true
			r.sh.writeData(&l.out, s.id, true, nil)
		}
	}
	if s.clientDone {
		r.finish(s)
		return
	}
	r.widen(s)
}

// widen lets the client send what the link allows.
//
// A server may allow any amount and then not take it, so that it would wait here:
// the client is allowed a part of it at a time, and nothing while some of it waits.
func (r *Relay) widen(s *stream) {
	if s.clientDone || s.up.end || len(s.up.data) > 0 || !s.link.Proven() {
		return
	}
	n := min(s.link.initial+s.maySend, r.sh.limits.streamWindow()) - r.primary.initial - s.mayTake
	if n <= 0 {
		return
	}
	s.mayTake += n
	_ = r.sh.to(&r.out).WriteWindowUpdate(s.id, uint32(min(n, maxWindow)))
}

// downloadPiece is a piece of a DATA frame of the primary link, whose frames may
// be longer than is waited for. Each becomes a frame.
func (r *Relay) downloadPiece(l *Link, id uint32, data []byte, pad int, end bool) {
	// The client must hear of the padding as well, which has taken its part of the
	// window: as a frame of its own.
	if pad > 0 {
		b := appendHead(make([]byte, 0, headLen+pad), head{length: pad, typ: wire.FrameData, flags: wire.FlagDataPadded, stream: id})
		b = append(b, byte(pad-1))
		r.downloadFrame(l, id, append(b, make([]byte, pad-1)...), end && len(data) == 0)
	}
	if len(data) > 0 || end && pad == 0 {
		b := appendHead(make([]byte, 0, headLen+len(data)), head{length: len(data), typ: wire.FrameData, stream: id})
		r.downloadFrame(l, id, append(b, data...), end)
	}
}

func (r *Relay) downloadFrame(l *Link, id uint32, raw []byte, end bool) {
	if end {
		raw[4] |= byte(wire.FlagDataEndStream)
	}
	if s := r.streamOf(l, id); s != nil {
		r.download(l, s, raw, end)
		return
	}
	l.spent += int64(len(raw) - headLen)
}

// download sends a whole DATA frame to the client, now or when there is room in
// its window.
func (r *Relay) download(l *Link, s *stream, raw []byte, end bool) {
	n := len(raw) - headLen
	if len(s.down) == 0 && int64(n) <= r.clientConn && (len(r.stalled) == 0 || n == 0) {
		r.delivered(l, n)
		r.out.lend(r.sh, raw)
		if end {
			s.serverDone = true
			r.finish(s)
		}
		return
	}
	d := download{data: slices.Clone(raw), size: n, end: end}
	if l == nil {
		r.stall(s, d)
	} else if !r.stallOf(l, s, d) {
		return
	}
	if len(r.stalled) == 1 {
		r.resume()
	}
}

// split makes room for the first bytes of a frame that is larger than what the
// client may be sent: who knows whether it gives anything back before it has got
// all that it allows.
func (d *download) split(n int64) (first []byte) {
	h := parseHead(d.data)
	if n <= 0 || h.flags.Has(wire.FlagDataPadded) {
		return nil
	}
	first = appendHead(make([]byte, 0, headLen+n), head{length: int(n), typ: h.typ, stream: h.stream})
	first = append(first, d.data[headLen:headLen+n]...)
	h.length -= int(n)
	rest := d.data[n:]
	appendHead(rest[:0], h)
	d.data, d.size = rest, h.length
	d.cost -= int(n)
	return first
}

// stall puts something behind what already waits of a stream.
func (r *Relay) stall(s *stream, d download) {
	if len(s.down) == 0 {
		r.stalled = append(r.stalled, s)
	}
	d.cost = downloadCost + len(d.data) + blockSize(d.fields)
	r.kept += d.cost
	s.down = append(s.down, d)
}

// downloadCost is what is kept of a frame besides what is in it. Windows bound the
// payload of DATA; there may be any number of frames that have none.
const downloadCost = 192

// mostKept is how much of what links have sent is kept for the client: twice what
// their windows allow.
func (r *Relay) mostKept() int { return 2 * linkWindow * (r.sh.limits.Links + 1) }

// stallOf is stall of something that a link has sent. It reports whether the link
// is still there: it may have sent too much.
func (r *Relay) stallOf(l *Link, s *stream, d download) bool {
	r.stall(s, d)
	if r.kept <= r.mostKept() {
		return true
	}
	if !l.secondary() {
		r.fail(wire.ErrCodeEnhanceYourCalm, ServerError)
		return false
	}
	for _, x := range r.streamsOf(l) {
		r.unstall(x)
	}
	r.breakLink(l, wire.ErrCodeEnhanceYourCalm)
	return false
}

func (r *Relay) unstall(s *stream) {
	if len(s.down) > 0 {
		for i := range s.down {
			r.kept -= s.down[i].cost
		}
		s.down = nil
		r.stalled = slices.DeleteFunc(r.stalled, func(x *stream) bool { return x == s })
	}
}

// resume sends what has waited for the client's window, one frame of each stream
// in turns.
func (r *Relay) resume() {
	for len(r.stalled) > 0 {
		s := r.stalled[0]
		d := s.down[0]
		if int64(d.size) > r.clientConn {
			if first := s.down[0].split(r.clientConn); first != nil {
				r.kept -= len(first) - headLen
				r.delivered(s.link, len(first)-headLen)
				r.out.write(r.sh, first)
			}
			return
		}
		r.stalled = slices.Delete(r.stalled, 0, 1)
		r.kept -= d.cost
		if s.down = s.down[1:]; len(s.down) > 0 {
			r.stalled = append(r.stalled, s)
		}
		switch {
		case d.reset:
			_ = r.sh.to(&r.out).WriteRSTStream(s.id, d.code)
			r.forget(s)
			continue
		case d.fields != nil:
			r.sendBlock(d.head, d.fixed, d.fields)
		default:
			r.delivered(s.link, d.size)
			r.out.write(r.sh, d.data)
		}
		if d.end {
			s.serverDone = true
			r.finish(s)
		}
	}
}
