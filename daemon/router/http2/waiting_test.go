// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"fmt"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestALinkThatIsFullStallsNobodyElse: its server allows more than anybody would
// keep, and does not read.
func TestALinkThatIsFullStallsNobodyElse(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	s.settle()
	c.headers(1, false, keyed(keyA)...)
	c.headers(3, false, keyed(keyB)...)
	s.settle()
	a, b, link := s.servers["a"], s.servers["b"], s.links["a"]
	a.myInitial, a.mayGetConn = 1<<30, a.mayGetConn+1<<30
	for _, x := range a.streams {
		x.mayGet += 1<<30 - initialWindow
	}
	a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1 << 30}))
	a.must(a.write.WriteWindowUpdate(0, 1<<30))
	s.settle()
	// As long as it reads it gets all, without having to ask.
	sent := 0
	for range 20 {
		sent += c.data(1, 60_000, false)
		s.settle()
	}
	before := sent
	if got := len(a.streams[1].got.data); got != sent || sent != 1_200_000 {
		t.Fatalf("the fork has got %d of %d bytes, of 1,200,000", got, sent)
	}
	link.Full = true
	c.headers(5, true, keyed(keyA)...)
	for range 100 {
		sent += c.data(1, 50_000, false)
		c.data(3, 10_000, false)
		s.settle()
		b.pay()
	}
	kept := s.relay.Buffered()
	if got := len(a.streams[1].got.data); got != before || kept != sent-got || int64(kept) > s.limits.streamWindow() || kept == 0 {
		t.Errorf("the fork has got %d bytes, %d of %d are kept", got, kept, sent)
	}
	if a.streams[5] != nil {
		t.Error("a stream has been opened on a link that is full")
	}
	if got := len(b.streams[3].got.data); got != 1_000_000 || s.relay.withheld != 0 {
		t.Errorf("the other fork has got %d bytes, %d are withheld from the client", got, s.relay.withheld)
	}
	s.relay.Resumed(link)
	s.settle()
	for range 5 {
		sent += c.data(1, 100_000, false)
		s.settle()
	}
	if got := len(a.streams[1].got.data); got != sent || s.relay.Buffered() != 0 || a.streams[5] == nil || !a.streams[5].got.end {
		t.Errorf("the fork has got %d of %d bytes, stream 5: %+v", got, sent, a.streams[5])
	}
}

// TestAForkCannotFillTheMemoryForAClientThatDoesNotRead: windows bound nothing but
// the payload of DATA.
func TestAForkCannotFillTheMemoryForAClientThatDoesNotRead(t *testing.T) {
	for name, more := range map[string][]byte{
		"empty DATA":       frame(wire.FrameData, 0, 3, ""),
		"DATA of a byte":   frame(wire.FrameData, 0, 3, "x"),
		"interim answers":  frame(wire.FrameHeaders, 4, 3, "\x08\x03103"),
		"resets":           frame(wire.FrameRSTStream, 0, 3, "\x00\x00\x00\x00"),
		"padding in pairs": frame(wire.FrameData, wire.FlagDataPadded, 3, "\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{Links: 1})
			c := s.client
			c.myInitial = 1 << 20
			c.must(c.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1 << 20}))
			c.headers(1, true, keyed("")...)
			c.headers(3, false, keyed(keyA)...)
			s.settle()
			a := s.servers["a"]
			a.headers(3, false, status("200")...)
			a.data(3, initialWindow+10, false)
			s.settle()
			n := 0
			for ; !a.ended && n < 100_000; n += 100 {
				for range 100 {
					a.toRelay.Write(more)
				}
				s.deliver(a, 64<<10)
			}
			if !a.ended || s.relay.kept != 0 || len(s.relay.stalled) != 0 {
				t.Fatalf("after %d frames: closed %v, %d bytes of %d streams are kept", n, a.ended, s.relay.kept, len(s.relay.stalled))
			}
			s.servers["base"].headers(1, true, status("200")...)
			s.settle()
			if !c.streams[1].got.end || !c.streams[3].got.reset {
				t.Errorf("the streams are %+v and %+v", c.streams[1].got, c.streams[3].got)
			}
		})
	}
}

// TestAForkThatAsksAndDoesNotReadIsGivenUp: what it has to be answered would be kept
// for it.
func TestAForkThatAsksAndDoesNotReadIsGivenUp(t *testing.T) {
	for name, question := range map[string][]byte{
		"PING":     frame(wire.FramePing, 0, 0, "12345678"),
		"SETTINGS": frame(wire.FrameSettings, 0, 0, ""),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{})
			c := s.client
			c.headers(1, true, keyed("")...)
			c.headers(3, false, keyed(keyA)...)
			s.settle()
			a := s.servers["a"]
			for range maxAnswers/1000 - 1 {
				a.toRelay.WriteString(strings.Repeat(string(question), 1000))
				s.deliver(a, 1<<20)
			}
			if a.ended {
				t.Fatal("it is given up too early")
			}
			a.toRelay.WriteString(strings.Repeat(string(question), 1100))
			s.deliver(a, 1<<20)
			c.take()
			if !a.ended || !c.streams[3].got.reset || s.counts[ServerError] != 1 {
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

// TestRequestsThatWaitForALinkAreBounded: the client may send them somewhere else,
// or later.
func TestRequestsThatWaitForALinkAreBounded(t *testing.T) {
	s := newScene(t, Limits{BufferBytes: 16 << 10})
	c := s.client
	c.headers(1, false, keyed(keyA)...)
	s.settle()
	a := s.servers["a"]
	a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingMaxConcurrentStreams, Val: 1}))
	s.settle()
	const most = waitingRequests * (16 << 10)
	long := append(keyed(keyA), hpack.HeaderField{Name: "x-long", Value: strings.Repeat("x", most/8)})
	refused := 0
	for id := uint32(3); id < 40; id += 2 {
		c.headers(id, true, long...)
		s.settle()
		if x := c.streams[id].got; x.reset {
			refused++
			if x.code != wire.ErrCodeRefusedStream {
				t.Errorf("stream %d: %v", id, x.code)
			}
		}
	}
	if w := s.relay.waiting; refused != 12 || w < most/2 || w > most || s.counts[TooManyStreams] != refused {
		t.Fatalf("%d streams were refused and %d bytes wait; %v", refused, w, s.counts)
	}
	c.reset(3, wire.ErrCodeCancel)
	for id := uint32(1); id < 16; id += 2 {
		s.settle()
		if id != 3 {
			a.headers(id, true, status("200")...)
			a.reset(id, wire.ErrCodeNo)
		}
	}
	s.settle()
	if w, n := s.relay.waiting, s.relay.Open(); w != 0 || n != 0 {
		t.Errorf("%d bytes still wait, and %d streams are open", w, n)
	}
}

// TestTrailersThatWaitForALinkAreBounded: any number of streams may have some.
func TestTrailersThatWaitForALinkAreBounded(t *testing.T) {
	s := newScene(t, Limits{BufferBytes: 16 << 10})
	c := s.client
	trailers := hpack.HeaderField{Name: "x-long", Value: strings.Repeat("x", 15_000)}
	c.headers(1, false, keyed(keyA)...)
	s.settle()
	a := s.servers["a"]
	a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 0}))
	s.settle()
	id := uint32(3)
	for ; id < 100 && !s.relay.Over(); id += 2 {
		c.headers(id, false, keyed(keyA)...)
		c.data(id, 1, false)
		c.headers(id, false, trailers)
		for s.deliver(c, 64<<10) {
		}
	}
	if !s.relay.Over() || s.counts[HeadersTooLong] != 1 || s.relay.waiting > waitingTrailers*(16<<10) {
		t.Errorf("after %d: %d bytes wait; %v", id, s.relay.waiting, s.counts)
	}
}

// TestWhatWaitedForALinkThatEndsWaitsNoMore, also where some of the answer is still
// on its way: the client would be slowed down for ever.
func TestWhatWaitedForALinkThatEndsWaitsNoMore(t *testing.T) {
	for _, end := range []bool{false, true} {
		t.Run(fmt.Sprint("after the answer ", end), func(t *testing.T) {
			s := newScene(t, Limits{})
			c := s.client
			c.myInitial = 1 << 20
			c.must(c.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1 << 20}))
			c.headers(1, false, keyed(keyA)...)
			s.settle()
			a := s.servers["a"]
			a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 0}))
			s.settle()
			c.data(1, 50_000, false)
			a.headers(1, false, status("200")...)
			a.data(1, initialWindow+1000, end)
			s.settle()
			if s.relay.Buffered() != 50_000 || s.relay.kept == 0 {
				t.Fatalf("%d bytes wait for the link and %d for the client", s.relay.Buffered(), s.relay.kept)
			}
			s.relay.LinkEnded(s.links["a"])
			if n := s.relay.Buffered(); n != 0 {
				t.Errorf("%d bytes still wait", n)
			}
			c.take()
			c.pay()
			s.settle()
			if x := c.streams[1].got; len(x.data) != initialWindow+1000 || x.end != end || x.reset == end || s.relay.Open() != 0 || s.relay.kept != 0 {
				t.Errorf("%d bytes have come, end %v, reset %v; %d streams, %d bytes kept", len(x.data), x.end, x.reset, s.relay.Open(), s.relay.kept)
			}
		})
	}
}

// TestMemoryOfLargeBlocksIsGivenBack: a loop's connections share what they use in
// turns, and one attack must not make that large for good.
func TestMemoryOfLargeBlocksIsGivenBack(t *testing.T) {
	s := newScene(t, Limits{})
	s.client.headers(1, true, append(keyed(""), long("x-long", 500_000))...)
	s.settle()
	if len(s.servers["base"].streams) != 1 {
		t.Fatal("the request has not arrived")
	}
	for _, b := range s.relay.sh.free {
		if cap(b) > 64<<10 {
			t.Errorf("%d bytes are kept", cap(b))
		}
	}
}

// TestAStreamThatIsHeldHoldsUpNobodyButThoseBehindItOnItsLink: a server takes streams in
// the order of their numbers alone.
func TestAStreamThatIsHeldHoldsUpNobodyButThoseBehindItOnItsLink(t *testing.T) {
	s := newScene(t, Limits{})
	s.hold = func(stream uint32) bool { return stream == 5 || stream == 7 || stream == 13 || stream == 15 }
	c := s.client
	c.headers(1, false, keyed(keyA)...)
	c.headers(3, false, keyed("")...)
	c.headers(5, false, keyed(keyA)...) // held
	c.data(5, 1000, false)
	c.headers(7, false, keyed("")...) // on the primary link that means nothing
	c.headers(9, true, keyed(keyA)...)
	c.headers(11, false, keyed(keyB)...)
	c.headers(13, true, keyed(keyB)...) // held
	s.settle()
	base, a, b := s.servers["base"], s.servers["a"], s.servers["b"]
	c.data(1, 500, true)
	c.data(3, 500, true)
	c.data(5, 1000, true)
	s.settle()
	if a.streams[5] != nil || a.streams[9] != nil || b.streams[13] != nil {
		t.Error("a stream is held and opened all the same, or one behind it is")
	}
	if !a.streams[1].got.end || !base.streams[3].got.end || base.streams[7] == nil || b.streams[11] == nil {
		t.Error("a stream is held up by another link's, or by one that came later")
	}
	// The client gives one up: nobody waits for it any more, and it is too late to let it
	// go.
	c.reset(13, wire.ErrCodeCancel)
	c.headers(15, true, keyed(keyB)...) // held
	s.settle()
	s.letGo() // 5
	s.settle()
	if x := a.streams[5]; x == nil || len(x.got.data) != 2000 || !x.got.end || a.streams[9] == nil || !a.streams[9].got.end {
		t.Errorf("stream 5, which was let go: %+v; stream 9 behind it: %+v", x, a.streams[9])
	}
	s.letGo() // 13
	s.settle()
	if b.streams[13] != nil || b.streams[15] != nil {
		t.Error("a stream is opened that was reset, or that is held")
	}
	s.letGo() // 15
	s.settle()
	if b.streams[15] == nil || !b.streams[15].got.end || s.relay.waiting != 0 || s.relay.buffered != 0 {
		t.Errorf("stream 15: %+v; %d and %d bytes wait", b.streams[15], s.relay.waiting, s.relay.buffered)
	}
	// A link that takes no more streams, or fails, refuses what is held.
	s.hold = func(uint32) bool { return true }
	c.headers(17, true, keyed(keyA)...)
	c.headers(19, true, keyed(keyB)...)
	s.settle()
	a.must(a.write.WriteGoAway(9, wire.ErrCodeNo, nil))
	s.settle()
	s.relay.LinkFailed(s.links["b"], func(uint32) string { return "sidetrack: gone." })
	s.settle()
	if !c.streams[17].got.reset || len(c.streams[19].got.blocks) != 1 || !c.streams[19].got.end {
		t.Errorf("streams that were held: %+v, %+v", c.streams[17].got, c.streams[19].got)
	}
	s.relay.LetGo(s.links["a"], 17)
	s.relay.LetGo(s.links["b"], 19)
}
