// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// move has another relay go on, as one in another process would. It reports
// whether the present one could move.
func (s *scene) move() bool {
	s.t.Helper()
	if !s.relay.CanMove() {
		return false
	}
	state, links := s.relay.State()
	text, err := json.Marshal(state)
	if err != nil {
		s.t.Fatal(err)
	}
	var got State
	read := json.NewDecoder(bytes.NewReader(text))
	read.DisallowUnknownFields()
	if err := read.Decode(&got); err != nil {
		s.t.Fatal(err)
	}
	next, fresh, err := Resume(NewShared(s.limits, &s.names), s, &got)
	if err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	for name, l := range s.links {
		if i := slices.Index(links, l); i >= 0 {
			s.links[name] = fresh[i]
		} else {
			delete(s.links, name) // it has gone
		}
	}
	// Nothing of the first is used any more.
	*s.relay = Relay{}
	s.relay = next
	s.moves++
	return true
}

func (s *scene) mustMove() {
	s.t.Helper()
	if !s.move() {
		s.t.Fatalf("the relay cannot move: %+v", s.relay)
	}
}

func TestAConnectionMovesBetweenAnyTwoStreams(t *testing.T) {
	s := newScene(t, Limits{})
	keys := []string{"", "", keyA, "", keyB, keyA, ""}
	s.settle()
	for i, key := range keys {
		id := uint32(2*i + 1)
		// Both sides' tables fill, so that blocks refer to what came before the move.
		s.client.headers(id, true, append(keyed(key), hpack.HeaderField{Name: "x-again", Value: strings.Repeat("a", 100)}, hpack.HeaderField{Name: "x-new", Value: string(rune('a' + i))})...)
		s.settle()
		s.mustMove()
		e := s.servers[s.routed[id]]
		e.headers(id, false, status("200", hpack.HeaderField{Name: "server", Value: e.name}, hpack.HeaderField{Name: "x-again", Value: strings.Repeat("b", 100)})...)
		s.settle()
		s.mustMove() // in the middle of an answer
		e.data(id, 3000, false)
		e.headers(id, true, hpack.HeaderField{Name: "grpc-status", Value: "0"})
		s.settle()
		s.mustMove()
		mine, its := s.client.streams[id], e.streams[id]
		compare(t, "the request", &mine.sent, &its.got, false)
		compare(t, "the answer", &its.sent, &mine.got, false)
		s.client.pay()
	}
	if s.relay.Open() != 0 {
		t.Errorf("%d streams are open", s.relay.Open())
	}
}

func TestWindowsPingsAndGoAwaysMoveAlong(t *testing.T) {
	s := newScene(t, Limits{})
	s.settle()
	s.client.headers(1, false, keyed(keyA)...)
	s.client.headers(3, false, keyed("")...)
	s.settle()
	s.client.data(1, 40_000, false)
	s.client.data(3, 20_000, false)
	s.settle()
	s.mustMove()
	// A ping of the fork's is answered by the client after the move.
	s.servers["a"].must(s.servers["a"].write.WritePing(false, [8]byte{1, 2, 3}))
	s.deliver(s.servers["a"], 1000)
	s.mustMove()
	s.client.take()
	s.settle()
	if got := s.servers["a"].pongs; len(got) != 1 {
		t.Errorf("the fork's ping is answered %d times", len(got))
	}
	// What is left of the windows is the same as before: the endpoints keep account.
	s.client.data(1, 25_535, false)
	s.settle()
	for _, e := range s.endpoints() {
		e.pay()
	}
	s.settle()
	s.client.data(1, 30_000, true)
	s.client.data(3, 10_000, true)
	s.settle()
	if n := len(s.servers["a"].streams[1].got.data); n != 95_535 {
		t.Errorf("the fork has %d bytes", n)
	}
	// The baseline ends; the fork's stream beyond what it knows of stays.
	s.client.headers(5, true, keyed(keyA)...)
	s.settle()
	base := s.servers["base"]
	base.must(base.write.WriteGoAway(3, wire.ErrCodeNo, nil))
	s.settle()
	s.mustMove()
	if g := s.client.goAways; len(g) != 1 || g[0].LastStreamID != 5 {
		t.Errorf("GOAWAYs %+v", g)
	}
	s.servers["a"].headers(5, true, status("200")...)
	s.settle()
	if x := s.client.streams[5]; !x.got.end || x.got.reset {
		t.Errorf("the fork's stream: %+v", x.got)
	}
}

func TestARelayInTheMiddleOfSomethingStays(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(*scene)
	}{
		{"of the preface", func(s *scene) { s.deliver(s.client, 10) }},
		{"of a header block", func(s *scene) {
			s.settle()
			s.client.toRelay.Write(frame(wire.FrameHeaders, 0, 1, "\x82"))
			s.deliver(s.client, 1000)
		}},
		{"of a DATA frame that is passed on in pieces", func(s *scene) {
			s.settle()
			s.client.headers(1, false, keyed("")...)
			s.settle()
			s.client.data(1, 10_000, false)
			s.deliver(s.client, 5000)
		}},
		{"of an upload that its fork does not take", func(s *scene) {
			s.settle()
			s.client.headers(1, false, keyed(keyA)...)
			s.client.headers(3, false, keyed(keyA)...)
			s.settle()
			s.client.data(1, 60_000, false)
			s.settle()
			s.client.data(3, 60_000, false)
			s.settle()
		}},
		{"of a download that its client does not take", func(s *scene) {
			s.settle()
			s.client.headers(1, true, keyed(keyA)...)
			s.client.headers(3, true, keyed("")...)
			s.settle()
			for id, name := range map[uint32]string{1: "a", 3: "base"} {
				s.servers[name].headers(id, false, status("200")...)
				s.servers[name].data(id, 60_000, false)
			}
			s.settle()
		}},
		{"of a header block of a fork's", func(s *scene) {
			s.settle()
			s.client.headers(1, true, keyed(keyA)...)
			s.settle()
			s.servers["a"].toRelay.Write(frame(wire.FrameHeaders, 0, 1, "\x88"))
			s.deliver(s.servers["a"], 1000)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, Limits{})
			tt.do(s)
			if s.relay.CanMove() {
				t.Error("it can move")
			}
		})
	}
}

func TestTablesAreTheSameAfterAMove(t *testing.T) {
	sh := newScene(t, Limits{}).relay.sh
	var in reader
	in.init(sh)
	in.allow(8192)
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSizeLimit(8192)
	for i, size := range []uint32{4096, 8192, 200, 0, 4096} {
		e.SetMaxDynamicTableSize(size)
		for j := range 100 {
			block.Reset()
			fields := []hpack.HeaderField{{Name: "x", Value: strings.Repeat("v", j*3)}, {Name: "y-" + string(rune('a'+j%26)), Value: "\xff\x00"}, {Name: "secret", Value: "s", Sensitive: true}}
			for _, f := range fields {
				if err := e.WriteField(f); err != nil {
					t.Fatal(err)
				}
			}
			var moved reader
			if err := sh.restore(&moved, sh.tableState(&in)); err != nil {
				t.Fatal(err)
			}
			for what, r := range map[string]*reader{"moved": &moved, "not moved": &in} {
				if err := sh.decode(r, block.Bytes(), true); err != nil {
					t.Fatalf("size %d, block %d, %s: %v", i, j, what, err)
				}
				if !slices.Equal(sh.fields, fields) {
					t.Fatalf("size %d, block %d, %s: %v", i, j, what, sh.fields)
				}
				if r.table != size {
					t.Fatalf("size %d, block %d, %s: the table is taken for %d", i, j, what, r.table)
				}
			}
			in = moved // and so on, a hundred times
			if err := sh.restore(&in, sh.tableState(&in)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAStateThatDoesNotFitTogetherIsRefused(t *testing.T) {
	s := newScene(t, Limits{})
	s.settle()
	s.client.headers(1, false, keyed(keyA)...)
	s.settle()
	for name, spoil := range map[string]func(*State){
		"no link":                           func(x *State) { x.Links = nil },
		"a stream of no link":               func(x *State) { x.Streams[0].Link = 9 },
		"a stream twice":                    func(x *State) { x.Streams = append(x.Streams, x.Streams[0]) },
		"a table that is no table":          func(x *State) { x.Client.Block = []byte{0xff, 0xff} },
		"a table larger than allowed":       func(x *State) { x.Links[1].Blocks.Size = 1 << 30 },
		"a ping of the primary":             func(x *State) { x.Pings = []PingState{{}} },
		"streams elsewhere without a split": func(x *State) { x.Split = false },
		"a split without them":              func(x *State) { x.Elsewhere = nil },
		"frames smaller than the least":     func(x *State) { x.Links[0].MaxFrame = 1 },
	} {
		state, _ := s.relay.State()
		spoil(&state)
		if _, _, err := Resume(NewShared(s.limits, &s.names), s, &state); err == nil {
			t.Errorf("%s: nobody minds", name)
		}
	}
}
