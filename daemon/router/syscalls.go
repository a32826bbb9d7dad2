// SPDX-License-Identifier: Apache-2.0

package router

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls here go through RawSyscall: they never block, because every socket
// is non-blocking, and telling Go's scheduler about each costs more than it gains.

const noError = unix.Errno(0)

func recv(fd int32, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
		if e == noError {
			return int(n), noError
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func send(fd int32, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
		if e == noError {
			return int(n), noError
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func sendTo(fd int32, b []byte, sa *unix.RawSockaddrAny, size uintptr) unix.Errno {
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(sa)), size)
		if e != unix.EINTR {
			return e
		}
	}
}

func closeFD(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// resetFD closes a connection with RST.
func resetFD(fd int32) {
	l := unix.Linger{Onoff: 1}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	closeFD(fd)
}

// shutdownWrite sends FIN after what has been sent.
func shutdownWrite(fd int32) {
	unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

func setInt(fd int32, level, option int, value int32) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return e
}

// detachFilter takes the filter off that an accepted socket has from its
// listener, or a listener's own.
func detachFilter(fd int32) { setInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }

// socketError takes a socket's pending error.
func socketError(fd int32) unix.Errno {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if e != noError {
		return e
	}
	return unix.Errno(value)
}

// unacknowledged is how many bytes the peer has not acknowledged yet.
func unacknowledged(fd int32) int {
	var n int32
	unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	return int(n)
}

// accept takes a connection from a listener.
func accept(fd int32) (conn int32, peer netip.AddrPort, e unix.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != noError {
		return -1, netip.AddrPort{}, e
	}
	return int32(n), addrPort(&sa), noError
}

// localAddr is the address that the client's connection has come to.
func localAddr(fd int32) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	if _, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); e != noError {
		return netip.AddrPort{}
	}
	return addrPort(&sa)
}

func addrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), swap(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), swap(in.Port))
	}
	return netip.AddrPort{}
}

// putSockaddr writes an address as the kernel wants it and returns its size.
func putSockaddr(sa *unix.RawSockaddrAny, a netip.AddrPort) uintptr {
	if a.Addr().Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap(a.Port()), Addr: a.Addr().As4()}
		return unsafe.Sizeof(*in)
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
	*in = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swap(a.Port()), Addr: a.Addr().As16()}
	return unsafe.Sizeof(*in)
}

// swap turns a port from host into network byte order and back.
func swap(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}

// newRawSocket makes a socket that sends packets of an address's family with their
// own IP headers, and receives none (raw(7)).
func newRawSocket(a netip.Addr) (int32, unix.Errno) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	n, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	return int32(n), e
}

// newSocket makes a non-blocking TCP socket for an address's family in the
// thread's present network namespace.
func newSocket(a netip.Addr) (int32, unix.Errno) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	n, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(n), e
}

func connect(fd int32, a netip.AddrPort) unix.Errno {
	var sa unix.RawSockaddrAny
	size := putSockaddr(&sa, a)
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), size)
	return e
}

// bindSource makes a socket connect from an address; the port is chosen when it
// connects, so that one port serves for many destinations.
func bindSource(fd int32, a netip.Addr) unix.Errno {
	setInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	var sa unix.RawSockaddrAny
	return bind(fd, &sa, putSockaddr(&sa, netip.AddrPortFrom(a, 0)))
}

func bind(fd int32, sa *unix.RawSockaddrAny, size uintptr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(sa)), size)
	return e
}

func setns(fd int) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWNET, 0)
	return e
}
