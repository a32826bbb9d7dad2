// SPDX-License-Identifier: Apache-2.0

package router

import (
	"regexp"
	"testing"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestEveryTaggedStreamLeavesARecordAndNoOtherDoes(t *testing.T) {
	w, l := newLedgerWorld(t)
	for _, p := range []*lab.Pod{w.base, w.fork} {
		w.script(p, func(c *peer) {
			c.expect(wire.ClientPreface)
			f := newFrames(c)
			_ = f.WriteSettings()
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					return
				}
				h, ok := fr.(*wire.MetaHeadersFrame)
				if !ok {
					continue
				}
				switch path := h.PseudoValue("path"); path {
				case "/plain":
					f.headers(h.StreamID, false, ":status", "200")
					_ = f.WriteData(h.StreamID, true, []byte("hello"))
				case "/pkg.Service/Method":
					f.headers(h.StreamID, false, ":status", "200", "content-type", "application/grpc")
					f.headers(h.StreamID, true, "grpc-status", "5")
				case "/reset":
					_ = f.WriteRSTStream(h.StreamID, wire.ErrCodeEnhanceYourCalm)
				case "/silence":
					f.headers(h.StreamID, false, ":status", "200")
				}
			}
		})
	}
	f := w.frames(w.dial(w.client))
	ask := func(id uint32, path string, more ...string) {
		f.headers(id, true, append([]string{":method", "GET", ":scheme", "http", ":authority", "route.shop", ":path", path}, more...)...)
		if path != "/reset" {
			f.answer(id, "200")
		}
	}
	tag := []string{"baggage", "sidetrack=" + key}
	ask(1, "/plain")
	ask(3, "/plain", append(tag, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")...)
	ask(5, "/pkg.Service/Method", append(tag, "content-type", "application/grpc")...)
	ask(7, "/plain", "baggage", "sidetrack=a-key-of-nobody")
	ask(9, "/reset", tag...)
	f.await("RST_STREAM", func(fr wire.Frame) bool { return fr.Header().Type == wire.FrameRSTStream })
	ask(11, "/silence", tag...)
	if err := f.WriteRSTStream(11, wire.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	w.records(l, pr42, 4)
	ask(13, "/silence", tag...)
	f.peer.conn.Close()
	got := words(w.records(l, pr42, 5))
	for i, want := range []string{
		`h2 GET route.shop/plain fork redirected 200 \d+>\d+ fork`,
		`grpc GET route.shop/pkg.Service/Method fork redirected 200 \d+>\d+ fork`,
		`h2 GET route.shop/reset fork redirected 0 \d+>0 fork: the answering side reset the stream: ENHANCE_YOUR_CALM`,
		`h2 GET route.shop/silence fork redirected 200 \d+>\d+ fork: the caller reset the stream`,
		`h2 GET route.shop/silence fork redirected 200 \d+>\d+ fork: .*`,
	} {
		if !regexp.MustCompile("^" + want + "$").MatchString(got[i]) {
			t.Errorf("record %d: %s, want %s", i, got[i], want)
		}
	}
	all := w.records(l, pr42, 5)
	if g := all[1].GRPCStatus; g == nil || *g != 5 {
		t.Errorf("the call's status: %v", g)
	}
	if all[0].TraceID != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("the trace: %+v", all[0])
	}
}

func TestAStreamThatTheRouterAnswersLeavesARecord(t *testing.T) {
	w, l := newLedgerWorld(t)
	w.input.Slices = w.input.Slices[:1]
	w.input.Slices = append(w.input.Slices, endpoints("route-pr-43", w.fork2.IPv4))
	w.apply()
	l.SetTable(w.table)
	w.serveHTTP2(w.base, telling(w.base))
	f := w.frames(w.dial(w.client))
	f.headers(1, true, asking("baggage", "sidetrack="+key)...)
	f.answer(1, "503")
	f.headers(3, true, asking("baggage", "sidetrack="+otherKey)...) // nobody listens there
	f.answer(3, "503")
	got := words(w.records(l, pr42, 1))
	if want := `^h2 GET route.shop/ reject unavailable 503 \d+>\d+$`; !regexp.MustCompile(want).MatchString(got[0]) {
		t.Errorf("%s, want %s", got[0], want)
	}
	pr43 := pr42
	pr43.Name.Name = "pr-43"
	got = words(w.records(l, pr43, 1))
	if want := `^h2 GET route.shop/ reject unavailable 503 \d+>\d+: ` + nobodyReached + "$"; !regexp.MustCompile(want).MatchString(got[0]) {
		t.Errorf("%s, want %s", got[0], want)
	}
}
