// SPDX-License-Identifier: Apache-2.0

package http1

// Chunked follows a chunked body to its end, trailers included. The zero value
// is a body's beginning.
type Chunked struct {
	state  chunkState
	digits uint8
	count  int   // bytes of extensions or of the trailer section
	left   int64 // bytes of the chunk that are still to come
}

type chunkState uint8

const (
	inSize chunkState = iota
	inSizePadding
	inExtension
	afterSizeCR
	inData
	afterData
	afterDataCR
	atTrailer
	inTrailerName
	inTrailerValue
	afterTrailerCR
	afterLastCR
)

// How long what the standard leaves open may get before it is doubtful.
const (
	maxSizeDigits = 15
	maxExtensions = 16 << 10
	maxTrailers   = 64 << 10
)

// Feed looks at the next bytes of the body. It returns how many of them belong
// to it: all for More; for Complete what follows is the next message; for
// Ambiguous the byte at n is the one that is wrong.
//
// padded lets blanks stand after a chunk's size, as some servers send them and
// all clients skip them. In a request they are doubtful.
func (c *Chunked) Feed(b []byte, padded bool) (n int, out Outcome) {
	for i := 0; i < len(b); i++ {
		ch := b[i]
		switch c.state {
		case inSize:
			switch {
			case classes[ch]&isHexByte != 0:
				if c.digits++; c.digits > maxSizeDigits {
					return i, Ambiguous
				}
				c.left = c.left<<4 | int64(unhex(ch))
			case c.digits == 0:
				return i, Ambiguous
			case ch == ';':
				c.state, c.count = inExtension, 0
			case ch == '\r':
				c.state = afterSizeCR
			case padded && (ch == ' ' || ch == '\t'):
				c.state = inSizePadding
			default:
				return i, Ambiguous
			}
		case inSizePadding:
			switch ch {
			case ' ', '\t':
			case ';':
				c.state, c.count = inExtension, 0
			case '\r':
				c.state = afterSizeCR
			default:
				return i, Ambiguous
			}
		case inExtension:
			if ch == '\r' {
				c.state = afterSizeCR
			} else if c.count++; classes[ch]&isFieldByte == 0 || c.count > maxExtensions {
				return i, Ambiguous
			}
		case afterSizeCR:
			if ch != '\n' {
				return i, Ambiguous
			}
			c.state, c.digits = inData, 0
			if c.left == 0 {
				c.state, c.count = atTrailer, 0
			}
		case inData:
			n := min(c.left, int64(len(b)-i))
			c.left -= n
			i += int(n) - 1
			if c.left == 0 {
				c.state = afterData
			}
		case afterData:
			if ch != '\r' {
				return i, Ambiguous
			}
			c.state = afterDataCR
		case afterDataCR:
			if ch != '\n' {
				return i, Ambiguous
			}
			c.state = inSize
		case afterLastCR:
			if ch != '\n' {
				return i, Ambiguous
			}
			return i + 1, Complete
		default:
			if !c.trailer(ch) {
				return i, Ambiguous
			}
		}
	}
	return len(b), More
}

// trailer looks at one byte of the trailer section.
func (c *Chunked) trailer(ch byte) bool {
	if c.count++; c.count > maxTrailers {
		return false
	}
	switch c.state {
	case atTrailer:
		switch {
		case ch == '\r':
			c.state = afterLastCR
		case classes[ch]&isTokenByte != 0:
			c.state = inTrailerName
		default:
			return false
		}
	case inTrailerName:
		if ch == ':' {
			c.state = inTrailerValue
		} else {
			return classes[ch]&isTokenByte != 0
		}
	case inTrailerValue:
		if ch == '\r' {
			c.state = afterTrailerCR
		} else {
			return classes[ch]&isFieldByte != 0
		}
	case afterTrailerCR:
		c.state = atTrailer
		return ch == '\n'
	}
	return true
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
