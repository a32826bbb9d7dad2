// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sidetrack-dev/sidetrack/daemon/conntrack"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const (
	cartIPv4 = "10.96.0.9:80"
	cartIPv6 = "[fd00:96::9]:80"
)

// withCart adds Service cart, which the sandbox observes, with two pods that answer.
func withCart(w *world) {
	w.input.Services = append(w.input.Services, routing.Service{
		Name:      routing.Name{Namespace: "shop", Name: "cart"},
		Addresses: []netip.Addr{netip.MustParseAddrPort(cartIPv4).Addr(), netip.MustParseAddrPort(cartIPv6).Addr()},
		Ports:     []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}},
	})
	w.input.Sandboxes[0].Observe = []string{"cart"}
	s := endpoints("cart", w.base.IPv4, w.base.IPv6, w.fork2.IPv4, w.fork2.IPv6)
	for i, pod := range []string{"base", "base", "fork2", "fork2"} {
		s.Endpoints[i].Pod = pod
	}
	w.input.Slices = append(w.input.Slices, s)
}

// behindNode has the client's connections to cart translated on the way, by a namespace
// that the routers take for the host's.
func (w *world) behindNode(routers ...*Router) {
	w.t.Helper()
	node := w.lab.MustPod("node")
	for _, f := range []struct {
		service    string
		one, other netip.Addr
	}{{cartIPv4, w.base.IPv4, w.fork2.IPv4}, {cartIPv6, w.base.IPv6, w.fork2.IPv6}} {
		service := netip.MustParseAddrPort(f.service)
		err := node.ForwardDNAT("tcp", service, netip.AddrPortFrom(f.one, 8080), netip.AddrPortFrom(f.other, 8080))
		if errors.Is(err, lab.ErrNoNFT) {
			w.t.Skip(err)
		}
		if err == nil {
			err = w.client.RouteVia(service.Addr(), node)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	for _, r := range routers {
		for _, l := range r.loops {
			var ct *conntrack.Table
			if err := node.Do(func() (err error) {
				ct, err = conntrack.Open()
				return err
			}); err != nil {
				w.t.Fatal(err)
			}
			l.call(func() {
				if l.conntrack != nil {
					l.conntrack.Close()
				}
				l.conntrack = ct
			})
		}
	}
}

// questions is how often connection tracking has been asked.
func (r *Router) questions() (n int) {
	for _, l := range r.loops {
		l.call(func() { n += l.conntrack.Asked() })
	}
	return n
}

// cartClient is an HTTP client of cart's with one connection at a time.
func (w *world) cartClient(dialled string, http2 bool) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return w.client.DialContext(ctx, network, w.capturedAt(w.client, dialled))
		},
		Protocols: new(http.Protocols), MaxConnsPerHost: 1,
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

// ask sends a request and returns which pod says that it answers.
func (w *world) ask(c *http.Client, headers ...string) string {
	w.t.Helper()
	req, err := http.NewRequest("GET", "http://cart/", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(strings.TrimSpace(h), ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	// The connection is kept for who reads all of it.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		w.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.Header.Get(lab.ServedBy)
}

func TestThePodBehindAClusterIPIsNamed(t *testing.T) {
	for _, tc := range []struct {
		dialled string
		http2   bool
	}{{cartIPv4, false}, {cartIPv6, false}, {cartIPv4, true}, {cartIPv6, true}} {
		t.Run(fmt.Sprintf("%s HTTP/2 %t", tc.dialled, tc.http2), func(t *testing.T) {
			w, l := newLedgerWorld(t, withCart)
			other := w.another(func(c *Config) { c.Ledger = l })
			w.behindNode(w.router, other)
			for _, p := range []*lab.Pod{w.base, w.fork2} {
				w.serveHTTP2(p, telling(p))
			}
			named, wanted := 0, map[string]bool{}
			check := func(want string) {
				t.Helper()
				named++
				r := w.records(l, pr42, named)[named-1]
				if wanted[want] = true; r.Answer == nil || r.Answer.Pod != want || r.Answer.Address == tc.dialled || r.Dialled != tc.dialled || r.Decision != "baseline" {
					t.Errorf("%s has answered; the record says %+v", want, r)
				}
			}
			for i := 0; len(wanted) < 2; i++ {
				if i == 100 {
					t.Fatalf("only %v answer", wanted)
				}
				c := w.cartClient(tc.dialled, tc.http2)
				// Untagged requests ask nobody, and the upstream's first tagged one once.
				before := w.router.questions()
				want := w.ask(c)
				if n := w.router.questions() - before; n > 0 {
					t.Errorf("an untagged request has cost %d questions", n)
				}
				for range 3 {
					if got := w.ask(c, tagged); got != want {
						t.Fatalf("%s and %s answer on one connection", got, want)
					}
					check(want)
				}
				if n := w.router.questions() - before; n != 1 {
					t.Errorf("three tagged requests have cost %d questions, want 1", n)
				}
				if i == 0 {
					// Who goes on with the connection finds out as well.
					w.moveAll(w.router, other, false)
					if got := w.ask(c, tagged); got != want {
						t.Fatalf("%s and %s answer on one connection", got, want)
					}
					check(want)
				}
				c.CloseIdleConnections()
			}
		})
	}
}

// TestThePodIsKnownWhereTheBaselineIsDialledForTheRequest: the answer closes the
// connection, so the next request has the router dial.
func TestThePodIsKnownWhereTheBaselineIsDialledForTheRequest(t *testing.T) {
	w, l := newLedgerWorld(t, withCart)
	w.behindNode(w.router)
	for _, p := range []*lab.Pod{w.base, w.fork2, w.fork} {
		w.script(p, func(c *peer) {
			if _, err := readRequest(c.r); err == nil {
				c.send("HTTP/1.1 200 OK\r\nX-Served-By: " + p.Name + "\r\nContent-Length: 0\r\n\r\n")
			}
		})
	}
	seen := map[string]bool{}
	for n := 1; len(seen) < 2; n++ {
		if n > 100 {
			t.Fatalf("only %v answer", seen)
		}
		c := w.dialAt(w.client, cartIPv4)
		c.send(get("Connection: close\r\n" + tagged))
		resp, _ := c.response("GET")
		want := resp.Header.Get(lab.ServedBy)
		seen[want] = true
		if r := w.records(l, pr42, n)[n-1]; r.Answer == nil || r.Answer.Pod != want {
			t.Errorf("%s has answered; the record says %+v", want, r.Answer)
		}
	}
}

// announced collects what a ledger announces.
type announced struct {
	mu    sync.Mutex
	words []ledger.Announcement
}

func (a *announced) add(word ledger.Announcement) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.words = append(a.words, word)
}

func (a *announced) all() []ledger.Announcement {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.words)
}

func TestOthersAreToldWhichPodGetsARequest(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var said announced
		w, _ := newLedgerWorld(t, withCart, propagating, func(w *world) {
			w.router.cfg.Ledger.Announce(func(a ledger.Announcement) {
				said.add(a)
				a.Told()
			})
		})
		w.behindNode(w.router)
		for _, p := range []*lab.Pod{w.base, w.fork2} {
			w.serveHTTP2(p, telling(p))
		}
		want := w.ask(w.cartClient(cartIPv4, http2), tagged, traceparent)
		at := netip.AddrPortFrom(map[string]*lab.Pod{"base": w.base, "fork2": w.fork2}[want].IPv4, 8080)
		words := said.all()
		if len(words) != 1 || words[0].Service.Name != "cart" || !slices.Equal(words[0].Endpoints, []netip.AddrPort{at}) {
			t.Errorf("HTTP/2 %t: %s has answered; others were told %+v", http2, want, words)
		}
	}
}

func TestWhereASocketHasBeenBalancedToIsFound(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	for _, addrs := range [][3]netip.Addr{
		{netip.MustParseAddr("10.96.0.7"), w.fork.IPv4, w.base.IPv4},
		{netip.MustParseAddr("fd00:96::7"), w.fork.IPv6, w.base.IPv6},
	} {
		at := func(i int) netip.AddrPort { return netip.AddrPortFrom(addrs[i], 8080) }
		c, err := w.client.Dial("tcp", at(2).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		from := c.LocalAddr().(*net.TCPAddr).AddrPort()
		for _, tc := range []struct {
			candidates []netip.AddrPort
			want       netip.AddrPort
		}{
			{[]netip.AddrPort{at(0), at(1), at(2)}, at(2)},
			{[]netip.AddrPort{at(0), at(1)}, netip.AddrPort{}},
			{[]netip.AddrPort{w.otherFamily(at(2)), at(2)}, at(2)},
		} {
			var got netip.AddrPort
			var found error
			err := w.client.Do(func() error {
				return raw.Control(func(fd uintptr) { got, found = connectedTo(int32(fd), from, slices.Values(tc.candidates)) })
			})
			if err != nil || got != tc.want || (found == nil) != tc.want.IsValid() || found != nil && !errors.Is(found, errNoSocket) {
				t.Errorf("connected to %s; of %v it is %s, and %v, %v", at(2), tc.candidates, got, found, err)
			}
		}
	}
}

func (w *world) otherFamily(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(w.base.IPv6, a.Port())
	}
	return netip.AddrPortFrom(w.base.IPv4, a.Port())
}

// TestABalancedUpstreamNamesItsPod: nothing is tracked, and the socket leads elsewhere
// than it was told to.
func TestABalancedUpstreamNamesItsPod(t *testing.T) {
	w, _ := newLedgerWorld(t, withCart)
	w.names(w.base, w.fork2)
	w.behindNode(w.router)
	c := w.dialAt(w.client, netip.AddrPortFrom(w.fork2.IPv4, 8080).String())
	c.send(get(untagged))
	c.response("GET")
	want := netip.AddrPortFrom(w.fork2.IPv4, 8080)
	asked := 0
	for _, l := range w.router.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = c.next {
				// As if a socket load balancer had rewritten the router's connect(2).
				asked++
				c.cur.addr = netip.MustParseAddrPort(cartIPv4)
				if got := c.cur.answering(); got != want {
					t.Errorf("%s answers, want %s", got, want)
				}
			}
		})
	}
	if asked != 1 {
		t.Fatalf("%d connections", asked)
	}
}
