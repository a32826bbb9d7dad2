// SPDX-License-Identifier: Apache-2.0

// Package http1 reads just enough of HTTP/1 to route it: where a message
// begins and ends, which routing keys its head carries, and whether any of that
// is in doubt.
//
// It owns the rules of framing, and is strict about them: a request is Complete
// only if every server must agree about where it ends. All else is Ambiguous or
// NotHTTP, and the caller decides what becomes of it; a Scanner then finds
// routing keys by a lenient reading.
//
// Everything here is driven by bytes that the caller has read. Parsers can stop
// at any byte and go on with the next without looking at old ones again. They do
// no I/O, keep no reference to a buffer between calls and do not allocate. None
// may be used concurrently.
package http1

// Outcome is what a parser makes of the bytes that it was given.
type Outcome uint8

const (
	// More means that the bytes are the beginning of a message, so far.
	More Outcome = iota
	// Complete means that a head or a body has been read to its end.
	Complete
	// Ambiguous means HTTP/1 whose framing peers may disagree about.
	Ambiguous
	// NotHTTP means that this is no HTTP/1 by any reading.
	NotHTTP
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case More:
		return "more"
	case Complete:
		return "complete"
	case Ambiguous:
		return "ambiguous"
	case NotHTTP:
		return "not HTTP"
	}
	return "invalid"
}

// Framing says how a message's body is delimited.
type Framing uint8

const (
	// NoBody means that the message ends with its head.
	NoBody Framing = iota
	// ByLength means Content-Length.
	ByLength
	// ByChunks means Transfer-Encoding with chunked as the last coding.
	ByChunks
	// ByClose means a response that ends with the connection.
	ByClose
	// Interim means a response of the class 1xx: another follows.
	Interim
	// Tunnel means that what follows on the connection is no HTTP/1 any more:
	// after 101, and after a 2xx to CONNECT.
	Tunnel
)
