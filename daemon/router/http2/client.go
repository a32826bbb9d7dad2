// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// clientFrame deals with a frame of the client that belongs to no header block.
func (r *Relay) clientFrame(h head, raw []byte) {
	payload := raw[headLen:]
	switch h.typ {
	case wire.FrameData:
		r.clientData(h, raw)
		return
	case wire.FrameRSTStream:
		r.clientReset(h, raw)
		return
	case wire.FrameSettings:
		r.clientSettings(h, raw)
		return
	case wire.FramePing:
		if r.clientPing(h, payload, raw) {
			return
		}
	case wire.FrameWindowUpdate:
		if r.clientWindowUpdate(h, payload) {
			return
		}
	case wire.FramePriorityUpdate:
		r.spend(1)
		if h.stream == 0 && len(payload) >= 4 {
			// It is about the stream that it names (RFC 9218, section 7.1).
			if s := r.streams[binary.BigEndian.Uint32(payload)&maxWindow]; s != nil && s.link != nil {
				s.link.out.lend(r.sh, raw)
				return
			}
		}
	case wire.FrameGoAway:
		for _, l := range r.others {
			// Its last stream is one that a server has pushed, which these have not.
			l.out.lend(r.sh, raw)
		}
	default:
		r.spend(1)
	}
	if o := r.passOn(nil, h); o != nil {
		o.lend(r.sh, raw)
	}
}

// clientPing sends the client's answer to whom it belongs. It reports whether the
// frame has been dealt with.
func (r *Relay) clientPing(h head, payload, raw []byte) bool {
	if len(payload) != 8 {
		return false
	}
	if !h.flags.Has(wire.FlagPingAck) {
		r.spend(1)
		l := r.talker
		if l == nil || len(r.asked) >= maxPings {
			if r.primary.gone {
				_ = r.sh.to(&r.out).WritePing(true, [8]byte(payload))
			}
			return r.primary.gone
		}
		r.asked = append(r.asked, ping{data: [8]byte(payload), link: l})
		l.out.lend(r.sh, raw)
		return true
	}
	for i, p := range r.pings {
		if string(p.data[:]) == string(payload) {
			r.pings = append(r.pings[:i], r.pings[i+1:]...)
			p.link.out.lend(r.sh, raw)
			return true
		}
	}
	return false
}

// clientReset passes on that the client gives a stream up.
func (r *Relay) clientReset(h head, raw []byte) {
	r.spend(resetCost)
	s := r.streams[h.stream]
	if s == nil {
		if l := r.owner(h.stream); l == r.primary {
			l.out.lend(r.sh, raw)
		}
		return
	}
	if s.link != nil && s.held == nil {
		s.link.out.lend(r.sh, raw)
	}
	r.unwatch(s, callerReset)
	r.forget(s)
}

// beginData deals with the client's or a link's DATA frame of which only a part
// has come.
func (r *Relay) beginData(from *Link, in *reader, h head, b []byte) int {
	var o *outlet
	switch {
	case from == nil && r.owner(h.stream) == r.primary && !r.primary.gone:
		o = &r.primary.out
	case from == r.primary && !r.split && !r.out.midway:
		o = &r.out
	}
	if o != nil {
		if from == nil {
			r.sends(h.stream, h.length)
			r.clientSends(h)
		} else {
			r.delivered(from, h.length)
			r.receives(from, h)
			r.serverSends(from, h)
		}
		in.left, in.pieces, in.to = h.length, passPieces, o
		o.lend(r.sh, b[:headLen])
		o.midway = true
		return headLen
	}
	padded := h.flags.Has(wire.FlagDataPadded)
	if h.length <= waitFor || padded && len(b) == headLen {
		return 0
	}
	if from == nil {
		if s := r.streams[h.stream]; s != nil && s.link != nil && !r.mayUpload(s, h) {
			r.refund(h.length)
			in.left, in.pieces = h.length, dropPieces
			return headLen
		}
	}
	if from == nil {
		r.sends(h.stream, h.length)
	} else {
		r.receives(from, h)
	}
	taken, pad := headLen, 0
	if padded {
		pad = int(b[headLen]) + 1
		if pad > h.length {
			// Whoever owns the stream will say what is wrong with it.
			pad = h.length
		}
		taken++
	}
	in.left, in.pieces = h.length-(taken-headLen), dataPieces
	in.data = piecewise{stream: h.stream, left: h.length - pad, end: h.flags.Has(wire.FlagDataEndStream)}
	if padded {
		// The length of the padding has taken its part of the windows.
		if from == nil {
			r.uploadPiece(h.stream, nil, 1, in.data.end && in.data.left == 0)
		} else {
			r.downloadPiece(from, h.stream, nil, 1, in.data.end && in.data.left == 0)
		}
	}
	return taken
}

// clientSends follows a DATA frame to the primary link.
func (r *Relay) clientSends(h head) {
	if h.flags.Has(wire.FlagDataEndStream) {
		if s := r.streams[h.stream]; s != nil {
			s.clientDone = true
			r.finish(s)
		}
	}
}

// clientData deals with a whole DATA frame.
func (r *Relay) clientData(h head, raw []byte) {
	if h.length == 0 && !h.flags.Has(wire.FlagDataEndStream) {
		r.spend(1)
	}
	r.sends(h.stream, h.length)
	l := r.owner(h.stream)
	if l == r.primary {
		l.out.lend(r.sh, raw)
		r.clientSends(h)
		return
	}
	s := r.streams[h.stream]
	if s == nil || l == nil {
		r.refund(h.length)
		return
	}
	end := h.flags.Has(wire.FlagDataEndStream)
	if !r.mayUpload(s, h) {
		r.refund(h.length)
		return
	}
	if r.uploadWhole(s, h, raw, end) {
		return
	}
	data, ok := unpad(h, raw[headLen:])
	if !ok {
		r.fail(wire.ErrCodeProtocol, ClientError)
		return
	}
	r.upload(s, data, h.length-len(data), end)
}

// mayUpload reports whether a DATA frame of the client is in order. Otherwise the
// stream has been reset, or the relay has given up.
func (r *Relay) mayUpload(s *stream, h head) bool {
	switch {
	case r.tooLong(h):
		r.fail(wire.ErrCodeFrameSize, ClientError)
		return false
	case s.clientDone || s.up.end:
		r.resetBoth(s, wire.ErrCodeStreamClosed)
		return false
	case r.primary.widest+s.mayTake < int64(h.length):
		r.resetBoth(s, wire.ErrCodeFlowControl)
		return false
	}
	return true
}

// resetBoth ends a stream of a link other than the primary, for an error of the
// client's.
func (r *Relay) resetBoth(s *stream, code wire.ErrCode) {
	r.env.Count(ClientError)
	r.spend(resetCost)
	if s.held == nil {
		_ = r.sh.to(&s.link.out).WriteRSTStream(s.id, wire.ErrCodeCancel)
	}
	_ = r.sh.to(&r.out).WriteRSTStream(s.id, code)
	r.unwatch(s, "the caller has broken the protocol: "+code.String())
	r.forget(s)
}

// clientBlock deals with a header block of the client: a request or trailers.
func (r *Relay) clientBlock(h head, raw, prio, block []byte) {
	if r.poisoned {
		// The keys of this stream cannot be known.
		r.fail(wire.ErrCodeProtocol, Untraceable)
		return
	}
	if h.typ == wire.FramePushPromise {
		// A client must not; its server will say so.
		r.astray(nil, &r.in, raw)
		return
	}
	if err := r.sh.decode(&r.in, block, true); err != nil {
		if r.primary.enc != nil || r.keyedElsewhere() {
			r.fail(wire.ErrCodeCompression, ClientError)
			return
		}
		r.astray(nil, &r.in, raw)
		return
	}
	if r.sh.tooLarge {
		r.fail(wire.ErrCodeEnhanceYourCalm, HeadersTooLong)
		return
	}
	if r.in.long && r.primary.enc != nil {
		r.fail(wire.ErrCodeFrameSize, ClientError)
		return
	}
	end := h.flags.Has(wire.FlagHeadersEndStream)
	if s := r.streams[h.stream]; s != nil {
		r.clientTrailers(s, h, raw, prio, end)
		return
	}
	if h.stream&1 == 0 {
		r.fail(wire.ErrCodeProtocol, ClientError)
		return
	}
	if h.stream <= r.last {
		// It is closed. Who has closed it may say so.
		if r.owner(h.stream) == r.primary {
			r.primaryBlock(h, raw, prio, r.sh.fields)
		} else {
			r.skipBlock()
		}
		return
	}
	if len(r.streams) >= r.sh.limits.Streams {
		r.fail(wire.ErrCodeEnhanceYourCalm, TooManyStreams)
		return
	}
	if h.stream > r.goAway {
		// It has been on its way when the client was told to open no more, and will be
		// opened elsewhere.
		r.last = h.stream
		r.divide(h.stream)
		r.places.add(h.stream, true)
		r.skipBlock()
		return
	}
	r.last = h.stream
	req := r.request()
	route := r.env.Route(&req)
	l := route.Link
	r.mute = false
	if r.in.long && (l != r.primary || route.Inject != "") {
		if route.Watch != nil {
			r.env.Ended(route.Watch, "a frame of its headers is too long")
		}
		r.fail(wire.ErrCodeFrameSize, ClientError)
		return
	}
	fields := r.sh.fields
	if route.Inject != "" {
		fields = r.sh.withMember(fields, route.Inject)
	}
	if l != r.primary {
		r.divide(h.stream)
	}
	if r.places != nil {
		r.places.add(h.stream, l != r.primary)
	}
	if l == nil {
		r.skipBlock()
		if route.Busy {
			r.env.Count(TooManyLinks)
			_ = r.sh.to(&r.out).WriteRSTStream(h.stream, wire.ErrCodeRefusedStream)
			return
		}
		if route.Watch != nil {
			route.Watch.Sent += int64(len(raw))
		}
		r.refuse(h.stream, &req, route.Refusal, end, route.Watch)
		return
	}
	s := r.newStream(h.stream, l)
	s.grpc, s.head = req.GRPC, req.Head
	if route.Watch != nil {
		s.watch = route.Watch
		s.watch.Sent += int64(len(raw))
		r.watching++
	}
	s.clientDone = end
	if l == r.primary {
		l.last = max(l.last, h.stream)
		if route.Inject != "" {
			r.skipBlock()
		}
		r.primaryBlock(h, raw, prio, fields)
		return
	}
	r.skipBlock()
	r.openOn(l, s, h.flags, prio, fields, end, route.Hold)
}

// keyedElsewhere reports whether the fields that have been decoded carry a key
// that leads away from the primary link.
func (r *Relay) keyedElsewhere() bool {
	req := r.request()
	return req.Keys.Seen()
}

// divide follows the first stream that does not go to the primary link.
func (r *Relay) divide(id uint32) {
	if !r.split {
		r.split = true
		r.places = &ownership{top: id >> 1}
	}
}

// skipBlock says that the primary link does not get the present block as it
// came, so none from now on: its decoder would miss it.
func (r *Relay) skipBlock() {
	if p := r.primary; p.enc == nil {
		p.enc = r.sh.newEncoder(p.table)
	}
}

// primaryBlock sends a block of the client to the primary link.
func (r *Relay) primaryBlock(h head, raw, prio []byte, fields []hpack.HeaderField) {
	p := r.primary
	if p.enc == nil {
		p.out.lend(r.sh, raw)
		return
	}
	r.sh.writeBlock(&p.out, h.typ, h.flags&^(wire.FlagHeadersPadded|wire.FlagHeadersEndHeaders), h.stream, prio, r.sh.encode(p.enc, fields), p.frame)
}

// clientTrailers deals with a block on a stream that is open.
func (r *Relay) clientTrailers(s *stream, h head, raw, prio []byte, end bool) {
	r.sends(s.id, len(raw))
	if s.link == r.primary {
		r.primaryBlock(h, raw, prio, r.sh.fields)
		if end {
			s.clientDone = true
			r.finish(s)
		}
		return
	}
	r.skipBlock()
	if s.link == nil {
		return
	}
	if s.clientDone || s.up.end {
		r.resetBoth(s, wire.ErrCodeStreamClosed)
		return
	}
	r.waiting -= blockSize(s.up.trailers)
	s.up.trailers = nil
	if !r.keepBlock(r.sh.fields, waitingTrailers) {
		r.fail(wire.ErrCodeEnhanceYourCalm, HeadersTooLong)
		return
	}
	s.up.end = end
	s.up.trailers = append([]hpack.HeaderField{}, r.sh.fields...)
	r.sendUp(s)
}

// request reads what matters for routing out of the decoded block.
func (r *Relay) request() Request {
	sh := r.sh
	sh.keys.Reset()
	req := Request{Keys: &sh.keys, Stream: r.last}
	traces := 0
	for i := range sh.fields {
		f := &sh.fields[i]
		switch f.Name {
		case ":method":
			req.Method, req.Head = f.Value, f.Value == "HEAD"
			continue
		case ":authority":
			req.Authority = f.Value
			continue
		case ":path":
			req.Path = f.Value
			continue
		case "content-type":
			req.GRPC = isGRPC(f.Value)
			continue
		case "traceparent":
			if traces++; traces == 1 {
				req.Traceparent = f.Value
			} else {
				req.Traceparent = ""
			}
			continue
		}
		sh.value = append(sh.value[:0], f.Name...)
		if place := sh.names.Place(sh.value); place != routing.Nowhere {
			sh.value = append(sh.value[:0], f.Value...)
			sh.keys.Add(sh.names, place, sh.value)
		}
	}
	return req
}

func isGRPC(contentType string) bool {
	const prefix = "application/grpc"
	if len(contentType) < len(prefix) || contentType[:len(prefix)] != prefix {
		return false
	}
	rest := contentType[len(prefix):]
	return rest == "" || rest[0] == '+' || rest[0] == ';'
}

// withMember returns fields with a baggage member added, as http1's
// AppendWithMember does.
func (sh *Shared) withMember(fields []hpack.HeaderField, key string) []hpack.HeaderField {
	member := sh.names.Members[0] + "=" + key
	sh.made = append(sh.made[:0], fields...)
	for i := len(sh.made) - 1; i >= 0; i-- {
		f := &sh.made[i]
		sh.value = append(sh.value[:0], f.Name...)
		if sh.names.Place(sh.value) != routing.InBaggage {
			continue
		}
		if n := len(f.Value); n > 0 && f.Value[n-1] != ',' {
			member = "," + member
		}
		f.Value += member
		return sh.made
	}
	return append(sh.made, hpack.HeaderField{Name: "baggage", Value: member})
}

// clientSettings follows the client's SETTINGS.
func (r *Relay) clientSettings(h head, raw []byte) {
	payload := raw[headLen:]
	if h.flags.Has(wire.FlagSettingsAck) && r.swallow > 0 {
		r.swallow--
		return
	}
	if h.flags.Has(wire.FlagSettingsAck) || h.stream != 0 || len(payload)%6 != 0 {
		if !r.primary.gone {
			r.primary.out.lend(r.sh, raw)
		}
		return
	}
	r.spend(1 + int64(len(payload)/64))
	r.applySettings(payload)
	if r.primary.gone {
		_ = r.sh.to(&r.out).WriteSettingsAck()
	} else {
		r.primary.unacked++
		r.passSettings(&r.primary.out, raw)
	}
	for _, l := range r.others {
		r.writeSettings(l)
	}
}

// applySettings takes note of the client's settings.
func (r *Relay) applySettings(payload []byte) {
	for i := 0; i < len(payload); i += 6 {
		s := wire.Setting{ID: wire.SettingID(binary.BigEndian.Uint16(payload[i:])), Val: binary.BigEndian.Uint32(payload[i+2:])}
		switch s.ID {
		case wire.SettingHeaderTableSize:
			r.clientTable = min(r.clientTable, s.Val)
			r.primary.in.allow(min(s.Val, r.sh.limits.TableBytes))
			if r.enc != nil {
				r.enc.resize(r.clientTable)
			}
		case wire.SettingInitialWindowSize:
			if s.Val <= maxWindow {
				r.clientWindow = int64(s.Val)
				r.widest = max(r.widest, r.clientWindow)
			}
		case wire.SettingMaxFrameSize:
			if s.Val >= leastMaxFrame && s.Val < 1<<24 {
				r.clientMax = int(s.Val)
			}
		}
		r.noteSetting(s)
	}
}

// noteSetting keeps a setting for links to come. Those that are between two
// neighbours are not kept, nor more than anybody needs.
func (r *Relay) noteSetting(s wire.Setting) {
	const enough = 32
	switch s.ID {
	case wire.SettingHeaderTableSize, wire.SettingEnablePush, wire.SettingMaxFrameSize:
		return
	}
	for i := range r.clientSetting {
		if r.clientSetting[i].ID == s.ID {
			r.clientSetting[i].Val = s.Val
			return
		}
	}
	if len(r.clientSetting) < enough {
		r.clientSetting = append(r.clientSetting, s)
	}
}

// passSettings passes a SETTINGS frame on. A table that is larger than allowed
// is made smaller: the relay would have to keep it as well.
func (r *Relay) passSettings(o *outlet, raw []byte) {
	for i := headLen; i < len(raw); i += 6 {
		if wire.SettingID(binary.BigEndian.Uint16(raw[i:])) == wire.SettingHeaderTableSize && binary.BigEndian.Uint32(raw[i+2:]) > r.sh.limits.TableBytes {
			r.env.Count(TableLowered)
			o.write(r.sh, raw[:i+2])
			o.write(r.sh, binary.BigEndian.AppendUint32(nil, r.sh.limits.TableBytes))
			raw = raw[i+6:]
			i = -6
		}
	}
	if len(raw) > 0 {
		o.lend(r.sh, raw)
	}
}

// allow follows a SETTINGS_HEADER_TABLE_SIZE that the peer of this reader's peer
// has announced. Until that is acknowledged the old one holds, so a smaller one
// is not enforced.
func (in *reader) allow(table uint32) {
	if table > in.allowed {
		in.allowed = table
		in.dec.SetAllowedMaxDynamicTableSize(table)
	}
}
