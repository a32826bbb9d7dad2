// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestUntaggedConnectionsToARedirectedServiceAreCaptured(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	for _, dst := range []string{at(webVIP4, 80), at(s.base.IPv4, 80), at(webVIP6, 80), at(s.base.IPv6, 80)} {
		if netip.MustParseAddrPort(dst).Addr().Is4() {
			s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst).mustHear("router").mustShowPeer(dst)
			r.mustHaveCaptured(s, dst)
		}
		// ::ffff:127.a.b.c, whether a mapped or a real IPv6 address was dialled.
		s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(dst).mustHear("router").mustShowPeer(dst)
		r.mustHaveCaptured(s, dst)
	}
}

func TestSocketsThatCannotReachIPv4AreCapturedByTheIPv6Loopback(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	dst := at(webVIP6, 80)
	for name, c := range map[string]*sock{
		"IPV6_V6ONLY": s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		"bound":       s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).bind(at(s.other.IPv6, 0)),
	} {
		cookie, err := unix.GetsockoptUint64(c.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		s.must(err)
		if _, ok := s.k.V6OnlyDest(cookie); ok {
			t.Fatalf("%s: known before it connects", name)
		}
		c.mustConnect(dst).mustHear("router").mustShowPeer(dst)
		a := <-r.came
		if a.local.Addr() != netip.IPv6Loopback() {
			t.Fatalf("%s: the router was reached at %v, want ::1", name, a.local)
		}
		id, ok := s.k.V6OnlyDest(cookie)
		if !ok {
			t.Fatalf("%s: the destination is not known", name)
		}
		r.mustBe(s, id, dst)
	}
}

func TestBoundSourcesAreCapturedAndDevicesAreNot(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	dst := at(webVIP4, 80)

	s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).bind(at(s.other.IPv4, 0)).mustConnect(dst).mustHear("router")
	if a := r.mustHaveCaptured(s, dst); a.peer.Addr() != s.other.IPv4 {
		t.Errorf("the router sees %v, want the address that the client bound, %v", a.peer, s.other.IPv4)
	}
	s.mustCount("capture4", "bound_to_device", 1, func() {
		c := s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM)
		s.must(unix.BindToDevice(c.fd, "eth0"))
		c.mustConnect(dst).mustHear("baseline").mustShowPeer(dst)
	})
	c := s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM)
	s.must(unix.BindToDevice(c.fd, "lo"))
	c.mustConnect(dst).mustHear("router")
	r.mustHaveCaptured(s, dst)
}

func TestWhatIsNotRedirectedIsLeftAlone(t *testing.T) {
	s := newScene(t)
	s.start()
	s.steer(s.other)
	s.base.MustServeTCP("elsewhere", ":81")
	dst := at(webVIP4, 81)
	var seen netip.AddrPort
	s.mustCount("capture4", "unknown_destination", 1, func() {
		c := s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst).mustHear("elsewhere").mustShowPeer(dst)
		sa, err := unix.Getsockname(c.fd)
		s.must(err)
		seen = addrPort(sa)
	})
	if seen.Addr() != s.other.IPv4 {
		t.Errorf("the connection comes from %v, want %v", seen, s.other.IPv4)
	}
	// UDP is never captured.
	s.other.MustReach("udp4", at(webVIP4, 53), "baseline")
}

func TestANamespaceWithoutListenerGoesToTheBaselineAndCounts(t *testing.T) {
	s := newScene(t)
	s.start()
	s.mustCount("capture4", "no_listener", 1, func() { s.other.MustReach("tcp4", at(webVIP4, 80), "baseline") })
	s.mustCount("capture6", "no_listener", 1, func() { s.other.MustReach("tcp6", at(webVIP6, 80), "baseline") })

	r := s.steer(s.other)
	s.other.MustReach("tcp4", at(webVIP4, 80), "router")
	<-r.came

	s.must(s.k.SetNamespaces(nil))
	s.mustCount("capture4", "no_listener", 1, func() { s.other.MustReach("tcp4", at(webVIP4, 80), "baseline") })
}

func TestAListenerOnIPv4AloneLeavesIPv6OnlySocketsToTheBaseline(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	s.listenersTaken[s.cookie(s.other)] = Listener{Port4: r.port4}
	s.must(s.k.SetNamespaces(s.listenersTaken))
	dst := at(webVIP6, 80)
	s.mustCount("capture6", "no_listener", 1, func() {
		s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1).
			mustConnect(dst).mustHear("baseline").mustShowPeer(dst)
	})
	s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(dst).mustHear("router")
	r.mustHaveCaptured(s, dst)
}

func TestTheAgentsOwnSocketsPass(t *testing.T) {
	s := newScene(t)
	s.start()
	s.steer(s.other)
	for _, p := range []*lab.Pod{s.tagged, s.other} {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			s.socket(p, family, unix.SOCK_STREAM).set(unix.SOL_SOCKET, unix.SO_MARK, int(s.config().Mark)).
				mustConnect(at(webVIP4, 80)).mustHear("baseline").mustShowPeer(at(webVIP4, 80))
			s.socket(p, family, unix.SOCK_DGRAM).set(unix.SOL_SOCKET, unix.SO_MARK, int(s.config().Mark)).
				mustAsk(at(webVIP4, 53), "baseline", at(webVIP4, 53))
		}
	}
}

func TestInjectOverridesWhatFlowHasDone(t *testing.T) {
	s := newScene(t)
	s.input.Pods[0].Inject = true
	s.start()
	dst4, dst6 := at(webVIP4, 80), at(webVIP6, 80)
	// Without the router, it is a tagged pod like any other.
	s.tagged.MustReach("tcp4", dst4, "fork")

	r := s.steer(s.tagged)
	connect := func() {
		t.Helper()
		s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst4).mustHear("router").mustShowPeer(dst4)
		r.mustHaveCaptured(s, dst4)
		s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(dst4).mustHear("router").mustShowPeer(dst4)
		r.mustHaveCaptured(s, dst4)
		s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(dst6).mustHear("router").mustShowPeer(dst6)
		r.mustHaveCaptured(s, dst6)
	}
	connect()

	// The router answers for a fork that is not there, too.
	s.setReady(false)
	s.apply()
	connect()

	// It dies: refused again.
	s.must(s.k.DetachCapture())
	c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
	c.mustRefuse(c.connect(dst4))
	s.setReady(true)
	s.apply()
	s.tagged.MustReach("tcp4", dst4, "fork")
}

func TestInjectPodsAreCapturedToAnyKnownService(t *testing.T) {
	s := newScene(t)
	s.input.Pods[0].Inject = true
	s.input.Sandboxes[0].Redirects = nil
	s.start()
	r := s.steer(s.tagged)
	s.steer(s.other)
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "router")
	r.mustHaveCaptured(s, at(webVIP4, 80))
	s.mustCount("capture4", "not_captured", 1, func() { s.other.MustReach("tcp4", at(webVIP4, 80), "baseline") })
}

func TestATaggedPodWithoutInjectIsNeverCaptured(t *testing.T) {
	s := newScene(t)
	s.start()
	s.steer(s.tagged)
	s.mustCount("capture4", "tagged", 1, func() { s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork") })
}

func TestAMembersPodIsCapturedWhereItsOwnSandboxRedirectsNothing(t *testing.T) {
	s := newScene(t)
	group := routing.Sandbox{
		Name: routing.Name{Namespace: "shop", Name: "all"}, Group: true, Key: "fedcba9876543210",
		Members: []string{sandbox.Name}, Redirects: s.input.Sandboxes[0].Redirects,
	}
	own := s.input.Sandboxes[0].Redirects
	s.input.Sandboxes[0].Redirects = nil
	s.start()
	r := s.steer(s.tagged)
	dst4, dst6 := at(webVIP4, 80), at(webVIP6, 80)
	s.mustCount("capture4", "tagged", 1, func() { s.tagged.MustReach("tcp4", dst4, "baseline") })

	s.input.Sandboxes = append(s.input.Sandboxes, group)
	s.apply()
	s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst4).mustHear("router").mustShowPeer(dst4)
	r.mustHaveCaptured(s, dst4)
	s.socket(s.tagged, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(dst6).mustHear("router").mustShowPeer(dst6)
	r.mustHaveCaptured(s, dst6)
	s.mustCount("capture4", "unknown_destination", 1, func() {
		c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
		c.mustRefuse(c.connect(at(webVIP4, 82)))
	})

	// Its own sandbox's redirect wins, in the kernel: with endpoints, without, and
	// where its owner wants the baseline for a fork that is not there.
	s.input.Sandboxes[0].Redirects = own
	s.apply()
	s.mustCount("capture4", "tagged", 1, func() { s.tagged.MustReach("tcp4", dst4, "fork") })
	s.mustCount("capture6", "tagged", 1, func() { s.tagged.MustReach("tcp6", dst6, "fork") })
	s.setReady(false)
	s.apply()
	s.mustCount("capture4", "tagged", 1, func() {
		c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
		c.mustRefuse(c.connect(dst4))
	})
	baseline := own[0]
	baseline.Unavailable = routing.Baseline
	s.input.Sandboxes[0].Redirects = []routing.Redirect{baseline}
	s.apply()
	s.mustCount("capture4", "tagged", 1, func() { s.tagged.MustReach("tcp4", dst4, "baseline") })

	// A destination that nobody redirects is known, to pods with inject.
	s.input.Sandboxes = s.input.Sandboxes[:1]
	s.input.Sandboxes[0].Redirects = nil
	s.input.Pods[1].Sandbox, s.input.Pods[1].Inject = sandbox.Name, true
	group.Redirects = nil
	s.input.Sandboxes = append(s.input.Sandboxes, group)
	s.apply()
	s.mustCount("capture4", "not_captured", 1, func() { s.tagged.MustReach("tcp4", dst4, "baseline") })
}

func TestExitsAreNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, labels := range [][]string{programLabels[:], reasonLabels[:]} {
		for i, l := range labels {
			if l == "" || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				t.Errorf("label %d is %q: every value of the enum in bpf/sidetrack.h needs one of its own", i, l)
			}
			if seen[l] {
				t.Errorf("label %q is there twice", l)
			}
			seen[l] = true
		}
	}
}
