// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	wire "golang.org/x/net/http2"
)

// Preface is how a client begins (RFC 9113, section 3.4).
const Preface = wire.ClientPreface

const (
	headLen = 9 // of a frame's head (RFC 9113, section 4.1)
	// leastMaxFrame is SETTINGS_MAX_FRAME_SIZE where nothing has been said.
	leastMaxFrame = 16 << 10
	maxWindow     = 1<<31 - 1
	initialWindow = 65535
	initialTable  = 4096
)

// head is a frame's head. wire.Framer reads these too, but keeps a buffer for
// each connection and makes an object of every frame.
type head struct {
	length int
	typ    wire.FrameType
	flags  wire.Flags
	stream uint32
}

func parseHead(b []byte) head {
	return head{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    wire.FrameType(b[3]),
		flags:  wire.Flags(b[4]),
		stream: binary.BigEndian.Uint32(b[5:9]) & (1<<31 - 1),
	}
}

func appendHead(b []byte, h head) []byte {
	b = append(b, byte(h.length>>16), byte(h.length>>8), byte(h.length), byte(h.typ), byte(h.flags))
	return binary.BigEndian.AppendUint32(b, h.stream)
}

// Greeting reports whether b is what a server may send before it has seen a
// client's preface, or the beginning of that: SETTINGS.
func Greeting(b []byte) bool {
	const most = 256
	if len(b) < headLen {
		return len(b) < 4 || b[3] == byte(wire.FrameSettings)
	}
	h := parseHead(b)
	return h.typ == wire.FrameSettings && h.flags == 0 && h.stream == 0 && h.length%6 == 0 && h.length <= most
}

// WholeFrames returns how much of b's beginning is whole frames.
func WholeFrames(b []byte) (n int) {
	for len(b)-n >= headLen {
		size := headLen + parseHead(b[n:]).length
		if size > len(b)-n {
			break
		}
		n += size
	}
	return n
}

// unpad takes the padding off the payload of a frame that may have some. It
// reports whether that is well-formed.
func unpad(h head, payload []byte) ([]byte, bool) {
	if !h.flags.Has(wire.FlagDataPadded) {
		return payload, true
	}
	if len(payload) == 0 || int(payload[0]) > len(payload)-1 {
		return nil, false
	}
	return payload[1 : len(payload)-int(payload[0])], true
}

// outlet collects what a peer is to be sent while one read is dealt with. What
// is passed on as it came is lent, not copied, as long as nothing comes between.
type outlet struct {
	buf  []byte
	lent []byte // behind buf

	// A frame that is passed on in pieces lets nothing come between, nor does a
	// server's first frame let anything come before.
	midway bool
	shut   bool
	after  []byte // what comes after it
}

// closed reports whether what is said now has to wait.
func (o *outlet) closed() bool { return o.midway || o.shut }

// lend sends b, which stays where it is until the flush.
func (o *outlet) lend(sh *Shared, b []byte) {
	if o.closed() {
		o.after = append(o.after, b...)
		return
	}
	o.lendPart(sh, b)
}

func (o *outlet) lendPart(sh *Shared, b []byte) {
	if n := len(o.lent); n > 0 && cap(o.lent) > n && len(b) > 0 && &o.lent[:n+1][n] == &b[0] {
		o.lent = o.lent[:n+len(b)]
		return
	}
	o.settle(sh, len(b))
	o.lent = b
}

// settle copies what is lent, so that something can come behind it.
func (o *outlet) settle(sh *Shared, more int) {
	if o.buf == nil && len(o.lent)+more > 0 {
		o.buf = sh.scratch()
	}
	o.buf = append(o.buf, o.lent...)
	o.lent = nil
}

// Write sends a copy of b. It makes an io.Writer for wire.Framer.
func (o *outletWriter) Write(b []byte) (int, error) {
	o.to.write(o.sh, b)
	return len(b), nil
}

type outletWriter struct {
	to *outlet
	sh *Shared
}

func (o *outlet) write(sh *Shared, b []byte) {
	if o.closed() {
		o.after = append(o.after, b...)
		return
	}
	o.settle(sh, len(b))
	o.buf = append(o.buf, b...)
}

// endPart follows the last piece of a frame that was passed on in pieces.
func (o *outlet) endPart(sh *Shared) {
	o.midway = false
	if len(o.after) > 0 {
		after := o.after
		o.after = nil
		o.write(sh, after)
	}
}

// open ends the wait for a server's first frame, which is written next. What has
// waited is to be given to follow then.
func (o *outlet) open() (early []byte) {
	if !o.shut {
		return nil
	}
	early, o.after, o.shut = o.after, nil, false
	return early
}

// follow writes what has waited for a first frame, or for what is there of it.
func (o *outlet) follow(sh *Shared, early []byte) {
	switch {
	case len(early) == 0:
	case o.midway:
		o.after = append(early, o.after...)
	default:
		o.write(sh, early)
	}
}

// size is how many bytes there are to send.
func (o *outlet) size() int { return len(o.buf) + len(o.lent) }

// take returns what there is to send. It is valid until the outlet is written to
// again.
func (o *outlet) take() []byte {
	if len(o.buf) == 0 {
		b := o.lent
		o.lent = nil
		return b
	}
	o.buf = append(o.buf, o.lent...)
	o.lent = nil
	return o.buf
}

// reuse gives the memory back.
func (o *outlet) reuse(sh *Shared) {
	if o.buf != nil {
		sh.reuse(o.buf)
		o.buf = nil
	}
}
