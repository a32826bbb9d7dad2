// SPDX-License-Identifier: Apache-2.0

package http1

import "github.com/sidetrack-dev/sidetrack/routing"

// A Scanner finds routing keys in bytes that have no certain framing: wherever a
// member's name stands before an equals sign or the key header's name before a
// colon, as generously as any server might read it. It keeps its place from one
// piece of the stream to the next.
type Scanner struct {
	names *routing.KeyNames

	word    []byte // the token before this byte, as far as it can be a name
	wordEnd bool   // blanks have followed it
	value   []byte
	state   scanState
	header  bool // the value is the key header's, a list
}

type scanState uint8

const (
	scanIdle  scanState = iota
	scanValue           // in a value, or in the blanks before it
	scanFold            // after its line feed: a blank goes on with it
)

// maxValue is more than a key can be long with each byte percent-encoded.
const maxValue = 3*routing.MaxKeyLen + 1

// NewScanner returns a scanner for these names.
func NewScanner(names *routing.KeyNames) *Scanner {
	longest := len(names.Header)
	for _, m := range names.Members {
		longest = max(longest, len(m))
	}
	return &Scanner{
		names: names,
		word:  make([]byte, 0, longest+1),
		value: make([]byte, 0, maxValue),
	}
}

// Scan looks at the next bytes and reports whether found has returned true for
// a value; then it has stopped. A value that is percent-encoded is given as it
// came, then decoded. Values are valid during the call only.
func (s *Scanner) Scan(b []byte, found func(value []byte) bool) bool {
	for _, c := range b {
		if s.state != scanIdle && s.valueByte(c, found) {
			return true
		}
		s.wordByte(c)
	}
	return false
}

// End is Scan at the end of the stream: a value may end there too.
func (s *Scanner) End(found func(value []byte) bool) bool { return s.give(found) }

// ContainsValue reports whether b has anything that could be a key's value.
func ContainsValue(names *routing.KeyNames, b []byte) bool {
	s := NewScanner(names)
	yes := func(value []byte) bool { return true }
	return s.Scan(b, yes) || s.End(yes)
}

// wordByte follows names.
func (s *Scanner) wordByte(c byte) {
	switch {
	case classes[c]&isTokenByte != 0:
		if s.wordEnd {
			s.word, s.wordEnd = s.word[:0], false
		}
		if len(s.word) < cap(s.word) {
			s.word = append(s.word, c)
		}
		return
	case c <= ' ' && len(s.word) > 0:
		s.wordEnd = true
		return
	case c == '=':
		for _, m := range s.names.Members {
			if string(s.word) == m {
				s.begin(false)
			}
		}
	case c == ':':
		if s.names.Place(s.word) == routing.InHeader {
			s.begin(true)
		}
	}
	s.word, s.wordEnd = s.word[:0], false
}

func (s *Scanner) begin(header bool) {
	s.state, s.header, s.value = scanValue, header, s.value[:0]
}

// valueByte follows a value and what may stand before it.
func (s *Scanner) valueByte(c byte, found func([]byte) bool) bool {
	if s.state == scanFold {
		if c != ' ' && c != '\t' {
			s.state = scanIdle
			return false
		}
		s.state = scanValue
	}
	switch {
	case c == '%' || classes[c]&isKeyByte != 0:
		if len(s.value) < cap(s.value) {
			s.value = append(s.value, c)
		}
		return false
	case len(s.value) > 0:
		if s.give(found) {
			return true
		}
		if !s.header {
			s.state = scanIdle
			return false
		}
	}
	switch c {
	case '\n':
		s.state = scanFold
	case ' ', '\t', '\r', '"', 0:
	default:
		if !s.header {
			s.state = scanIdle
		}
	}
	return false
}

// give offers the value collected.
func (s *Scanner) give(found func([]byte) bool) bool {
	v := s.value
	s.value = s.value[:0]
	if len(v) == 0 || len(v) == cap(v) {
		// One that is too long is no key.
		return false
	}
	if found(v) {
		return true
	}
	n, encoded := 0, false
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c == '%' && i+2 < len(v) && classes[v[i+1]]&classes[v[i+2]]&isHexByte != 0 {
			c, i, encoded = unhex(v[i+1])<<4|unhex(v[i+2]), i+2, true
		}
		v[n] = c
		n++
	}
	return encoded && found(v[:n])
}
