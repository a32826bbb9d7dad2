// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// ask connects and reads a greeting; it returns the server's name, or what went
// wrong. Unlike sock, it may be used by several goroutines.
func (s *scene) ask(p *lab.Pod, address string) string {
	name, err := p.Ask("tcp4", address)
	if err != nil {
		return err.Error()
	}
	return name
}

// load dials from pod all the time, until stop is called, and counts what it
// reached.
func (s *scene) load(p *lab.Pod, address string) (stop func() map[string]int) {
	var (
		over    atomic.Bool
		wg      sync.WaitGroup
		mu      sync.Mutex
		reached = map[string]int{}
	)
	for range 2 {
		wg.Go(func() {
			for !over.Load() {
				name := s.ask(p, address)
				mu.Lock()
				reached[name]++
				mu.Unlock()
			}
		})
	}
	return func() map[string]int {
		over.Store(true)
		wg.Wait()
		return reached
	}
}

// wantOnly fails for each connection that went elsewhere, and when there was
// none.
func wantOnly(t *testing.T, who string, reached map[string]int, wanted ...string) {
	t.Helper()
	total := 0
	for _, w := range wanted {
		total += reached[w]
		delete(reached, w)
	}
	if len(reached) > 0 || total == 0 {
		t.Errorf("%s: %d connections reached %v; the others: %v", who, total, wanted, reached)
	}
	t.Logf("%s: %d connections to %v", who, total, wanted)
}

func TestSwitchingASandboxUnderLoadMisdirectsNoConnection(t *testing.T) {
	s := newScene(t)
	whole := s.input.Sandboxes[0].Redirects
	s.start()
	tagged, other := s.load(s.tagged, at(webVIP4, 80)), s.load(s.other, at(webVIP4, 80))
	for range slowly(600, 20) {
		s.input.Sandboxes[0].Redirects = nil
		s.apply()
		// What is applied holds for the next connection.
		if got := s.ask(s.tagged, at(webVIP4, 80)); got != "baseline" {
			t.Fatalf("switched off, a tagged flow reached %q", got)
		}
		s.input.Sandboxes[0].Redirects = whole
		s.apply()
		if got := s.ask(s.tagged, at(webVIP4, 80)); got != "fork" {
			t.Fatalf("switched on, a tagged flow reached %q", got)
		}
	}
	wantOnly(t, "tagged", tagged(), "fork", "baseline")
	wantOnly(t, "other", other(), "baseline")
}

func TestChangingEndpointsUnderLoadMisdirectsNoConnection(t *testing.T) {
	s := newScene(t)
	second := s.w.MustPod("second")
	second.MustServeTCP("second", ":80")
	s.start()
	tagged := s.load(s.tagged, at(webVIP4, 80))
	for i := range slowly(1500, 40) {
		switch i % 3 {
		case 0:
			s.input.Slices[1] = slice(forkName, second.IPv4)
		case 1:
			s.input.Slices[1] = slice(forkName, s.fork.IPv4, second.IPv4)
		case 2:
			s.input.Slices[1] = slice(forkName, s.fork.IPv4)
		}
		s.apply()
	}
	wantOnly(t, "tagged", tagged(), "fork", "second")
}

func TestRestartsUnderLoadMisdirectNoConnection(t *testing.T) {
	s := newScene(t)
	s.spawn(s.config()).kill()
	tagged := s.load(s.tagged, at(webVIP4, 80))
	for range slowly(10, 2) {
		s.spawn(s.config()).kill()
	}
	wantOnly(t, "tagged", tagged(), "fork")
}

func TestAFailedWriteIsMadeGoodUnderLoad(t *testing.T) {
	s := newScene(t)
	s.start()
	tagged := s.load(s.tagged, at(webVIP4, 80))
	for range slowly(10, 2) {
		s.k.damaged = true
		s.apply()
	}
	wantOnly(t, "tagged", tagged(), "fork")
}

// A table may follow one that did not fit: no steps lead to it from what is applied
// that are known to be safe on the way.
func TestATableAfterOneThatWasNotAppliedIsMadeGoodUnderLoad(t *testing.T) {
	s := newScene(t)
	s.start()
	tagged := s.load(s.tagged, at(webVIP4, 80))
	for range slowly(10, 2) {
		before := s.k.objs
		s.compile()
		s.apply()
		if s.k.objs == before {
			t.Fatal("the maps are changed step by step")
		}
		before = s.k.objs
		s.apply()
		if s.k.objs != before {
			t.Fatal("the maps are new, though one table follows the other")
		}
	}
	wantOnly(t, "tagged", tagged(), "fork")
}

func TestMethodsMayBeCalledConcurrently(t *testing.T) {
	s := newScene(t)
	s.start()
	var wg sync.WaitGroup
	until := time.Now().Add(500 * time.Millisecond)
	for _, f := range []func() error{
		func() error { return s.k.RenewLease(time.Minute) },
		func() error { return s.k.SetNamespaces(s.listenersTaken) },
		func() error { return s.k.Apply(s.table) },
		func() error { _, err := s.k.Exits(); return err },
		func() error { _, err := s.k.Hits(); return err },
		func() error {
			if _, ok := s.k.V6OnlyDest(1); ok {
				return fmt.Errorf("V6OnlyDest: %w", unix.EEXIST)
			}
			return nil
		},
	} {
		wg.Go(func() {
			for time.Now().Before(until) {
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
