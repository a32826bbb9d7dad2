// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
)

func TestStreamsBeyondWhatALinkAllowsWait(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, false, keyed(keyA)...)
	s.settle()
	a := s.servers["a"]
	a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingMaxConcurrentStreams, Val: 2}))
	s.settle()
	for id := uint32(3); id < 12; id += 2 {
		c.headers(id, false, keyed(keyA)...)
		c.data(id, 50, id == 5)
	}
	s.settle()
	if len(a.streams) != 2 {
		t.Fatalf("%d streams were opened, want 2", len(a.streams))
	}
	c.reset(7, wire.ErrCodeCancel)
	for id := uint32(1); id < 12; id += 2 {
		if id == 7 {
			continue
		}
		s.settle()
		if x := a.streams[id]; x == nil || id > 1 && len(x.got.data) != 50 {
			t.Fatalf("stream %d: %+v", id, x)
		}
		a.headers(id, true, status("200")...)
		a.reset(id, wire.ErrCodeNo)
	}
	s.settle()
	if a.streams[7] != nil {
		t.Error("a stream that was given up while it waited was opened")
	}
	if s.relay.Open() != 0 {
		t.Errorf("%d streams are still open", s.relay.Open())
	}
}

func TestWhatCannotBeFollowedIsForTheServerToRefuse(t *testing.T) {
	for name, bad := range map[string][]byte{
		"an index of no entry":            frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders|wire.FlagHeadersEndStream, 1, "\xff\xff\xff\x00"),
		"a block that ends in the middle": frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders, 1, "\x40\x05ab"),
		"more padding than payload":       frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders|wire.FlagHeadersPadded, 1, "\x09\x82"),
		"a header block of no stream":     frame(wire.FrameHeaders, wire.FlagHeadersEndHeaders, 0, "\x82"),
		"a CONTINUATION of nothing":       frame(wire.FrameContinuation, wire.FlagContinuationEndHeaders, 1, "\x82"),
		"a block that is not continued":   append(frame(wire.FrameHeaders, 0, 1, "\x82"), frame(wire.FramePing, 0, 0, "12345678")...),
		"a block continued on another":    append(frame(wire.FrameHeaders, 0, 1, "\x82"), frame(wire.FrameContinuation, 4, 3, "\x84")...),
		"a promise":                       frame(wire.FramePushPromise, 4, 1, "\x00\x00\x00\x02\x82"),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{})
			s.settle()
			base := s.servers["base"]
			before := len(base.all)
			s.client.toRelay.Write(bad)
			for s.deliver(s.client, 3) {
			}
			if got := base.all[before:]; !bytes.Equal(got, bad) {
				t.Errorf("the baseline has got %x, want %x", got, bad)
			}
			s.client.headers(3, true, keyed(keyA)...)
			for s.deliver(s.client, 1000) {
			}
			if !s.relay.Over() || s.counts[Untraceable] != 1 || !bytes.Equal(base.all[before:], bad) {
				t.Errorf("a stream after that: over %v, %v, the baseline has got %x", s.relay.Over(), s.counts, base.all[before:])
			}
		})
	}
}

func frame(typ wire.FrameType, flags wire.Flags, stream uint32, payload string) []byte {
	return append(appendHead(nil, head{length: len(payload), typ: typ, flags: flags, stream: stream}), payload...)
}

func TestAKeyInABlockThatCannotBeReadReachesNobody(t *testing.T) {
	s := newScene(t, Limits{})
	s.settle()
	base := s.servers["base"]
	before := len(base.all)
	block := "\x82\x40\x0fx-sidetrack-key\x08" + keyA + "\xff\xff\xff\x00"
	s.client.toRelay.Write(frame(wire.FrameHeaders, 5, 1, block))
	for s.deliver(s.client, 1000) {
	}
	if !s.relay.Over() || len(base.all) != before {
		t.Errorf("over %v, the baseline has got %x", s.relay.Over(), base.all[before:])
	}
}

func TestAttacksAreBounded(t *testing.T) {
	settings := frame(wire.FrameSettings, 0, 0, "")
	for _, tt := range []struct {
		name   string
		frames func(i int) []byte
		want   Reason
		most   int // frames
	}{
		{"SETTINGS", func(int) []byte { return settings }, TooManyFrames, 30_000},
		{"PING", func(int) []byte { return frame(wire.FramePing, 0, 0, "12345678") }, TooManyFrames, 30_000},
		{"PRIORITY", func(int) []byte { return frame(wire.FramePriority, 0, 1, "\x00\x00\x00\x00\x01") }, TooManyFrames, 30_000},
		{"an unknown type", func(int) []byte { return frame(0x77, 0, 0, "") }, TooManyFrames, 30_000},
		{"WINDOW_UPDATE", func(int) []byte { return frame(wire.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01") }, TooManyFrames, 30_000},
		{"empty DATA", func(int) []byte { return frame(wire.FrameData, 0, 1, "") }, TooManyFrames, 30_000},
		{"rapid reset", func(i int) []byte {
			id := uint32(2*i + 3)
			return append(frame(wire.FrameHeaders, 4, id, "\x82\x86\x84"), frame(wire.FrameRSTStream, 0, id, "\x00\x00\x00\x08")...)
		}, TooManyFrames, 5000},
		{"empty CONTINUATION", func(i int) []byte {
			if i == 0 {
				return frame(wire.FrameHeaders, 0, 3, "\x82")
			}
			return frame(wire.FrameContinuation, 0, 3, "")
		}, TooManyFrames, 150_000},
		{"CONTINUATION", func(i int) []byte {
			if i == 0 {
				return frame(wire.FrameHeaders, 0, 3, "\x82")
			}
			return frame(wire.FrameContinuation, 0, 3, strings.Repeat("\x82", 10_000))
		}, HeadersTooLong, 200},
		{"streams", func(i int) []byte { return frame(wire.FrameHeaders, 4, uint32(2*i+3), "\x82\x86\x84") }, TooManyStreams, 11_000},
		{"an HPACK bomb", func(i int) []byte {
			return frame(wire.FrameHeaders, 5, uint32(2*i+3), "\x40\x01a\x7f\xa1\x1e"+strings.Repeat("x", 4000)+strings.Repeat("\xbe", 10_000))
		}, HeadersTooLong, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, Limits{})
			s.client.headers(1, false, keyed("")...)
			s.settle()
			n := 0
			for ; !s.relay.Over() && n <= tt.most; n++ {
				s.client.toRelay.Write(tt.frames(n))
				s.deliver(s.client, 1<<20)
				s.servers["base"].fromRelay.Reset()
				s.servers["base"].all = nil
			}
			if !s.relay.Over() || s.counts[tt.want] != 1 {
				t.Fatalf("after %d: over %v, %v", n, s.relay.Over(), s.counts)
			}
			s.client.take()
			if g := s.client.goAways; len(g) != 1 || g[0].ErrCode != wire.ErrCodeEnhanceYourCalm {
				t.Errorf("the client was told %+v", g)
			}
		})
	}
}

func TestAnAttackersPaceIsAllowedForAWhileIfItIsSlow(t *testing.T) {
	s := newScene(t, Limits{})
	for range 100_000 {
		s.client.toRelay.Write(frame(wire.FramePing, 0, 0, "12345678"))
		s.deliver(s.client, 1000)
		s.now += int64(1e9) / 9000
		s.servers["base"].fromRelay.Reset()
		s.servers["base"].all = nil
	}
	if s.relay.Over() {
		t.Errorf("9000 pings a second are too much: %v", s.counts)
	}
}

func TestALargeTableIsMadeSmaller(t *testing.T) {
	s := newScene(t, Limits{})
	s.client.must(s.client.write.WriteSettings(wire.Setting{ID: 5, Val: 20000}, wire.Setting{ID: wire.SettingHeaderTableSize, Val: 1 << 31}, wire.Setting{ID: 0xcc, Val: 1}))
	s.settle()
	want := []wire.Setting{{ID: 5, Val: 20000}, {ID: wire.SettingHeaderTableSize, Val: DefaultTableBytes}, {ID: 0xcc, Val: 1}}
	if got := s.servers["base"].settings; !slices.Equal(got, want) || s.counts[TableLowered] != 1 {
		t.Errorf("the baseline was told %v, want %v (%v)", got, want, s.counts)
	}
}

func TestAForkThatBreaksTheProtocolHarmsNobodyElse(t *testing.T) {
	data := func(n int) []byte { return frame(wire.FrameData, 0, 3, strings.Repeat("x", n)) }
	for name, bad := range map[string][]byte{
		"a block that cannot be read": frame(wire.FrameHeaders, 4, 3, "\xff\xff\xff\x00"),
		"a CONTINUATION of nothing":   frame(wire.FrameContinuation, 4, 3, "\x88"),
		"data before the answer":      data(1),
		"data behind the end":         append(frame(wire.FrameHeaders, 5, 3, "\x88"), data(1)...),
		"a head behind the end":       append(frame(wire.FrameHeaders, 5, 3, "\x88"), frame(wire.FrameHeaders, 5, 3, "\x88")...),
		"more than the window":        append(frame(wire.FrameHeaders, 4, 3, "\x88"), bytes.Repeat(data(16384), 5)...),
		"a frame that is too large":   append(frame(wire.FrameHeaders, 4, 3, "\x88"), data(16385)...),
		"a promise":                   frame(wire.FramePushPromise, 4, 3, "\x00\x00\x00\x02\x82"),
		"malformed SETTINGS":          frame(wire.FrameSettings, 0, 0, "12345"),
		"a malformed WINDOW_UPDATE":   frame(wire.FrameWindowUpdate, 0, 0, "12345"),
		"a window that overflows":     frame(wire.FrameWindowUpdate, 0, 0, "\x7f\xff\xff\xff"),
		"a malformed RST_STREAM":      frame(wire.FrameRSTStream, 0, 3, "12345"),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{})
			c := s.client
			c.headers(1, true, keyed("")...)
			c.headers(3, false, keyed(keyA)...)
			s.settle()
			a := s.servers["a"]
			a.toRelay.Write(bad)
			for s.deliver(a, 5000) {
			}
			c.take()
			if !a.ended || s.counts[ServerError] != 1 || !c.streams[3].got.reset && !c.streams[3].got.end {
				t.Errorf("closed %v, %v, the client's stream %+v", a.ended, s.counts, c.streams[3].got)
			}
			s.servers["base"].headers(1, true, status("200")...)
			s.settle()
			if !c.streams[1].got.end {
				t.Error("the baseline's stream does not go on")
			}
		})
	}
}
