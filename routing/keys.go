// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"bytes"
	"fmt"
)

// Bounds of a routing key's length in bytes.
const (
	MinKeyLen = 8
	MaxKeyLen = 64
)

// ValidKey reports whether key can be a routing key: 8 to 64 of
// A-Z a-z 0-9 - . _ ~ (RFC 3986's unreserved characters, so that a key needs
// no encoding in any header).
func ValidKey[T string | []byte](key T) bool {
	if len(key) < MinKeyLen || len(key) > MaxKeyLen {
		return false
	}
	for i := range len(key) {
		if !unreserved(key[i]) {
			return false
		}
	}
	return true
}

func unreserved(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '-' || c == '.' || c == '_' || c == '~'
}

// Bounds of KeyNames: each member is looked for in every request, and nodes tell one
// another of their names.
const (
	maxMembers = 16
	maxNameLen = 256
)

// Place is a header in which routing keys are looked for. Lower places take
// precedence.
type Place uint8

// The places, in order of precedence.
const (
	InBaggage Place = iota
	InTracestate
	InHeader
	Nowhere
)

// KeyNames says where a request's routing key is looked for.
type KeyNames struct {
	// Members are the names of the baggage and tracestate members that carry a
	// key. The first is the one that is injected. Case-sensitive, as W3C says.
	Members []string
	// Header is the name of the plain header; compared without regard to case.
	Header string
}

// DefaultKeyNames returns the names that a cluster has unless it is configured
// otherwise.
func DefaultKeyNames() KeyNames {
	return KeyNames{Members: []string{"sidetrack", "sd-routing-key"}, Header: "x-sidetrack-key"}
}

// Validate reports names that cannot be header or member names.
func (n KeyNames) Validate() error {
	if len(n.Members) == 0 {
		return fmt.Errorf("key names: at least one baggage member name is needed, such as %q", "sidetrack")
	}
	if len(n.Members) > maxMembers {
		return fmt.Errorf("key names: %d baggage member names are too many: give at most %d", len(n.Members), maxMembers)
	}
	for _, m := range n.Members {
		if !validMemberName(m) {
			return fmt.Errorf("key names: %q cannot be both a baggage and a tracestate key; use lower-case letters, digits, '-' and '_', beginning with a letter", m)
		}
	}
	if !isToken(n.Header) || len(n.Header) > maxNameLen {
		return fmt.Errorf("key names: %q is not an HTTP header name of at most %d characters", n.Header, maxNameLen)
	}
	for _, taken := range []string{"baggage", "tracestate"} {
		if bytes.EqualFold([]byte(n.Header), []byte(taken)) {
			return fmt.Errorf("key names: header %q is already searched for members; choose another", n.Header)
		}
	}
	return nil
}

func validMemberName(m string) bool {
	for i := range len(m) {
		c := m[i]
		switch {
		case 'a' <= c && c <= 'z':
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return m != "" && len(m) <= maxNameLen
}

// isToken reports whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChar(s[i]) {
			return false
		}
	}
	return s != ""
}

func tokenChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

// Place returns where a header of this name is to be searched, or Nowhere.
// It does not allocate.
func (n *KeyNames) Place(header []byte) Place {
	switch len(header) {
	case len("baggage"):
		if equalFold(header, "baggage") {
			return InBaggage
		}
	case len("tracestate"):
		if equalFold(header, "tracestate") {
			return InTracestate
		}
	}
	if len(header) == len(n.Header) && equalFold(header, n.Header) {
		return InHeader
	}
	return Nowhere
}

// equalFold compares ASCII without regard to case. bytes.EqualFold folds
// Unicode as well, which would make the Kelvin sign a "k".
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// maxCandidates bounds how many candidate keys of one place are kept. Who
// sends more than that is not tagging requests.
const maxCandidates = 8

// KeySet collects the routing keys that one request's headers carry. It is
// meant to be reused: Reset, Add for each header with a Place, then ask. The
// zero value is ready. Not safe for concurrent use; does not allocate once it
// has grown.
//
// A key that is not ValidKey is kept out but counted as seen, so that such a
// request is recognised as one with an unknown key.
type KeySet struct {
	buf   []byte
	spans [Nowhere][maxCandidates]span
	n     [Nowhere]int
	seen  bool
}

type span struct{ from, to int32 }

// Reset empties the set.
func (s *KeySet) Reset() {
	s.buf = s.buf[:0]
	s.n = [Nowhere]int{}
	s.seen = false
}

// Seen reports whether any key was found, valid or not.
func (s *KeySet) Seen() bool { return s.seen }

// Keys calls f with each valid key in order of precedence until f returns
// false. The slice is valid until the next Reset or Add.
func (s *KeySet) Keys(f func(key []byte) bool) {
	for p := range s.n {
		for _, sp := range s.spans[p][:s.n[p]] {
			if !f(s.buf[sp.from:sp.to]) {
				return
			}
		}
	}
}

// Add looks for keys in one header field's value. A header that comes several
// times is added several times: W3C Baggage (section 3.2) and Trace Context
// (section 3.3.1) join them in order.
func (s *KeySet) Add(n *KeyNames, place Place, value []byte) {
	switch place {
	case InHeader:
		// A list, because an intermediary may have joined two fields of one name
		// (RFC 9110, section 5.3).
		for len(value) > 0 {
			var item []byte
			item, value = cutByte(value, ',')
			if item = trimOWS(item); len(item) > 0 {
				s.keep(place, item, false)
			}
		}
	case InBaggage, InTracestate:
		for len(value) > 0 {
			var member []byte
			member, value = cutByte(value, ',')
			if place == InBaggage {
				// What follows a semicolon are the member's properties.
				member, _ = cutByte(member, ';')
			}
			eq := bytes.IndexByte(member, '=')
			if eq < 0 || !n.member(trimOWS(member[:eq])) {
				continue
			}
			// Only baggage values are percent-encoded.
			s.keep(place, trimOWS(member[eq+1:]), place == InBaggage)
		}
	}
}

func (n *KeyNames) member(name []byte) bool {
	for _, m := range n.Members {
		if string(name) == m {
			return true
		}
	}
	return false
}

func (s *KeySet) keep(p Place, v []byte, decode bool) {
	s.seen = true
	if s.n[p] == maxCandidates {
		return
	}
	from := len(s.buf)
	if decode {
		s.buf = appendDecoded(s.buf, v)
	} else {
		s.buf = append(s.buf, v...)
	}
	if !ValidKey(s.buf[from:]) {
		s.buf = s.buf[:from]
		return
	}
	s.spans[p][s.n[p]] = span{int32(from), int32(len(s.buf))}
	s.n[p]++
}

// appendDecoded appends v with its percent-encoding taken off. A percent sign
// that does not begin a triplet stays as it is, as W3C Baggage says.
func appendDecoded(dst, v []byte) []byte {
	for i := 0; i < len(v); i++ {
		if v[i] == '%' && i+2 < len(v) {
			hi, lo := unhex(v[i+1]), unhex(v[i+2])
			if hi >= 0 && lo >= 0 {
				dst = append(dst, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		dst = append(dst, v[i])
	}
	return dst
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func cutByte(b []byte, sep byte) (before, after []byte) {
	if i := bytes.IndexByte(b, sep); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

func trimOWS(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}
