// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"errors"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// ScannerState is a Scanner between two bytes, for another process to go on
// with. It may hold a part of a routing key: it goes into no log.
type ScannerState struct {
	Word    []byte `json:",omitempty"`
	WordEnd bool   `json:",omitempty"`
	Value   []byte `json:",omitempty"`
	State   uint8  `json:",omitempty"`
	Header  bool   `json:",omitempty"`
}

var errState = errors.New("no such state of a parser")

// State returns where s is.
func (s *Scanner) State() ScannerState {
	return ScannerState{Word: s.word, WordEnd: s.wordEnd, Value: s.value, State: uint8(s.state), Header: s.header}
}

// ResumeScanner returns a scanner for these names that goes on at a state.
func ResumeScanner(names *routing.KeyNames, at ScannerState) (*Scanner, error) {
	s := NewScanner(names)
	if at.State > uint8(scanFold) {
		return nil, errState
	}
	s.state, s.header, s.wordEnd = scanState(at.State), at.Header, at.WordEnd
	// What does not fit is longer than any name, and any key, that s looks for; cut
	// off at the limit it is still that.
	s.word = append(s.word, at.Word[:min(len(at.Word), cap(s.word))]...)
	s.value = append(s.value, at.Value[:min(len(at.Value), cap(s.value))]...)
	return s, nil
}

// ChunkedState is a Chunked between two bytes.
type ChunkedState struct {
	State  uint8 `json:",omitempty"`
	Digits uint8 `json:",omitempty"`
	Count  int   `json:",omitempty"`
	Left   int64 `json:",omitempty"`
}

// State returns where c is.
func (c Chunked) State() ChunkedState {
	return ChunkedState{State: uint8(c.state), Digits: c.digits, Count: c.count, Left: c.left}
}

// ResumeChunked returns a Chunked that goes on at a state.
func ResumeChunked(at ChunkedState) (Chunked, error) {
	if at.State > uint8(afterLastCR) || at.Digits > maxSizeDigits || at.Count < 0 || at.Left < 0 {
		return Chunked{}, errState
	}
	return Chunked{state: chunkState(at.State), digits: at.Digits, count: at.Count, left: at.Left}, nil
}
