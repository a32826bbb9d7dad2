// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestAConnectionWithoutKeysPassesAsItCame(t *testing.T) {
	s := newScene(t, Limits{})
	base := s.servers["base"]
	base.must(base.write.WriteSettings(wire.Setting{ID: 0x99, Val: 3}, wire.Setting{ID: wire.SettingMaxFrameSize, Val: 1 << 20}))
	s.settle()
	c := s.client
	sent := bytes.Clone(base.all)
	record := func(f func()) {
		t.Helper()
		f()
		sent = append(sent, c.toRelay.Bytes()...)
		s.settle()
	}
	record(func() { c.headers(1, false, keyed("")...) })
	record(func() { c.must(c.write.WriteDataPadded(1, false, []byte("padded"), make([]byte, 17))) })
	record(func() {
		c.must(c.write.WriteRawFrame(wire.FrameData, 0, 1, bytes.Repeat([]byte("long"), 20_000/4)))
	})
	record(func() { c.must(c.write.WriteRawFrame(0xbe, 0x55, 1, []byte("of an unknown type"))) })
	record(func() { c.must(c.write.WriteRawFrame(0xbe, 0x55, 0, make([]byte, 100_000))) })
	record(func() { c.must(c.write.WritePriority(1, wire.PriorityParam{StreamDep: 0, Weight: 9})) })
	record(func() { c.must(c.write.WritePriorityUpdate(1, "u=1")) })
	record(func() { c.must(c.write.WritePing(false, [8]byte{1, 2, 3})) })
	record(func() { c.must(c.write.WriteWindowUpdate(0, 12345)) })
	record(func() { c.must(c.write.WriteWindowUpdate(1, 1)) })
	record(func() { c.headers(1, true, hpack.HeaderField{Name: "x-trailer", Value: "1"}) })
	record(func() { c.headers(3, true, append(keyed(""), long("x-long", 40_000))...) })
	record(func() { c.must(c.write.WriteRSTStream(3, wire.ErrCodeCancel)) })
	if !bytes.Equal(base.all, sent) {
		t.Errorf("%d bytes arrived that are not the %d that were sent", len(base.all), len(sent))
	}
	before := len(c.all)
	sent = nil
	base.headers(1, false, status("200")...)
	base.must(base.write.WriteRawFrame(wire.FrameData, wire.FlagDataPadded, 1, []byte("\x03body\x00\x00\x00")))
	base.must(base.write.WritePushPromise(wire.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: []byte{0x82, 0x86, 0x84}, EndHeaders: true, PadLength: 4}))
	base.must(base.write.WriteRawFrame(0xaa, 0, 0, []byte("greetings")))
	base.headers(1, true, hpack.HeaderField{Name: "grpc-status", Value: "0"})
	base.must(base.write.WriteGoAway(1, wire.ErrCodeNo, []byte("farewell")))
	sent = bytes.Clone(base.toRelay.Bytes())
	for base.toRelay.Len() > 0 {
		s.deliver(base, 7)
	}
	if got := c.all[before:]; !bytes.Equal(got, sent) {
		t.Errorf("arrived\n%x, want\n%x", got, sent)
	}
}

func long(name string, n int) hpack.HeaderField {
	return hpack.HeaderField{Name: name, Value: strings.Repeat("Ω", n/2), Sensitive: true}
}

func TestEachStreamReachesTheLinkOfItsKey(t *testing.T) {
	s := newScene(t, Limits{})
	keys := []string{"", keyA, keyB, "", keyA, "key-that-nobody-has", keyB}
	for i, key := range keys {
		fields := append(keyed(key),
			hpack.HeaderField{Name: "x-twice", Value: "1"}, hpack.HeaderField{Name: "cookie", Value: "a=b", Sensitive: true},
			hpack.HeaderField{Name: "x-twice", Value: "2"}, hpack.HeaderField{Name: "authorization", Value: "secret", Sensitive: true})
		s.client.headers(uint32(2*i+1), true, fields...)
		s.settle()
	}
	for i, key := range keys {
		id := uint32(2*i + 1)
		want := map[string]string{keyA: "a", keyB: "b"}[key]
		if want == "" {
			want = "base"
		}
		for name, e := range s.servers {
			x := e.streams[id]
			if (x != nil) != (name == want) {
				t.Errorf("stream %d with key %q: at %s: %+v", id, key, name, x)
			}
			if name == want && !slices.Equal(x.got.blocks, s.client.streams[id].sent.blocks) {
				t.Errorf("stream %d: %q, want %q", id, x.got.blocks, s.client.streams[id].sent.blocks)
			}
		}
	}
	for name, e := range s.servers {
		for _, id := range slices.Sorted(mapKeys(e.streams)) {
			e.headers(id, false, status("200", hpack.HeaderField{Name: "server", Value: name}, hpack.HeaderField{Name: "set-cookie", Value: "x", Sensitive: true})...)
			e.data(id, 100, true)
		}
	}
	s.settle()
	for id, x := range s.client.streams {
		e := s.servers[s.routed[id]]
		if got, want := x.got, e.streams[id].sent; !slices.Equal(got.blocks, want.blocks) || !bytes.Equal(got.data, want.data) || !got.end {
			t.Errorf("stream %d: %+v, want %+v", id, got, want)
		}
	}
	if n := s.relay.Open(); n != 0 {
		t.Errorf("%d streams are still open", n)
	}
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func TestAForkThatIsNotReadyIsSaidToBe(t *testing.T) {
	s := newScene(t, Limits{})
	grpc := hpack.HeaderField{Name: "content-type", Value: "application/grpc+proto"}
	c := s.client
	c.headers(1, true, keyed(keyNone)...)
	c.headers(3, false, append(keyed(keyNone), grpc)...)
	c.headers(5, false, keyed(keyNone)...)
	head := keyed(keyNone)
	head[0].Value = "HEAD"
	c.headers(7, true, head...)
	c.headers(9, true, keyed("")...)
	s.settle()
	const why = "sidetrack: nobody is ready."
	unavailable := ":status=503; content-type=text/plain; charset=utf-8; content-length=27; "
	for _, tt := range []struct {
		id    uint32
		head  string
		data  string
		reset bool
	}{
		{1, unavailable, why, false},
		{3, ":status=200; content-type=application/grpc; grpc-status=14; grpc-message=" + why + "; ", "", true},
		{5, unavailable, why, true},
		{7, unavailable, "", false},
	} {
		got := c.streams[tt.id].got
		if !slices.Equal(got.blocks, []string{tt.head}) || string(got.data) != tt.data || !got.end || got.reset != tt.reset || got.code != wire.ErrCodeNo {
			t.Errorf("stream %d: %+v", tt.id, got)
		}
	}
	if got := s.servers["base"].streams; len(got) != 1 || got[9] == nil {
		t.Errorf("the baseline has seen %v", got)
	}
	// What the client still sends of such requests is its own affair.
	c.data(3, 1000, false)
	c.data(5, 1000, true)
	s.settle()
	if got := s.servers["base"].streams; len(got) != 1 {
		t.Errorf("the baseline has seen %v", got)
	}
	if c.maySendConn != initialWindow {
		t.Errorf("the client may send %d, want all of its window", c.maySendConn)
	}
}

func TestAMemberIsAddedToTheBaggage(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"", "baggage=sidetrack=injected; "},
		{"baggage=a=b", "baggage=a=b,sidetrack=injected; "},
		{"baggage=", "baggage=sidetrack=injected; "},
		{"baggage=a=b,", "baggage=a=b,sidetrack=injected; "},
		{"baggage=a=b;baggage=c=d", "baggage=a=b; baggage=c=d,sidetrack=injected; "},
	} {
		s := newScene(t, Limits{})
		s.inject = "injected"
		fields := get()
		for f := range strings.SplitSeq(tt.name, ";") {
			if name, value, ok := strings.Cut(f, "="); ok {
				fields = append(fields, hpack.HeaderField{Name: name, Value: value})
			}
		}
		s.client.headers(1, true, fields...)
		s.settle()
		got := s.servers["base"].streams[1].got.blocks
		if len(got) != 1 || got[0] != text(get())+tt.want {
			t.Errorf("%q: %q", tt.name, got)
		}
	}
}

func TestTheWindowAtTheClientFollowsTheLinks(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	// The baseline allows little, the fork much.
	base := s.servers["base"]
	base.must(base.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1000}))
	s.settle()
	c.headers(1, false, keyed(keyA)...)
	s.settle()
	a := s.servers["a"]
	a.myInitial = 300_000
	a.stream(1).mayGet = a.myInitial
	a.mayGetConn += 1 << 20
	a.must(a.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: uint32(a.myInitial)}))
	a.must(a.write.WriteWindowUpdate(0, 1<<20))
	s.settle()
	sent := 0
	for range 10 {
		sent += c.data(1, 300_000-sent, false)
		s.settle()
	}
	if sent != 300_000 || len(a.streams[1].got.data) != sent {
		t.Errorf("%d bytes sent and %d received of 300000", sent, len(a.streams[1].got.data))
	}
	if c.maySendConn != initialWindow {
		t.Errorf("the client's connection may send %d, want %d", c.maySendConn, initialWindow)
	}
}

func TestAForkThatDoesNotReadStallsNobodyElse(t *testing.T) {
	s := newScene(t, Limits{BufferBytes: 100_000})
	c, base := s.client, s.servers["base"]
	// The baseline gives a large window to streams and connection, which count for
	// the fork's streams too; the fork itself gives nothing back.
	base.myInitial = 1 << 30
	base.mayGetConn += 1 << 30
	base.must(base.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 1 << 30}))
	base.must(base.write.WriteWindowUpdate(0, 1<<30))
	s.settle()
	c.headers(1, false, keyed(keyA)...)
	c.headers(3, false, keyed("")...)
	s.settle()
	for range 100 {
		c.data(1, 10_000, false)
		c.data(3, 10_000, false)
		s.settle()
		base.pay()
	}
	s.settle()
	if n := len(base.streams[3].got.data); n != 1_000_000 {
		t.Errorf("the baseline has got %d bytes", n)
	}
	a := s.servers["a"]
	if got, kept := len(a.streams[1].got.data), s.relay.Buffered(); got != initialWindow || got+kept != 1_000_000 {
		t.Errorf("the fork has got %d bytes and %d are kept", got, kept)
	}
	if s.relay.withheld < 800_000 {
		t.Errorf("the client was given back all but %d bytes although they are kept here", s.relay.withheld)
	}
	for range 200 {
		a.pay()
		s.settle()
	}
	if got := len(a.streams[1].got.data); got != 1_000_000 || s.relay.Buffered() != 0 || s.relay.withheld != 0 {
		t.Errorf("the fork has got %d bytes, %d are kept, %d withheld", got, s.relay.Buffered(), s.relay.withheld)
	}
}

func TestAClientThatDoesNotReadIsSentNoMoreThanItAllows(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed("")...)
	c.headers(3, true, keyed(keyA)...)
	c.headers(5, true, keyed(keyA)...)
	s.settle()
	base, a := s.servers["base"], s.servers["a"]
	for _, id := range []uint32{3, 5} {
		a.headers(id, false, status("200")...)
		a.data(id, 50_000, false)
	}
	s.settle()
	base.headers(1, false, status("200")...)
	base.data(1, 50_000, false)
	base.headers(1, true, hpack.HeaderField{Name: "x-trailer", Value: "1"})
	s.settle()
	// The endpoint itself checks its windows.
	got := 0
	for _, x := range c.streams {
		got += len(x.got.data)
	}
	if got != initialWindow || c.streams[1].got.end {
		t.Errorf("%d bytes have come", got)
	}
	for range 10 {
		c.pay()
		s.settle()
	}
	if !c.streams[1].got.end || len(c.streams[1].got.data) != 50_000 || len(c.streams[3].got.data) != 50_000 || len(c.streams[5].got.data) != 50_000 {
		t.Errorf("not all has come")
	}
}

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

func TestSettingsReachLinksThatComeLater(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.must(c.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: 123_456}, wire.Setting{ID: wire.SettingEnablePush, Val: 1},
		wire.Setting{ID: wire.SettingMaxHeaderListSize, Val: 777}, wire.Setting{ID: 0xfe, Val: 5}))
	c.must(c.write.WriteSettings(wire.Setting{ID: wire.SettingMaxHeaderListSize, Val: 888}))
	c.headers(1, true, keyed(keyA)...)
	s.settle()
	want := []wire.Setting{{ID: wire.SettingEnablePush}, {ID: wire.SettingInitialWindowSize, Val: 123_456}, {ID: wire.SettingMaxHeaderListSize, Val: 888}, {ID: 0xfe, Val: 5}}
	if got := s.servers["a"].settings; !slices.Equal(got, want) {
		t.Errorf("the fork was told %v, want %v", got, want)
	}
	if s.servers["a"].acks != 1 || c.acks != 3 {
		t.Errorf("%d and %d acknowledgements, want 1 and 3", s.servers["a"].acks, c.acks)
	}
	// Nothing of that is an end of the client's own: it has acknowledged the
	// baseline's settings alone.
	if s.servers["base"].acks != 1 {
		t.Errorf("%d acknowledgements have reached the baseline, want 1", s.servers["base"].acks)
	}
}

func TestPingsAreAnsweredByTheOtherEnd(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	c.headers(1, true, keyed(keyA)...)
	s.settle()
	a, base := s.servers["a"], s.servers["base"]
	a.must(a.write.WritePing(false, [8]byte{1}))
	base.must(base.write.WritePing(false, [8]byte{2}))
	c.must(c.write.WritePing(false, [8]byte{3}))
	s.settle()
	if len(a.pongs) != 1 || a.pongs[0][0] != 1 || len(base.pongs) != 1 || base.pongs[0][0] != 2 || len(c.pongs) != 1 || c.pongs[0][0] != 3 {
		t.Errorf("answers: %q, %q, %q", a.pongs, base.pongs, c.pongs)
	}
	if len(a.pings) != 0 || len(base.pings) != 1 || len(c.pings) != 2 {
		t.Errorf("pings: %q, %q, %q", a.pings, base.pings, c.pings)
	}
}

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

func TestAnUpgradedConnectionBeginsWithItsFirstStream(t *testing.T) {
	s := newScene(t, Limits{})
	settings := binary.BigEndian.AppendUint32([]byte{0, byte(wire.SettingInitialWindowSize)}, 70_000)
	s.relay = Upgraded(NewShared(s.relay.sh.limits, &s.names), s, settings)
	s.links["base"] = s.relay.Primary()
	base, c := s.servers["base"], s.client
	base.stream(1).got.blocks = []string{"the request"}
	base.last = 1
	c.stream(1)
	base.headers(1, false, status("200")...)
	base.data(1, 10, true)
	c.headers(3, true, keyed(keyA)...)
	s.settle()
	if !c.streams[1].got.end || s.servers["a"].streams[3] == nil || s.relay.Open() != 1 {
		t.Errorf("%+v, %d open", c.streams[1].got, s.relay.Open())
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
