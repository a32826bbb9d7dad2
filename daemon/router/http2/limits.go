// SPDX-License-Identifier: Apache-2.0

package http2

import "fmt"

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
	// Links is how many links besides the primary one a connection may have open.
	// Beyond it an idle one goes; when there is none, a stream that would need
	// another is refused, and its client may try again.
	Links int
}

// Defaults of Limits.
const (
	DefaultHeaderBytes = 1 << 20
	DefaultTableBytes  = 64 << 10
	DefaultStreams     = 10_000
	DefaultBufferBytes = 1 << 20
	DefaultControlRate = 10_000
	DefaultLinks       = 32
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
	if l.Links == 0 {
		l.Links = DefaultLinks
	}
}

// Validate reports limits under which nothing would work. Zeros are fine.
func (l Limits) Validate() error {
	l.Complete()
	for _, x := range [...]struct {
		what        string
		value, want int
	}{
		{"header blocks", l.HeaderBytes, 4 << 10}, {"header tables", int(l.TableBytes), initialTable}, {"streams", l.Streams, 1},
		{"buffers", l.BufferBytes, 16 << 10}, {"control frames a second", l.ControlRate, 100}, {"links", l.Links, 1},
	} {
		if x.value < x.want {
			return fmt.Errorf("HTTP/2's limit of %s is %d: want at least %d", x.what, x.value, x.want)
		}
	}
	return nil
}

// streamWindow is how much of a stream a client may send ahead of a link other than
// the primary, at most: some streams may have as much waiting before the client's
// connection is slowed down.
func (l *Limits) streamWindow() int64 { return max(int64(l.BufferBytes)/4, initialWindow) }

// Reason is why something went another way than the plain one.
type Reason uint8

// Reasons. For those that end in "flood" or "too", the client has passed a bound
// and was sent away.
const (
	ClientError    Reason = iota // the client has broken the protocol, and was sent away
	ServerError                  // a server has, and was
	Untraceable                  // a new stream after an error that made its keys unreadable
	HeadersTooLong               // a header block is larger than allowed
	TooManyStreams               // too many streams are open; or wait for a fork, where the newest alone is refused
	TooManyFrames                // too many frames that are neither request nor data
	TableLowered                 // a peer was told a smaller header table than another has announced
	TooManyLinks                 // a stream was refused because it would need one link too many
	Reasons
)
