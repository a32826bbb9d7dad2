// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// route adds a route in a pod and takes it away again.
func (w *world) route(p *lab.Pod, kind int, prefix string) (remove func()) {
	w.t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	r := &netlink.Route{Dst: dst, Type: kind}
	if err := p.Do(func() error { return netlink.RouteAdd(r) }); err != nil {
		w.t.Fatalf("add a route to %s: %v", prefix, err)
	}
	return func() {
		w.t.Helper()
		if err := p.Do(func() error { return netlink.RouteDel(r) }); err != nil {
			w.t.Errorf("take the route to %s away: %v", prefix, err)
		}
	}
}

// byIPv6 has the world's clients reach the Service by sockets that speak IPv6 only;
// the returned function dials so.
func byIPv6(c *Config) (dial func(w *world) (net.Conn, error)) {
	var mu sync.Mutex
	dialled := map[uint64]routing.DestID{}
	c.V6OnlyDest = func(socket uint64) (routing.DestID, bool) {
		mu.Lock()
		defer mu.Unlock()
		id, ok := dialled[socket]
		return id, ok
	}
	return func(w *world) (net.Conn, error) {
		d, _ := w.table.LookupDest(netip.MustParseAddrPort("[fd00:96::7]:80"), routing.TCP)
		// What the capture program does: note the destination under the socket's cookie.
		dialer := &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var cookie uint64
			var err error
			if cerr := raw.Control(func(fd uintptr) {
				cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
			}); cerr != nil {
				return cerr
			}
			mu.Lock()
			defer mu.Unlock()
			dialled[cookie] = d.ID
			return err
		}}
		return w.client.DialWith(context.Background(), dialer, "tcp6", fmt.Sprintf("[::1]:%d", w.ports[w.client].V6))
	}
}

func TestConnectEndsAsItWouldWithoutTheRouter(t *testing.T) {
	var byV6 func(*world) (net.Conn, error)
	w := newWorld(t, func(c *Config) { byV6 = byIPv6(c) })
	// Forks are there: nobody may be sent to them for that.
	w.names(w.fork)
	v4 := func() error {
		c, err := w.client.Dial("tcp", w.captured(w.client))
		if err == nil {
			c.Close()
		}
		return err
	}
	v6 := func() error {
		c, err := byV6(w)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, tc := range []struct {
		name       string
		kind       int
		want4, it6 error
	}{
		{"nobody listens", 0, unix.ECONNREFUSED, unix.ECONNREFUSED},
		{"no route", unix.RTN_THROW, unix.ENETUNREACH, unix.ENETUNREACH},
		{"unreachable", unix.RTN_UNREACHABLE, unix.EHOSTUNREACH, unix.EHOSTUNREACH},
		// ICMP for IPv4 has nothing for EACCES.
		{"forbidden", unix.RTN_PROHIBIT, unix.EHOSTUNREACH, unix.EACCES},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.kind != 0 {
				defer w.route(w.client, tc.kind, "10.96.0.7/32")()
				defer w.route(w.client, tc.kind, "fd00:96::7/128")()
			}
			if err := v4(); !errors.Is(err, tc.want4) {
				t.Errorf("IPv4: %v, want %v", err, tc.want4)
			}
			if err := v6(); !errors.Is(err, tc.it6) {
				t.Errorf("IPv6 only: %v, want %v", err, tc.it6)
			}
		})
	}
	if n := w.router.Stats().Accepted; n != 0 {
		t.Errorf("%d connections were accepted", n)
	}
	w.noConnections()
	// And when it is back, so are they.
	w.names(w.base)
	if err := errors.Join(v4(), v6()); err != nil {
		t.Error(err)
	}
}

func TestUnmodifiedClientsSeeARefusedConnection(t *testing.T) {
	w := newWorld(t)
	host, port, _ := net.SplitHostPort(w.captured(w.client))
	for _, tc := range []struct {
		name, program string
		args          []string
		code          int
		want          string
	}{
		{"curl", "curl", []string{"-q", "-sS", "http://" + net.JoinHostPort(host, port) + "/"}, 7, ""},
		{"Python", "python3", []string{"-c", `
import socket, sys
try:
    socket.create_connection(("` + host + `", ` + port + `))
except ConnectionRefusedError:
    print("refused")
`}, 0, "refused"},
		{"a non-blocking connect", "python3", []string{"-c", `
import errno, select, socket
s = socket.socket()
s.setblocking(False)
print(errno.errorcode[s.connect_ex(("` + host + `", ` + port + `))])
p = select.poll()
p.register(s, select.POLLOUT)
p.poll(20000)
print(errno.errorcode[s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)])
`}, 0, "EINPROGRESS\nECONNREFUSED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := exec.LookPath(tc.program); err != nil {
				t.Skip(err)
			}
			out, err := w.client.Command(tc.program, tc.args...).CombinedOutput()
			code := 0
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tc.code || tc.want != "" && strings.TrimSpace(string(out)) != tc.want {
				t.Errorf("it ended with %d: %s", code, out)
			}
		})
	}
}

func TestAClientOfABaselineThatDoesNotAnswerWaits(t *testing.T) {
	w := newWorld(t)
	// The baseline's host is there and drops what comes.
	silent := w.route(w.base, unix.RTN_BLACKHOLE, w.client.IPv4.String()+"/32")
	w.names(w.base)
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	if _, err := w.client.DialContext(ctx, "tcp", w.captured(w.client)); !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Errorf("%v, want the client's own time-out", err)
	}
	// It has sent its SYN twice, and that was one connection.
	if s := w.router.Stats(); s.Held != 1 || s.Accepted != 0 {
		t.Errorf("%+v", s)
	}
	w.noConnections()
	if s := w.router.Stats(); s.Errors["syn_abandoned"] != 1 {
		t.Errorf("%+v", s)
	}
	// One that has more patience is connected when the baseline answers at last.
	answered := make(chan error)
	go func() {
		c, err := w.client.Dial("tcp", w.captured(w.client))
		if err == nil {
			defer c.Close()
			if _, err = io.WriteString(c, get(untagged)); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		answered <- err
	}()
	w.eventually("the client waits", func() bool { return w.router.Stats().Open == 1 })
	silent()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestAnInjectedPodWhoseForkIsNotThereIsToldWhy(t *testing.T) {
	w := newWorld(t)
	w.setDelays(func(d *delays) { d.refusal = patience })
	w.names(w.base)
	for _, change := range []func(){
		func() {}, // nobody listens at the fork's endpoint
		func() { w.input.Slices = w.input.Slices[:1]; w.apply() }, // it has none
	} {
		change()
		c := w.dial(w.runner)
		c.send(get(untagged))
		if resp, body := c.response("GET"); resp.StatusCode != 503 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestAnotherConnectionFromTheSamePortIsAnotherOne(t *testing.T) {
	w := newWorld(t)
	silent := w.route(w.base, unix.RTN_BLACKHOLE, w.client.IPv4.String()+"/32")
	w.names(w.base)
	from := &net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40001},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			return errors.Join(cerr, err)
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() {
		c, err := w.client.DialWith(ctx, from, "tcp", w.captured(w.client))
		if err == nil {
			c.Close()
		}
		gone <- err
	}()
	w.eventually("its SYN is held", func() bool { return w.router.Stats().Held == 1 })
	cancel()
	if <-gone == nil {
		t.Fatal("it is connected, to nobody")
	}
	silent()
	c, err := w.client.DialWith(context.Background(), from, "tcp", w.captured(w.client))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := newPeer(t, c)
	p.send(get(untagged))
	p.response("GET")
	if s := w.router.Stats(); s.Held != 2 || s.Accepted != 1 {
		t.Errorf("%+v", s)
	}
}

// A baseline that comes and goes is either there or refuses: no client is reset,
// or waits, because of the router.
func TestClientsOfABaselineThatFlapsAreServedOrRefused(t *testing.T) {
	w := newWorld(t)
	var served, refused atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c, err := w.client.Dial("tcp", w.captured(w.client))
				if errors.Is(err, unix.ECONNREFUSED) {
					refused.Add(1)
					continue
				}
				switch {
				case err == nil:
					c.Close()
				case !errors.Is(err, unix.ECONNRESET):
					// A server that ends resets whom it has not accepted.
					t.Error(err)
				}
				served.Add(1)
			}
		})
	}
	for range 20 {
		var l net.Listener
		if err := w.base.Do(func() (err error) {
			l, err = net.Listen("tcp", ":80")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		was := served.Load()
		w.eventually("clients are served", func() bool { return served.Load() > was+20 })
		l.Close()
		was = refused.Load()
		w.eventually("clients are refused", func() bool { return refused.Load() > was+20 })
	}
	close(done)
	clients.Wait()
	w.noConnections()
	if s := w.router.Stats(); s.Held < uint64(served.Load()+refused.Load()) || s.Errors["not_held"] != 0 {
		t.Errorf("%d served and %d refused: %+v", served.Load(), refused.Load(), s)
	}
}

func TestClientsThatGiveUpLeaveNothing(t *testing.T) {
	w := newWorld(t)
	w.script(w.base, func(c *peer) { _, _ = io.Copy(io.Discard, c.r) })
	// They go at any moment of the handshake.
	for i := range 200 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*5*time.Microsecond)
		if c, err := w.client.DialContext(ctx, "tcp", w.captured(w.client)); err == nil {
			c.Close()
		}
		cancel()
	}
	w.noConnections()
}

// connectedFirst has clients connected before anything is dialled for them.
func connectedFirst(c *Config) { c.HoldSYNs = nil }

// Where SYNs cannot be held.
func TestABaselineThatRefusesAConnectedClientResetsIt(t *testing.T) {
	w := newWorld(t, connectedFirst)
	w.names(w.fork)
	t.Run("to a client that says nothing", func(t *testing.T) {
		w.dial(w.client).expectRST()
	})
	t.Run("to an untagged request", func(t *testing.T) {
		c := w.dial(w.client)
		c.send(get(untagged))
		c.expectRST()
	})
	t.Run("to what is no HTTP", func(t *testing.T) {
		c := w.dial(w.client)
		c.send("\x16\x03\x01")
		c.expectRST()
	})
	t.Run("not to a tagged request", func(t *testing.T) {
		w.setDelays(func(d *delays) { d.refusal = patience })
		c := w.dial(w.client)
		for range 2 {
			c.send(get(tagged))
			if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" {
				t.Errorf("served by %s", resp.Header.Get(lab.ServedBy))
			}
		}
		c.send(get(untagged))
		c.expectRST()
	})
	w.noConnections()
	if n := w.router.Stats().Errors["dial_refused"]; n < 4 {
		t.Errorf("%d refusals counted, want 4 at least", n)
	}
}

// A rule of the namespace may take the mark away that SYNs of the router have.
func TestWhereMarksAreLostClientsAreConnectedFirst(t *testing.T) {
	const another = 0x3054
	w := newWorld(t, func(c *Config) {
		c.HoldSYNs = func() (*loader.SYNs, error) { return loader.NewSYNs(another) }
	})
	w.names(w.base, w.fork)
	w.router.mu.Lock()
	doors := w.router.namespaces[cookie(t, w.client)].doors
	w.router.mu.Unlock()
	for _, d := range doors {
		if err := chooseByMark(d.outer.fd, another); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		w.routed(untagged, "base")
		w.routed(tagged, "fork")
	}
	if s := w.router.Stats(); s.Held != 1 || s.Errors["not_held"] != 5 {
		t.Errorf("%+v", s)
	}
}

// routed sends a request on a connection of its own.
func (w *world) routed(header, want string) {
	w.t.Helper()
	c := w.dial(w.client)
	c.send(get(header))
	if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != want {
		w.t.Errorf("served by %s, want %s", resp.Header.Get(lab.ServedBy), want)
	}
	c.conn.Close()
}

// Data may come to the listener instead of the socket that was just made for them. The
// client is reset only where there is no such socket.
func TestAConnectionIsFoundWhoseDataHaveComeToItsListener(t *testing.T) {
	var byV6 func(*world) (net.Conn, error)
	w := newWorld(t, func(c *Config) { byV6 = byIPv6(c) })
	w.names(w.base, w.fork)
	v4, err := w.client.Dial("tcp", w.captured(w.client))
	if err != nil {
		t.Fatal(err)
	}
	defer v4.Close()
	v6, err := byV6(w)
	if err != nil {
		t.Fatal(err)
	}
	defer v6.Close()
	for _, c := range []net.Conn{v4, v6} {
		local := c.LocalAddr().(*net.TCPAddr).AddrPort()
		remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
		local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
		remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
		nobody := netip.AddrPortFrom(local.Addr(), 1)
		asked := 0
		for _, l := range w.router.loops {
			l.call(func() {
				for _, d := range l.holding {
					if d.ns.cookie != cookie(t, w.client) {
						continue
					}
					asked++
					if _, err := l.socketCookie(d.ns, remote, local); err != nil {
						t.Errorf("%s to %s: %v", local, remote, err)
					}
					if _, err := l.socketCookie(d.ns, remote, nobody); !errors.Is(err, errNoSocket) {
						t.Errorf("%s to %s: %v, want %v", nobody, remote, err, errNoSocket)
					}
				}
			})
		}
		if asked == 0 {
			t.Error("SYNs are not held: nobody was asked")
		}
	}
}
