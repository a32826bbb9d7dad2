// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"strconv"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Watch is what somebody wants to know of one stream. The relay fills it in, and
// hands it to Env.Ended when the stream is over. Streams that nobody watches cost
// nothing of it.
type Watch struct {
	// Peer is the caller's.
	Peer any

	Status     int // of the final response; 0: there was none
	GRPCStatus int32
	HasGRPC    bool
	// Sent and Received are bytes of the request and of the response: frames of
	// header blocks as they came, and payload of DATA.
	Sent, Received int64
}

// Why a stream ended otherwise than with its answer.
const (
	callerReset   = "the caller reset the stream"
	serverReset   = "the answering side reset the stream: "
	serverGone    = "the connection ended before the answer did"
	connectionEnd = "the caller's connection ended before the answer did"
)

// sends counts bytes of the client's on a stream.
func (r *Relay) sends(id uint32, n int) {
	if r.watching > 0 {
		if s := r.streams[id]; s != nil && s.watch != nil {
			s.watch.Sent += int64(n)
		}
	}
}

// receives counts a server's DATA on a stream.
func (r *Relay) receives(l *Link, h head) {
	if r.watching > 0 {
		if s := r.streamOf(l, h.stream); s != nil && s.watch != nil {
			s.watch.Received += int64(h.length)
		}
	}
}

// look reads what a response's block says.
func (w *Watch) look(fields []hpack.HeaderField) {
	for _, f := range fields {
		switch f.Name {
		case ":status":
			// Three digits (RFC 9113, section 8.3.2; RFC 9110, section 15).
			if n, err := strconv.Atoi(f.Value); err == nil && n >= 200 && n <= 999 {
				w.Status = n
			}
		case "grpc-status":
			if n, err := strconv.ParseInt(f.Value, 10, 32); err == nil {
				w.GRPCStatus, w.HasGRPC = int32(n), true
			}
		}
	}
}

// unwatch ends what was watched of a stream.
func (r *Relay) unwatch(s *stream, why string) {
	if s.watch == nil {
		return
	}
	w := s.watch
	s.watch = nil
	r.watching--
	r.env.Ended(w, why)
}

// resetBy is why a stream ended that a server has reset.
func resetBy(code wire.ErrCode) string { return serverReset + code.String() }

// Ended tells the Env of all streams that are left, and why nothing more is known
// of them. why is empty where the client's connection has ended.
func (r *Relay) Ended(why string) {
	if r.watching == 0 {
		return
	}
	if why == "" {
		why = connectionEnd
	}
	for _, s := range r.streams {
		r.unwatch(s, why)
	}
}
