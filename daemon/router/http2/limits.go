// SPDX-License-Identifier: Apache-2.0

package http2

// Limits bound what one connection may cost. The zero value of a field stands
// for its default.
type Limits struct {
	// HeaderBytes bounds a header block: its frames as they come, and the fields
	// that they stand for.
	HeaderBytes int
	// TableBytes bounds the table of a peer's header compression that is kept.
	TableBytes uint32
	// Streams bounds how many streams a client may have open.
	Streams int
	// BufferBytes bounds what is kept for links that do not take it, about.
	BufferBytes int
	// ControlRate bounds how many frames a second a client may send that are no
	// request and no data.
	ControlRate int
}

// Defaults of Limits.
const (
	DefaultHeaderBytes = 1 << 20
	DefaultTableBytes  = 64 << 10
	DefaultStreams     = 10_000
	DefaultBufferBytes = 1 << 20
	DefaultControlRate = 10_000
)

// Complete puts the defaults in the place of zeros.
func (l *Limits) Complete() {
	if l.HeaderBytes == 0 {
		l.HeaderBytes = DefaultHeaderBytes
	}
	if l.TableBytes == 0 {
		l.TableBytes = DefaultTableBytes
	}
	if l.Streams == 0 {
		l.Streams = DefaultStreams
	}
	if l.BufferBytes == 0 {
		l.BufferBytes = DefaultBufferBytes
	}
	if l.ControlRate == 0 {
		l.ControlRate = DefaultControlRate
	}
}

// Reason is why something went another way than the plain one.
type Reason uint8

// Reasons. For those that end in "flood" or "too", the client has passed a bound
// and was sent away.
const (
	ClientError    Reason = iota // the client has broken the protocol, and was sent away
	ServerError                  // a server has, and was
	Untraceable                  // a new stream after an error that made its keys unreadable
	HeadersTooLong               // a header block is larger than allowed
	TooManyStreams               // too many streams are open
	TooManyFrames                // too many frames that are neither request nor data
	TableLowered                 // a peer was told a smaller header table than another has announced
	TooManyLinks                 // a stream was refused because it would need one link too many
	Reasons
)
