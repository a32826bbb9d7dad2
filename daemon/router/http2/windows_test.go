// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

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
	if s.relay.withheld != mostWithheld {
		t.Errorf("the client was given back all but %d bytes although so many are kept here", s.relay.withheld)
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
