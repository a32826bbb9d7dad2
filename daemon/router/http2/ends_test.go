// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestAGoAwayOfTheBaselineLosesNoCallOfAFork(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	for i, key := range []string{"", keyA, "", keyA, ""} {
		c.headers(uint32(2*i+1), true, keyed(key)...)
	}
	s.settle()
	base, a := s.servers["base"], s.servers["a"]
	base.must(base.write.WriteGoAway(1, wire.ErrCodeNo, []byte("bye")))
	s.settle()
	if len(c.goAways) != 1 || c.goAways[0].LastStreamID != 7 {
		t.Fatalf("the client was told %+v, want 7 as the last stream", c.goAways)
	}
	if x := c.streams[5].got; !x.reset || x.code != wire.ErrCodeRefusedStream {
		t.Errorf("stream 5, which the baseline has refused: %+v", x)
	}
	// Whatever the client opens before it has heard of it is opened elsewhere.
	c.headers(11, true, keyed(keyA)...)
	c.headers(13, false, keyed("")...)
	c.data(13, 100, true)
	s.settle()
	if a.streams[11] != nil || base.streams[13] != nil {
		t.Error("streams behind the GOAWAY were opened")
	}
	for _, id := range []uint32{3, 7} {
		a.headers(id, true, status("200")...)
	}
	base.headers(1, true, status("200")...)
	s.settle()
	for _, id := range []uint32{1, 3, 7} {
		if x := c.streams[id].got; !x.end || x.reset {
			t.Errorf("stream %d: %+v", id, x)
		}
	}
	if s.relay.Open() != 0 {
		t.Errorf("%d streams are still open", s.relay.Open())
	}
}

func TestALinkThatTakesNoMoreIsReplaced(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed(keyA)...)
	c.headers(3, true, keyed(keyA)...)
	s.settle()
	old := s.servers["a"]
	old.must(old.write.WriteGoAway(1, wire.ErrCodeNo, nil))
	s.settle()
	if x := c.streams[3].got; !x.reset || x.code != wire.ErrCodeRefusedStream {
		t.Errorf("stream 3: %+v", x)
	}
	if len(c.goAways) != 0 {
		t.Errorf("the client was told of it: %+v", c.goAways)
	}
	oldLink := s.links["a"]
	c.headers(5, true, keyed(keyA)...)
	s.settle()
	if s.links["a"] == oldLink || s.servers["a"].streams[5] == nil {
		t.Fatal("no other link was opened")
	}
	// The old one still answers what it has accepted.
	s.servers["base"], s.links["base"] = old, oldLink
	old.name = "base"
	old.headers(1, true, status("200")...)
	s.settle()
	if x := c.streams[1].got; !x.end {
		t.Errorf("stream 1: %+v", x)
	}
	if !old.ended {
		t.Error("the old link is still open")
	}
}

func TestTheEndOfAForksConnectionEndsItsStreams(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	grpc := hpack.HeaderField{Name: "content-type", Value: "application/grpc"}
	c.headers(1, true, keyed("")...)
	c.headers(3, false, keyed(keyA)...)
	c.headers(5, false, append(keyed(keyA), grpc)...)
	c.headers(7, true, append(keyed(keyA), grpc)...)
	s.settle()
	a := s.servers["a"]
	a.headers(7, false, status("200", grpc)...)
	a.data(7, 10, false)
	s.settle()
	s.relay.LinkEnded(s.links["a"])
	c.take()
	if x := c.streams[1].got; x.reset || x.end {
		t.Errorf("stream 1 of the baseline: %+v", x)
	}
	if x := c.streams[3].got; !x.reset || x.code != wire.ErrCodeInternal {
		t.Errorf("stream 3: %+v", x)
	}
	if x := c.streams[5].got; !x.end || len(x.blocks) != 1 || !strings.HasPrefix(x.blocks[0], ":status=200; content-type=application/grpc; grpc-status=14; ") || !x.reset || x.code != wire.ErrCodeNo {
		t.Errorf("stream 5, gRPC without an answer: %+v", x)
	}
	if x := c.streams[7].got; !x.end || len(x.blocks) != 2 || !strings.HasPrefix(x.blocks[1], "grpc-status=14; ") || x.reset {
		t.Errorf("stream 7, gRPC in the middle of its answer: %+v", x)
	}
	s.servers["base"].headers(1, true, status("200")...)
	s.settle()
	if x := c.streams[1].got; !x.end {
		t.Errorf("stream 1 of the baseline: %+v", x)
	}
}

func TestWhatComesForAStreamThatIsOverReachesNobodyElse(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed("")...)
	c.headers(3, false, keyed(keyA)...)
	s.settle()
	a := s.servers["a"]
	a.headers(3, true, status("200")...)
	a.reset(3, wire.ErrCodeNo)
	s.settle()
	before := len(s.servers["base"].all)
	// These were on their way. To the baseline stream 3 is one that was never opened.
	c.must(c.write.WriteWindowUpdate(3, 100))
	c.data(3, 100, false)
	c.must(c.write.WriteRSTStream(3, wire.ErrCodeCancel))
	s.settle()
	if got := s.servers["base"].all[before:]; len(got) != 0 {
		t.Errorf("the baseline has got %x", got)
	}
}

func TestWithoutABaselineTheRelayAnswersForIt(t *testing.T) {
	s := newScene(t, Limits{})
	s.relay = Alone(NewShared(s.relay.sh.limits, &s.names), s, true)
	c := s.client
	delete(s.servers, "base")
	c.must(c.write.WritePing(false, [8]byte{1}))
	s.settle()
	if len(c.all) != 0 {
		t.Fatalf("the client was told %x before it has opened a stream", c.all)
	}
	c.headers(1, true, keyed(keyA)...)
	s.settle()
	s.servers["a"].headers(1, true, status("200")...)
	s.settle()
	if !c.streams[1].got.end || len(c.pongs) != 1 || c.acks != 1 {
		t.Errorf("%+v, %d pings answered, %d settings acknowledged", c.streams[1].got, len(c.pongs), c.acks)
	}
}

func TestTheEndOfTheBaselineLetsOthersFinish(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed("")...)
	s.settle()
	if s.relay.LinkEnded(s.relay.Primary()) {
		t.Fatal("nothing of others is under way, and yet the client's connection goes on")
	}
	c.headers(3, true, keyed(keyA)...)
	s.settle()
	if !s.relay.LinkEnded(s.relay.Primary()) {
		t.Fatal("the client's connection does not go on")
	}
	c.must(c.write.WritePing(false, [8]byte{1}))
	s.servers["a"].headers(3, true, status("200")...)
	delete(s.servers, "base")
	s.settle()
	if !c.streams[3].got.end || !c.streams[1].got.reset || len(c.goAways) != 1 || c.goAways[0].LastStreamID != 3 || len(c.pongs) != 1 {
		t.Errorf("%+v, %+v, %+v, %d", c.streams[3].got, c.streams[1].got, c.goAways, len(c.pongs))
	}
	if s.relay.Open() != 0 {
		t.Errorf("%d streams are still open", s.relay.Open())
	}
}

func TestADrainLetsStreamsFinish(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed("")...)
	s.settle()
	s.relay.Drain(false)
	c.headers(3, true, keyed(keyA)...)
	s.settle()
	s.relay.Drain(true)
	c.headers(5, true, keyed("")...)
	s.settle()
	if len(c.goAways) != 2 || c.goAways[0].LastStreamID != maxWindow || c.goAways[1].LastStreamID != 3 {
		t.Errorf("the client was told %+v", c.goAways)
	}
	if s.servers["base"].streams[5] != nil || s.servers["a"].streams[3] == nil {
		t.Error("stream 5 was opened, or stream 3 was not")
	}
	s.servers["base"].headers(1, true, status("200")...)
	s.servers["a"].headers(3, true, status("200")...)
	s.settle()
	if s.relay.Open() != 0 || !c.streams[1].got.end || !c.streams[3].got.end {
		t.Errorf("%d streams are still open", s.relay.Open())
	}
}

// A server may take back its wish for the rest of a request once it has answered. Before
// that its answer is cut, whatever it calls that.
func TestAnAnswerThatIsResetWithoutAnErrorIsWholeOrCut(t *testing.T) {
	for _, key := range []string{"", keyA} {
		for _, whole := range []bool{true, false} {
			s := newScene(t, Limits{})
			s.watch = true
			c := s.client
			c.headers(1, true, keyed(keyB)...) // both ways differ from the plain one
			c.headers(3, false, keyed(key)...)
			s.settle()
			server := s.servers["base"]
			if key != "" {
				server = s.servers["a"]
			}
			server.headers(3, false, status("200")...)
			server.data(3, 10, whole)
			s.settle()
			server.reset(3, wire.ErrCodeNo)
			s.settle()
			if len(s.ended) != 1 || (s.ended[0].why == "") != whole || s.ended[0].watch.Status != 200 {
				t.Errorf("key %q, the answer is whole: %t; ended are %+v", key, whole, s.ended)
			}
		}
	}
}
