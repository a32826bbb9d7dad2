// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func TestTaggedFlowsReachTheForkAndOthersTheBaseline(t *testing.T) {
	s := newScene(t)
	s.start()
	for _, d := range []struct{ network, address string }{
		{"tcp4", at(webVIP4, 80)},
		{"tcp6", at(webVIP6, 80)},
		{"tcp4", at(s.base.IPv4, 80)},
		{"tcp6", at(s.base.IPv6, 80)},
		{"udp4", at(webVIP4, 53)},
		{"udp6", at(webVIP6, 53)},
		{"udp4", at(s.base.IPv4, 53)},
		{"udp6", at(s.base.IPv6, 53)},
	} {
		s.tagged.MustReach(d.network, d.address, "fork")
		s.other.MustReach(d.network, d.address, "baseline")
	}
}

func TestGetpeernameShowsWhatWasDialled(t *testing.T) {
	s := newScene(t)
	s.start()
	v4, v6 := at(webVIP4, 80), at(webVIP6, 80)
	s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(v4).mustHear("fork").mustShowPeer(v4)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(v6).mustHear("fork").mustShowPeer(v6)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(v4).mustHear("fork").mustShowPeer(v4)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1).
		mustConnect(v6).mustHear("fork").mustShowPeer(v6)
	s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).mustConnect(v4).mustHear("baseline").mustShowPeer(v4)
}

func TestUnconnectedUDPShowsWhatWasDialled(t *testing.T) {
	s := newScene(t)
	s.start()
	v4, v6 := at(webVIP4, 53), at(webVIP6, 53)
	for _, c := range []*sock{
		s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM),
		s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM), // mapped
	} {
		c.mustAsk(v4, "fork", v4)
		// The other address of the same Service, by the same socket and endpoint.
		c.mustAsk(at(s.base.IPv4, 53), "fork", at(s.base.IPv4, 53))
		c.mustAsk(v4, "fork", v4)
		// The fork by its own address is itself.
		c.mustAsk(at(s.fork.IPv4, 53), "fork", at(s.fork.IPv4, 53))
		c.mustAsk(v4, "fork", v4)
	}
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).mustAsk(v6, "fork", v6)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1).mustAsk(v6, "fork", v6)
	s.socket(s.other, unix.AF_INET, unix.SOCK_DGRAM).mustAsk(v4, "baseline", v4)
	s.socket(s.other, unix.AF_INET6, unix.SOCK_DGRAM).mustAsk(v6, "baseline", v6)
}

func TestConnectedUDPShowsWhatWasDialled(t *testing.T) {
	s := newScene(t)
	s.start()
	v4, v6 := at(webVIP4, 53), at(webVIP6, 53)
	s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM).mustConnect(v4).mustShowPeer(v4).mustAsk("", "fork", v4)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).mustConnect(v4).mustShowPeer(v4).mustAsk("", "fork", v4)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).mustConnect(v6).mustShowPeer(v6).mustAsk("", "fork", v6)
	// Connected, and yet the datagram says where it goes.
	s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM).mustConnect(v4).mustAsk(v4, "fork", v4)
}

func TestReconnectingASocketForgetsWhatItDialled(t *testing.T) {
	s := newScene(t)
	s.start()
	dst, direct := at(webVIP4, 53), at(s.fork.IPv4, 53)
	c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
	c.mustConnect(dst).mustShowPeer(dst)
	c.mustConnect(direct).mustShowPeer(direct).mustAsk("", "fork", direct)
	c.mustConnect(dst).mustShowPeer(dst).mustAsk("", "fork", dst)
}

func TestOneSocketsDatagramsStayWithOneEndpoint(t *testing.T) {
	s := newScene(t)
	second := s.w.MustPod("second")
	second.MustServeUDP("second", ":53")
	s.input.Slices[1] = slice(forkName, s.fork.IPv4, second.IPv4)
	s.start()
	reached := map[string]int{}
	for range 32 {
		c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
		first := c.ask(at(webVIP4, 53))
		for range 4 {
			if again := c.ask(at(webVIP4, 53)); again != first {
				t.Fatalf("a datagram reached %q, an earlier one of the same socket %q", again, first)
			}
		}
		reached[first]++
		c.close()
	}
	if len(reached) != 2 {
		t.Errorf("32 sockets reached %v; want both endpoints to be used", reached)
	}
}

func TestConnectionsAreSpreadOverEndpoints(t *testing.T) {
	s := newScene(t)
	second := s.w.MustPod("second")
	second.MustServeTCP("second", ":80")
	s.input.Slices[1] = slice(forkName, s.fork.IPv4, second.IPv4, second.IPv6, s.fork.IPv6)
	s.start()
	const n = 400
	for _, d := range []struct{ network, dst string }{{"tcp4", at(webVIP4, 80)}, {"tcp6", at(webVIP6, 80)}} {
		reached := map[string]int{}
		for range n {
			name, err := s.tagged.Ask(d.network, d.dst)
			s.must(err)
			reached[name]++
		}
		// Ten standard deviations of a fair coin.
		if len(reached) != 2 || reached["fork"] < n/2-100 || reached["fork"] > n/2+100 {
			t.Errorf("%s: %d connections reached %v, want half and half", d.network, n, reached)
		}
	}
}

func TestWithoutAReadyEndpointFlowsAreRefused(t *testing.T) {
	s := newScene(t)
	s.setReady(false)
	s.start()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		c := s.socket(s.tagged, family, unix.SOCK_STREAM)
		c.mustRefuse(c.connect(at(webVIP4, 80)))
		c = s.socket(s.tagged, family, unix.SOCK_DGRAM)
		c.mustRefuse(c.connect(at(webVIP4, 53)))
		c = s.socket(s.tagged, family, unix.SOCK_DGRAM)
		c.mustRefuse(c.sendTo(at(webVIP4, 53)))
	}
	c := s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM)
	c.mustRefuse(c.connect(at(webVIP6, 80)))
	c = s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM)
	c.mustRefuse(c.sendTo(at(webVIP6, 53)))
	s.other.MustReach("tcp4", at(webVIP4, 80), "baseline")

	// A socket that was refused can try again, as an application may.
	again := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
	again.mustRefuse(again.connect(at(webVIP4, 80)))
	s.setReady(true)
	s.apply()
	again.mustConnect(at(webVIP4, 80)).mustHear("fork").mustShowPeer(at(webVIP4, 80))
}

func TestUnavailableBaselineFallsBack(t *testing.T) {
	s := newScene(t)
	s.setReady(false)
	s.input.Sandboxes[0].Redirects[0].Unavailable = routing.Baseline
	s.start()
	s.mustCount("connect4", "fell_back", 1, func() { s.tagged.MustReach("tcp4", at(webVIP4, 80), "baseline") })
	s.mustCount("sendmsg4", "fell_back", 1, func() {
		s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM).mustAsk(at(webVIP4, 53), "baseline", at(webVIP4, 53))
	})
	s.setReady(true)
	s.apply()
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}

func TestIPv6DestinationsReachIPv4EndpointsWhereTheSocketCan(t *testing.T) {
	s := newScene(t)
	s.input.Slices[1] = slice(forkName, s.fork.IPv4)
	s.start()
	tcp, udp := at(webVIP6, 80), at(webVIP6, 53)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(tcp).mustHear("fork").mustShowPeer(tcp)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).mustConnect(udp).mustShowPeer(udp).mustAsk("", "fork", udp)

	// These cannot, and are never sent to the baseline instead.
	c := s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	c.mustRefuse(c.connect(tcp))
	c = s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).bind(at(s.tagged.IPv6, 0))
	c.mustRefuse(c.connect(tcp))
	c = s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	c.mustRefuse(c.connect(udp))
	c = s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM)
	c.mustRefuse(c.sendTo(udp))
}

func TestIPv4DestinationsNeedIPv4Endpoints(t *testing.T) {
	s := newScene(t)
	s.input.Slices[1] = slice(forkName, s.fork.IPv6)
	s.start()
	s.tagged.MustReach("tcp6", at(webVIP6, 80), "fork")
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		c := s.socket(s.tagged, family, unix.SOCK_STREAM)
		c.mustRefuse(c.connect(at(webVIP4, 80)))
	}
}

func TestWithoutALeaseFlowsGoToTheBaseline(t *testing.T) {
	s := newScene(t)
	s.start()
	open := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(at(webVIP4, 80)).mustHear("fork")
	s.must(s.k.RenewLease(-time.Second))
	s.mustCount("connect4", "lease_over", 1, func() { s.tagged.MustReach("tcp4", at(webVIP4, 80), "baseline") })
	s.mustCount("sendmsg6", "lease_over", 1, func() {
		s.socket(s.tagged, unix.AF_INET6, unix.SOCK_DGRAM).mustAsk(at(webVIP6, 53), "baseline", at(webVIP6, 53))
	})
	open.mustShowPeer(at(webVIP4, 80))
	s.must(s.k.RenewLease(time.Minute))
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}

func TestHitsAreCountedForEachRouteAndForgottenWithIt(t *testing.T) {
	for _, skip := range []bool{false, true} {
		t.Run(fmt.Sprintf("after a table that was not applied %t", skip), func(t *testing.T) { testHits(t, skip) })
	}
}

func testHits(t *testing.T, skip bool) {
	s := newScene(t)
	s.start()
	for range 3 {
		s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	}
	s.tagged.MustReach("tcp6", at(s.base.IPv6, 80), "fork")
	s.setReady(false)
	s.apply()
	c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
	c.mustRefuse(c.connect(at(webVIP4, 80)))
	answer := s.table.LookupFlow(s.cookie(s.tagged), netip.MustParseAddrPort(at(webVIP4, 80)), routing.TCP)
	want := map[routing.RouteKey]HitCount{{Sandbox: answer.Sandbox, Class: answer.Class}: {Redirected: 4, Refused: 1}}
	hits, err := s.k.Hits()
	s.must(err)
	if diff := cmp.Diff(want, hits); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}

	if skip {
		s.compile()
		s.apply()
		hits, err = s.k.Hits()
		s.must(err)
		if diff := cmp.Diff(want, hits); diff != "" {
			t.Errorf("hits when all maps are new (-want +got):\n%s", diff)
		}
		s.compile()
	}
	s.input.Sandboxes[0].Redirects = nil
	s.apply()
	hits, err = s.k.Hits()
	s.must(err)
	if len(hits) != 0 {
		t.Errorf("hits of a route that is gone: %v", hits)
	}
}
