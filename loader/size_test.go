// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func TestATableThatDoesNotFitIsAnErrorThatNamesTheFlag(t *testing.T) {
	for flag, shrink := range map[string]func(*Config){
		"--max-flow-routes":  func(c *Config) { c.MaxFlowRoutes = 1 },
		"--max-destinations": func(c *Config) { c.MaxDestinations = 7 },
		"--max-backends":     func(c *Config) { c.MaxBackends = 3 },
		"--max-identities":   func(c *Config) { c.MaxIdentities = 1 },
	} {
		s := newScene(t)
		cfg := s.config()
		shrink(&cfg)
		k, err := Open(cfg)
		s.must(err)
		s.k = k
		whole := s.input
		s.input.Sandboxes, s.input.Services, s.input.Slices, s.input.Pods = nil, nil, nil, nil
		s.apply() // an empty table fits
		s.input = whole
		s.compile()
		// More pods of the sandbox than one.
		s.input.Pods = append(s.input.Pods, routing.Pod{Name: routing.Name{Namespace: "shop", Name: "third"}, Netns: 1 << 40, Sandbox: sandbox.Name})
		s.compile()
		for range 2 {
			if err := k.Apply(s.table); err == nil || !strings.Contains(err.Error(), flag) {
				t.Errorf("%s: got %v", flag, err)
			}
			s.tagged.MustReach("tcp4", at(webVIP4, 80), "baseline")
		}
		s.must(k.Close())
		s.must(s.w.Close())
	}
}

func TestOldAndNewMustFitSideBySide(t *testing.T) {
	s := newScene(t)
	cfg := s.config()
	cfg.MaxBackends = 5
	k, err := Open(cfg)
	s.must(err)
	defer k.Close()
	s.k = k
	// Two endpoints on two ports are four slots; the next list of two more does not
	// fit beside them.
	s.apply()
	s.input.Slices[1] = slice(forkName, s.fork.IPv4, s.base.IPv6)
	s.compile()
	if err := k.Apply(s.table); err == nil || !strings.Contains(err.Error(), "--max-backends") {
		t.Errorf("got %v", err)
	}
	s.tagged.MustReach("tcp6", at(webVIP6, 80), "fork")
	// What fits is applied all the same.
	s.input.Slices[1] = slice(forkName, s.fork.IPv4, s.fork.IPv6)
	s.input.Sandboxes, s.input.Pods = nil, nil
	s.apply()
	s.tagged.MustReach("tcp6", at(webVIP6, 80), "baseline")
}

func TestNamespacesThatDoNotFitAreAnErrorThatNamesTheFlag(t *testing.T) {
	s := newScene(t)
	cfg := s.config()
	cfg.MaxNamespaces = 2
	k, err := Open(cfg)
	s.must(err)
	defer k.Close()
	err = k.SetNamespaces(map[routing.Cookie]Listener{1: {Port4: 1}, 2: {Port4: 1}, 3: {Port4: 1}})
	if err == nil || !strings.Contains(err.Error(), "--max-namespaces") {
		t.Errorf("got %v", err)
	}
	// The others have their places, and places become free.
	if n := entries(t, k.first.maps["sd_namespaces"]); n != 2 {
		t.Errorf("%d namespaces are captured, want 2", n)
	}
	s.must(k.SetNamespaces(map[routing.Cookie]Listener{3: {Port4: 1}, 4: {Port4: 1}}))
}

func TestAMillionRoutesLoad(t *testing.T) {
	s := newScene(t)
	sandboxes, each := slowly(100_000, 1000), 10
	in := s.input
	for i := range each {
		name := routing.Name{Namespace: "shop", Name: fmt.Sprintf("svc-%d", i)}
		in.Services = append(in.Services, routing.Service{
			Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(i)})},
			Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}},
		})
	}
	for i := range sandboxes {
		box := routing.Sandbox{
			Name: routing.Name{Namespace: "shop", Name: fmt.Sprintf("box-%d", i)}, Key: fmt.Sprintf("key-of-sandbox-%d", i),
		}
		for j := range each {
			box.Redirects = append(box.Redirects, routing.Redirect{
				From: routing.ServiceRef{Service: fmt.Sprintf("svc-%d", j)},
				To:   routing.Target{Address: netip.AddrFrom4([4]byte{10, 128 | byte(i>>16), byte(i >> 8), byte(i)}), Port: fmt.Sprint(1000 + j)},
			})
		}
		in.Sandboxes = append(in.Sandboxes, box)
	}
	s.input = in
	s.compile()

	cfg := DefaultConfig()
	cfg.Cgroup, cfg.BPFFS = s.w.Cgroup, s.w.BPFFS
	start := time.Now()
	k, err := Open(cfg)
	s.must(err)
	defer k.Close()
	opened := time.Now()
	s.must(k.Apply(s.table))
	t.Logf("%+v: opened in %v, applied in %v", s.table.Size(), opened.Sub(start), time.Since(opened))
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	if got, want := entries(t, k.objs.maps["sd_routes"]), s.table.Size().Routes; got != want || got < sandboxes*each {
		t.Errorf("the kernel has %d routes, the table %d", got, want)
	}

	// A small change of a large table is a small change.
	s.k = k
	s.setReady(false)
	s.compile()
	start = time.Now()
	s.must(k.Apply(s.table))
	t.Logf("one change applied in %v", time.Since(start))
	s.input.Sandboxes = s.input.Sandboxes[:1]
	s.compile()
	start = time.Now()
	s.must(k.Apply(s.table))
	t.Logf("all but one sandbox deleted in %v", time.Since(start))
	if got, want := entries(t, k.objs.maps["sd_routes"]), s.table.Size().Routes; got != want {
		t.Errorf("the kernel has %d routes, the table %d", got, want)
	}
}
