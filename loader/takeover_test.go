// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// dialling dials from both pods until the test says that it is enough. No
// connection may fail, no tagged flow go astray, and every other be captured.
func (s *scene) dialling(routers ...*routerStub) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var dials atomic.Int64
	for _, r := range routers {
		go func() {
			for {
				select {
				case <-r.came:
				case <-s.Context().Done():
					return
				}
			}
		}()
	}
	for pod, want := range map[*lab.Pod]string{s.tagged: "fork", s.other: "router"} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				dials.Add(1)
				if got, err := pod.Ask("tcp4", at(webVIP4, 80)); err != nil || got != want {
					s.Errorf("dial %d: %s heard %q and %v, want %q", dials.Load(), pod.Name, got, err, want)
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(done)
		wg.Wait()
		s.Logf("%d dials", dials.Load())
	})
	s.Cleanup(stop)
	return stop
}

// successor opens a Kernel that takes over from s.k, with a table of its own
// numbering, and a router.
func (s *scene) successor() (k *Kernel, r *routerStub, publish func()) {
	s.Helper()
	legacy, err := s.k.Legacy()
	s.must(err)
	cfg := s.config()
	cfg.Legacy = legacy
	k, err = Open(cfg)
	s.must(err)
	s.must(legacy.Lock.Close())
	s.Cleanup(func() { k.Close() })
	r = newRouterStub(s, s.other)
	in := s.input
	in.Services = append(slices.Clone(in.Services), routing.Service{
		Name: routing.Name{Namespace: "shop", Name: "aaa"}, Addresses: addrs("10.95.0.1"), Ports: in.Services[0].Ports})
	in.Sandboxes = append(slices.Clone(in.Sandboxes), routing.Sandbox{
		Name: routing.Name{Namespace: "shop", Name: "other"}, Key: "another-key-there-is", Redirects: []routing.Redirect{{
			From: routing.ServiceRef{Service: "aaa"}, To: routing.Target{Service: forkName.Name}, Field: "spec.redirects[0]"}},
	})
	table, problems := routing.Compile(in, nil)
	if len(problems) > 0 {
		s.Fatal(problems)
	}
	return k, r, func() {
		s.Helper()
		s.must(k.SetNamespaces(map[routing.Cookie]Listener{s.cookie(s.other): {Port4: r.port4, Port6: r.port6}}))
		s.must(k.Apply(table))
	}
}

func TestOneAgentTakesOverFromAnotherWithoutAGap(t *testing.T) {
	s := newScene(t)
	s.start()
	first := s.steer(s.other)
	dst := at(webVIP4, 80)
	open := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst).mustHear("fork")
	stop := s.dialling(first)
	for range slowly(5, 2) {
		next, r, publish := s.successor()
		stopToo := s.dialling(r)
		publish()
		if n := len(attached(s, "sd_capture4")); n != 1 {
			t.Errorf("%d capture programs are attached after a takeover, want 1", n)
		}
		s.must(s.k.Yield())
		// It goes on with its own maps, which nobody looks at.
		s.setReady(false)
		s.apply()
		s.must(s.k.RenewLease(firstLease))
		if _, err := s.k.Legacy(); err == nil {
			t.Error("an agent that has yielded has something to give")
		}
		s.must(s.k.Close())
		_, err := Open(s.config())
		if !errors.Is(err, ErrRunning) {
			t.Errorf("a third agent: %v, want ErrRunning", err)
		}
		s.setReady(true)
		s.k, s.table = next, next.applied
		s.must(s.k.RenewLease(firstLease))
		stopToo()
	}
	stop()
	if n := len(attached(s, "sd_connect4")); n != 1 {
		t.Errorf("%d flow programs are attached, want 1", n)
	}
	open.mustShowPeer(dst)
}

// TestAnAgentActsAgainWhenItsSuccessorIsGone: however far that has got.
func TestAnAgentActsAgainWhenItsSuccessorIsGone(t *testing.T) {
	for _, tc := range []struct {
		name    string
		publish bool
		yield   bool
	}{
		{"before it publishes", false, false},
		{"after it has published", true, false},
		{"after this one has yielded", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene(t)
			s.start()
			first := s.steer(s.other)
			next, r, publish := s.successor()
			stop := s.dialling(first, r)
			if tc.publish {
				publish()
			}
			if tc.yield {
				s.must(s.k.Yield())
				if err := s.k.Resume(); !errors.Is(err, ErrRunning) {
					t.Errorf("resume beside a running agent: %v, want ErrRunning", err)
				}
			}
			// Without a capture program nothing is captured until Resume; that is what a
			// killed agent costs.
			stop()
			s.must(next.Close())
			s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
			s.must(s.k.Resume())
			stop = s.dialling(first, r)
			for _, name := range []string{"sd_capture4", "sd_connect4"} {
				if n := len(attached(s, name)); n != 1 {
					t.Errorf("%d programs %s are attached, want 1", n, name)
				}
			}
			if _, err := Open(s.config()); !errors.Is(err, ErrRunning) {
				t.Errorf("another agent: %v, want ErrRunning", err)
			}
			stop()
			// Its maps are the ones that are looked at, and its pins lead to them.
			s.setReady(false)
			s.apply()
			if got, err := s.tagged.Ask("tcp4", at(webVIP4, 80)); err == nil {
				t.Errorf("the fork is not ready, and %q answered", got)
			}
			s.must(s.k.RenewLease(firstLease))
			s.must(s.k.Close())
			entries, err := filepath.Glob(filepath.Join(pinDir(s.w.BPFFS), "*"))
			s.must(err)
			if n := len(entries); n != len(mapNames)+len(flowPrograms) || strings.Contains(fmt.Sprint(entries), newSuffix) {
				t.Errorf("%d pins are left: %v", n, entries)
			}
			if got, err := s.tagged.Ask("tcp4", at(webVIP4, 80)); err == nil {
				t.Errorf("the fork is not ready, and by the pins %q answered", got)
			}
		})
	}
}

// TestAnAgentThatWasNeverInForceIsTakenOver: and stays out of the way.
func TestAnAgentThatWasNeverInForceIsTakenOver(t *testing.T) {
	s := newScene(t)
	k, err := Open(s.config())
	s.must(err)
	t.Cleanup(func() { k.Close() })
	s.k = k
	next, r, publish := s.successor()
	s.apply() // too late
	if n := len(attached(s, "sd_capture4")) + len(attached(s, "sd_connect4")); n != 0 {
		t.Errorf("%d programs of an agent are attached that another one takes over from", n)
	}
	publish()
	stop := s.dialling(r)
	s.must(s.k.Yield())
	stop()
	s.must(next.Close())
	s.must(s.k.Resume())
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	if n := len(attached(s, "sd_capture4")); n != 1 {
		t.Errorf("%d capture programs are attached, want 1", n)
	}
}

func TestATakeoverIsOfTheSamePins(t *testing.T) {
	s := newScene(t)
	s.start()
	legacy, err := s.k.Legacy()
	s.must(err)
	defer legacy.Lock.Close()
	elsewhere := filepath.Join(t.TempDir(), "bpf")
	cfg := s.config()
	cfg.BPFFS, cfg.Legacy = elsewhere, legacy
	_, err = Open(cfg)
	t.Cleanup(func() { s.must(unix.Unmount(elsewhere, 0)) })
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "--bpffs") {
		t.Errorf("%v, want ErrRunning and what to do", err)
	}
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}
