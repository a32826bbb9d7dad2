// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Response reads the heads of responses. The fields describe the head for which
// Parse has returned Complete, up to the next call.
type Response struct {
	Len     int // of the head with the empty line at its end
	Status  int
	Framing Framing
	Length  int64 // of the body, when ByLength
	HTTP2   bool  // the connection goes on with HTTP/2 (101 with Upgrade: h2c)
}

// Parse reads the head that begins with buf's first byte, the response to a
// request with this method. buf and h are as for Request.Parse.
func (r *Response) Parse(h *Partial, buf []byte, method Method) Outcome {
	if h.seen == 0 {
		if r.strict(buf, method) {
			return Complete
		}
		h.state = inFields
	}
	const version = "HTTP/1."
	if n := min(len(buf), len(version)); string(buf[:n]) != version[:n] {
		return NotHTTP
	}
	out := h.feed(buf)
	if out == Complete && !r.strict(buf[:h.End], method) {
		return Ambiguous
	}
	return out
}

// strict reads one head and reports whether it is whole and beyond doubt.
func (r *Response) strict(buf []byte, method Method) bool {
	nl := bytes.IndexByte(buf, '\n')
	if nl < 1 || buf[nl-1] != '\r' {
		return false
	}
	http11, ok := r.statusLine(buf[:nl-1])
	if !ok {
		return false
	}
	pos := nl + 1
	var f framing
	r.HTTP2 = false
	for {
		nl := bytes.IndexByte(buf[pos:], '\n')
		if nl < 1 || buf[pos+nl-1] != '\r' {
			return false
		}
		line := buf[pos : pos+nl-1]
		pos += nl + 1
		if len(line) == 0 {
			break
		}
		name, value, reason := field(line)
		if reason != "" {
			return false
		}
		switch len(name) {
		case len("upgrade"):
			if equalFold(name, "upgrade") {
				r.HTTP2 = r.Status == 101 && equalFold(value, "h2c")
			}
		case len("content-length"):
			if equalFold(name, "content-length") && f.contentLength(value) != "" {
				return false
			}
		case len("transfer-encoding"):
			if equalFold(name, "transfer-encoding") && f.transferEncoding(value) != "" {
				return false
			}
		}
	}
	r.Len = pos
	return r.frame(&f, http11, method)
}

// statusLine reads "HTTP/1.x SP status [SP reason]".
func (r *Response) statusLine(line []byte) (http11, ok bool) {
	const status = len("HTTP/1.1 ")
	if len(line) < status+3 {
		return false, false
	}
	switch string(line[:status]) {
	case "HTTP/1.1 ":
		http11 = true
	case "HTTP/1.0 ":
	default:
		return false, false
	}
	r.Status = 0
	for _, c := range line[status : status+3] {
		if c < '0' || c > '9' {
			return false, false
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	rest := line[status+3:]
	return http11, r.Status >= 100 && (len(rest) == 0 || rest[0] == ' ' && clean(rest))
}

// frame applies RFC 9112, section 6.3. It reports whether all peers must agree.
func (r *Response) frame(f *framing, http11 bool, method Method) bool {
	r.Length = 0
	switch {
	case r.Status == 101, method == ConnectMethod && r.Status/100 == 2:
		r.Framing = Tunnel
	case r.Status < 200:
		r.Framing = Interim
		// A body of an interim response would be taken for the next response.
		return !f.coded && f.length == 0
	case method == HeadMethod, r.Status == 204, r.Status == 304:
		r.Framing = NoBody
	case f.coded:
		r.Framing = ByChunks
		return f.chunked && !f.hasLength && http11
	case f.hasLength && f.length > 0:
		r.Framing, r.Length = ByLength, f.length
	case f.hasLength:
		r.Framing = NoBody
	default:
		r.Framing = ByClose
	}
	return true
}
