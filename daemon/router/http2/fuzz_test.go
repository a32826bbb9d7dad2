// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// program is a fuzzer's input, read as a list of decisions.
type program struct{ b []byte }

func (p *program) next() int {
	if len(p.b) == 0 {
		return 0
	}
	c := p.b[0]
	p.b = p.b[1:]
	return int(c)
}

func (p *program) over() bool { return len(p.b) == 0 }

// someFields are header fields that repeat now and then, so that tables matter.
func (p *program) someFields() []hpack.HeaderField {
	var fields []hpack.HeaderField
	for range p.next() % 6 {
		n := p.next()
		f := hpack.HeaderField{Name: fmt.Sprintf("x-field-%d", n%7), Value: fmt.Sprintf("value-%d", n%31), Sensitive: n%5 == 0}
		if n == 250 {
			f.Value = string(bytes.Repeat([]byte("long "), 4000))
		}
		fields = append(fields, f)
	}
	return fields
}

// FuzzStreams has a client and three servers say what they may in any order, cut
// their bytes anywhere, and compares what arrives with what was sent.
func FuzzStreams(f *testing.F) {
	for seed := range 20 {
		b := make([]byte, 400)
		x := uint32(seed)*2654435761 + 1
		for i := range b {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			b[i] = byte(x >> 8)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1000 {
			return
		}
		playStreams(t, in)
	})
}

func playStreams(t *testing.T, in []byte) {
	p := &program{in}
	s := newScene(t, Limits{})
	if len(in)%2 == 0 {
		s.hold = func(stream uint32) bool { return stream%5 < 2 }
		s.second = len(in)%4 == 0
	}
	var open []uint32 // of the client
	next := uint32(1)
	pick := func() uint32 {
		if len(open) == 0 {
			return 0
		}
		return open[p.next()%len(open)]
	}
	server := func() *endpoint {
		all := s.endpoints()[1:]
		return all[p.next()%len(all)]
	}
	// theirs is a stream that a server may say something on.
	theirs := func(e *endpoint) (uint32, *side) {
		var ids []uint32
		for id, x := range e.streams {
			if len(x.got.blocks) > 0 && !x.sent.end && !x.sent.reset && !x.got.reset {
				ids = append(ids, id)
			}
		}
		if len(ids) == 0 || e.ended {
			return 0, nil
		}
		slices.Sort(ids)
		id := ids[p.next()%len(ids)]
		return id, e.streams[id]
	}
	for !p.over() {
		switch op := p.next() % 16; op {
		case 0, 1:
			key := []string{"", keyA, "", keyB, keyNone, "key-that-nobody-has"}[p.next()%6]
			fields := append(keyed(key), p.someFields()...)
			end := p.next()%3 == 0
			s.client.headers(next, end, fields...)
			open = append(open, next)
			next += 2 + 2*uint32(p.next()%7/6)
		case 2, 3, 4:
			if id := pick(); id != 0 {
				if x := s.client.streams[id]; !x.sent.end && !x.sent.reset && !x.got.reset {
					s.client.data(id, p.next()*p.next()/8, p.next()%8 == 0)
				}
			}
		case 5:
			if id := pick(); id != 0 {
				if x := s.client.streams[id]; !x.sent.end && !x.sent.reset && !x.got.reset {
					if p.next()%2 == 0 {
						s.client.headers(id, true, hpack.HeaderField{Name: "x-trailer", Value: fmt.Sprint(id)})
					} else {
						s.client.data(id, 0, true)
					}
				}
			}
		case 6:
			if id := pick(); id != 0 && p.next()%4 == 0 {
				if x := s.client.streams[id]; !x.sent.reset && !x.got.reset && !(x.sent.end && x.got.end) {
					s.client.reset(id, wire.ErrCodeCancel)
				}
			}
		case 7, 8:
			e := server()
			if id, x := theirs(e); x != nil && len(x.sent.blocks) == 0 {
				if p.next()%9 == 0 {
					e.headers(id, false, status("103", p.someFields()...)...)
					e.headers(id, false, status("200")...)
					break
				}
				e.headers(id, p.next()%6 == 0, status("200", p.someFields()...)...)
			} else if x != nil {
				e.data(id, p.next()*p.next()/4, p.next()%6 == 0)
			}
		case 9:
			e := server()
			if id, x := theirs(e); x != nil && len(x.sent.blocks) > 0 {
				e.headers(id, true, append([]hpack.HeaderField{{Name: "grpc-status", Value: "0"}}, p.someFields()...)...)
			}
		case 10:
			e := server()
			if id, x := theirs(e); x != nil && p.next()%4 == 0 {
				e.reset(id, wire.ErrCode(p.next()%13))
			}
		case 11:
			e := s.endpoints()[p.next()%len(s.endpoints())]
			e.pay()
		case 12:
			if id := pick(); id != 0 && p.next()%2 == 0 {
				if x := s.client.streams[id]; !x.sent.reset && !x.got.reset && !x.got.end {
					n := uint32(1 + p.next())
					x.mayGet += int64(n)
					s.client.must(s.client.write.WriteWindowUpdate(id, n))
				}
				break
			}
			if l := s.links["second"]; l != nil && !l.gone && !l.Proven() && p.next()%2 == 0 {
				s.endSecond()
				break
			}
			e := s.endpoints()[p.next()%len(s.endpoints())]
			e.must(e.write.WritePing(false, [8]byte{byte(p.next()), e.name[0]}))
		case 13:
			e := s.endpoints()[p.next()%len(s.endpoints())]
			switch p.next() % 4 {
			case 0:
				// Only ever more, so that nothing under way can be too much.
				n := int64(p.next()) * 1000
				for _, x := range e.streams {
					x.mayGet += n
				}
				e.myInitial += n
				e.must(e.write.WriteSettings(wire.Setting{ID: wire.SettingInitialWindowSize, Val: uint32(e.myInitial)}))
			case 1:
				e.must(e.write.WriteSettings(wire.Setting{ID: wire.SettingHeaderTableSize, Val: uint32(p.next()) * 16}))
			case 2:
				e.must(e.write.WriteSettings(wire.Setting{ID: wire.SettingMaxFrameSize, Val: leastMaxFrame + uint32(p.next())*1000}))
			case 3:
				e.must(e.write.WriteSettings(wire.Setting{ID: 0xff, Val: 7}))
			}
		case 14:
			s.letGo()
			for _, e := range s.endpoints() {
				s.deliver(e, 1+p.next()*p.next())
				e.take()
			}
		case 15:
			e := s.endpoints()[p.next()%len(s.endpoints())]
			s.deliver(e, 1+p.next())
			e.take()
		}
		if p.next()%8 == 0 {
			s.move()
		}
		if s.relay.Over() {
			t.Fatalf("the relay gave up: %v", s.counts)
		}
	}
	// Let all come to its end.
	for range 2000 {
		s.letGo()
		s.settle()
		busy := len(s.held) > 0
		for _, e := range s.endpoints() {
			if e.unpaid > 0 {
				busy = true
			}
			e.pay()
			busy = busy || e.toRelay.Len() > 0
		}
		if !busy {
			break
		}
	}
	for id, mine := range s.client.streams {
		name := s.routed[id]
		if name == "-" {
			if !mine.sent.reset && (len(mine.got.blocks) != 1 || !mine.got.end) {
				t.Errorf("stream %d: an unavailable fork: %+v", id, mine.got)
			}
			continue
		}
		e := s.servers[name]
		its := e.streams[id]
		if its == nil {
			// Nobody has seen it, and the baseline has seen a newer one.
			refused := name == "second" && !s.second && mine.got.reset && mine.got.code == wire.ErrCodeRefusedStream
			if !mine.sent.reset && !refused {
				t.Errorf("stream %d did not reach %s: %+v", id, name, mine)
			}
			continue
		}
		for other, x := range s.servers {
			if other != name && x.streams[id] != nil && len(x.streams[id].got.blocks) > 0 {
				t.Errorf("stream %d of %s has reached %s", id, name, other)
			}
		}
		compare(t, fmt.Sprintf("stream %d from the client to %s", id, name), &mine.sent, &its.got, mine.sent.reset || its.sent.reset)
		compare(t, fmt.Sprintf("stream %d from %s to the client", id, name), &its.sent, &mine.got, mine.sent.reset || its.sent.reset)
	}
	for id := range s.relay.streams {
		mine := s.client.streams[id]
		if mine.sent.reset || mine.got.reset || mine.sent.end && mine.got.end {
			t.Errorf("stream %d is still there: %+v, client's side %+v", id, s.relay.streams[id], mine)
		}
	}
	if s.relay.buffered != 0 && len(s.relay.streams) == 0 {
		t.Errorf("%d bytes are buffered for nobody", s.relay.buffered)
	}
}

// compare compares what was sent in one direction with what has come. Of a
// stream that was reset a part may be missing, at the end.
func compare(t *testing.T, what string, sent, got *message, reset bool) {
	t.Helper()
	want := *sent
	if reset {
		if !bytes.HasPrefix(want.data, got.data) || len(got.blocks) > len(want.blocks) {
			t.Errorf("%s: %d of %d bytes, blocks %q of %q", what, len(got.data), len(want.data), got.blocks, want.blocks)
		}
		return
	}
	if !slices.Equal(want.blocks, got.blocks) && len(want.blocks) > 0 {
		t.Errorf("%s: blocks\n%q, want\n%q", what, got.blocks, want.blocks)
	}
	if !bytes.Equal(want.data, got.data) {
		t.Errorf("%s: %d bytes, want %d", what, len(got.data), len(want.data))
	}
	if want.end != got.end {
		t.Errorf("%s: ended %v, want %v", what, got.end, want.end)
	}
}

// FuzzBytes gives a relay bytes that nobody has thought about, from both sides,
// in two ways of cutting them: it neither panics nor keeps much, and says the
// same.
func FuzzBytes(f *testing.F) {
	s := newScene(f, Limits{})
	s.client.headers(1, false, keyed("")...)
	s.client.headers(3, false, keyed(keyA)...)
	s.client.data(3, 100, true)
	s.client.headers(1, true, hpack.HeaderField{Name: "x", Value: "y"})
	good := bytes.Clone(s.client.toRelay.Bytes())
	s.settle()
	a := s.servers["a"]
	a.headers(3, false, status("200")...)
	a.data(3, 100, true)
	f.Add(good, bytes.Clone(a.toRelay.Bytes()), []byte{}, uint8(1))
	f.Add(good[:50], []byte{}, bytes.Clone(a.toRelay.Bytes()), uint8(7))
	f.Add(append(slices.Clone(good), frame(wire.FrameHeaders, 0, 5, "\x82")...), []byte("garbage that is long enough"), frame(wire.FrameGoAway, 0, 0, "\x00\x00\x00\x01\x00\x00\x00\x00"), uint8(3))
	for _, typ := range []wire.FrameType{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0xff} {
		for _, n := range []int{0, 1, 4, 5, 6, 8, 9} {
			x := frame(typ, wire.Flags(n*13), uint32(n), "\x00\x00\x00\x01\x02\x03\x04\x05\x06"[:n])
			f.Add(append(slices.Clone(good), x...), x, x, uint8(n))
		}
	}
	f.Fuzz(func(t *testing.T, client, base, fork []byte, step uint8) {
		if len(client)+len(base)+len(fork) > 20_000 {
			return
		}
		whole := playBytes(t, client, base, fork, 1<<20)
		cut := playBytes(t, client, base, fork, int(step)+1)
		// Frames may be cut where they are longer than is waited for, so what is said
		// to forks is compared by its length in octets of requests only: the baseline's
		// bytes are the same.
		if !whole.relay.split && !cut.relay.split && !bytes.Equal(whole.servers["base"].all, cut.servers["base"].all) {
			t.Errorf("the baseline has got\n%x, cut\n%x", whole.servers["base"].all, cut.servers["base"].all)
		}
		if whole.relay.Over() != cut.relay.Over() {
			t.Errorf("gave up %v, cut %v", whole.relay.Over(), cut.relay.Over())
		}
		for id, to := range whole.routed {
			if cut.routed[id] != to {
				t.Errorf("stream %d went to %s, cut to %s", id, to, cut.routed[id])
			}
		}
	})
}

// playBytes feeds bytes in pieces of a size: all of the client's, then of each
// server's.
func playBytes(t *testing.T, client, base, fork []byte, step int) *scene {
	s := newScene(t, Limits{HeaderBytes: 16 << 10, BufferBytes: 32 << 10})
	feed := func(e *endpoint, b []byte) {
		if e == nil {
			return
		}
		e.toRelay.Reset()
		e.toRelay.Write(b)
		for s.deliver(e, step) {
		}
		s.checkState()
	}
	feed(s.client, append([]byte(Preface), client...))
	feed(s.servers["base"], base)
	if a := s.servers["a"]; a != nil {
		feed(a, fork)
	}
	feed(s.client, client)
	return s
}

// checkState looks for what must never be.
func (s *scene) checkState() {
	r := s.relay
	buffered, waiting, kept := 0, 0, 0
	perLink := map[*Link]int{}
	for id, x := range r.streams {
		if x.id != id {
			s.t.Fatalf("stream %d is kept as %d", x.id, id)
		}
		if x.link != nil {
			perLink[x.link]++
			if x.link != r.primary && x.link.gone {
				s.t.Fatalf("stream %d belongs to a link that is gone", id)
			}
		}
		buffered += len(x.up.data)
		waiting += blockSize(x.up.trailers)
		if x.held != nil {
			waiting += blockSize(x.held.fields)
		}
		for i := range x.down {
			kept += downloadCost + len(x.down[i].data) + blockSize(x.down[i].fields)
		}
	}
	if buffered != r.buffered {
		s.t.Fatalf("%d bytes are buffered, %d counted", buffered, r.buffered)
	}
	if waiting != r.waiting || kept != r.kept {
		s.t.Fatalf("%d bytes of blocks wait for links and %d for the client, %d and %d counted", waiting, kept, r.waiting, r.kept)
	}
	for l, n := range perLink {
		if l.streams != n {
			s.t.Fatalf("a link has %d streams, %d counted", n, l.streams)
		}
	}
	for _, x := range r.stalled {
		if r.streams[x.id] != x || len(x.down) == 0 {
			s.t.Fatalf("stream %d is taken for stalled", x.id)
		}
	}
	for e, kept := range s.kept {
		if len(kept) > waitFor+headLen+16<<10 {
			s.t.Fatalf("%d bytes of %s are kept", len(kept), e.name)
		}
	}
}
