// SPDX-License-Identifier: Apache-2.0

// Package http2 relays one client's HTTP/2 connection to several servers: each
// stream goes where the routing keys in its own header fields lead.
//
// It owns the rules of RFC 9113 between a client and its links, as the
// connections to servers are called here: header compression, settings, flow
// control, the life of streams, and what to say when a link goes away or a bound
// is passed. It does no I/O, knows no clock, decides nothing about routing and
// writes no log: bytes come in through FromClient and FromLink, and an Env is
// asked and told. It keeps no reference to bytes that it was given. Nothing here
// may be used concurrently; Shared is for the connections of one loop.
//
// # Frames are forwarded
//
// The first link is the primary one: what is no stream's goes there, and so do
// the client's preface and settings. As long as every stream goes there too, the
// very bytes are passed on, both ways: the relay only reads along. It decodes
// every header block, to see the keys and because both decoders' tables must be
// known when a block goes elsewhere for the first time. From then on blocks are
// encoded anew, in that direction alone.
//
// The client's stream identifiers are used on every link. A subset of increasing
// numbers is increasing, and those that a server does not see are closed for it
// (RFC 9113, section 5.1.1).
//
// # Flow control
//
// A stream's windows are the business of its two ends. The connection's windows
// are the primary link's, end to end, but for what the others take and give:
// windows.go.
package http2
