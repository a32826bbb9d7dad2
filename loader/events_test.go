// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// told collects flows as a reader is told of them.
type told struct {
	mu    sync.Mutex
	flows []Flow
}

// listen reads flows until the test ends.
func (s *scene) listen() *told {
	s.Helper()
	r, err := s.k.Flows()
	if err != nil {
		s.Fatal(err)
	}
	var all told
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := r.Read()
			if err != nil {
				if !errors.Is(err, os.ErrClosed) {
					s.Errorf("read a flow: %v", err)
				}
				return
			}
			all.mu.Lock()
			all.flows = append(all.flows, f)
			all.mu.Unlock()
		}
	}()
	s.Cleanup(func() {
		if err := r.Close(); err != nil {
			s.Error(err)
		}
		<-done
	})
	return &all
}

// take waits for n flows and forgets them.
func (a *told) take(t *testing.T, n int) []Flow {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		a.mu.Lock()
		if len(a.flows) >= n {
			got := a.flows
			a.flows = nil
			a.mu.Unlock()
			if len(got) > n {
				t.Fatalf("%d flows were told, want %d: %+v", len(got), n, got)
			}
			return got
		}
		a.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("%d flows were told, want %d", len(a.flows), n)
		}
	}
}

func (f Flow) words() string {
	hook := "connect"
	if f.Datagrams {
		hook = "sendmsg"
	}
	s := fmt.Sprintf("%s %s %s %s %s", hook, f.Protocol, f.Dialled, f.Verdict, f.Reason)
	if f.Endpoint.IsValid() {
		s += " " + f.Endpoint.String()
	}
	return s
}

func TestEveryTaggedFlowIsToldAndNoOther(t *testing.T) {
	s := newScene(t)
	s.input.Services = append(s.input.Services, routing.Service{
		Name: routing.Name{Namespace: "shop", Name: "seen"}, Addresses: addrs("10.96.0.99"),
		Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}},
	})
	s.input.Sandboxes[0].Redirects = append(s.input.Sandboxes[0].Redirects, routing.Redirect{
		From: routing.ServiceRef{Service: "seen"}, To: routing.Target{Service: "seen-pr"}, Field: "spec.redirects[1]",
	})
	s.input.Services = append(s.input.Services, routing.Service{Name: routing.Name{Namespace: "shop", Name: "seen-pr"}, Ports: s.input.Services[2].Ports})
	s.start()
	all := s.listen()
	forks := func(v4 bool, port uint16) string {
		if v4 {
			return netip.AddrPortFrom(s.fork.IPv4, port).String()
		}
		return netip.AddrPortFrom(s.fork.IPv6, port).String()
	}
	began := time.Now()
	for _, tc := range []struct {
		name string
		do   func()
		want string
	}{
		{"a connection", func() { s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork") }, "connect TCP " + at(webVIP4, 80) + " fork redirected " + forks(true, 80)},
		{"a connection over IPv6", func() { s.tagged.MustReach("tcp6", at(webVIP6, 80), "fork") }, "connect TCP " + at(webVIP6, 80) + " fork redirected " + forks(false, 80)},
		{"a refusal", func() {
			c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
			c.mustRefuse(c.connect("10.96.0.99:80"))
		}, "connect TCP 10.96.0.99:80 reject unavailable"},
		{"a connected socket of datagrams", func() {
			s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM).mustConnect(at(webVIP4, 53)).mustAsk("", "fork", at(webVIP4, 53))
		}, "connect UDP " + at(webVIP4, 53) + " fork redirected " + forks(true, 53)},
		{"many datagrams of one socket", func() {
			c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
			for range 20 {
				c.mustAsk(at(webVIP4, 53), "fork", at(webVIP4, 53))
			}
		}, "sendmsg UDP " + at(webVIP4, 53) + " fork redirected " + forks(true, 53)},
	} {
		// Neither somebody else's flows nor those to places that nobody redirects.
		s.other.MustReach("tcp4", at(webVIP4, 80), "baseline")
		s.other.MustReach("udp4", at(webVIP4, 53), "baseline")
		s.tagged.MustReach("tcp4", at(s.fork.IPv4, 80), "fork")
		tc.do()
		f := all.take(t, 1)[0]
		if got := f.words(); got != tc.want {
			t.Errorf("%s is told as %q, want %q", tc.name, got, tc.want)
		}
		if f.Source != s.cookie(s.tagged) || s.table.Sandbox(f.Sandbox) == nil || s.table.Sandbox(f.Sandbox).Name != sandbox {
			t.Errorf("%s is told as of source %d and sandbox %d", tc.name, f.Source, f.Sandbox)
		}
		if f.At.Before(began.Add(-time.Second)) || f.At.After(time.Now().Add(time.Second)) {
			t.Errorf("%s is told as of %s, at %s", tc.name, f.At, time.Now())
		}
	}
	if n, err := s.k.UntoldFlows(); err != nil || n != 0 {
		t.Errorf("%d flows were not told: %v", n, err)
	}
}

func TestFlowsThatNobodyReadsAreCounted(t *testing.T) {
	s := newScene(t)
	s.start()
	// The ring has room for some 3000.
	c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
	for i := 0; ; i++ {
		c.mustConnect(at(webVIP4, 53))
		if i%500 != 0 {
			continue
		}
		n, err := s.k.UntoldFlows()
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			break
		}
		if i > 20_000 {
			t.Fatal("20000 flows found a place")
		}
	}
	// Whoever reads later is told of the oldest, and then of new ones again.
	all := s.listen()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		all.mu.Lock()
		n := len(all.flows)
		all.mu.Unlock()
		if n > 1000 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d flows were told", n)
		}
	}
}

func TestAConnectionThatIsCapturedIsNoFlow(t *testing.T) {
	s := newScene(t)
	s.input.Pods[0].Inject = true
	s.start()
	all := s.listen()
	// Without a listener the flow programs decide.
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	all.take(t, 1)
	r := s.steer(s.tagged)
	s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(at(webVIP4, 80))
	r.mustHaveCaptured(s, at(webVIP4, 80))
	s.tagged.MustReach("udp4", at(webVIP4, 53), "fork")
	if f := all.take(t, 1)[0]; f.Protocol != routing.UDP {
		t.Errorf("told: %s", f.words())
	}
}

func TestAFlowNamesItsSocket(t *testing.T) {
	s := newScene(t)
	s.start()
	all := s.listen()
	for _, tc := range []struct {
		name         string
		family, kind int
		do           func(*sock)
	}{
		{"a connection", unix.AF_INET, unix.SOCK_STREAM, func(c *sock) { c.mustConnect(at(webVIP4, 80)) }},
		{"a connection over IPv6", unix.AF_INET6, unix.SOCK_STREAM, func(c *sock) { c.mustConnect(at(webVIP6, 80)) }},
		{"a connection of an IPv6 socket over IPv4", unix.AF_INET6, unix.SOCK_STREAM, func(c *sock) { c.mustConnect(at(webVIP4, 80)) }},
		{"a connected socket of datagrams", unix.AF_INET, unix.SOCK_DGRAM, func(c *sock) { c.mustConnect(at(webVIP4, 53)) }},
		{"a datagram", unix.AF_INET, unix.SOCK_DGRAM, func(c *sock) { c.mustAsk(at(webVIP4, 53), "fork", at(webVIP4, 53)) }},
	} {
		c := s.socket(s.tagged, tc.family, tc.kind)
		tc.do(c)
		want, err := unix.GetsockoptUint64(c.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		s.must(err)
		if f := all.take(t, 1)[0]; f.Socket != want {
			t.Errorf("%s is told as socket %d's, and is %d's", tc.name, f.Socket, want)
		}
	}
}

// TestWhatHasBegunIsReadBeforeAFlushIsAnswered: whoever flushes has heard of every
// socket whose connect(2) is over.
func TestWhatHasBegunIsReadBeforeAFlushIsAnswered(t *testing.T) {
	s := newScene(t)
	s.start()
	r, err := s.k.Flows()
	s.must(err)
	t.Cleanup(func() { r.Close() })
	counts := make(chan int)
	go func() {
		defer close(counts)
		for n := 0; ; {
			switch _, err := r.Read(); {
			case err == nil:
				n++
			case errors.Is(err, ErrFlushed):
				counts <- n
				n = 0
			default:
				return
			}
		}
	}()
	for n := range 30 {
		for range n {
			s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(at(webVIP4, 80))
		}
		s.must(r.Flush())
		if got := <-counts; got != n {
			t.Fatalf("%d flows were read before the flush was answered, %d had begun", got, n)
		}
	}
	s.must(r.Close())
	if _, more := <-counts; more {
		t.Error("a flush was answered twice")
	}
}

// TestAFlushIsAnsweredWhileFlowsGoOnBeginning: neither where the ring is seldom found empty
// nor where it never is.
func TestAFlushIsAnsweredWhileFlowsGoOnBeginning(t *testing.T) {
	for name, pause := range map[string]time.Duration{"steadily": 5 * time.Millisecond, "as fast as can be": 0} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.start()
			r, err := s.k.Flows()
			s.must(err)
			answers, over := make(chan struct{}), make(chan struct{})
			var flows atomic.Int64
			var read sync.WaitGroup
			read.Go(func() {
				for {
					switch _, err := r.Read(); {
					case err == nil:
						flows.Add(1)
					case errors.Is(err, ErrFlushed):
						select {
						case answers <- struct{}{}:
						case <-over:
							return
						}
					case err != nil:
						return
					}
				}
			})
			stop := make(chan struct{})
			var load sync.WaitGroup
			c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
			load.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						time.Sleep(pause)
					}
					if err := c.connect(at(webVIP4, 53)); err != nil {
						t.Errorf("connect: %v", err)
						return
					}
				}
			})
			for n := range 20 {
				before := flows.Load()
				for end := time.Now().Add(time.Minute); flows.Load() < before+3; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Error("no flows are told")
						break
					}
				}
				s.must(r.Flush())
				select {
				case <-answers:
				case <-time.After(time.Minute):
					t.Errorf("flush %d is not answered", n)
				}
				if t.Failed() {
					break
				}
			}
			close(stop)
			load.Wait()
			close(over)
			s.must(r.Close())
			read.Wait()
		})
	}
}
