// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"
)

// TB is what this package needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// New builds a world that lasts as long as the test. The Must methods of such a
// world and of its pods end the test when they fail. Without root the test is
// skipped, but never where tests are meant to be complete: under CI and in a
// virtual machine.
func New(tb TB) *World {
	tb.Helper()
	if os.Geteuid() != 0 {
		if InVM() || os.Getenv("CI") != "" {
			tb.Fatalf("this test makes network namespaces: it must run as root")
		}
		tb.Skipf("this test makes network namespaces: run it as root")
	}
	w, err := NewWorld("sdtest")
	if err != nil {
		tb.Fatalf("build a world: %v", err)
	}
	w.tb = tb
	tb.Cleanup(func() {
		tb.Helper()
		if err := w.Close(); err != nil {
			tb.Errorf("take the world down: %v", err)
		}
	})
	return w
}

// InVM reports whether the tests run in the small virtual machine of
// test/kernels: with another kernel, slowly, without any other program.
func InVM() bool { return os.Getenv("SIDETRACK_VM") == "1" }

// Patience is how long a test should wait for what normally takes less than d
// before it calls it missing: longer where everything is slow, and never so short
// that a busy machine looks like a fault.
func Patience(d time.Duration) time.Duration {
	if InVM() {
		return 6 * d
	}
	return 3 * d
}

// check ends the test when err is not nil; without a test it panics.
func (w *World) check(err error) {
	if err == nil {
		return
	}
	if w.tb == nil {
		panic(err)
	}
	w.tb.Helper()
	w.tb.Fatalf("%v", err)
}

func (w *World) helper() {
	if w.tb != nil {
		w.tb.Helper()
	}
}

// MustPod is AddPod for tests. Extra addresses are given as strings.
func (w *World) MustPod(name string, extra ...string) *Pod {
	w.helper()
	var addrs []netip.Addr
	for _, s := range extra {
		a, err := netip.ParseAddr(s)
		w.check(err)
		addrs = append(addrs, a)
	}
	p, err := w.AddPod(name, addrs...)
	w.check(err)
	return p
}

// MustMoveSelf is MoveSelf for tests.
func (w *World) MustMoveSelf() {
	w.helper()
	w.check(w.MoveSelf())
}

// MustServeHTTP is ServeHTTP for tests.
func (p *Pod) MustServeHTTP(name string, addrs ...string) {
	p.world.helper()
	p.world.check(p.ServeHTTP(name, addrs...))
}

// MustServeTCP is ServeTCP for tests.
func (p *Pod) MustServeTCP(name string, addrs ...string) {
	p.world.helper()
	p.world.check(p.ServeTCP(name, addrs...))
}

// MustServeUDP is ServeUDP for tests.
func (p *Pod) MustServeUDP(name string, addrs ...string) {
	p.world.helper()
	p.world.check(p.ServeUDP(name, addrs...))
}

// Get sends one GET request over a new connection to a server of ServeHTTP and
// returns what it says it saw. Header fields are given as "Name: value".
func (p *Pod) Get(url string, header ...string) (Seen, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience(30*time.Second))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return Seen{}, fmt.Errorf("make a request: %w", err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Add(name, strings.TrimSpace(value))
	}
	c := p.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return Seen{}, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	defer resp.Body.Close()
	return ReadSeen(resp)
}

// MustGet is Get for tests.
func (p *Pod) MustGet(url string, header ...string) Seen {
	p.world.helper()
	s, err := p.Get(url, header...)
	p.world.check(err)
	return s
}

// Ask dials a server of ServeTCP or ServeUDP and returns its name. The network
// is one of package net's.
func (p *Pod) Ask(network, address string) (string, error) {
	c, err := p.Dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(Patience(10 * time.Second))); err != nil {
		return "", fmt.Errorf("set a deadline: %w", err)
	}
	if strings.HasPrefix(network, "udp") {
		if _, err := io.WriteString(c, "hello"); err != nil {
			return "", fmt.Errorf("pod %s: send: %w", p.Name, err)
		}
	}
	// A datagram is read whole or not at all; a banner may come in pieces.
	buf, n := make([]byte, 512), 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if name, _, found := strings.Cut(string(buf[:n]), "\n"); found {
			return name, nil
		}
		if err != nil {
			return "", fmt.Errorf("pod %s: receive: %w", p.Name, err)
		}
	}
}

// MustReach is for tests: dialling address leads to the server called want.
func (p *Pod) MustReach(network, address, want string) {
	p.world.helper()
	got, err := p.Ask(network, address)
	p.world.check(err)
	if got != want {
		p.world.check(fmt.Errorf("pod %s dialled %s %s and reached %q, want %q", p.Name, network, address, got, want))
	}
}
