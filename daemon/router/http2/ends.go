// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"slices"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// primaryGoAway follows the primary link's GOAWAY. Streams that other links
// have accepted lie beyond what the primary knows of: they must not be lost. The
// client would take those of the primary for accepted that it has not, so they
// are refused one by one.
func (r *Relay) primaryGoAway(l *Link, raw []byte) {
	payload := raw[headLen:]
	if len(payload) < 8 {
		r.out.lend(r.sh, raw)
		return
	}
	last := binary.BigEndian.Uint32(payload) & maxWindow
	l.serves = min(l.serves, last)
	newest := last
	for _, s := range r.streams {
		if s.link != nil && s.link != l && s.id > newest {
			newest = s.id
		}
	}
	r.goAway = min(r.goAway, newest)
	if newest == last {
		r.out.lend(r.sh, raw)
	} else {
		_ = r.sh.to(&r.out).WriteGoAway(newest, wire.ErrCode(binary.BigEndian.Uint32(payload[4:])), payload[8:])
	}
	for _, s := range r.streamsOf(l) {
		if s.id <= last || s.id&1 == 0 {
			continue
		}
		if s.id <= newest {
			_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeRefusedStream)
		}
		r.unwatch(s, resetBy(wire.ErrCodeRefusedStream))
		r.forget(s)
	}
}

// linkGoAway follows a link that takes no new streams.
func (r *Relay) linkGoAway(l *Link, payload []byte) {
	l.closing = true
	if len(payload) < 8 {
		r.breakLink(l, wire.ErrCodeFrameSize)
		return
	}
	last := binary.BigEndian.Uint32(payload) & maxWindow
	for _, s := range r.streamsOf(l) {
		if r.goBack(s) {
			continue
		}
		if s.id > last || s.held != nil {
			_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeRefusedStream)
			r.unwatch(s, resetBy(wire.ErrCodeRefusedStream))
			r.forget(s)
		}
	}
}

// Close ends a link that has no streams and is not the primary one. Its connection is the
// caller's to close then.
func (r *Relay) Close(l *Link) {
	_ = r.sh.to(&l.out).WriteGoAway(0, wire.ErrCodeNo, nil)
	r.flushLink(l)
	r.lose(l)
}

// breakLink gives up a link whose server has broken the protocol.
func (r *Relay) breakLink(l *Link, code wire.ErrCode) {
	if l.gone {
		return
	}
	r.env.Count(ServerError)
	_ = r.sh.to(&l.out).WriteGoAway(0, code, nil)
	r.flushLink(l)
	r.lose(l)
	r.env.Drop(l)
}

// LinkEnded follows the end of a link's connection. Its streams end as far as
// the client is concerned. Of the primary link it reports whether the client's
// connection goes on nonetheless, for streams of others.
func (r *Relay) LinkEnded(l *Link) (goesOn bool) {
	if l == r.primary {
		if len(r.out.after) > 0 && r.out.shut {
			// It has said nothing, but others have.
			r.greet()
			r.flush()
		}
		// A frame of which the client has got a part will never be whole.
		if r.over || r.out.midway || r.enc == nil && l.poisoned || !r.othersOpen() {
			return false
		}
		r.goAway = min(r.goAway, r.last)
		_ = r.sh.to(&r.out).WriteGoAway(r.goAway, wire.ErrCodeNo, nil)
	}
	r.lose(l)
	r.flush()
	return true
}

func (r *Relay) othersOpen() bool {
	for _, s := range r.streams {
		if s.link != r.primary || len(s.down) > 0 {
			return true
		}
	}
	return false
}

// LinkFailed follows a link whose server cannot be reached: its streams are
// answered with why. When that is the primary link, the relay goes on without one
// as after Alone, and mute if no stream has been opened.
func (r *Relay) LinkFailed(l *Link, why func(stream uint32) string) {
	l.gone = true
	if l == r.primary && r.last == 0 {
		r.mute = true
	}
	for _, s := range r.streamsOf(l) {
		req := Request{Stream: s.id, GRPC: s.grpc, Head: s.head}
		id, end := s.id, s.clientDone || s.up.end
		w := s.watch
		if s.watch = nil; w != nil {
			r.watching--
		}
		r.forget(s)
		r.refuse(id, &req, why(id), end, w)
	}
	r.lose(l)
	r.flush()
}

// lose forgets a link and ends its streams.
func (r *Relay) lose(l *Link) {
	l.gone = true
	if l == r.primary {
		r.divide(r.last | 1)
		r.greet()
		for ; l.unacked > 0; l.unacked-- {
			_ = r.sh.to(&r.out).WriteSettingsAck()
		}
	}
	for _, s := range r.streamsOf(l) {
		r.abandon(s)
	}
	r.others = slices.DeleteFunc(r.others, func(x *Link) bool { return x == l })
	r.pings = slices.DeleteFunc(r.pings, func(p ping) bool { return p.link == l })
	r.asked = slices.DeleteFunc(r.asked, func(p ping) bool {
		if p.link == l {
			_ = r.sh.to(&r.out).WritePing(true, p.data)
		}
		return p.link == l
	})
	if r.talker == l {
		r.talker = nil
	}
	if r.in.to == &l.out {
		r.in.pieces, r.in.to = dropPieces, nil
	}
	l.out = outlet{}
	l.in.raw, l.in.block = nil, nil
	l.blocked, l.waiting = nil, nil
}

// answeredWhole reports whether all of the answer is here, if not with the client.
func (s *stream) answeredWhole() bool { return s.serverDone || s.answerWaits() }

// answerWaits reports whether the end of the answer is here and not yet with the client.
func (s *stream) answerWaits() bool {
	return s.serverEnded || len(s.down) > 0 && s.down[len(s.down)-1].end
}

// abandon ends a stream whose server has gone. Directly connected, the client
// would have lost the connection: to gRPC that is UNAVAILABLE, for which HTTP/2
// has no code unless the stream was certainly not processed.
func (r *Relay) abandon(s *stream) {
	if r.goBack(s) {
		return
	}
	if !s.answeredWhole() {
		r.unwatch(s, serverGone)
	}
	switch {
	case s.held != nil:
		_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeRefusedStream)
	case s.answerWaits():
		// All is there, and some of it still on its way.
		s.detach()
		r.finish(s)
		return
	case s.grpc:
		fields := make([]hpack.HeaderField, 0, 4)
		if !s.answered {
			fields = append(fields, hpack.HeaderField{Name: ":status", Value: "200"}, hpack.HeaderField{Name: "content-type", Value: "application/grpc"})
		}
		fields = append(fields, hpack.HeaderField{Name: "grpc-status", Value: grpcUnavailable}, hpack.HeaderField{Name: "grpc-message", Value: "sidetrack: the connection to the server has ended"})
		h := head{typ: wire.FrameHeaders, flags: wire.FlagHeadersEndStream, stream: s.id}
		if len(s.down) > 0 {
			end := s.clientDone
			r.stall(s, download{fields: fields, head: h, end: end})
			if !end {
				r.stall(s, download{reset: true, code: wire.ErrCodeNo})
			}
			s.detach()
			return
		}
		r.sendBlock(h, nil, fields)
		if !s.clientDone {
			_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeNo)
		}
	case len(s.down) > 0:
		r.stall(s, download{reset: true, code: wire.ErrCodeInternal})
		s.detach()
		return
	default:
		_ = r.sh.to(&r.out).WriteRSTStream(s.id, wire.ErrCodeInternal)
	}
	r.forget(s)
}

// detach takes a stream from its link, which is no more, while some of the answer
// is still on its way to the client. What the client sends goes nowhere.
func (s *stream) detach() {
	s.link.unblock(s)
	s.up = upload{}
	s.link, s.clientDone = nil, true
}
