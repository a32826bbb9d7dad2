// SPDX-License-Identifier: Apache-2.0

package http1

import "bytes"

// Why a message is Ambiguous. The words go into the body of a 400.
const (
	badStartLine    = "its first line is malformed"
	badVersion      = "its HTTP version is neither 1.0 nor 1.1"
	bareLF          = "a line ends in a bare line feed"
	bareCR          = "it has a carriage return that ends no line"
	obsoleteFold    = "a header field is folded over several lines"
	badFieldName    = "a header field's name is malformed"
	controlByte     = "it has a control byte"
	badLength       = "its Content-Length is malformed"
	manyLengths     = "it has several different Content-Lengths"
	lengthAndCoding = "it has both Content-Length and Transfer-Encoding"
	badCoding       = "its Transfer-Encoding does not end in a single chunked"
	connectWithBody = "it is a CONNECT with a body"
	codingInHTTP10  = "it has Transfer-Encoding in HTTP/1.0"
)

// maxLengthDigits keeps a Content-Length within an int64.
const maxLengthDigits = 18

// framing collects what a head's fields say about the message's end.
type framing struct {
	length    int64
	hasLength bool
	coded     bool // there is a Transfer-Encoding
	chunked   bool // and its last coding is chunked
}

// field splits one line of a head, without its line end, into name and value.
// It returns the reason when the line is no strict header field.
func field(line []byte) (name, value []byte, reason string) {
	colon := 0
	for colon < len(line) && classes[line[colon]]&isTokenByte != 0 {
		colon++
	}
	if colon == len(line) || line[colon] != ':' || colon == 0 {
		return nil, nil, badField(line, colon)
	}
	value = line[colon+1:]
	if !clean(value) {
		return nil, nil, badField(line, colon)
	}
	return line[:colon], trim(value), ""
}

// badField says what is wrong with a line whose bytes up to i are fine.
func badField(line []byte, i int) string {
	switch {
	case bytes.IndexByte(line, '\r') >= 0:
		return bareCR
	case !clean(line):
		return controlByte
	case i == 0 && len(line) > 0 && (line[0] == ' ' || line[0] == '\t'):
		return obsoleteFold
	}
	return badFieldName
}

// contentLength takes note of a Content-Length field.
func (f *framing) contentLength(v []byte) (reason string) {
	if len(v) == 0 || len(v) > maxLengthDigits || len(v) > 1 && v[0] == '0' {
		return badLength
	}
	var n int64
	for _, c := range v {
		if c < '0' || c > '9' {
			return badLength
		}
		n = n*10 + int64(c-'0')
	}
	if f.hasLength && f.length != n {
		return manyLengths
	}
	f.length, f.hasLength = n, true
	return ""
}

// transferEncoding takes note of a Transfer-Encoding field. Nothing but a single
// chunked, as the last coding of a single field, is beyond doubt.
func (f *framing) transferEncoding(v []byte) (reason string) {
	if f.coded {
		return badCoding
	}
	f.coded = true
	last := v
	if i := bytes.LastIndexByte(v, ','); i >= 0 {
		last = trim(v[i+1:])
		if hasToken(v[:i], "chunked") {
			return badCoding
		}
	}
	f.chunked = equalFold(last, "chunked")
	return ""
}
