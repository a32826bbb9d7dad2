// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// visit is one new connection or request: when it began and ended, and who has
// answered.
type visit struct {
	from, to time.Time
	server   string
	err      error
}

// visits are those of one worker, one after another.
type visits struct {
	mu  sync.Mutex
	all []visit
}

func (v *visits) add(one visit) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, one)
}

func (v *visits) since(t time.Time) []visit {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.all {
		if v.all[i].from.After(t) {
			return append([]visit(nil), v.all[i:]...)
		}
	}
	return nil
}

// worker goes on visiting until stop is closed.
func worker(wg *sync.WaitGroup, stop <-chan struct{}, pace time.Duration, ask func() (string, error)) *visits {
	v := &visits{}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			server, err := ask()
			v.add(visit{began, time.Now(), server, err})
			time.Sleep(pace)
		}
	})
	return v
}

// turned checks the visits after a change at time at: all succeed; there is one
// moment before which the old server and after which the new one answers. It
// returns when the first visit of the new server began.
func turned(all []visit, at time.Time, before, after string) (time.Duration, error) {
	var first time.Time
	for _, v := range all {
		switch {
		case v.err != nil:
			return 0, fmt.Errorf("%s after the change: %w", v.from.Sub(at), v.err)
		case v.server == after:
			if first.IsZero() {
				first = v.from
			}
		case v.server != before:
			return 0, fmt.Errorf("%s after the change %q answered", v.from.Sub(at), v.server)
		case !first.IsZero():
			return 0, fmt.Errorf("%s after the change %q answered again, though %q had before, at %s", v.from.Sub(at), before, after, first.Sub(at))
		}
	}
	if first.IsZero() {
		return 0, fmt.Errorf("%q has never answered in %d visits", after, len(all))
	}
	return first.Sub(at), nil
}

// TestSwitchingASandboxUnderLoadMisdirectsNoConnection: new flows of a pod of
// the sandbox go to the fork from one moment on, and back, while others go on.
func TestSwitchingASandboxUnderLoadMisdirectsNoConnection(t *testing.T) {
	s := newShop(t)
	n := s.nextPort()
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(p.ServeTCP(name, fmt.Sprintf(":%d", n)), p.ServeUDP(name, ":53", ":5353"), p.ServeHTTP(name, ":80", ":8080"))
	})
	s.start()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	tcp := func(p *lab.Pod, ip string) func() (string, error) {
		return func() (string, error) { return p.Ask("tcp", fmt.Sprintf("%s:%d", ip, n)) }
	}
	request := func(header ...string) func() (string, error) {
		return func() (string, error) {
			seen, err := s.client.Get("http://"+webIP+"/", header...)
			return seen.Server, err
		}
	}
	const pace = 2 * time.Millisecond
	// These change with the sandbox,
	changing := map[string]*visits{
		"TCP flow":                worker(&wg, stop, pace, tcp(s.tester, wideIP)),
		"TCP flow to an endpoint": worker(&wg, stop, pace, tcp(s.tester, s.base.IPv4.String())),
		"UDP flow":                worker(&wg, stop, pace, func() (string, error) { return s.tester.Ask("udp", dnsIP+":53") }),
		"flow of an injected pod": worker(&wg, stop, pace, tcp(s.runner, wideIP)),
		"tagged request":          worker(&wg, stop, pace, request("x-sidetrack-key: "+keyA)),
	}
	// and these must not notice.
	steady := map[string]*visits{
		"baseline":         worker(&wg, stop, pace, tcp(s.client, wideIP)),
		"fork-b":           worker(&wg, stop, pace, tcp(s.testerB, wideIP)),
		"baseline, HTTP":   worker(&wg, stop, pace, request()),
		"fork-b, by a key": worker(&wg, stop, pace, request("baggage: sidetrack="+keyB)),
	}
	began := time.Now()
	time.Sleep(200 * time.Millisecond)
	servers := [2]string{"fork-a", "baseline"}
	fastest := time.Hour
	for i := range 10 {
		before, after := servers[i%2], servers[(i+1)%2]
		at := time.Now()
		if after == "baseline" {
			drop(t, s.dir, "sandbox-a.yaml")
		} else {
			s.putSandbox("a", keyA)
		}
		eventually(t, func() error {
			var errs []error
			for name, v := range changing {
				if !slices.ContainsFunc(v.since(at), func(v visit) bool { return v.server == after || v.err != nil }) {
					errs = append(errs, fmt.Errorf("change %d, %s: %s has not answered yet", i, name, after))
				}
			}
			return errors.Join(errs...)
		})
		time.Sleep(200 * time.Millisecond)
		slowest := time.Duration(0)
		for name, v := range changing {
			took, err := turned(v.since(at), at, before, after)
			if err != nil {
				t.Errorf("change %d, %s: %v", i, name, err)
			}
			slowest = max(slowest, took)
		}
		fastest = min(fastest, slowest)
	}
	t.Logf("a change was in force after %s", fastest.Round(time.Millisecond))
	// A busy machine is forgiven the others.
	if limit := inForce(); fastest > limit {
		t.Errorf("a change was in force after %s only, want %s", fastest, limit)
	}
	for name, v := range steady {
		want := name
		switch name {
		case "baseline, HTTP":
			want = "baseline"
		case "fork-b, by a key":
			want = "fork-b"
		}
		for _, one := range v.since(began) {
			if one.err != nil || one.server != want {
				t.Errorf("%s: %q answered, %v, %s after the beginning", name, one.server, one.err, one.from.Sub(began))
				break
			}
		}
	}
}

// TestAnUnconnectedSocketFollowsTheSandbox: one UDP socket, kept for good.
func TestAnUnconnectedSocketFollowsTheSandbox(t *testing.T) {
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeUDP(name, ":53", ":5353") })
	s.start()
	so := plain4.socket(t, s.tester, unix.SOCK_DGRAM)
	service := netip.MustParseAddrPort(dnsIP + ":53")
	ask := func() (string, string, error) {
		if err := unix.Sendto(so.fd, []byte("hello"), 0, plain4.address(service)); err != nil {
			return "", "", err
		}
		return so.receive()
	}
	wait := func(want string) {
		eventually(t, func() error {
			line, by, err := ask()
			if err != nil {
				return err
			}
			return errors.Join(expect("server", line, want), expect("its address", by, service.String()))
		})
	}
	wait("fork-a")
	drop(t, s.dir, "sandbox-a.yaml")
	wait("baseline")
	s.putSandbox("a", keyA)
	wait("fork-a")
}
