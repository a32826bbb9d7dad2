// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// leaveStreams serves a pod's HTTP/2 connections and leaves every stream to the test, which
// gets it when its head is there.
func (w *world) leaveStreams(p *lab.Pod) <-chan servedStream {
	w.t.Helper()
	streams := make(chan servedStream, 10)
	w.script(p, func(c *peer) {
		c.expect(wire.ClientPreface)
		f := newFrames(c)
		_ = f.WriteSettings()
		for {
			fr, err := f.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := fr.(*wire.MetaHeadersFrame); ok {
				streams <- servedStream{f, h.StreamID}
			}
		}
	})
	return streams
}

// servedStream is a server's side of a stream.
type servedStream struct {
	*frames
	id uint32
}

// underWay is how many calls of a trace are under way, as whoever asks for the trace is
// told.
func underWay(l *ledger.Ledger, trace string) int64 {
	_, answer := l.Settle(pr42, ledger.ParseTraceID(trace), nil)
	return answer.Open
}

// TestAStreamIsUnderWayUntilItEnds, however it does: nobody may take its trace for whole
// before, nor wait for it afterwards. The record says how.
func TestAStreamIsUnderWayUntilItEnds(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		end        func(f *frames, s servedStream)
	}{
		{"its answer", "", func(_ *frames, s servedStream) { s.headers(s.id, true, ":status", "200") }},
		{"trailers", "", func(_ *frames, s servedStream) {
			s.headers(s.id, false, ":status", "200")
			s.headers(s.id, true, "grpc-status", "0")
		}},
		{"a reset of the server's", "the answering side reset the stream: CANCEL", func(_ *frames, s servedStream) { _ = s.WriteRSTStream(s.id, wire.ErrCodeCancel) }},
		{"a reset of the caller's", "the caller reset the stream", func(f *frames, s servedStream) { _ = f.WriteRSTStream(s.id, wire.ErrCodeCancel) }},
		{"the caller's end", answerCut, func(f *frames, _ servedStream) { _ = f.conn.CloseWrite() }}, // with which the server ends it
		{"an RST of the caller's", callerReset, func(f *frames, _ servedStream) { f.rst() }},
		{"nonsense of the caller's", sentAway, func(f *frames, _ servedStream) {
			_ = f.WriteRawFrame(wire.FrameHeaders, wire.FlagHeadersEndHeaders, 10, []byte{0x82})
		}},
		{"GOAWAY", "the answering side reset the stream: REFUSED_STREAM", func(_ *frames, s servedStream) { _ = s.WriteGoAway(0, wire.ErrCodeNo, nil) }},
		{"the server's end", answerCut, func(_ *frames, s servedStream) { s.conn.Close() }},
		{"an RST of the server's", answerReset, func(_ *frames, s servedStream) { s.rst() }},
	} {
		for _, primary := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, primary %t", tc.name, primary), func(t *testing.T) {
				w, l := newLedgerWorld(t, withCart)
				pod, addr, answered := w.fork, "10.96.0.7:80", "fork"
				if primary {
					pod, addr, answered = w.fork2, netip.AddrPortFrom(w.fork2.IPv4, 8080).String(), "fork2"
				} else {
					w.serveHTTP2(w.base, telling(w.base))
				}
				streams := w.leaveStreams(pod)
				f := w.frames(w.dialAt(w.client, addr))
				traces := []string{"4bf92f3577b34da6a3ce929d0e0e4701", "4bf92f3577b34da6a3ce929d0e0e4703"}
				for i, trace := range traces {
					f.headers(uint32(2*i+1), false, asking("baggage", "sidetrack="+key, "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")...)
				}
				s, other := <-streams, <-streams
				for _, trace := range traces {
					if n := underWay(l, trace); n != 1 {
						t.Errorf("%d calls are under way", n)
					}
				}
				tc.end(f, s)
				want := tc.want
				switch {
				case want == answerReset && !primary:
					want = answerCut // the client's connection goes on
				case want == "":
					// One that the client has not ended is over for the server alone.
					_ = f.WriteData(s.id, true, nil)
				}
				ended := traces
				if tc.want == "" || strings.Contains(tc.name, "reset") {
					ended = traces[:1]
				}
				for _, r := range w.records(l, pr42, len(ended)) {
					if r.Error != want || r.Answer == nil || r.Answer.Pod != answered {
						t.Errorf("the record says %q, answered by %+v, want %q", r.Error, r.Answer, want)
					}
				}
				for _, trace := range ended {
					w.eventually("the stream is not under way", func() bool { return underWay(l, trace) == 0 })
				}
				if len(ended) == 2 {
					return
				}
				if n := underWay(l, traces[1]); n != 1 {
					t.Errorf("%d calls are under way after another one's end", n)
				}
				other.headers(other.id, true, ":status", "200")
				f.answer(other.id, "200")
			})
		}
	}
}

// TestAStreamThatIsHeldIsUnderWay, also where the caller gives it up before anything of it
// has been sent.
func TestAStreamThatIsHeldIsUnderWay(t *testing.T) {
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, primary := range []bool{true, false} {
		var told ledger.Announcement
		said := make(chan struct{})
		w, l := newLedgerWorld(t, withCart, propagating, func(w *world) {
			w.router.cfg.Ledger.Announce(func(a ledger.Announcement) { told = a; close(said) })
		})
		w.serveHTTP2(w.base, telling(w.base))
		pod, addr := w.fork, "10.96.0.7:80"
		if primary {
			pod, addr = w.fork2, netip.AddrPortFrom(w.fork2.IPv4, 8080).String()
		}
		streams := w.leaveStreams(pod)
		f := w.frames(w.dialAt(w.client, addr))
		ask := func(id uint32) {
			f.headers(id, true, asking("baggage", "sidetrack="+key, "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")...)
		}
		ask(1)
		<-said
		ask(3)
		if err := f.WriteRSTStream(1, wire.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
		if r := w.records(l, pr42, 1)[0]; r.Error != "the caller reset the stream" {
			t.Errorf("the record: %+v", r)
		}
		w.eventually("one stream is under way", func() bool { return underWay(l, trace) == 1 })
		told.Told()
		s := <-streams
		if s.id != 3 && s.id != 1 { // 1: the limit was over before it was reset
			t.Errorf("stream %d has come", s.id)
		}
		for s.id != 3 {
			s = <-streams
		}
		s.headers(s.id, true, ":status", "200")
		f.answer(3, "200")
		w.records(l, pr42, 2)
		w.eventually("no stream is under way", func() bool { return underWay(l, trace) == 0 })
	}
}

// TestAStreamThatMovesIsNotUnderWayAnyMore: this router never hears of its end.
func TestAStreamThatMovesIsNotUnderWayAnyMore(t *testing.T) {
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	w, l := newLedgerWorld(t)
	w.serveHTTP2(w.base, telling(w.base))
	streams := w.leaveStreams(w.fork)
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key, "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")...)
	s := <-streams
	if n := underWay(l, trace); n != 1 {
		t.Errorf("%d calls are under way", n)
	}
	w.moveAll(w.router, w.another(), true)
	if r := w.records(l, pr42, 1)[0]; r.Error != movedAway {
		t.Errorf("the record: %+v", r)
	}
	w.eventually("the stream is not under way", func() bool { return underWay(l, trace) == 0 })
	s.headers(s.id, true, ":status", "200")
	f.answer(1, "200")
}

// TestWhoeverHasAnAnswerFindsItOnRecordOrUnderWay, whoever has answered: its trace would
// be taken for whole otherwise.
func TestWhoeverHasAnAnswerFindsItOnRecordOrUnderWay(t *testing.T) {
	for _, protocol := range []string{"HTTP/1", "HTTP/2"} {
		t.Run(protocol, func(t *testing.T) {
			w, l := newLedgerWorld(t)
			w.serveHTTP2(w.base, telling(w.base))
			w.serveHTTP2(w.fork, telling(w.fork))
			c := w.dial(w.client)
			ask := func(_ int, traceparent string) string {
				c.send(get(tagged + "Traceparent: " + traceparent + "\r\n"))
				resp, _ := c.response("GET")
				return resp.Status
			}
			if protocol == "HTTP/2" {
				ask = asker(w.frames(c))
			}
			for i := range 200 {
				if i == 100 {
					w.input.Slices[1] = endpoints("route-pr-42")
					w.apply()
					l.SetTable(w.table)
				}
				status := ask(i, fmt.Sprintf("00-4bf92f3577b34da6a3ce929d%08x-00f067aa0ba902b7-01", i+1))
				if l.UnderWay() == 0 {
					if list, _ := l.List(pr42, ledger.Query{}); len(list.Items) != i+1 {
						t.Fatalf("request %d is answered %s, and neither under way nor on record: %d records", i, status, len(list.Items))
					}
				}
			}
		})
	}
}

// asker asks on one stream after the other, and returns the status when the whole answer
// is there.
func asker(f *frames) func(i int, traceparent string) string {
	return func(i int, traceparent string) (status string) {
		id := uint32(2*i + 1)
		f.headers(id, true, asking("baggage", "sidetrack="+key, "traceparent", traceparent)...)
		f.await("the answer's end", func(fr wire.Frame) bool {
			if h, ok := fr.(*wire.MetaHeadersFrame); ok && h.PseudoValue("status") != "" {
				status = h.PseudoValue("status")
			}
			return fr.Header().StreamID == id && fr.Header().Flags.Has(wire.FlagDataEndStream)
		})
		return status
	}
}
