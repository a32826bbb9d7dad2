// SPDX-License-Identifier: Apache-2.0

package http2

import (
	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Shared is what the connections of one loop use in turns, so that none keeps
// it.
type Shared struct {
	limits Limits
	names  *routing.KeyNames

	keys     routing.KeySet
	fields   []hpack.HeaderField // of the block that was decoded last
	listSize int                 // of these (RFC 9113, section 6.5.2)
	tooLarge bool
	emit     func(hpack.HeaderField)

	block  blockWriter
	blocks int // bytes of blocks that were written since the last read
	value  []byte
	made   []hpack.HeaderField
	frames *wire.Framer
	writer outletWriter
	free   [][]byte
	spare  []*stream
}

// blockWriter collects a header block that is being encoded.
type blockWriter struct{ b []byte }

func (w *blockWriter) Write(b []byte) (int, error) {
	w.b = append(w.b, b...)
	return len(b), nil
}

// NewShared makes a Shared for connections with these limits, whose streams
// carry routing keys where names says.
func NewShared(limits Limits, names *routing.KeyNames) *Shared {
	sh := &Shared{limits: limits, names: names}
	sh.writer.sh = sh
	sh.frames = wire.NewFramer(&sh.writer, nil)
	sh.emit = func(f hpack.HeaderField) {
		if sh.listSize += int(f.Size()); sh.listSize > limits.HeaderBytes {
			sh.tooLarge = true
			return
		}
		sh.fields = append(sh.fields, f)
	}
	return sh
}

// to returns a Framer that writes to an outlet.
func (sh *Shared) to(o *outlet) *wire.Framer {
	sh.writer.to = o
	return sh.frames
}

func (sh *Shared) scratch() []byte {
	if n := len(sh.free); n > 0 {
		b := sh.free[n-1]
		sh.free = sh.free[:n-1]
		return b
	}
	return make([]byte, 0, 16<<10)
}

// reuse takes the memory of a scratch back, if that is worth keeping.
func (sh *Shared) reuse(b []byte) {
	const most, largest = 64, 64 << 10
	if len(sh.free) < most && cap(b) <= largest {
		sh.free = append(sh.free, b[:0])
	}
}

// decode decodes a header block into sh.fields, or only keeps the decoder in
// step.
func (sh *Shared) decode(in *reader, block []byte, fields bool) error {
	d := in.dec
	sh.fields, sh.listSize, sh.tooLarge = sh.fields[:0], 0, false
	d.SetEmitEnabled(fields)
	// A block may begin with two changes of the table's size (RFC 7541, section
	// 4.2), which hpack takes for an error unless the first empties the table.
	for len(block) > 0 && block[0]&0xe0 == 0x20 {
		n := 1
		if block[0]&0x1f == 0x1f {
			for n < len(block) && block[n]&0x80 != 0 {
				n++
			}
			n++
		}
		if n > len(block) {
			break
		}
		if _, err := d.Write(block[:n]); err != nil {
			return err
		}
		if err := d.Close(); err != nil {
			return err
		}
		in.table = sizeUpdate(block[:n])
		block = block[n:]
	}
	if _, err := d.Write(block); err != nil {
		return err
	}
	return d.Close()
}

// encoder encodes header blocks for one peer.
type encoder struct{ hpack *hpack.Encoder }

// newEncoder makes an encoder for a peer that allows a table of this size. The
// peer's decoder may hold entries of another encoder that had its place before:
// they are older than all of this one's, so they are in nobody's way. What its
// table's size was then nobody knows, so that is said first.
func (sh *Shared) newEncoder(table uint32) *encoder {
	e := &encoder{hpack.NewEncoder(&sh.block)}
	e.resize(table)
	return e
}

// resize follows a peer's SETTINGS_HEADER_TABLE_SIZE. More than what is allowed
// from the beginning is never used: it would have to wait for an acknowledgement.
func (e *encoder) resize(table uint32) { e.hpack.SetMaxDynamicTableSize(min(table, initialTable)) }

// encode returns the block of these fields. It is valid until the next call.
func (sh *Shared) encode(e *encoder, fields []hpack.HeaderField) []byte {
	sh.block.b = sh.block.b[:0]
	for _, f := range fields {
		// Writing to a slice does not fail.
		_ = e.hpack.WriteField(f)
	}
	return sh.block.b
}

// writeBlock sends a header block in as many frames as the peer's frame size
// asks for. first is what stands before the block in the first frame.
func (sh *Shared) writeBlock(o *outlet, typ wire.FrameType, flags wire.Flags, stream uint32, first, block []byte, maxFrame int) {
	var b [headLen]byte
	sh.blocks += len(block)
	for {
		n := min(len(block), maxFrame-len(first))
		if n == len(block) {
			flags |= wire.FlagHeadersEndHeaders
		}
		o.write(sh, appendHead(b[:0], head{length: len(first) + n, typ: typ, flags: flags, stream: stream}))
		if len(first) > 0 {
			o.write(sh, first)
		}
		o.write(sh, block[:n])
		if block = block[n:]; len(block) == 0 {
			return
		}
		typ, flags, first = wire.FrameContinuation, 0, nil
	}
}

// writeData sends a DATA frame.
func (sh *Shared) writeData(o *outlet, stream uint32, end bool, data []byte) {
	var b [headLen]byte
	h := head{length: len(data), typ: wire.FrameData, stream: stream}
	if end {
		h.flags = wire.FlagDataEndStream
	}
	o.write(sh, appendHead(b[:0], h))
	o.write(sh, data)
}
