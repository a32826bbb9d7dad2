// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestTheClientHearsTheServersSettingsFirst: a client that does not wait for them
// may have sent streams to forks by then, which are quicker, or refused.
func TestTheClientHearsTheServersSettingsFirst(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*scene)
		want string // what stream 1 gets
	}{
		{"and then a fork's answer", func(s *scene) {
			a := s.servers["a"]
			for s.deliver(a, 64<<10) {
			}
			a.take()
			a.headers(1, true, status("200")...)
			for s.deliver(a, 64<<10) {
			}
			s.deliver(s.servers["base"], 1<<10)
		}, ":status=200; "},
		{"or the relay's, and then its refusal", func(s *scene) {
			s.relay.LinkFailed(s.links["a"], func(uint32) string { return "nobody is there" })
			s.relay.LinkEnded(s.relay.Primary())
		}, ":status=503; content-type=text/plain; charset=utf-8; content-length=15; "},
		{"or the relay's, and then that it gives up", func(s *scene) {
			s.client.toRelay.Write(frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders, 2, "\x82"))
			s.deliver(s.client, 1<<10)
			if !s.relay.Over() {
				t.Error("it does not give up")
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, Limits{})
			s.client.headers(1, false, keyed(keyA)...)
			for s.deliver(s.client, 64<<10) {
			}
			// What is refunded is held back as well.
			s.client.data(1, 1000, true)
			for s.deliver(s.client, 64<<10) {
			}
			if n := len(s.client.all); n != 0 {
				t.Fatalf("the client has heard %d bytes", n)
			}
			if !s.relay.Midway() || s.relay.Buffered() == 0 {
				t.Error("other links are read, and what waits does not count")
			}
			tt.do(s)
			s.client.take()
			if !bytes.HasPrefix(s.client.all, frame(wire.FrameSettings, 0, 0, "")) {
				t.Errorf("the first frame is %x", s.client.all[:min(len(s.client.all), 9)])
			}
			got := ""
			if x := s.client.streams[1]; len(x.got.blocks) > 0 {
				got = x.got.blocks[0]
			}
			if got != tt.want {
				t.Errorf("the stream gets %q, want %q", got, tt.want)
			}
		})
	}
}

// TestFramesThatAreTooLongEndTheConnectionWhereverTheyGo: what is encoded anew would
// otherwise turn into frames that are in order.
func TestFramesThatAreTooLongEndTheConnectionWhereverTheyGo(t *testing.T) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range append(keyed(keyA), hpack.HeaderField{Name: "x-long", Value: strings.Repeat("~", 20_000)}) {
		if err := e.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	for name, send := range map[string]func(*scene){
		"the headers of a fork's stream": func(s *scene) {
			s.client.toRelay.Write(frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders, 1, block.String()))
		},
		"a part of them": func(s *scene) {
			s.client.toRelay.Write(frame(wire.FrameHeaders, 0, 1, block.String()[:10]))
			s.client.toRelay.Write(frame(wire.FrameContinuation, wire.FlagContinuationEndHeaders, 1, block.String()[10:]))
		},
		"data of a fork's stream": func(s *scene) {
			s.client.headers(1, false, keyed(keyA)...)
			s.settle()
			s.client.toRelay.Write(frame(wire.FrameData, 0, 1, strings.Repeat("x", leastMaxFrame+1)))
		},
		"more of it": func(s *scene) {
			s.client.headers(1, false, keyed(keyA)...)
			s.settle()
			s.client.toRelay.Write(frame(wire.FrameData, 0, 1, strings.Repeat("x", 3*leastMaxFrame)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{})
			s.watch = true
			s.settle()
			send(s)
			for s.deliver(s.client, 10_000) && !s.relay.Over() {
			}
			s.relay.Ended("")
			if len(s.ended) != len(s.routed) {
				t.Errorf("of %d streams that leave records %d have ended", len(s.routed), len(s.ended))
			}
			s.client.take()
			if g := s.client.goAways; !s.relay.Over() || len(g) != 1 || g[0].ErrCode != wire.ErrCodeFrameSize {
				t.Errorf("over: %v, GOAWAYs %+v", s.relay.Over(), g)
			}
			if a := s.servers["a"]; a != nil {
				a.take()
				if x := a.streams[1]; x != nil && (len(x.got.data) > 0 || len(x.got.blocks) > 1) {
					t.Errorf("the fork has got %+v", x.got)
				}
			}
		})
	}
	t.Run("a server may allow more", func(t *testing.T) {
		s := newScene(t, Limits{})
		base := s.servers["base"]
		base.must(base.write.WriteSettings(wire.Setting{ID: wire.SettingMaxFrameSize, Val: 1 << 20}))
		s.settle()
		s.client.toRelay.Write(frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders|wire.FlagHeadersEndStream, 1, block.String()))
		s.settle()
		if x := s.servers["a"].streams[1]; s.relay.Over() || x == nil || !x.got.end {
			t.Errorf("over: %v, the fork's stream %+v", s.relay.Over(), x)
		}
	})
}

// TestAPingGoesWhereTheClientHeardFromLast: a gRPC server takes PINGs on a
// connection on which it has said nothing for an attack.
func TestAPingGoesWhereTheClientHeardFromLast(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed(keyA)...)
	c.headers(3, true, keyed("")...)
	s.settle()
	a, base := s.servers["a"], s.servers["base"]
	n := byte(0)
	ping := func(want *endpoint, answered bool) {
		t.Helper()
		n++
		heard := len(want.pings)
		c.must(c.write.WritePing(false, [8]byte{n}))
		if !answered {
			s.deliver(c, 1<<10)
			want.take()
		} else {
			s.settle()
			s.settle()
			if !slices.Contains(c.pongs, string([]byte{n, 0, 0, 0, 0, 0, 0, 0})) {
				t.Errorf("ping %d is not answered: %q", n, c.pongs)
			}
		}
		if len(want.pings) != heard+1 {
			t.Errorf("ping %d did not reach %s", n, want.name)
		}
	}
	ping(base, true)
	a.headers(1, false, status("200")...)
	s.settle()
	ping(a, true)
	base.headers(3, false, status("200")...)
	s.settle()
	ping(base, true)
	a.data(1, 100, false)
	s.settle()
	ping(a, true)
	s.mustMove()
	ping(a, true)
	// It ends with a ping under way, which the relay answers.
	ping(a, false)
	s.relay.LinkEnded(s.links["a"])
	a.ended = true
	s.settle()
	if !slices.Contains(c.pongs, string([]byte{n, 0, 0, 0, 0, 0, 0, 0})) {
		t.Errorf("nobody answers for the link that has ended: %q", c.pongs)
	}
	ping(base, true)
}

func TestASlowServersSettingsComeLater(t *testing.T) {
	s := newScene(t, Limits{})
	c, base := s.client, s.servers["base"]
	c.headers(1, true, keyed(keyA)...)
	c.headers(3, true, keyed(keyNone)...)
	s.deliver(c, 10_000)
	a := s.servers["a"]
	a.take()
	a.headers(1, true, status("200")...)
	s.deliver(a, 10_000)
	if len(c.all) != 0 || !s.relay.Awaiting() {
		t.Fatalf("the client has heard %x", c.all)
	}
	s.relay.Greet()
	c.take()
	if !c.streams[1].got.end || !c.streams[3].got.end {
		t.Error("the answers still wait")
	}
	s.settle()
	s.settle()
	if base.acks != 1 || c.acks != 1 {
		t.Errorf("%d and %d acknowledgements, want 1 and 1", base.acks, c.acks)
	}
	if got := bytes.Count(c.all, frame(wire.FrameSettings, 0, 0, "")); got != 2 {
		t.Errorf("%d SETTINGS, want the relay's and the server's", got)
	}
}
