// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"fmt"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// held is a scene whose streams wait on a second link to the baseline that says nothing
// yet, from number 3 on those of ids.
func heldScene(t *testing.T, ids ...uint32) *scene {
	s := newScene(t, Limits{})
	s.second = true
	s.hold = func(stream uint32) bool {
		for _, id := range ids {
			if id == stream {
				return true
			}
		}
		return false
	}
	s.client.headers(1, true, keyed("")...)
	s.settle()
	return s
}

// settleBut delivers everything but what the second link's server says.
func (s *scene) settleBut() {
	s.t.Helper()
	for moved := true; moved; {
		moved = false
		for _, e := range s.endpoints() {
			if e.name != "second" {
				moved = s.deliver(e, 64<<10) || moved
			}
			e.take()
		}
	}
}

// TestNothingIsOpenedOnASecondLinkBeforeItsServerHasSpoken, also of what need not be held
// any more.
func TestNothingIsOpenedOnASecondLinkBeforeItsServerHasSpoken(t *testing.T) {
	s := heldScene(t, 3, 7)
	c := s.client
	c.headers(3, false, keyed("")...)
	c.headers(5, true, keyed("")...)
	c.headers(7, true, keyed("")...)
	sent := c.data(3, 30_000, false)
	s.settleBut()
	s.letGo()
	s.letGo()
	s.settleBut()
	base, second := s.servers["base"], s.servers["second"]
	if len(second.streams) > 0 || base.streams[5] == nil || s.relay.CanMove() {
		t.Fatalf("the second link's server has heard of streams: %v", second.streams)
	}
	if c.maySendConn != int64(initialWindow-sent) {
		t.Errorf("the client may send %d bytes: they could be too much on the primary link", c.maySendConn)
	}
	s.settle()
	if x := second.streams[3]; x == nil || len(x.got.data) != sent || second.streams[7] == nil {
		t.Errorf("the second link's server knows of %v", second.streams)
	}
	if c.maySendConn != initialWindow {
		t.Errorf("the client may send %d bytes", c.maySendConn)
	}
	if len(s.links) != 2 || !s.links["second"].Proven() || s.links["second"].Answered() {
		t.Errorf("links: %+v", s.links)
	}
	second.headers(3, true, status("200")...)
	s.settle()
	if !s.links["second"].Answered() {
		t.Error("an answer is not noticed")
	}
}

// TestStreamsGoByThePrimaryLinkWhereTheSecondIsNotServed, with all that has come of them,
// and in the order of their numbers.
func TestStreamsGoByThePrimaryLinkWhereTheSecondIsNotServed(t *testing.T) {
	goAway := func(s *scene) {
		e := s.servers["second"]
		e.toRelay.Reset()
		e.must(e.write.WriteGoAway(0, wire.ErrCodeNo, nil))
		s.second = false
		s.settle()
	}
	for name, end := range map[string]func(*scene){
		"ends":   (*scene).endSecond,
		"GOAWAY": goAway,
		"no frames": func(s *scene) {
			s.second = false
			s.servers["second"].toRelay.Reset()
			s.servers["second"].toRelay.WriteString(strings.Repeat("\xff", 100))
			s.settle()
		},
		"after that": func(s *scene) { s.settle(); goAway(s) }, // no stream has been opened
	} {
		t.Run(name, func(t *testing.T) {
			s := heldScene(t, 3, 5, 7, 9, 11)
			c := s.client
			c.headers(3, false, append(keyed(""), hpack.HeaderField{Name: "x-again", Value: "3"})...)
			c.headers(5, true, append(keyed(""), hpack.HeaderField{Name: "x-again", Value: "3"})...)
			c.headers(7, false, keyed("")...)
			c.headers(9, false, keyed("")...)
			c.headers(11, true, keyed("")...)
			if name != "after that" {
				c.data(3, 20_000, false)
				c.data(7, 100, false)
				c.headers(7, true, hpack.HeaderField{Name: "x-trailer", Value: "7"})
				// Padding takes its part of the windows and is not passed on.
				c.must(c.write.WriteDataPadded(9, false, []byte("0123456789"), make([]byte, 99)))
				c.stream(9).sent.data = []byte("0123456789")
				c.stream(9).maySend -= 110
				c.maySendConn -= 110
			}
			c.reset(11, wire.ErrCodeCancel)
			c.must(c.write.WriteWindowUpdate(3, 1234))
			c.stream(3).mayGet += 1234
			c.must(c.write.WriteRawFrame(0xf0, 0, 3, []byte("nobody knows this")))
			s.settleBut()
			base := s.servers["base"]
			end(s)
			s.settle()
			for _, id := range []uint32{3, 5, 7, 9} {
				x := base.streams[id]
				if x == nil || s.routed[id] != "base" {
					t.Fatalf("stream %d is not on the primary link: %v", id, base.streams)
				}
				compare(t, fmt.Sprint("stream ", id), &c.streams[id].sent, &x.got, false)
			}
			if base.streams[11] != nil || len(s.servers["second"].streams) > 0 {
				t.Errorf("the baseline knows of stream 11, or its second connection of %v", s.servers["second"].streams)
			}
			if base.streams[3].maySend != initialWindow+1234 || name != "after that" && c.streams[9].maySend != initialWindow-10 {
				t.Errorf("windows: the server may send %d, the client %d", base.streams[3].maySend, c.streams[9].maySend)
			}
			// All windows are what they would be without a second link: the endpoints keep
			// account of them.
			for range 5 {
				c.data(3, 60_000, false)
				s.settle()
				base.pay()
				s.settle()
			}
			c.data(3, 10, true)
			c.data(9, 10, true)
			if name == "after that" {
				c.data(7, 0, true)
			}
			for _, id := range []uint32{3, 5, 7, 9} {
				base.headers(id, false, status("200")...)
				base.data(id, 1000, true)
			}
			s.settle()
			base.pay()
			s.settle()
			for _, id := range []uint32{3, 5, 7, 9} {
				compare(t, fmt.Sprint("stream ", id), &c.streams[id].sent, &base.streams[id].got, false)
				compare(t, fmt.Sprint("the answer on stream ", id), &base.streams[id].sent, &c.streams[id].got, false)
			}
			base.headers(1, true, status("200")...)
			s.settle()
			if c.maySendConn != initialWindow || s.relay.Open() != 0 || s.relay.waiting+s.relay.buffered != 0 || s.relay.primary.streams != 0 {
				t.Errorf("the client may send %d; %d streams are open, %d and %d bytes wait", c.maySendConn, s.relay.Open(), s.relay.waiting, s.relay.buffered)
			}
			if c.headers(13, true, keyed("")...); len(s.ended) != 5 {
				t.Errorf("the ends of %d streams have been told", len(s.ended))
			}
			s.settle()
			if base.streams[13] == nil {
				t.Error("a stream after these does not arrive")
			}
		})
	}
}

// TestAStreamIsNotOpenedBehindANewerOne: a server would take that for an error of the
// connection (RFC 9113, section 5.1.1). Nor is one whose server has said that it is not
// going to serve it, nor one of which too much has come.
func TestAStreamIsNotOpenedBehindANewerOne(t *testing.T) {
	for name, do := range map[string]func(*scene){
		"a newer one": func(s *scene) { s.client.headers(5, true, keyed("")...) },
		"GOAWAY": func(s *scene) {
			s.servers["base"].must(s.servers["base"].write.WriteGoAway(1, wire.ErrCodeNo, nil))
		},
		"a smaller window": func(s *scene) {
			s.client.data(3, 5000, false)
			s.settleBut()
			s.servers["base"].must(s.servers["base"].write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 4999}))
		},
		"the primary link has gone": func(s *scene) { s.relay.LinkEnded(s.relay.Primary()) },
	} {
		t.Run(name, func(t *testing.T) {
			s := heldScene(t, 3, 7)
			c := s.client
			c.headers(3, false, keyed("")...)
			s.settleBut()
			do(s)
			s.settleBut()
			if name == "a newer one" {
				c.headers(7, true, keyed("")...)
				s.settleBut()
			}
			s.endSecond()
			s.settle()
			if x := c.streams[3].got; !x.reset || x.code != wire.ErrCodeRefusedStream || s.servers["base"].streams[3] != nil {
				t.Errorf("the stream was not refused: %+v, baseline %v", x, s.servers["base"].streams)
			}
			if name == "a newer one" && s.servers["base"].streams[7] == nil {
				t.Error("the newest stream was not opened")
			}
			if c.maySendConn != initialWindow {
				t.Errorf("the client may send %d", c.maySendConn)
			}
		})
	}
}

// TestAStreamMayGoByThePrimaryLinkInTheMiddleOfAFrame that is longer than is waited for.
func TestAStreamMayGoByThePrimaryLinkInTheMiddleOfAFrame(t *testing.T) {
	for _, at := range []int{headLen, headLen + 1, 20_000, 49_900, 49_999} {
		s := heldScene(t, 3)
		c, base := s.client, s.servers["base"]
		base.must(base.write.WriteSettings(wire.Setting{ID: wire.SettingMaxFrameSize, Val: 60_000}))
		s.settle()
		c.headers(3, false, keyed("")...)
		s.settleBut()
		payload := []byte(strings.Repeat("0123456789", 4990))
		c.must(c.write.WriteDataPadded(3, true, payload, make([]byte, 99)))
		c.stream(3).sent.data, c.stream(3).sent.end = payload, true
		c.maySendConn -= 50_000
		s.deliver(c, headLen+at)
		s.endSecond()
		s.settle()
		compare(t, fmt.Sprint("cut at ", at), &c.streams[3].sent, &base.streams[3].got, false)
		base.headers(3, true, status("200")...)
		base.headers(1, true, status("200")...)
		base.pay()
		s.settle()
		if c.maySendConn != initialWindow || s.relay.Open() != 0 || s.relay.buffered != 0 {
			t.Errorf("cut at %d: the client may send %d; %d streams are open, %d bytes wait", at, c.maySendConn, s.relay.Open(), s.relay.buffered)
		}
	}
}

// TestAStreamThatIsHeldSaysNothingToItsServer before it is opened, and nothing is lost of
// what the client has allowed it.
func TestAStreamThatIsHeldSaysNothingToItsServer(t *testing.T) {
	s := newScene(t, Limits{})
	s.hold = func(stream uint32) bool { return stream == 3 }
	c := s.client
	c.headers(1, true, keyed(keyA)...)
	c.headers(3, true, keyed(keyA)...)
	s.settle()
	c.must(c.write.WriteWindowUpdate(3, 100_000))
	c.must(c.write.WritePriority(3, wire.PriorityParam{Weight: 7}))
	c.must(c.write.WriteRawFrame(0xf0, 0, 3, []byte("nobody knows this")))
	c.must(c.write.WriteRawFrame(0xf0, 0, 3, make([]byte, waitFor+1)))
	c.stream(3).mayGet += 100_000
	s.settle()
	a := s.servers["a"]
	if a.streams[3] != nil || len(a.others) > 0 {
		t.Errorf("the server knows of the stream: %v, %v", a.streams[3], a.others)
	}
	s.letGo()
	s.settle()
	if x := a.streams[3]; x == nil || x.maySend != initialWindow+100_000 {
		t.Errorf("the server's side of the stream: %+v", x)
	}
}
