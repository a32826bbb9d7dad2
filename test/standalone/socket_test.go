// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// socketKind is a way in which a program may make a socket to dial an address.
type socketKind struct {
	name   string
	family int
	v6only bool
	mapped bool // dials IPv4 in its v4-mapped form
}

var (
	plain4   = socketKind{"an IPv4 socket", unix.AF_INET, false, false}
	dual6    = socketKind{"an IPv6 socket", unix.AF_INET6, false, false}
	only6    = socketKind{"an IPv6 socket with V6ONLY", unix.AF_INET6, true, false}
	mapped46 = socketKind{"an IPv6 socket that dials v4-mapped", unix.AF_INET6, false, true}
)

// kindsFor returns the kinds of sockets that can dial an address.
func kindsFor(a netip.Addr) []socketKind {
	if a.Is4() {
		return []socketKind{plain4, mapped46}
	}
	return []socketKind{dual6, only6}
}

// sock is a raw socket: exactly the system calls that a test names.
type sock struct {
	fd   int
	kind socketKind
}

// socket makes a socket in a pod.
func (k socketKind) socket(t *testing.T, p *lab.Pod, typ int) *sock {
	t.Helper()
	s := &sock{fd: -1, kind: k}
	err := p.Do(func() (err error) {
		s.fd, err = unix.Socket(k.family, typ|unix.SOCK_CLOEXEC, 0)
		if err == nil && k.v6only {
			err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
		return err
	})
	if err != nil {
		t.Fatalf("make %s: %v", k.name, err)
	}
	t.Cleanup(s.close)
	tv := unix.NsecToTimeval(int64(patience))
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *sock) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// address is how the program writes an address for this kind of socket.
func (k socketKind) address(a netip.AddrPort) unix.Sockaddr {
	if k.family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// written returns an address as the system writes it for this kind of socket,
// so that v4-mapped is told from IPv4.
func written(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	case nil:
		return "nothing"
	}
	return fmt.Sprintf("%T", sa)
}

func (s *sock) connect(to netip.AddrPort) error { return lab.Connect(s.fd, s.kind.address(to)) }

func (s *sock) peer() string {
	sa, err := unix.Getpeername(s.fd)
	if err != nil {
		return err.Error()
	}
	return written(sa)
}

// receive reads once and returns the first line and whom it is from.
func (s *sock) receive() (line, from string, err error) {
	buf := make([]byte, 2000)
	n, sa, err := unix.Recvfrom(s.fd, buf, 0)
	for err == unix.EINTR {
		n, sa, err = unix.Recvfrom(s.fd, buf, 0)
	}
	if err != nil {
		return "", "", err
	}
	line, _, _ = strings.Cut(string(buf[:n]), "\n")
	return line, written(sa), nil
}

// dialled is one address of a Service.
type dialled struct {
	name string
	addr netip.Addr
	port uint16
}

// doors are the addresses at which a Service of the baseline is dialled. With
// target ports of their own, endpoints are dialled there.
func (s *shop) doors(ip4, ip6 string, port, target uint16) []dialled {
	return []dialled{
		{"ClusterIP", netip.MustParseAddr(ip4), port},
		{"ClusterIP, IPv6", netip.MustParseAddr(ip6), port},
		{"endpoint", s.base.IPv4, target},
		{"endpoint, IPv6", s.base.IPv6, target},
	}
}

func (d dialled) to() netip.AddrPort { return netip.AddrPortFrom(d.addr, d.port) }
