// SPDX-License-Identifier: Apache-2.0

package http2

import (
	wire "golang.org/x/net/http2"
)

// What becomes of streams on a second link (see NewSecond) that ends before it has shown
// that its server serves it.

// goBack opens a stream of a second link on the primary one instead, if that can still
// be: nobody has heard of it, and the primary link knows of no newer one (RFC 9113,
// section 5.1.1).
func (r *Relay) goBack(s *stream) bool {
	l, p := s.link, r.primary
	if l == nil || !l.second || s.held == nil || p.gone || r.poisoned || r.over || s.id <= p.last || s.id > p.serves {
		return false
	}
	// What has come of its body is sent on the client's account, whose windows were the
	// primary link's all the time: of it nothing may have been given back, and a server
	// that has made its windows smaller since need not take it.
	if s.charged != -s.mayTake || int64(len(s.up.data)) > p.initial {
		return false
	}
	o, up := s.held, s.up
	padding := s.charged - int64(len(up.data))
	s.charged = padding
	l.unblock(s)
	l.streams--
	p.streams++
	s.link, s.held, s.up, s.mayTake = p, nil, upload{}, 0
	p.last = s.id
	r.places.moved(s.id)
	if s.watch != nil {
		r.env.Moved(s.id, s.watch)
	}
	bare := len(up.data) == 0 && up.trailers == nil
	s.clientDone = up.end
	r.sh.writeBlock(&p.out, wire.FrameHeaders, endIf(o.flags, up.end && bare), s.id, o.prio, r.sh.encode(p.enc, o.fields), p.frame)
	if s.room > 0 {
		_ = r.sh.to(&p.out).WriteWindowUpdate(s.id, uint32(min(s.room, maxWindow)))
	}
	if len(up.data) > 0 {
		r.dataToPrimary(s, up.data, up.end && up.trailers == nil)
	}
	if up.trailers != nil {
		r.sh.writeBlock(&p.out, wire.FrameHeaders, endIf(0, up.end), s.id, nil, r.sh.encode(p.enc, up.trailers), p.frame)
	}
	r.refundPadding(s, padding)
	return true
}

func endIf(flags wire.Flags, end bool) wire.Flags {
	if end {
		flags |= wire.FlagHeadersEndStream
	}
	return flags
}

// toPrimary sends a piece of a frame of the client's on the primary link, as a frame.
func (r *Relay) toPrimary(s *stream, data []byte, pad int, end bool) {
	if len(data) > 0 || end {
		r.dataToPrimary(s, data, end)
	}
	r.refund(pad)
	r.refundPadding(s, int64(pad))
	if end {
		s.clientDone = true
		r.finish(s)
	}
}

// dataToPrimary sends data that the client's windows have paid for.
func (r *Relay) dataToPrimary(s *stream, data []byte, end bool) {
	for p := r.primary; ; {
		n := min(len(data), p.frame)
		r.sh.writeData(&p.out, s.id, end && n == len(data), data[:n])
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// refundPadding gives a stream's window back what the primary link's server will never
// see.
func (r *Relay) refundPadding(s *stream, n int64) {
	if n > 0 && !s.clientDone {
		_ = r.sh.to(&r.out).WriteWindowUpdate(s.id, uint32(n))
	}
}
