// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tcpListen is TCP_LISTEN of net/tcp_states.h.
const tcpListen = 10

// loIndex is lo's number, the same in each namespace (LOOPBACK_IFINDEX of
// net/flow.h).
const loIndex = 1

// sockDiagByFamily is SOCK_DIAG_BY_FAMILY of linux/sock_diag.h.
const sockDiagByFamily = 20

// maxCandidates bounds how many addresses connectedTo asks for, at some two
// microseconds each.
const maxCandidates = 128

// inetDiagSockID is struct inet_diag_sockid; ports and addresses are in network
// byte order.
type inetDiagSockID struct {
	sport, dport [2]byte
	src, dst     [16]byte
	iface        uint32
	cookie       [2]uint32
}

// inetDiagReq is struct inet_diag_req_v2 behind its netlink header.
type inetDiagReq struct {
	header   unix.NlMsghdr
	family   uint8
	protocol uint8
	ext      uint8
	pad      uint8
	states   uint32
	id       inetDiagSockID
}

// inetDiagMsg is the beginning of struct inet_diag_msg behind its netlink header.
type inetDiagMsg struct {
	header                        unix.NlMsghdr
	family, state, timer, retrans uint8
	id                            inetDiagSockID
}

var errNoSocket = errors.New("sock_diag knows no such socket")

// socketCookie returns the cookie of the socket in the namespace that is
// connected, or about to be, from one address to another by lo. It answers errNoSocket
// when there is none.
func (l *loop) socketCookie(ns *namespace, from, to netip.AddrPort) (uint64, error) {
	if ns.diag < 0 {
		if e := l.enter(ns); e != noError {
			return 0, fmt.Errorf("enter the network namespace: %w", e)
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		if err != nil {
			return 0, fmt.Errorf("open sock_diag: %w", err)
		}
		ns.diag = fd
	}
	return askSockDiag(ns.diag, from, to)
}

// askSockDiag is socketCookie by a socket for sock_diag.
func askSockDiag(fd int, from, to netip.AddrPort) (uint64, error) {
	req := inetDiagReq{
		family: unix.AF_INET6, protocol: unix.IPPROTO_TCP, states: ^uint32(0),
		// What our listeners have accepted is bound to lo, as they are, and not found
		// without an interface.
		id: inetDiagSockID{iface: loIndex, cookie: [2]uint32{^uint32(0), ^uint32(0)}},
	}
	if from.Addr().Is4() {
		req.family = unix.AF_INET
	}
	copy(req.id.src[:], from.Addr().AsSlice())
	copy(req.id.dst[:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(req.id.sport[:], from.Port())
	binary.BigEndian.PutUint16(req.id.dport[:], to.Port())
	req.header = unix.NlMsghdr{Len: uint32(unsafe.Sizeof(req)), Type: sockDiagByFamily, Flags: unix.NLM_F_REQUEST}
	msg := unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask sock_diag: %w", err)
	}
	// The kernel has answered before the call returned, so this does not block.
	var answer [1024]byte
	n, _, err := unix.Recvfrom(fd, answer[:], unix.MSG_DONTWAIT)
	if err != nil {
		return 0, fmt.Errorf("read sock_diag's answer: %w", err)
	}
	var m inetDiagMsg
	if n < int(unsafe.Sizeof(m)) {
		return 0, errNoSocket
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), answer[:n])
	// Without one the kernel tells of a listener that would do.
	if m.header.Type != sockDiagByFamily || m.state == tcpListen {
		return 0, errNoSocket
	}
	return uint64(m.id.cookie[1])<<32 | uint64(m.id.cookie[0]), nil
}

// connectedTo returns which of several addresses a socket of the calling thread's
// namespace is connected to. What getpeername(2) says may be a socket load balancer's
// courtesy. Each is asked for by itself, since a dump would have the kernel look at
// every connection of the host. It answers errNoSocket where it is none of them.
func connectedTo(fd int32, from netip.AddrPort, candidates iter.Seq[netip.AddrPort]) (netip.AddrPort, error) {
	want, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask for a socket's cookie: %w", err)
	}
	diag, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(diag)
	tries := 0
	for to := range candidates {
		if to.Addr().Is4() != from.Addr().Is4() {
			continue
		}
		if tries++; tries > maxCandidates {
			break
		}
		cookie, err := askSockDiag(diag, from, to)
		if err == nil && cookie == want {
			return to, nil
		}
		if err != nil && !errors.Is(err, errNoSocket) {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPort{}, errNoSocket
}
