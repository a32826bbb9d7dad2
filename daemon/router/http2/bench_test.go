// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// quiet is an Env that only routes.
type quiet struct {
	relay *Relay
	fork  *Link
	sent  int
}

func (q *quiet) Route(req *Request) Route {
	if req.Keys.Seen() {
		if q.fork == nil {
			q.fork = q.relay.NewLink(nil)
		}
		return Route{Link: q.fork}
	}
	return Route{Link: q.relay.Primary()}
}
func (q *quiet) ToClient(b []byte)        { q.sent += len(b) }
func (q *quiet) ToLink(_ *Link, b []byte) { q.sent += len(b) }
func (q *quiet) Drop(*Link)               {}
func (q *quiet) Ended(*Watch, string)     {}
func (q *quiet) Moved(uint32, *Watch)     {}
func (q *quiet) Count(Reason)             {}
func (q *quiet) Now() int64               { return 0 }

// BenchmarkStreams has a client ask and servers answer on one connection: a
// request of usual header fields, a response with a small body.
func BenchmarkStreams(b *testing.B) {
	for _, tt := range []struct {
		name   string
		tagged func(i int) bool
	}{
		{"untagged", func(int) bool { return false }},
		{"mixed", func(i int) bool { return i%2 == 1 }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			names := routing.DefaultKeyNames()
			limits := Limits{}
			limits.Complete()
			q := &quiet{}
			q.relay = New(NewShared(limits, &names), q)
			c, base, fork := newEndpoint(b, "c", true), newEndpoint(b, "base", false), newEndpoint(b, "fork", false)
			request := get(
				hpack.HeaderField{Name: "user-agent", Value: "a client of some kind/1.0"}, hpack.HeaderField{Name: "accept", Value: "*/*"},
				hpack.HeaderField{Name: "traceparent", Value: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
			tagged := append(request[:len(request):len(request)], hpack.HeaderField{Name: "baggage", Value: "a=b,sidetrack=" + keyA})
			answer := status("200", hpack.HeaderField{Name: "content-type", Value: "text/plain"}, hpack.HeaderField{Name: "content-length", Value: "100"})
			body := make([]byte, 100)
			b.ReportAllocs()
			for i := range b.N {
				id := uint32(i%(1<<29))*2 + 1
				server, fields, link := base, request, q.relay.Primary()
				if tt.tagged(i) {
					server, fields, link = fork, tagged, q.fork
				}
				c.quickly(id, true, fields)
				q.relay.FromClient(c.toRelay.Bytes())
				c.toRelay.Reset()
				if link == nil {
					link = q.fork
				}
				server.quickly(id, false, answer)
				_ = server.write.WriteData(id, true, body)
				q.relay.FromLink(link, server.toRelay.Bytes())
				server.toRelay.Reset()
				if i%64 == 0 {
					_ = c.write.WriteWindowUpdate(0, 6400)
				}
			}
			if q.relay.Over() || q.relay.Open() != 0 {
				b.Fatalf("over %v, %d streams", q.relay.Over(), q.relay.Open())
			}
		})
	}
}

// quickly is headers without keeping account.
func (e *endpoint) quickly(id uint32, end bool, fields []hpack.HeaderField) {
	e.block.Reset()
	for _, f := range fields {
		_ = e.enc.WriteField(f)
	}
	_ = e.write.WriteHeaders(wire.HeadersFrameParam{StreamID: id, BlockFragment: e.block.Bytes(), EndStream: end, EndHeaders: true})
}

// BenchmarkData passes a stream of data on.
func BenchmarkData(b *testing.B) {
	for name, key := range map[string]string{"baseline": "", "fork": keyA} {
		b.Run(name, func(b *testing.B) {
			names := routing.DefaultKeyNames()
			limits := Limits{}
			limits.Complete()
			q := &quiet{}
			q.relay = New(NewShared(limits, &names), q)
			c := newEndpoint(b, "c", true)
			c.headers(1, true, keyed(key)...)
			c.must(c.write.WriteWindowUpdate(0, 1<<30))
			c.must(c.write.WriteWindowUpdate(1, 1<<30))
			q.relay.FromClient(c.toRelay.Bytes())
			link := q.relay.Primary()
			if key != "" {
				link = q.fork
			}
			s := newEndpoint(b, "s", false)
			s.headers(1, false, status("200")...)
			q.relay.FromLink(link, s.toRelay.Bytes())
			frame := frame(wire.FrameData, 0, 1, string(make([]byte, 16384)))
			credit := append(headOf(wire.FrameWindowUpdate, 0), 0, 0, 64, 0)
			credit = append(append(credit, headOf(wire.FrameWindowUpdate, 1)...), 0, 0, 64, 0)
			b.SetBytes(16384)
			b.ReportAllocs()
			for range b.N {
				q.relay.FromLink(link, frame)
				q.relay.FromClient(credit)
			}
			if q.relay.Over() || q.sent < b.N*16384 {
				b.Fatalf("over %v, %d bytes sent", q.relay.Over(), q.sent)
			}
		})
	}
}

func headOf(typ wire.FrameType, stream uint32) []byte {
	return appendHead(nil, head{length: 4, typ: typ, stream: stream})
}
