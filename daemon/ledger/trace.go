// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/hex"
)

// TraceID and SpanID are those of W3C Trace Context. The zero value is none.
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// String returns 32 hexadecimal digits; empty for none.
func (t TraceID) String() string {
	if t == (TraceID{}) {
		return ""
	}
	return hex.EncodeToString(t[:])
}

// String returns 16 hexadecimal digits; empty for none.
func (s SpanID) String() string {
	if s == (SpanID{}) {
		return ""
	}
	return hex.EncodeToString(s[:])
}

// ParseTraceID reads 32 hexadecimal digits; the zero TraceID means that they are
// none.
func ParseTraceID(s string) (t TraceID) {
	if len(s) != 2*len(t) || !digits(t[:], []byte(s)) {
		return TraceID{}
	}
	return t
}

// parseTraceparent reads the value of a traceparent header (W3C Trace Context,
// section 3.2): version 00, or a later one that begins the same way. Both ids are
// zero when it is none. It does not allocate.
func parseTraceparent(v []byte) (t TraceID, s SpanID) {
	const length = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	var version, flags [1]byte
	if len(v) < length || v[2] != '-' || v[35] != '-' || v[52] != '-' ||
		!digits(version[:], v[:2]) || version[0] == 0xff || !digits(flags[:], v[53:55]) {
		return TraceID{}, SpanID{}
	}
	if len(v) > length && (version[0] == 0 || v[length] != '-') {
		return TraceID{}, SpanID{}
	}
	if !digits(t[:], v[3:35]) || !digits(s[:], v[36:52]) || t == (TraceID{}) || s == (SpanID{}) {
		return TraceID{}, SpanID{}
	}
	return t, s
}

// digits reads hexadecimal digits in small letters, the only ones that are
// allowed.
func digits(dst, src []byte) bool {
	var wrong uint8
	src = src[:2*len(dst)]
	for i := range dst {
		hi, lo := digitValue[src[2*i]], digitValue[src[2*i+1]]
		wrong |= hi | lo
		dst[i] = hi<<4 | lo
	}
	return wrong <= 15
}

// digitValue is what each byte is as a digit; more than 15: none.
var digitValue = func() (v [256]uint8) {
	for i := range v {
		v[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		v[c] = uint8(i)
	}
	return v
}()
