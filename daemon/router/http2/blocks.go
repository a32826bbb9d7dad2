// SPDX-License-Identifier: Apache-2.0

package http2

import wire "golang.org/x/net/http2"

// headerFrame deals with a frame of a header block, or with what comes in its
// place.
func (r *Relay) headerFrame(from *Link, in *reader, h head, raw []byte) {
	payload := raw[headLen:]
	if from == nil {
		in.long = r.tooLong(h) || in.long && in.raw != nil
	}
	if in.raw == nil {
		block, skip, ok := blockOf(h, payload)
		if !ok {
			r.astray(from, in, raw)
			return
		}
		if h.flags.Has(wire.FlagHeadersEndHeaders) {
			r.headerBlock(from, h, raw, payload[:skip], block)
			return
		}
		in.first, in.skip = h, skip
		in.raw = append(r.sh.scratch(), raw...)
		in.block = append(r.sh.scratch(), block...)
		return
	}
	if h.typ != wire.FrameContinuation || h.stream != in.first.stream {
		r.astray(from, in, nil)
		if !r.over && (from == nil || !from.gone) {
			r.frame(from, in, h, raw)
		}
		return
	}
	if from == nil && len(payload) == 0 {
		r.spend(1)
	}
	in.raw = append(in.raw, raw...)
	in.block = append(in.block, payload...)
	if len(in.raw) > r.sh.limits.HeaderBytes {
		r.tooMuch(from, HeadersTooLong)
		return
	}
	if h.flags.Has(wire.FlagHeadersEndHeaders) {
		all, block := in.raw, in.block
		in.raw, in.block = nil, nil
		first := in.first
		first.flags |= wire.FlagHeadersEndHeaders
		r.headerBlock(from, first, all, all[headLen:headLen+in.skip], block)
		// What was lent of it must go out before the memory is used again.
		r.settleAll()
		r.sh.reuse(all)
		r.sh.reuse(block)
	}
}

// tooLong reports whether a frame is longer than the client may send. Where it is
// passed on as it came the primary link's server says so itself; where it is not,
// the relay has to.
func (r *Relay) tooLong(h head) bool { return h.length > r.primary.frame }

// blockOf finds the part of a header block in the first frame's payload. skip is
// how much stands before it.
func blockOf(h head, payload []byte) (block []byte, skip int, ok bool) {
	if h.typ == wire.FrameContinuation || h.stream == 0 {
		return nil, 0, false
	}
	block, ok = unpad(h, payload)
	if !ok {
		return nil, 0, false
	}
	fixed := 0
	switch {
	case h.typ == wire.FramePushPromise:
		fixed = 4
	case h.flags.Has(wire.FlagHeadersPriority):
		fixed = 5
	}
	if len(block) < fixed {
		return nil, 0, false
	}
	if h.flags.Has(wire.FlagHeadersPadded) {
		skip = 1
	}
	return block[fixed:], skip + fixed, true
}

// fixedPart is what stands between the padding's length and the block.
func fixedPart(h head, before []byte) []byte {
	if h.flags.Has(wire.FlagHeadersPadded) {
		return before[1:]
	}
	return before
}

func (r *Relay) headerBlock(from *Link, h head, raw, before, block []byte) {
	if from == nil {
		r.clientBlock(h, raw, fixedPart(h, before), block)
	} else {
		r.linkBlock(from, h, raw, fixedPart(h, before), block)
	}
}

// astray deals with bytes after which a peer's header blocks cannot be followed
// any more. Whoever they are for will say so.
func (r *Relay) astray(from *Link, in *reader, raw []byte) {
	if in.raw != nil {
		raw = append(in.raw, raw...)
		in.raw, in.block = nil, nil
	}
	switch {
	case from == nil && r.primary.gone:
		r.fail(wire.ErrCodeProtocol, ClientError)
	case from == nil:
		r.poisoned = true
		r.primary.out.lend(r.sh, raw)
		r.settleAll()
	case from == r.primary:
		if r.enc != nil {
			r.fail(wire.ErrCodeProtocol, ServerError)
			return
		}
		from.poisoned = true
		r.out.lend(r.sh, raw)
		r.settleAll()
	default:
		r.breakLink(from, wire.ErrCodeProtocol)
	}
}
