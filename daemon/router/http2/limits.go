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
}

// Defaults of Limits.
const (
	DefaultHeaderBytes = 1 << 20
	DefaultTableBytes  = 64 << 10
	DefaultStreams     = 10_000
	DefaultBufferBytes = 1 << 20
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
}

// Reason is why a relay has given up or a link was dropped.
type Reason uint8

// Reasons.
const (
	None            Reason = iota
	ClientError            // the client has broken the protocol
	serverError            // a server has
	headersTooLarge        // a header block is larger than allowed
	tooManyStreams         // too many streams are open
	untraceable            // a new stream after an error that made its keys unreadable
	Finished               // no stream uses the link any more
)
