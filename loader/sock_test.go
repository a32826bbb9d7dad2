// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// sock is a plain blocking socket, because these tests are about single system
// calls. Go's own signals interrupt those that have a timeout.
type sock struct {
	*scene
	fd, family int
}

func (s *scene) socket(p *lab.Pod, family, kind int) *sock {
	s.Helper()
	c := &sock{scene: s, family: family}
	s.must(p.Do(func() (err error) {
		c.fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	s.Cleanup(c.close)
	limit := unix.NsecToTimeval(soon.Nanoseconds())
	s.must(unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	s.must(unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	return c
}

func (c *sock) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

func (c *sock) set(level, option, value int) *sock {
	c.Helper()
	c.must(unix.SetsockoptInt(c.fd, level, option, value))
	return c
}

func (c *sock) sockaddr(a string) unix.Sockaddr {
	ap := netip.MustParseAddrPort(a)
	if c.family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	// As16 makes a mapped address of an IPv4 one.
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (c *sock) bind(a string) *sock {
	c.Helper()
	c.must(unix.Bind(c.fd, c.sockaddr(a)))
	return c
}

func (c *sock) connect(a string) error { return lab.Connect(c.fd, c.sockaddr(a)) }

func (c *sock) mustConnect(a string) *sock {
	c.Helper()
	if err := c.connect(a); err != nil {
		c.Fatalf("connect to %s: %v", a, err)
	}
	return c
}

func (c *sock) mustRefuse(err error) {
	c.Helper()
	if err != unix.ECONNREFUSED {
		c.Fatalf("got %v, want ECONNREFUSED", err)
	}
}

// mustShowPeer wants getpeername to show a; of an IPv6 socket, as IPv6 does.
func (c *sock) mustShowPeer(a string) *sock {
	c.Helper()
	sa, err := unix.Getpeername(c.fd)
	c.must(err)
	c.mustBeAddr("getpeername shows", addrPort(sa), a)
	return c
}

func (c *sock) mustBeAddr(what string, got netip.AddrPort, want string) {
	c.Helper()
	if w := addrPort(c.sockaddr(want)); got != w {
		c.Fatalf("%s %v, want %v", what, got, w)
	}
}

// mustHear wants a server's greeting on a connection.
func (c *sock) mustHear(want string) *sock {
	c.Helper()
	buf := make([]byte, 64)
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Read(c.fd, buf)
	}
	c.must(err)
	if got, _, _ := strings.Cut(string(buf[:n]), "\n"); got != want {
		c.Fatalf("reached %q, want %q", got, want)
	}
	return c
}

// sendTo sends a datagram; without an address, to whom the socket is connected.
func (c *sock) sendTo(a string) error {
	if a == "" {
		_, err := unix.Write(c.fd, []byte("hello"))
		return err
	}
	return unix.Sendto(c.fd, []byte("hello"), 0, c.sockaddr(a))
}

// ask sends a datagram to a ("": connected) and returns who has answered.
func (c *sock) ask(a string) string {
	c.Helper()
	name, _ := c.exchange(a)
	return name
}

// mustAsk is ask that wants the server called want to answer, and recvmsg to
// show the address from.
func (c *sock) mustAsk(a, want, from string) *sock {
	c.Helper()
	name, sa := c.exchange(a)
	if name != want {
		c.Fatalf("reached %q, want %q", name, want)
	}
	c.mustBeAddr("recvmsg shows", addrPort(sa), from)
	return c
}

func (c *sock) exchange(a string) (string, unix.Sockaddr) {
	c.Helper()
	if err := c.sendTo(a); err != nil {
		c.Fatalf("send to %s: %v", a, err)
	}
	buf := make([]byte, 64)
	var n int
	var sa unix.Sockaddr
	err := error(unix.EINTR)
	for err == unix.EINTR {
		n, sa, err = unix.Recvfrom(c.fd, buf, 0)
	}
	if err != nil {
		c.Fatalf("receive from %s: %v", a, err)
	}
	name, _, _ := strings.Cut(string(buf[:n]), "\n")
	return name, sa
}

// at joins an address and a port.
func at(addr any, port int) string {
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprint(addr)), uint16(port)).String()
}
