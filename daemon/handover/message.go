// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Protocol is the version of the conversation itself. Two agents that speak
// different ones cannot take turns at all, so it hardly ever changes.
const Protocol = 1

// Kind is a message's first byte.
type Kind byte

// Kinds of messages.
const (
	KindHello   Kind = 'H'
	KindWill    Kind = 'W'
	KindDests   Kind = 'D'
	KindActive  Kind = 'A'
	KindYielded Kind = 'Y'
	KindConns   Kind = 'C'
	KindHave    Kind = 'h'
	KindYours   Kind = 'y'
	KindKeep    Kind = 'k'
	KindDone    Kind = '.'
)

// Hello is what the new agent begins with. Fields that an old agent does not
// know are none of its business.
type Hello struct {
	Protocol int
	// ConnFormats are the versions of router.ConnState that it understands.
	ConnFormats []int
	Version     string // of the program, for the log
	Mark        uint32
}

// Will is the old agent's answer.
type Will struct {
	Protocol int
	// Refused says why nothing is handed over; empty when it is. With Later it is
	// worth trying again soon.
	Refused string `json:",omitempty"`
	Later   bool   `json:",omitempty"`
	Version string
	// ConnFormat is the version in which connections will come; zero: they will
	// not, and end where they are.
	ConnFormat int
	// CapturePrograms and CaptureLinks are the old agent's, see loader.Legacy.
	CapturePrograms, CaptureLinks []uint32
	// MetricsAddress is what the old agent serves metrics at. Its listener comes
	// with the message when it is not empty.
	MetricsAddress string `json:",omitempty"`
	// Dests is how many messages with destinations follow.
	Dests int
}

// Dests are destinations of open connections, and namespaces in which the old
// agent listens.
type Dests struct {
	All       []routing.Remembered `json:",omitempty"`
	Listening []routing.Cookie     `json:",omitempty"`
}

// Conns are connections. The message's descriptors are first the namespaces and
// then, for each connection, the client's socket and its upstreams'.
type Conns struct {
	Namespaces int
	All        []OneConn
}

// OneConn is one connection in a message.
type OneConn struct {
	Netns int // index of the namespace
	State router.ConnState
}

// Have says for each connection of a message whether the new agent can go on
// with it, and why not for the first that it cannot.
type Have struct {
	OK  []bool
	Why string `json:",omitempty"`
}
