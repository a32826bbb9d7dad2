// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// sources are pods and the server that their flows are meant for.
func (s *shop) sources() map[*lab.Pod]string {
	return map[*lab.Pod]string{
		s.client: "baseline", s.tester: s.want("fork-a"), s.testerB: s.want("fork-b"), s.runner: s.want("fork-a"),
	}
}

// TestTCPFlowsGoByTheirSource over every kind of socket and address, and
// getpeername shows what was dialled. The servers see the pod's own address.
func TestTCPFlowsGoByTheirSource(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		s.serveEverywhere(func(name string, p *lab.Pod) error {
			return p.ServeConns(func(c net.Conn) {
				defer c.Close()
				remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				if _, err := fmt.Fprintf(c, "%s for %s\n", name, remote); err != nil {
					return
				}
				_, _ = io.Copy(c, c) // ends with the connection
			}, fmt.Sprintf(":%d", n))
		})
		for from, server := range s.sources() {
			for _, d := range s.doors(wideIP, wideIP6, uint16(n), uint16(n)) {
				for _, k := range kindsFor(d.addr) {
					t.Run(fmt.Sprintf("%s, %s, %s", from.Name, d.name, k.name), func(t *testing.T) {
						so := k.socket(t, from, unix.SOCK_STREAM)
						if err := so.connect(d.to()); err != nil {
							t.Fatalf("connect: %v", err)
						}
						line, _, err := so.receive()
						want := fmt.Sprintf("%s for %s", server, from.IPv6)
						if d.addr.Is4() {
							want = fmt.Sprintf("%s for %s", server, from.IPv4)
						}
						if err != nil || line != want {
							t.Errorf("reached %q, %v, want %q", line, err, want)
						}
						if got, want := so.peer(), written(k.address(d.to())); got != want {
							t.Errorf("getpeername says %s, want %s", got, want)
						}
					})
				}
			}
		}
	})
}

// TestUDPFlowsGoByTheirSource, connected and not; the answers come from the
// address that was asked.
func TestUDPFlowsGoByTheirSource(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeUDP(name, ":53", ":5353") })
		for from, server := range s.sources() {
			for _, d := range s.doors(dnsIP, dnsIP6, 53, 5353) {
				for _, k := range kindsFor(d.addr) {
					want := written(k.address(d.to()))
					t.Run(fmt.Sprintf("%s, %s, %s, connected", from.Name, d.name, k.name), func(t *testing.T) {
						so := k.socket(t, from, unix.SOCK_DGRAM)
						if err := so.connect(d.to()); err != nil {
							t.Fatalf("connect: %v", err)
						}
						if got := so.peer(); got != want {
							t.Errorf("getpeername says %s, want %s", got, want)
						}
						for range 3 {
							if _, err := unix.Write(so.fd, []byte("hello")); err != nil {
								t.Fatalf("send: %v", err)
							}
							line, by, err := so.receive()
							if err != nil || line != server || by != want {
								t.Errorf("%q answered as %s, %v, want %q as %s", line, by, err, server, want)
							}
						}
					})
					t.Run(fmt.Sprintf("%s, %s, %s, unconnected", from.Name, d.name, k.name), func(t *testing.T) {
						so := k.socket(t, from, unix.SOCK_DGRAM)
						for range 3 {
							if err := unix.Sendto(so.fd, []byte("hello"), 0, k.address(d.to())); err != nil {
								t.Fatalf("send: %v", err)
							}
							line, by, err := so.receive()
							if err != nil || line != server || by != want {
								t.Errorf("%q answered as %s, %v, want %q as %s", line, by, err, server, want)
							}
						}
					})
				}
			}
		}
	})
}

// TestOneUDPSocketAsksManyServers: a resolver's socket, which is not connected,
// is told correctly who has answered.
func TestOneUDPSocketAsksManyServers(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeUDP(name, ":53", ":5353", ":9") })
		for _, k := range []socketKind{plain4, mapped46} {
			so := k.socket(t, s.tester, unix.SOCK_DGRAM)
			for range 3 {
				for _, q := range []struct{ to, want string }{
					{dnsIP + ":53", s.want("fork-a")},
					{lab.HostPort(s.base.IPv4, 9), "baseline"}, // no Service's port
					{lab.HostPort(s.base.IPv4, 5353), s.want("fork-a")},
					{lab.HostPort(s.forkB.IPv4, 5353), "fork-b"}, // a fork dialled by its own name
					{lab.HostPort(s.base.IPv4, 53), "baseline"},  // the Service's number at the pod's address
				} {
					a := k.address(netip.MustParseAddrPort(q.to))
					if err := unix.Sendto(so.fd, []byte("hello"), 0, a); err != nil {
						t.Fatalf("send to %s: %v", q.to, err)
					}
					line, by, err := so.receive()
					if err != nil || line != q.want || by != written(a) {
						t.Errorf("%s: asked %s: %q answered as %s, %v; want %q as %s", k.name, q.to, line, by, err, q.want, written(a))
					}
				}
			}
		}
	})
}

// TestAUDPSocketMayBeConnectedAgain: elsewhere, or nowhere.
func TestAUDPSocketMayBeConnectedAgain(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeUDP(name, ":53", ":5353", ":9") })
		so := plain4.socket(t, s.tester, unix.SOCK_DGRAM)
		service, other := netip.MustParseAddrPort(dnsIP+":53"), netip.AddrPortFrom(s.base.IPv4, 9)
		for _, step := range []struct {
			to   netip.AddrPort
			want string
		}{{service, s.want("fork-a")}, {other, "baseline"}, {service, s.want("fork-a")}} {
			if err := so.connect(step.to); err != nil {
				t.Fatalf("connect to %s: %v", step.to, err)
			}
			if got := so.peer(); got != step.to.String() {
				t.Errorf("getpeername says %s, want %s", got, step.to)
			}
			if _, err := unix.Write(so.fd, []byte("hello")); err != nil {
				t.Fatalf("send: %v", err)
			}
			if line, by, err := so.receive(); err != nil || line != step.want || by != step.to.String() {
				t.Errorf("%q answered as %s, %v; want %q as %s", line, by, err, step.want, step.to)
			}
		}
	})
}

// TestSystemCallsThatConnectOtherwise: a socket that does not block, data with
// the connect, and Multipath TCP are flows as well.
func TestSystemCallsThatConnectOtherwise(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeTCP(name, fmt.Sprintf(":%d", n)) })
		to := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", wideIP, n))
		check := func(t *testing.T, so *sock, want string) {
			t.Helper()
			if line, _, err := so.receive(); err != nil || line != want {
				t.Errorf("reached %q, %v, want %q", line, err, want)
			}
			if got := so.peer(); got != to.String() {
				t.Errorf("getpeername says %s, want %s", got, to)
			}
		}
		for from, want := range s.sources() {
			t.Run("non-blocking from "+from.Name, func(t *testing.T) {
				so := plain4.socket(t, from, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
				if err := so.connect(to); !errors.Is(err, unix.EINPROGRESS) {
					t.Fatalf("connect: %v, want %v", err, unix.EINPROGRESS)
				}
				if err := lab.Connected(so.fd); err != nil {
					t.Fatal(err)
				}
				if err := unix.SetNonblock(so.fd, false); err != nil {
					t.Fatal(err)
				}
				check(t, so, want)
			})
			t.Run("TCP Fast Open from "+from.Name, func(t *testing.T) {
				so := plain4.socket(t, from, unix.SOCK_STREAM)
				if err := lab.ConnectSending(so.fd, []byte("\x16\x03\x01"), plain4.address(to)); err != nil {
					t.Fatalf("send with connect: %v", err)
				}
				check(t, so, want)
			})
			t.Run("Multipath TCP from "+from.Name, func(t *testing.T) {
				var fd int
				err := from.Do(func() (err error) {
					fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
					return err
				})
				if err != nil {
					t.Skipf("no Multipath TCP here: %v", err)
				}
				so := &sock{fd, plain4}
				t.Cleanup(so.close)
				if err := so.connect(to); err != nil {
					t.Fatalf("connect: %v", err)
				}
				check(t, so, want)
			})
			t.Run("bound to an address and port from "+from.Name, func(t *testing.T) {
				so := plain4.socket(t, from, unix.SOCK_STREAM)
				if err := unix.Bind(so.fd, plain4.address(netip.AddrPortFrom(from.IPv4, 0))); err != nil {
					t.Fatal(err)
				}
				if err := so.connect(to); err != nil {
					t.Fatalf("connect: %v", err)
				}
				check(t, so, want)
			})
		}
	})
}

// TestProgramsOfOtherLanguagesSeeWhatTheyDialled asks Python for what its own
// standard library says.
func TestProgramsOfOtherLanguagesSeeWhatTheyDialled(t *testing.T) {
	python := requirePython(t)
	const program = `
import socket, sys
ip, tcp, udp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
with socket.create_connection((ip, tcp), timeout=5) as s:
    print("tcp", s.recv(100).decode().split("\n")[0], s.getpeername()[0] == ip, s.getpeername()[1] == tcp)
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.sendto(b"hello", (ip, udp))
    data, ancillary, flags, address = s.recvmsg(100)
    print("recvmsg", data.decode().split("\n")[0], address[0] == ip, address[1] == udp)
    s.connect((ip, udp))
    s.send(b"hello")
    data, address = s.recvfrom(100)
    print("recvfrom", data.decode().split("\n")[0], address[0] == ip, s.getpeername()[0] == ip)
`
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		s.serveEverywhere(func(name string, p *lab.Pod) error {
			return errors.Join(p.ServeTCP(name, fmt.Sprintf(":%d", n)), p.ServeUDP(name, ":53", ":5353"))
		})
		for from, server := range s.sources() {
			// As endpoints, because the pod is one for all its Services.
			for _, ip := range []string{s.base.IPv4.String(), s.base.IPv6.String()} {
				out, err := from.Command(python, "-c", program, ip, fmt.Sprint(n), "5353").CombinedOutput()
				want := strings.ReplaceAll("tcp X True True\nrecvmsg X True True\nrecvfrom X True True\n", "X", server)
				if err != nil || string(out) != want {
					t.Errorf("%s, %s: %v: got\n%swant\n%s", from.Name, ip, err, out, want)
				}
			}
		}
	})
}

// TestFlowsOfManySocketsAtOnce keep apart.
func TestFlowsOfManySocketsAtOnce(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		s.serveEverywhere(func(name string, p *lab.Pod) error {
			return errors.Join(p.ServeTCP(name, fmt.Sprintf(":%d", n)), p.ServeUDP(name, ":53", ":5353"))
		})
		var wg sync.WaitGroup
		for from, want := range s.sources() {
			for _, address := range []string{
				fmt.Sprintf("tcp %s:%d", wideIP, n), fmt.Sprintf("tcp6 [%s]:%d", wideIP6, n), fmt.Sprintf("tcp %s", lab.HostPort(s.base.IPv4, uint16(n))),
				"udp " + dnsIP + ":53", "udp6 [" + dnsIP6 + "]:53", "udp " + lab.HostPort(s.base.IPv4, 5353),
			} {
				wg.Go(func() {
					network, to, _ := strings.Cut(address, " ")
					for range 100 {
						got, err := from.Ask(network, to)
						if err != nil || got != want {
							t.Errorf("%s dialled %s and reached %q, %v, want %q", from.Name, address, got, err, want)
							return
						}
					}
				})
			}
		}
		wg.Wait()
	})
}
