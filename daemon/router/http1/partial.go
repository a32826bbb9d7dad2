// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Partial is what is remembered of a head of which a part has come. The zero
// value is a head of which nothing has come.
type Partial struct {
	// End is where the head ends by a lenient reading, in which a line may end in
	// a bare line feed; 0: not known yet.
	End int
	// Unlikely says that what has come looks less like HTTP/1 than like another
	// protocol, whose client may be waiting for an answer to just these bytes.
	Unlikely bool
	// Foreign says of a stream that is NotHTTP that no HTTP/1 server whatsoever
	// would find a request with header fields in it.
	Foreign bool

	state lineState
	seen  int // bytes looked at
	line  int // where the line begins that seen is in
	mark  int // where the word begins that seen is in, in the first line
}

// lineState is where in a request's first line a Partial is.
type lineState uint8

const (
	atStart   lineState = iota // nothing but empty lines
	inEmpty                    // after the carriage return of an empty line
	inMethod                   //
	inTarget                   //
	inVersion                  //
	inOdd                      // not strict any more; its end tells whether it is HTTP
	atLineEnd                  // after the carriage return
	inFields                   // the first line is over
)

// Waiting reports whether a part of a head has come.
func (h *Partial) Waiting() bool { return h.seen > 0 }

// feed looks at what is new in buf. It returns Complete when the head has ended
// by a lenient reading, and Ambiguous when even that leaves its end in doubt: at
// a bare carriage return, which is a line's end to some and a blank to others.
func (h *Partial) feed(buf []byte) Outcome {
	for h.seen < len(buf) && h.state != inFields {
		if out := h.startByte(buf, buf[h.seen]); out != More {
			return out
		}
		h.seen++
	}
	for h.seen < len(buf) {
		text, ended := buf[h.seen:], false
		if nl := bytes.IndexByte(text, '\n'); nl >= 0 {
			text, ended = text[:nl], true
		}
		if cr := bytes.IndexByte(text, '\r'); cr >= 0 && cr < len(text)-1 {
			return Ambiguous
		}
		if !ended {
			h.seen = len(buf)
			if n := len(text); n > 0 && text[n-1] == '\r' {
				h.seen-- // whether it is bare, the next byte will tell
			}
			return More
		}
		h.seen += len(text) + 1
		length := h.seen - 1 - h.line
		if length == 0 || length == 1 && buf[h.line] == '\r' {
			h.End = h.seen
			return Complete
		}
		h.line = h.seen
	}
	return More
}

// startByte looks at one byte of the first line. Here every byte counts: the
// client of another protocol may send no more than a few before it waits for an
// answer.
func (h *Partial) startByte(buf []byte, c byte) Outcome {
	switch h.state {
	case atStart:
		switch {
		case classes[c]&isTokenByte != 0:
			h.state, h.Unlikely = inMethod, !methodPrefix(buf[h.line:h.seen+1])
		case c == '\r':
			h.state, h.Unlikely = inEmpty, true
		case c == '\n':
			h.line, h.Unlikely = h.seen+1, true
		case c == ' ' || c == '\t':
			h.state, h.Unlikely = inOdd, true
		default:
			h.Foreign = h.seen == 0
			return NotHTTP
		}
	case inEmpty:
		if c != '\n' {
			return Ambiguous
		}
		h.state, h.line = atStart, h.seen+1
	case inMethod:
		switch {
		case classes[c]&isTokenByte != 0:
			h.Unlikely = h.Unlikely || !methodPrefix(buf[h.line:h.seen+1])
		case c == ' ':
			h.state, h.mark = inTarget, h.seen+1
		case c == '\t':
			h.state, h.Unlikely = inOdd, true
		default:
			h.Foreign = h.line == 0
			return NotHTTP
		}
	case inTarget:
		switch {
		case classes[c]&isTargetByte != 0:
		case c == ' ' && h.seen > h.mark:
			h.state, h.mark = inVersion, h.seen+1
		case c == '\r' || c == '\n':
			return h.oddEnd(buf, c)
		default:
			h.state, h.Unlikely = inOdd, true
		}
	case inVersion:
		const version = "HTTP/1."
		i := h.seen - h.mark
		switch {
		case c == '\r' || c == '\n':
			return h.oddEnd(buf, c)
		case i < len(version) && c == version[i]:
		case i == len(version) && (c == '0' || c == '1'):
		default:
			h.state, h.Unlikely = inOdd, true
		}
	case inOdd:
		if c == '\r' || c == '\n' {
			return h.oddEnd(buf, c)
		}
	case atLineEnd:
		if c != '\n' {
			return Ambiguous
		}
		h.state, h.line = inFields, h.seen+1
	}
	return More
}

// preface is how an HTTP/2 client begins (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0"

// oddEnd decides about the first line at its end.
func (h *Partial) oddEnd(buf []byte, c byte) Outcome {
	line := buf[h.line:h.seen]
	isPreface := string(line) == preface && h.line == 0
	if isPreface || !containsHTTP(line) {
		// HTTP/0.9 and the PROXY protocol end here as well. Servers may find fields
		// in what follows them.
		word, _, _ := bytes.Cut(line, []byte(" "))
		h.Foreign = h.line == 0 && (isPreface || !knownMethod(word) && string(word) != "PROXY")
		return NotHTTP
	}
	h.Unlikely = false
	if c == '\r' {
		h.state = atLineEnd
	} else {
		h.state, h.line = inFields, h.seen+1
	}
	return More
}

func containsHTTP(line []byte) bool {
	const word = "http/"
	for i := 0; i+len(word) <= len(line); i++ {
		if equalFold(line[i:i+len(word)], word) {
			return true
		}
	}
	return false
}

// methods are those of the IANA registry and a few others that are common.
var methods = [...]string{
	"GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE",
	"ACL", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "M-SEARCH", "MERGE",
	"MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "NOTIFY", "ORDERPATCH", "PRI",
	"PROPFIND", "PROPPATCH", "PURGE", "QUERY", "REBIND", "REPORT", "SEARCH", "SUBSCRIBE", "UNBIND", "UNCHECKOUT",
	"UNLINK", "UNLOCK", "UNSUBSCRIBE", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
}

func knownMethod(b []byte) bool {
	for _, m := range methods {
		if m == string(b) {
			return true
		}
	}
	return false
}

// methodPrefix reports whether b is a known method or the beginning of one.
func methodPrefix(b []byte) bool {
	for _, m := range methods {
		if len(b) <= len(m) && m[:len(b)] == string(b) {
			return true
		}
	}
	return false
}
