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
