// SPDX-License-Identifier: Apache-2.0

package router

// pool keeps a loop's buffers. Their sizes are powers of two.
type pool struct {
	free [poolClasses][][]byte
}

const (
	minBuffer   = 2 << 10
	poolClasses = 6 // 2 KiB … 64 KiB; what is larger is left to the garbage collector
	// keepBytes is how much of each class is kept for the next who needs one.
	keepBytes = 512 << 10
)

func classOf(n int) (class, size int) {
	size = minBuffer
	for size < n {
		size <<= 1
		class++
	}
	return class, size
}

// get returns an empty buffer of at least this capacity.
func (p *pool) get(n int) []byte {
	class, size := classOf(n)
	if class < poolClasses {
		if l := len(p.free[class]); l > 0 {
			b := p.free[class][l-1]
			p.free[class] = p.free[class][:l-1]
			return b
		}
	}
	return make([]byte, 0, size)
}

func (p *pool) put(b []byte) {
	class, size := classOf(cap(b))
	if class < poolClasses && size == cap(b) && len(p.free[class]) < keepBytes/size {
		p.free[class] = append(p.free[class], b[:0])
	}
}

// buffer holds bytes that wait: for the rest of a head, or for a peer that takes
// them. It borrows memory from a pool only while it has any.
type buffer struct {
	b   []byte
	off int
}

func (b *buffer) len() int      { return len(b.b) - b.off }
func (b *buffer) bytes() []byte { return b.b[b.off:] }

// add appends a copy of data.
func (b *buffer) add(p *pool, data []byte) {
	if len(data) == 0 {
		return
	}
	b.b = append(b.room(p, len(data)), data...)
}

// room makes space for n more bytes and returns the whole buffer to append to.
func (b *buffer) room(p *pool, n int) []byte {
	if cap(b.b)-len(b.b) >= n {
		return b.b
	}
	if cap(b.b) == 0 {
		b.b = p.get(n)
		return b.b
	}
	if b.off > 0 && b.len()+n <= cap(b.b) {
		b.b = b.b[:copy(b.b, b.bytes())]
		b.off = 0
		return b.b
	}
	grown := append(p.get(b.len()+n), b.bytes()...)
	p.put(b.b)
	b.b, b.off = grown, 0
	return b.b
}

// skip takes n bytes away from the front.
func (b *buffer) skip(p *pool, n int) {
	b.off += n
	if b.off == len(b.b) {
		b.drop(p)
	}
}

// drop takes all bytes away.
func (b *buffer) drop(p *pool) {
	if b.b != nil {
		p.put(b.b)
	}
	b.b, b.off = nil, 0
}
