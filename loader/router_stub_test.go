// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// routerStub listens where the router would and notes what comes.
type routerStub struct {
	port4, port6 uint16
	came         chan arrival
}

// arrival is a connection that was captured.
type arrival struct{ local, peer netip.AddrPort }

func newRouterStub(s *scene, p *lab.Pod) *routerStub {
	s.Helper()
	r := &routerStub{came: make(chan arrival, 64)}
	r.port4 = r.listen(s, p, "tcp4", "0.0.0.0:0")
	r.port6 = r.listen(s, p, "tcp6", "[::1]:0")
	return r
}

func (r *routerStub) listen(s *scene, p *lab.Pod, network, address string) uint16 {
	s.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if network == "tcp6" {
			// Bound to lo, it could not answer a client that is bound to an address of
			// eth0: IPv6 finds no way there by lo. ::1 cannot be reached from outside.
			return nil
		}
		var err error
		c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") })
		return err
	}}
	var l net.Listener
	s.must(p.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, address)
		return err
	}))
	s.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.came <- arrival{c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()}
			c.Write([]byte("router\n"))
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// mustHaveCaptured wants the last connection to have been captured, and its
// destination to be dialled.
func (r *routerStub) mustHaveCaptured(s *scene, dialled string) arrival {
	s.Helper()
	a := <-r.came
	b := a.local.Addr().Unmap().As4()
	if b[0] != 127 {
		s.Fatalf("the router was reached at %v, want 127.a.b.c", a.local)
	}
	id := routing.DestID(b[1])<<16 | routing.DestID(b[2])<<8 | routing.DestID(b[3])
	r.mustBe(s, id, dialled)
	return a
}

func (r *routerStub) mustBe(s *scene, id routing.DestID, dialled string) {
	s.Helper()
	want := netip.MustParseAddrPort(dialled)
	got, ok := s.table.Dest(id)
	if !ok || got.Addr != want.Addr().Unmap() || got.Port != want.Port() || got.Protocol != routing.TCP {
		s.Fatalf("captured destination %d is %v (known: %v), want %v", id, got, ok, want)
	}
}
