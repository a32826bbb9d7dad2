// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
)

// Numbers of linux/sock_diag.h and linux/inet_diag.h, which x/sys/unix lacks.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	inetDiagInfo   = 2
	inetDiagMark   = 15
	inetDiagCgroup = 21 // INET_DIAG_CGROUP_ID

	tcpEstablished = 1
	tcpSynSent     = 2
)

const (
	sizeofSockID  = 48 // struct inet_diag_sockid
	sizeofRequest = 8 + sizeofSockID
	sizeofAnswer  = 4 + sizeofSockID + 20
)

// errNoDestroy says that the kernel has been built without
// CONFIG_INET_DIAG_DESTROY, errNoDiag that it does not list TCP sockets.
var (
	errNoDestroy = errors.New("the kernel cannot close other processes' sockets (CONFIG_INET_DIAG_DESTROY)")
	errNoDiag    = errors.New("the kernel does not list TCP sockets (CONFIG_INET_TCP_DIAG, module tcp_diag)")
)

// tcpSocket is one TCP socket as the kernel describes it.
type tcpSocket struct {
	family uint8
	state  uint8
	// id is the kernel's struct inet_diag_sockid, to ask for the socket again.
	id     [sizeofSockID]byte
	device uint32 // bound to
	cookie uint64
	peer   netip.AddrPort // unmapped
	mark   uint32
	cgroup uint64 // its id; zero when the kernel does not say
	// unread and unsent are bytes that the application has not read, and that
	// the peer has not acknowledged.
	unread, unsent uint32
	info           unix.TCPInfo
}

// diag lists, queries and closes TCP sockets in one network namespace. Not safe
// for concurrent use.
type diag struct {
	fd  int
	seq uint32
	buf []byte
}

// openDiag opens a diag in the namespace ns.
func openDiag(ns int) (*diag, error) {
	d := &diag{fd: -1, buf: make([]byte, 32<<10)}
	err := pods.Do(ns, func() (err error) {
		d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	// The kernel answers at once; a bound keeps a bug of either from hanging us.
	if err := unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		d.close()
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return d, nil
}

func (d *diag) close() { unix.Close(d.fd) }

// list yields every TCP socket that is connected or being connected.
func (d *diag) list(yield func(*tcpSocket)) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.ask(sockDiagByFamily, unix.NLM_F_DUMP, family, nil, yield)
		if errors.Is(err, unix.ENOENT) {
			err = errNoDiag
		}
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
	}
	return nil
}

// query asks for a socket again. It reports false when the socket is gone.
func (d *diag) query(s *tcpSocket) (now tcpSocket, ok bool, err error) {
	err = d.ask(sockDiagByFamily, 0, s.family, &s.id, func(n *tcpSocket) { now, ok = *n, true })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return now, false, nil
	}
	if err != nil {
		return now, false, fmt.Errorf("query a socket: %w", err)
	}
	return now, ok, nil
}

// destroy closes a socket: its owner gets ECONNABORTED, the peer a reset.
func (d *diag) destroy(s *tcpSocket) error {
	err := d.ask(sockDestroy, unix.NLM_F_ACK, s.family, &s.id, func(*tcpSocket) {})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return nil // somebody else was quicker
	case errors.Is(err, unix.EOPNOTSUPP):
		return errNoDestroy
	case err != nil:
		return fmt.Errorf("close a socket: %w", err)
	}
	return nil
}

// ask sends one request and reads its answers to the end.
func (d *diag) ask(kind, flags uint16, family uint8, id *[sizeofSockID]byte, yield func(*tcpSocket)) error {
	d.seq++
	msg := make([]byte, unix.SizeofNlMsghdr+sizeofRequest)
	ne := binary.NativeEndian
	ne.PutUint32(msg[0:], uint32(len(msg)))
	ne.PutUint16(msg[4:], kind)
	ne.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	ne.PutUint32(msg[8:], d.seq)
	req := msg[unix.SizeofNlMsghdr:]
	req[0], req[1], req[2] = family, unix.IPPROTO_TCP, 1<<(inetDiagInfo-1)
	ne.PutUint32(req[4:], 1<<tcpEstablished|1<<tcpSynSent)
	if id != nil {
		copy(req[8:], id[:])
	}
	if err := unix.Sendto(d.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, err := recv(d.fd, d.buf)
		if err != nil {
			return err
		}
		for b := d.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size, kind, seq := int(ne.Uint32(b)), ne.Uint16(b[4:]), ne.Uint32(b[8:])
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("malformed netlink message")
			}
			body := b[unix.SizeofNlMsghdr:size]
			b = b[min(len(b), (size+3)&^3):]
			switch {
			case seq != d.seq: // of a request that was given up
			case kind == unix.NLMSG_DONE:
				return nil
			case kind == unix.NLMSG_ERROR:
				if len(body) < 4 {
					return errors.New("malformed netlink error")
				}
				if code := int32(ne.Uint32(body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			case kind == sockDiagByFamily:
				if s, ok := parseSocket(body); ok {
					yield(&s)
				}
				if flags&unix.NLM_F_DUMP == 0 {
					return nil
				}
			}
		}
	}
}

func recv(fd int, buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// parseSocket reads a struct inet_diag_msg and the attributes behind it.
func parseSocket(b []byte) (s tcpSocket, ok bool) {
	if len(b) < sizeofAnswer {
		return s, false
	}
	ne := binary.NativeEndian
	s.family, s.state = b[0], b[1]
	copy(s.id[:], b[4:])
	// struct inet_diag_sockid: ports, source, destination, interface, cookie.
	port := binary.BigEndian.Uint16(s.id[2:])
	var addr netip.Addr
	if s.family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(s.id[20:24]))
	} else {
		addr = netip.AddrFrom16([16]byte(s.id[20:36])).Unmap()
	}
	s.peer = netip.AddrPortFrom(addr, port)
	s.device = ne.Uint32(s.id[36:])
	s.cookie = uint64(ne.Uint32(s.id[40:])) | uint64(ne.Uint32(s.id[44:]))<<32
	tail := b[4+sizeofSockID:]
	s.unread, s.unsent = ne.Uint32(tail[4:]), ne.Uint32(tail[8:])
	for a := b[sizeofAnswer:]; len(a) >= 4; {
		size, kind := int(ne.Uint16(a)), ne.Uint16(a[2:])
		if size < 4 || size > len(a) {
			return s, false
		}
		value := a[4:size]
		switch kind {
		case inetDiagInfo:
			// Other kernels' are shorter or longer; what is missing stays zero.
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&s.info)), unsafe.Sizeof(s.info)), value)
		case inetDiagMark:
			if len(value) >= 4 {
				s.mark = ne.Uint32(value)
			}
		case inetDiagCgroup:
			if len(value) >= 8 {
				s.cgroup = ne.Uint64(value)
			}
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, true
}
