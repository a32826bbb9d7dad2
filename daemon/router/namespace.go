// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Namespace is a network namespace whose clients are to be served.
type Namespace struct {
	Cookie routing.Cookie
	// FD is an open descriptor of the namespace. The router takes a duplicate.
	FD int
	// Name is for messages.
	Name string
}

// Ports are where the router listens in a namespace. V4 is bound to all of
// 127.0.0.0/8, V6 to ::1; zero means that there is no such listener, because the
// namespace has no such protocol.
type Ports struct{ V4, V6 uint16 }

// namespace is a Namespace in use. Its descriptors are closed with the last of
// its users: the router while it listens there, and each connection.
type namespace struct {
	cookie routing.Cookie
	name   string
	fd     int
	home   *loop // which accepts for it
	ports  Ports

	users atomic.Int32

	// The rest belongs to the home loop.
	doors   []*door
	diag    int // netlink socket for sock_diag, -1 until it is needed
	held    map[synKey]*conn
	closing bool // the listeners wait for those that are held
	closed  bool
	last    timer // closes the doors after their listeners
}

func newNamespace(cookie routing.Cookie, name string, fd int) *namespace {
	ns := &namespace{cookie: cookie, name: name, fd: fd, diag: -1, held: map[synKey]*conn{}}
	ns.hold()
	return ns
}

func (ns *namespace) hold() { ns.users.Add(1) }

func (ns *namespace) release() {
	if ns.users.Add(-1) == 0 {
		unix.Close(ns.fd)
	}
}

// inNamespace runs f on a thread that is in the namespace and brings the thread
// back.
func inNamespace(fd, home int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if e := setns(fd); e != noError {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the network namespace: %w", e)
			return
		}
		err := f()
		if e := setns(home); e != noError {
			// The thread stays locked and so ends with this goroutine: nobody else
			// ever runs in the wrong namespace.
			done <- errors.Join(err, fmt.Errorf("leave the network namespace: %w", e))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// The listeners' ports are outside the range that the kernel takes ephemeral
// ports from by default, so that no client of the namespace has taken them.
const firstPort, lastPort = 61000, 65535

const (
	backlog   = 4096
	portTries = 64
	// notSent bounds what the kernel queues for a client that does not read.
	notSent = 128 << 10
)

// listenIn makes the listeners of a namespace, which the calling thread must be
// in. With a mark, SYNs can be held there, unless whyNot says why they cannot.
func listenIn(mark uint32) (doors []*door, ports Ports, whyNot, err error) {
	if err := raiseLoopback(); err != nil {
		return nil, Ports{}, nil, err
	}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Loopback()} {
		d, port, why, err := openDoor(a, mark)
		if a.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			// No IPv6 here, or none on lo: then nobody can dial ::1 either.
			break
		}
		if err != nil {
			for _, d := range doors {
				d.closeAll()
			}
			return nil, Ports{}, nil, err
		}
		doors = append(doors, d)
		if whyNot = errors.Join(whyNot, why); a.Is4() {
			ports.V4 = port
		} else {
			ports.V6 = port
		}
	}
	return doors, ports, whyNot, nil
}

// openDoor makes what is needed to be dialled at an address.
func openDoor(a netip.Addr, mark uint32) (d *door, port uint16, whyNot, err error) {
	d = &door{outer: socket{fd: -1}, inner: socket{fd: -1}, raw: -1}
	if mark != 0 {
		var e unix.Errno
		if d.raw, e = newRawSocket(a); e == noError {
			e = setInt(d.raw, unix.SOL_SOCKET, unix.SO_MARK, int32(mark))
		}
		if e != noError {
			whyNot = fmt.Errorf("make a raw socket: %w (CAP_NET_RAW is needed)", e)
			mark = 0
		}
	}
	defer func() {
		if err != nil {
			d.closeAll()
		}
	}()
	if d.outer.fd, port, err = listenOn(a, 0, mark != 0); err != nil || mark == 0 {
		return d, port, whyNot, err
	}
	if d.inner.fd, _, err = listenOn(a, port, true); err == nil {
		err = chooseByMark(d.outer.fd, mark)
	}
	return d, port, whyNot, err
}

// raiseLoopback brings lo up where it is not. Every pod has it up; a namespace that
// was made by hand may not, and then its connections would be steered nowhere.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("lo is down and cannot be brought up: %w", err)
	}
	return nil
}

// listenOn listens at an address and a port; zero: some free one. With shared
// there may be several sockets there, which the kernel numbers in this order.
func listenOn(a netip.Addr, at uint16, shared bool) (fd int32, port uint16, err error) {
	fd, e := newSocket(a)
	if e != noError {
		return -1, 0, fmt.Errorf("make a listener's socket: %w", e)
	}
	defer func() {
		if err != nil {
			closeFD(fd)
			fd = -1
		}
	}()
	// Nobody but this namespace's own processes can reach lo. That goes for ::1
	// without saying, and a listener there that says so could not answer a client
	// that has bound itself to another IPv6 address: there is no route to that by lo.
	if a.Is4() {
		if err := unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
			return -1, 0, fmt.Errorf("bind a listener to lo: %w", err)
		}
	}
	// Accepted sockets inherit these.
	if e := setInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); e != noError {
		return -1, 0, fmt.Errorf("set TCP_NODELAY: %w", e)
	}
	if e := setInt(fd, unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, notSent); e != noError {
		return -1, 0, fmt.Errorf("set TCP_NOTSENT_LOWAT: %w", e)
	}
	if a.Is6() {
		if e := setInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); e != noError {
			return -1, 0, fmt.Errorf("set IPV6_V6ONLY: %w", e)
		}
	}
	if shared {
		if e := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); e != noError {
			return -1, 0, fmt.Errorf("set SO_REUSEPORT: %w", e)
		}
	}
	for range portTries {
		port := at
		if port == 0 {
			port = uint16(firstPort + rand.IntN(lastPort-firstPort+1))
		}
		var sa unix.RawSockaddrAny
		size := putSockaddr(&sa, netip.AddrPortFrom(a, port))
		if e = bind(fd, &sa, size); e == noError {
			if err := unix.Listen(int(fd), backlog); err != nil {
				return -1, 0, fmt.Errorf("listen: %w", err)
			}
			return fd, port, nil
		}
		if e != unix.EADDRINUSE {
			return -1, 0, fmt.Errorf("bind a listener to %s: %w", netip.AddrPortFrom(a, port), e)
		}
	}
	return -1, 0, fmt.Errorf("find a free port between %d and %d: %w", firstPort, lastPort, e)
}
