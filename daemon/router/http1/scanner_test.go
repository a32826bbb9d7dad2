// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"slices"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// scan returns all values that a scanner finds in the pieces.
func scan(pieces ...string) (found []string) {
	names := routing.DefaultKeyNames()
	s := NewScanner(&names)
	note := func(v []byte) bool { found = append(found, string(v)); return false }
	for _, p := range pieces {
		s.Scan([]byte(p), note)
	}
	s.End(note)
	return found
}

func TestKeysAreFoundByTheMostGenerousReading(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"baggage", "baggage: a=b,sidetrack=key-1234,c=d\r\n", "key-1234"},
		{"the other member", "tracestate: sd-routing-key=key-1234\n", "key-1234"},
		{"the header in any case", "X-SIDETRACK-key: key-1234\r\n", "key-1234"},
		{"blanks before the colon", "x-sidetrack-key \t : key-1234\r\n", "key-1234"},
		{"blanks around the equals sign", "baggage: sidetrack = key-1234 \r\n", "key-1234"},
		{"a folded value", "x-sidetrack-key:\r\n key-1234\r\n", "key-1234"},
		{"a folded list", "x-sidetrack-key: first-key,\r\n\tkey-1234\r\n", "first-key key-1234"},
		{"a value that ends with its line", "x-sidetrack-key:\r\nHost: a\r\n", ""},
		{"bare line feeds", "x: y\nbaggage: sidetrack=key-1234\n\n", "key-1234"},
		{"bare carriage returns", "x: y\rbaggage:\rsidetrack=key-1234\r", "key-1234"},
		{"a NUL before the name", "\x00x-sidetrack-key:key-1234\r\n", "key-1234"},
		{"a NUL before the value", "x-sidetrack-key:\x00key-1234\r\n", "key-1234"},
		{"quotes", "baggage: sidetrack=\"key-1234\"\r\n", "key-1234"},
		{"percent-encoding", "baggage: sidetrack=key%2d1234\r\n", "key%2d1234 key-1234"},
		{"a broken encoding", "baggage: sidetrack=key%2\r\n", "key%2"},
		{"at the end of the stream", "baggage: sidetrack=key-1234", "key-1234"},
		{"several", "sidetrack=key-1111;x sidetrack=key-2222", "key-1111 key-2222"},
		{"a member as its own value", "sidetrack=sidetrack=key-1234 ", "sidetrack key-1234"},
		{"a member in the header", "x-sidetrack-key: sidetrack=key-1234\r\n", "sidetrack key-1234"},
		{"another name", "xsidetrack=key-1234 sidetracks=key-1234 x-sidetrack-key2: key-1234\r\n", ""},
		{"a name in the wrong case", "Sidetrack=key-1234\r\n", ""},
		{"an empty value", "sidetrack=,b=c\r\n", ""},
		{"a value that is too long", "sidetrack=" + strings.Repeat("a", 1000) + "\r\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := strings.Join(scan(tc.in), " "); got != tc.want {
				t.Errorf("at once: %q, want %q", got, tc.want)
			}
			if got := strings.Join(scan(strings.Split(tc.in, "")...), " "); got != tc.want {
				t.Errorf("byte by byte: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestBlanksOfAnyLengthDoNotHideAKey(t *testing.T) {
	in := "x-sidetrack-key" + strings.Repeat(" ", 5000) + ":" + strings.Repeat("\t", 5000) + "key-1234\r\n"
	for size := range slices.Values([]int{1, 7, 4096}) {
		var pieces []string
		for p := range slices.Chunk([]byte(in), size) {
			pieces = append(pieces, string(p))
		}
		if got := scan(pieces...); !slices.Equal(got, []string{"key-1234"}) {
			t.Errorf("in pieces of %d: %q", size, got)
		}
	}
}
