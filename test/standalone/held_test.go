// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// deaf has a pod not answer to addresses; the returned function ends it.
func deaf(t *testing.T, p *lab.Pod, to ...netip.Addr) (hear func()) {
	t.Helper()
	var routes []*netlink.Route
	for _, a := range to {
		routes = append(routes, &netlink.Route{
			Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Type: unix.RTN_BLACKHOLE,
		})
	}
	change := func(f func(*netlink.Route) error) {
		t.Helper()
		if err := p.Do(func() error {
			for _, r := range routes {
				if err := f(r); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	change(netlink.RouteAdd)
	return func() {
		t.Helper()
		change(netlink.RouteDel)
	}
}

// TestKillingTheAgentWhileClientsWaitForTheBaseline: their SYNs are with the agent
// and go with it. Each client sends its own again, to nobody, and is refused; it
// does not wait for its time-out. Whoever dials anew reaches the baseline.
func TestKillingTheAgentWhileClientsWaitForTheBaseline(t *testing.T) {
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeHandler(who(name), ":80", ":8080") })
	a := s.start()
	for _, ip := range []string{webIP, webIP6} {
		if got := s.clientServer(t, "x-sidetrack-key: "+keyA); got != "fork-a" {
			t.Fatalf("%s answered a tagged request", got)
		}
		eventually(t, func() error {
			return expect("connections", a.scrape().sum("sidetrack_router_connections"), 0)
		})
		hear := deaf(t, s.base, s.client.IPv4, s.client.IPv6)
		const clients = 5
		connected := make(chan error)
		for range clients {
			go func() {
				c, err := s.client.Dial("tcp", net.JoinHostPort(ip, "80"))
				if err == nil {
					c.Close()
				}
				connected <- err
			}()
		}
		eventually(t, func() error {
			return expect("connections", a.scrape().sum("sidetrack_router_connections"), clients)
		})
		a.kill()
		killed := time.Now()
		hear()
		if got := s.clientServer(t, ""); got != "baseline" {
			t.Errorf("a new connection reached %s", got)
		}
		for range clients {
			if err := <-connected; !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: a client that waited when the agent was killed got %v, want %v", ip, err, unix.ECONNREFUSED)
			}
		}
		t.Logf("%s: the last one was refused %s after the kill", ip, time.Since(killed).Round(time.Millisecond))
		a = s.start()
	}
}

// TestKillingTheAgentWhileManyConnect tells how many clients wait in connect(2) when
// the agent is killed, and what they see. None sees anything but an error that
// ends its connection.
func TestKillingTheAgentWhileManyConnect(t *testing.T) {
	heavy(t)
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeHandler(who(name), ":80", ":8080") })
	a := s.start()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	stopAll := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer stopAll()
	var all []*visits
	for range 16 {
		all = append(all, worker(&wg, stop, time.Millisecond, func() (string, error) {
			conn, err := s.client.Dial("tcp", webIP+":80")
			if err != nil {
				return "", err
			}
			defer conn.Close()
			return askOver(conn, bufio.NewReader(conn), "Connection: close\r\n")
		}))
	}
	began := time.Now()
	time.Sleep(500 * time.Millisecond)
	for round := range 3 {
		killed := time.Now()
		a.kill()
		// Who was held finds out by its next SYN.
		time.Sleep(2 * time.Second)
		var held, broken, later, total int
		var last, longest time.Duration
		for _, v := range all {
			for _, one := range v.since(began) {
				if one.from.Before(killed) {
					total++
				}
				var dial *net.OpError
				switch {
				case one.err == nil:
					continue
				case one.to.Before(killed):
					t.Errorf("round %d: a connection failed before the kill: %v", round, one.err)
				case errors.As(one.err, &dial) && dial.Op == "dial" && errors.Is(one.err, unix.ECONNREFUSED):
					longest = max(longest, one.to.Sub(killed))
					if one.from.Before(killed) {
						held++
					} else {
						later++
						last = max(last, one.from.Sub(killed))
					}
				case errors.Is(one.err, unix.ECONNRESET), errors.Is(one.err, unix.EPIPE), errors.Is(one.err, io.EOF), errors.Is(one.err, io.ErrUnexpectedEOF):
					broken++
				default:
					t.Errorf("round %d: %v", round, one.err)
				}
			}
		}
		t.Logf("round %d: after %d connections in %s, %d were refused that had begun before the kill and %d that began up to %s after it, the last one %s after it; %d were broken",
			round, total, killed.Sub(began).Round(time.Millisecond), held, later, last.Round(time.Millisecond), longest.Round(time.Millisecond), broken)
		if got := s.clientServer(t, ""); got != "baseline" {
			t.Errorf("round %d: a new connection reached %s", round, got)
		}
		a = s.start()
		began = time.Now()
		time.Sleep(time.Second)
	}
}
