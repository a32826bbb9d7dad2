// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"strconv"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// grpcUnavailable is the status UNAVAILABLE of gRPC.
const grpcUnavailable = "14"

// refuse answers a stream that no server may serve. end says that the client has
// sent all of its request.
func (r *Relay) refuse(id uint32, req *Request, why string, end bool, w *Watch) {
	fields, body := r.sh.made[:0], why
	if req.GRPC {
		body = ""
		fields = append(fields,
			hpack.HeaderField{Name: ":status", Value: "200"},
			hpack.HeaderField{Name: "content-type", Value: "application/grpc"},
			hpack.HeaderField{Name: "grpc-status", Value: grpcUnavailable},
			hpack.HeaderField{Name: "grpc-message", Value: percentEncode(why)})
	} else {
		fields = append(fields,
			hpack.HeaderField{Name: ":status", Value: "503"},
			hpack.HeaderField{Name: "content-type", Value: "text/plain; charset=utf-8"})
		if req.Head || int64(len(body)) <= r.clientWindow {
			fields = append(fields, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(body))})
		}
		if req.Head || int64(len(body)) > r.clientWindow {
			body = ""
		}
	}
	r.sh.made = fields[:0]
	h := head{typ: wire.FrameHeaders, stream: id}
	if body == "" {
		h.flags = wire.FlagHeadersEndStream
	}
	before := len(r.out.buf)
	r.sendBlock(h, nil, fields)
	if w != nil {
		w.Received += int64(max(len(r.out.buf)-before, 0) + len(body))
		w.look(fields)
		r.env.Ended(w, "")
	}
	s := r.newStream(id, nil)
	s.clientDone = true // whatever still comes is thrown away
	if body != "" {
		raw := appendHead(nil, head{length: len(body), typ: wire.FrameData, flags: wire.FlagDataEndStream, stream: id})
		r.download(nil, s, append(raw, body...), end)
		if end {
			return
		}
	}
	if !end {
		if len(s.down) > 0 {
			r.stall(s, download{reset: true, code: wire.ErrCodeNo})
			return
		}
		_ = r.sh.to(&r.out).WriteRSTStream(id, wire.ErrCodeNo)
	}
	r.forget(s)
}

// percentEncode encodes a grpc-message (gRPC over HTTP2, "Responses").
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
