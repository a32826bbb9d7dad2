// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// through sends a state through the form in which processes exchange it.
func through[T any](t *testing.T, v T) (out T) {
	t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAScannerGoesOnInAnotherProcessAtEachByte(t *testing.T) {
	names := routing.DefaultKeyNames()
	for _, in := range []string{
		"baggage: a=b,sidetrack=key-1234,c=d\r\n", "x-sidetrack-key:\r\n key%2d1234, other-key \r\nsd-routing-key=\"third-key\"",
		"x-sidetrack-key" + strings.Repeat("y", 100) + ": no-key\r\n", "sidetrack=" + strings.Repeat("a", 400) + " ",
	} {
		want := scan(in)
		for at := range len(in) + 1 {
			var found []string
			note := func(v []byte) bool { found = append(found, string(v)); return false }
			s := NewScanner(&names)
			s.Scan([]byte(in[:at]), note)
			next, err := ResumeScanner(&names, through(t, s.State()))
			if err != nil {
				t.Fatal(err)
			}
			next.Scan([]byte(in[at:]), note)
			next.End(note)
			if !slices.Equal(found, want) {
				t.Fatalf("%q, moved at %d: found %q, want %q", in, at, found, want)
			}
		}
	}
}

func TestAChunkedBodyGoesOnInAnotherProcessAtEachByte(t *testing.T) {
	const in = "5;name=value\r\nhello\r\n1f\r\n" + "0123456789012345678901234567890" + "\r\n0\r\nTrailer: of it\r\n\r\nnext"
	for at := range len(in) {
		var c Chunked
		n, out := c.Feed([]byte(in[:at]), false)
		if out == Complete {
			break
		}
		if n != at || out != More {
			t.Fatalf("%d bytes: %d, %v", at, n, out)
		}
		next, err := ResumeChunked(through(t, c.State()))
		if err != nil {
			t.Fatal(err)
		}
		if n, out := next.Feed([]byte(in[at:]), false); out != Complete || in[at+n:] != "next" {
			t.Fatalf("moved at %d: %v, and %q is left", at, out, in[at+n:])
		}
	}
}

func TestStatesThatCannotBeAreRefused(t *testing.T) {
	names := routing.DefaultKeyNames()
	if _, err := ResumeScanner(&names, ScannerState{State: 3}); err == nil {
		t.Error("a scanner goes on at a state that there is not")
	}
	if _, err := ResumeScanner(&names, ScannerState{Word: make([]byte, 1000), Value: make([]byte, 100000)}); err != nil {
		t.Errorf("words that are too long: %v", err)
	}
	for _, s := range []ChunkedState{{State: 12}, {Digits: 16}, {Count: -1}, {Left: -1}} {
		if _, err := ResumeChunked(s); err == nil {
			t.Errorf("a chunked body goes on at %+v", s)
		}
	}
}
