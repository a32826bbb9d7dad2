// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Method is what routing needs to know of a request's method.
type Method uint8

// Methods.
const (
	OtherMethod Method = iota
	// SafeMethod is one that a proxy may send again by itself: idempotent (RFC
	// 9110, section 9.2.2), and known.
	SafeMethod
	HeadMethod // as safe
	ConnectMethod
)

// Request reads the heads of requests. The exported fields describe the head
// for which Parse has returned Complete, up to the next call; Reason is set when
// it has returned Ambiguous.
type Request struct {
	// Names says where routing keys are looked for, and Keys is where they are
	// collected. Both are set by the caller.
	Names *routing.KeyNames
	Keys  *routing.KeySet

	// Len is the length of the head with the empty line at its end. Line feeds
	// that stood before the request line count as well.
	Len     int
	Method  Method
	Framing Framing // NoBody, ByLength or ByChunks
	Length  int64   // of the body, when ByLength
	// KeepAlive says that the client expects the connection to stay.
	KeepAlive bool
	// Upgrade says that the client offers to speak something else (Upgrade).
	Upgrade bool
	// HTTP2 says that the client offers to go on with HTTP/2 (RFC 7540, section 3.2),
	// and HTTP2Settings is the value of HTTP2-Settings then, empty unless there is
	// exactly one. It is a part of the bytes that were parsed.
	HTTP2         bool
	HTTP2Settings []byte
	// Expect says that the client waits for a 100 before it sends the body.
	Expect bool
	// Reason says what is wrong, in words that follow "the request is refused:".
	Reason string

	// Verb, Target and Authority are the request line's method and target and the
	// Host field, and Traceparent is the value of the field of that name, empty when
	// there are several. They are valid as long as the bytes that were parsed are.
	Verb, Target, Authority, Traceparent []byte

	baggageEnd   int // where the last baggage field's value ends; 0: there is none
	baggageEmpty bool
}

// Parse reads the head that begins with buf's first byte. buf must begin with
// all that was given before for the same head, and h must be what it was then:
// the zero value for a new head. A head that comes in one piece is looked at
// once, a head in pieces once for each byte and once more in the end.
//
// Ambiguous comes when the head has ended by a lenient reading, or at once where
// even that leaves its end in doubt. The caller resets h between heads.
func (r *Request) Parse(h *Partial, buf []byte) Outcome {
	if h.seen == 0 {
		if ok, _ := r.strict(buf); ok {
			return Complete
		}
	}
	out := h.feed(buf)
	if out == Complete {
		ok, reason := r.strict(buf[:h.End])
		if ok {
			return Complete
		}
		r.Reason = reason
		return Ambiguous
	}
	r.Reason = bareCR
	return out
}

// strict reads one head and reports whether it is whole and beyond doubt.
func (r *Request) strict(buf []byte) (ok bool, reason string) {
	r.Keys.Reset()
	r.Method, r.Framing, r.Length = OtherMethod, NoBody, 0
	r.KeepAlive, r.Upgrade, r.Expect, r.HTTP2, r.HTTP2Settings = false, false, false, false, nil
	r.baggageEnd, r.baggageEmpty = 0, false
	r.Authority, r.Traceparent = nil, nil
	traces := 0

	pos := 0
	for len(buf) >= pos+2 && buf[pos] == '\r' && buf[pos+1] == '\n' {
		pos += 2
	}
	nl := bytes.IndexByte(buf[pos:], '\n')
	if nl < 1 {
		return false, badStartLine
	}
	line := buf[pos : pos+nl]
	if line[nl-1] != '\r' {
		return false, bareLF
	}
	line = line[:nl-1]
	http11, reason := r.requestLine(line)
	if reason != "" {
		return false, reason
	}
	pos += nl + 1

	var f framing
	closing, keeping := false, false
	settings := 0
	for {
		nl := bytes.IndexByte(buf[pos:], '\n')
		if nl < 1 {
			return false, bareLF
		}
		line := buf[pos : pos+nl]
		if line[nl-1] != '\r' {
			return false, bareLF
		}
		line = line[:nl-1]
		if len(line) == 0 {
			pos += nl + 1
			break
		}
		name, value, reason := field(line)
		if reason != "" {
			return false, reason
		}
		switch len(name) {
		case len("host"):
			if equalFold(name, "host") {
				r.Authority = value
			}
		case len("traceparent"):
			if equalFold(name, "traceparent") {
				if traces++; traces == 1 {
					r.Traceparent = value
				} else {
					r.Traceparent = nil
				}
			}
		case len("expect"):
			if equalFold(name, "expect") {
				r.Expect = r.Expect || len(value) > 0
			}
		case len("upgrade"):
			if equalFold(name, "upgrade") {
				r.Upgrade = r.Upgrade || len(value) > 0
				r.HTTP2 = r.HTTP2 || hasToken(value, "h2c")
			}
		case len("connection"):
			if equalFold(name, "connection") {
				closing = closing || hasToken(value, "close")
				keeping = keeping || hasToken(value, "keep-alive")
			}
		case len("content-length"): // and HTTP2-Settings
			if equalFold(name, "http2-settings") {
				r.HTTP2Settings = value
				settings++
			}
			if equalFold(name, "content-length") {
				if reason := f.contentLength(value); reason != "" {
					return false, reason
				}
			}
		case len("transfer-encoding"):
			if equalFold(name, "transfer-encoding") {
				if reason := f.transferEncoding(value); reason != "" {
					return false, reason
				}
			}
		}
		if place := r.Names.Place(name); place != routing.Nowhere {
			r.Keys.Add(r.Names, place, value)
			if place == routing.InBaggage {
				r.baggageEnd = pos + bytes.LastIndexByte(line, ':') + 1
				r.baggageEmpty = len(value) == 0 || value[len(value)-1] == ','
				if len(value) > 0 {
					r.baggageEnd = pos + len(bytes.TrimRight(line, " \t"))
				}
			}
		}
		pos += nl + 1
	}
	switch {
	case f.coded && f.hasLength:
		return false, lengthAndCoding
	case f.coded && !http11:
		return false, codingInHTTP10
	case f.coded && !f.chunked:
		return false, badCoding
	case r.Method == ConnectMethod && (f.coded || f.length > 0):
		return false, connectWithBody
	case f.coded:
		r.Framing = ByChunks
	case f.hasLength && f.length > 0:
		r.Framing, r.Length = ByLength, f.length
	}
	if !r.HTTP2 || settings != 1 {
		r.HTTP2Settings = nil
	}
	r.KeepAlive = !closing && (http11 || keeping)
	r.Len = pos
	return true, ""
}

// requestLine reads "method SP target SP HTTP/1.x".
func (r *Request) requestLine(line []byte) (http11 bool, reason string) {
	const version = "HTTP/1.1"
	if len(line) < len("M / ")+len(version) {
		return false, badStartLine
	}
	rest, v := line[:len(line)-len(version)], line[len(line)-len(version):]
	switch string(v) {
	case "HTTP/1.1":
		http11 = true
	case "HTTP/1.0":
	default:
		if bytes.HasPrefix(v, []byte("HTTP/")) {
			return false, badVersion
		}
		return false, badStartLine
	}
	sp := bytes.IndexByte(rest, ' ')
	if sp < 1 || rest[len(rest)-1] != ' ' {
		return false, badStartLine
	}
	method, target := rest[:sp], rest[sp+1:max(sp+1, len(rest)-1)]
	if len(target) == 0 || !all(method, isTokenByte) {
		return false, badStartLine
	}
	if !all(target, isTargetByte) {
		if !clean(target) {
			return false, controlByte
		}
		return false, badStartLine
	}
	r.Verb, r.Target = method, target
	switch string(method) {
	case "GET", "OPTIONS", "TRACE", "PUT", "DELETE":
		r.Method = SafeMethod
	case "HEAD":
		r.Method = HeadMethod
	case "CONNECT":
		r.Method = ConnectMethod
	}
	return http11, ""
}

// AppendWithMember appends a head that Parse has called Complete to dst, with
// one baggage member more: at the end of the last baggage field or, where there
// is none, in a field of its own at the end of the head. All other bytes stay.
func (r *Request) AppendWithMember(dst, head []byte, member, value string) []byte {
	at := r.baggageEnd
	if at == 0 {
		at = r.Len - len("\r\n")
	}
	dst = append(dst, head[:at]...)
	switch {
	case r.baggageEnd == 0:
		dst = append(dst, "baggage: "...)
	case !r.baggageEmpty:
		dst = append(dst, ',')
	}
	dst = append(dst, member...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	if r.baggageEnd == 0 {
		dst = append(dst, "\r\n"...)
	}
	return append(dst, head[at:r.Len]...)
}
