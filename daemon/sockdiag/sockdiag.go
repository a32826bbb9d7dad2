// SPDX-License-Identifier: Apache-2.0

// Package sockdiag lists, queries and closes the TCP sockets of a network namespace, and
// hears of their ends (sock_diag(7), linux/inet_diag.h).
//
// It owns its netlink sockets and decides nothing: which sockets are somebody's business
// is for its callers to say. Each of its values belongs to one goroutine at a time.
package sockdiag

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
)

// The states of a Socket that List yields (net/tcp_states.h).
const (
	Established = 1
	SynSent     = 2
)

const (
	finWait1  = 4
	finWait2  = 5
	timeWait  = 6
	closeWait = 8
	lastAck   = 9
	closing   = 11
)

const (
	sizeofSockID  = 48 // struct inet_diag_sockid
	sizeofRequest = 8 + sizeofSockID
	sizeofAnswer  = 4 + sizeofSockID + 20
)

// ErrNoDestroy says that the kernel has been built without
// CONFIG_INET_DIAG_DESTROY, ErrNoDiag that it does not list TCP sockets.
var (
	ErrNoDestroy = errors.New("the kernel cannot close other processes' sockets (CONFIG_INET_DIAG_DESTROY)")
	ErrNoDiag    = errors.New("the kernel does not list TCP sockets (CONFIG_INET_TCP_DIAG, module tcp_diag)")
)

// Socket is one TCP socket as the kernel describes it.
type Socket struct {
	// Family is AF_INET or AF_INET6, State one of the kernel's (net/tcp_states.h).
	Family, State uint8
	// ID is the kernel's struct inet_diag_sockid, to ask for the socket again.
	ID     [sizeofSockID]byte
	Device uint32 // bound to
	Cookie uint64
	// Local and Peer are its addresses, mapped ones as IPv4; a socket that is not, or
	// no more, connected has a Peer of port zero.
	Local, Peer netip.AddrPort
	Mark        uint32
	Cgroup      uint64 // its id; zero when the kernel does not say
	// Unread and Unsent are bytes that the application has not read, and that the
	// peer has not acknowledged.
	Unread, Unsent uint32
	Info           unix.TCPInfo
}

// Diag lists, queries and closes TCP sockets in one network namespace. Not safe
// for concurrent use.
type Diag struct {
	fd  int
	seq uint32
	buf []byte
}

// Open opens a Diag in the namespace ns.
func Open(ns int) (*Diag, error) {
	d := &Diag{fd: -1, buf: make([]byte, oneAnswer)}
	err := pods.Do(ns, func() (err error) {
		d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	// The kernel answers at once; a bound keeps a bug of either from hanging us.
	if err := unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		d.Close()
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return d, nil
}

func (d *Diag) Close() { unix.Close(d.fd) }

// List yields every TCP socket that is connected or being connected. For this the
// kernel looks at all TCP connections of the host.
func (d *Diag) List(yield func(*Socket)) error { return d.ListTo(0, false, yield) }

// check finds out whether List can do so: the error is ErrNoDiag where it cannot. The kernel is
// asked for sockets of no state, and looks at none.
func (d *Diag) check() error {
	return d.list(&question{kind: sockDiagByFamily, flags: unix.NLM_F_DUMP}, func(*Socket) {})
}

// ListTo is List of the sockets whose peer has a port, zero being any; with ending of those
// as well of which one side, or both, have closed it.
func (d *Diag) ListTo(port uint16, ending bool, yield func(*Socket)) error {
	q := question{kind: sockDiagByFamily, flags: unix.NLM_F_DUMP, states: connected}
	if ending {
		q.states |= 1<<finWait1 | 1<<finWait2 | 1<<closeWait | 1<<lastAck | 1<<closing
	}
	binary.BigEndian.PutUint16(q.id[2:], port)
	return d.list(&q, yield)
}

func (d *Diag) list(q *question, yield func(*Socket)) error {
	for _, q.family = range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.ask(q, yield)
		if errors.Is(err, unix.ENOENT) {
			err = ErrNoDiag
		}
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
	}
	return nil
}

// Query asks for a socket again. It reports false when the socket is gone.
func (d *Diag) Query(s *Socket) (now Socket, ok bool, err error) {
	err = d.ask(&question{kind: sockDiagByFamily, family: s.Family, states: connected, id: s.ID}, func(n *Socket) { now, ok = *n, true })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return now, false, nil
	}
	if err != nil {
		return now, false, fmt.Errorf("query a socket: %w", err)
	}
	return now, ok, nil
}

// Destroy closes a socket: its owner gets ECONNABORTED, the peer a reset.
func (d *Diag) Destroy(s *Socket) error {
	err := d.ask(&question{kind: sockDestroy, flags: unix.NLM_F_ACK, family: s.Family, states: connected, id: s.ID}, func(*Socket) {})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return nil // somebody else was quicker
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrNoDestroy
	case err != nil:
		return fmt.Errorf("close a socket: %w", err)
	}
	return nil
}

// A list comes in messages as long as there is room for. There are lists once in a while,
// and a Diag for each namespace.
const (
	oneAnswer   = 4 << 10
	manyAnswers = 32 << 10
)

// question is what the kernel is asked.
type question struct {
	kind, flags uint16
	family      uint8
	states      uint32
	id          [sizeofSockID]byte
}

const connected = 1<<Established | 1<<SynSent

// ask sends one request and reads its answers to the end.
func (d *Diag) ask(q *question, yield func(*Socket)) error {
	d.seq++
	msg := make([]byte, unix.SizeofNlMsghdr+sizeofRequest)
	ne := binary.NativeEndian
	ne.PutUint32(msg[0:], uint32(len(msg)))
	ne.PutUint16(msg[4:], q.kind)
	ne.PutUint16(msg[6:], unix.NLM_F_REQUEST|q.flags)
	ne.PutUint32(msg[8:], d.seq)
	req := msg[unix.SizeofNlMsghdr:]
	req[0], req[1], req[2] = q.family, unix.IPPROTO_TCP, 1<<(inetDiagInfo-1)
	ne.PutUint32(req[4:], q.states)
	copy(req[8:], q.id[:])
	if err := unix.Sendto(d.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := d.buf
	if q.flags&unix.NLM_F_DUMP != 0 {
		buf = make([]byte, manyAnswers)
	}
	for {
		n, err := recv(d.fd, buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size, kind, seq := int(ne.Uint32(b)), ne.Uint16(b[4:]), ne.Uint32(b[8:])
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("malformed netlink message")
			}
			body := b[unix.SizeofNlMsghdr:size]
			b = b[min(len(b), (size+3)&^3):]
			switch {
			case seq != d.seq: // of a request that was given up
			case kind == unix.NLMSG_DONE:
				// What has ended a list: nothing, or ENOENT where it is known only then that
				// there is no tcp_diag.
				if len(body) >= 4 {
					if code := int32(ne.Uint32(body)); code < 0 {
						return unix.Errno(-code)
					}
				}
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
				if q.flags&unix.NLM_F_DUMP == 0 {
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
func parseSocket(b []byte) (s Socket, ok bool) {
	if len(b) < sizeofAnswer {
		return s, false
	}
	ne := binary.NativeEndian
	s.Family, s.State = b[0], b[1]
	copy(s.ID[:], b[4:])
	// struct inet_diag_sockid: ports, source, destination, interface, cookie.
	s.Local = netip.AddrPortFrom(addrIn(s.Family, s.ID[4:]), binary.BigEndian.Uint16(s.ID[:]))
	s.Peer = netip.AddrPortFrom(addrIn(s.Family, s.ID[20:]), binary.BigEndian.Uint16(s.ID[2:]))
	s.Device = ne.Uint32(s.ID[36:])
	s.Cookie = uint64(ne.Uint32(s.ID[40:])) | uint64(ne.Uint32(s.ID[44:]))<<32
	tail := b[4+sizeofSockID:]
	s.Unread, s.Unsent = ne.Uint32(tail[4:]), ne.Uint32(tail[8:])
	for a := b[sizeofAnswer:]; len(a) >= 4; {
		size, kind := int(ne.Uint16(a)), ne.Uint16(a[2:])
		if size < 4 || size > len(a) {
			return s, false
		}
		value := a[4:size]
		switch kind {
		case inetDiagInfo:
			// Other kernels' are shorter or longer; what is missing stays zero.
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&s.Info)), unsafe.Sizeof(s.Info)), value)
		case inetDiagMark:
			if len(value) >= 4 {
				s.Mark = ne.Uint32(value)
			}
		case inetDiagCgroup:
			if len(value) >= 8 {
				s.Cgroup = ne.Uint64(value)
			}
		}
		a = a[min(len(a), (size+3)&^3):]
	}
	return s, true
}

// addrIn reads an address, a mapped one as IPv4.
func addrIn(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}
