// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"bytes"
	"encoding/binary"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Classes of bytes (RFC 9110, section 5).
const (
	isTokenByte  = 1 << iota // tchar
	isFieldByte              // may stand in a field's value: VCHAR, SP, HTAB, obs-text
	isTargetByte             // may stand in a request's target: VCHAR, obs-text
	isHexByte
	isKeyByte // may stand in a routing key
)

var classes = func() (t [256]uint8) {
	for c := range t {
		switch b := byte(c); {
		case b == '\t' || b == ' ':
			t[c] |= isFieldByte
		case b > ' ' && b != 0x7f:
			t[c] |= isFieldByte | isTargetByte
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] |= isTokenByte
	}
	for _, c := range "0123456789abcdefABCDEF" {
		t[c] |= isHexByte
	}
	for c := range t {
		if routing.ValidKey(bytes.Repeat([]byte{byte(c)}, routing.MinKeyLen)) {
			t[c] |= isKeyByte
		}
	}
	return t
}()

func all(b []byte, class uint8) bool {
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

// clean reports whether b holds bytes of a field's value only. Heads are mostly
// made of plain text, so eight bytes are looked at at once, and only where one of
// them is a tab, a control byte or DEL each on its own.
func clean(b []byte) bool {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	for len(b) >= 8 {
		w := binary.LittleEndian.Uint64(b)
		below := (w - ones*0x20) &^ w // the high bit is set where a byte is below 0x20
		del := w ^ ones*0x7f
		del = (del - ones) &^ del // the same where a byte is 0x7f
		if (below|del)&highs != 0 && !all(b[:8], isFieldByte) {
			return false
		}
		b = b[8:]
	}
	return all(b, isFieldByte)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// equalFold compares with a lower-case ASCII string without regard to case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if lower(b[i]) != s[i] {
			return false
		}
	}
	return true
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// hasToken reports whether a comma-separated list has this element, which is
// given in lower case.
func hasToken(list []byte, token string) bool {
	for len(list) > 0 {
		i := 0
		for i < len(list) && list[i] != ',' {
			i++
		}
		if equalFold(trim(list[:i]), token) {
			return true
		}
		list = list[min(i+1, len(list)):]
	}
	return false
}
