// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
)

// Multicast groups of linux/sock_diag.h.
const (
	groupTCPDestroy  = 1
	groupTCP6Destroy = 3
)

// Outcome is how a TCP connection has ended, as far as the kernel tells.
type Outcome uint8

// The outcomes.
const (
	// Closed: this side has closed it, and the peer has acknowledged that.
	Closed Outcome = iota
	// Aborted: reset by one of them, or given up since the peer acknowledged nothing.
	Aborted
	// Disconnected: reset by this side's application (SO_LINGER of zero, or connect(2)
	// to AF_UNSPEC). The kernel has forgotten whom it was connected to and what it
	// carried.
	Disconnected
	// NeverConnected: refused, or nobody has answered.
	NeverConnected
)

// End is a TCP socket that is no more.
type End struct {
	// At is when it was told. That is when its application has closed it and the peer has
	// acknowledged that, or either has aborted it; but where the acknowledgement comes in
	// the microseconds in which close(2) lets go of the socket, the kernel keeps it until
	// the peer closes too, for tcp_fin_timeout (60 s) at most: tcp_rcv_state_process,
	// which has to wait where the socket is owned by user.
	At     time.Time
	Cookie uint64
	// Local and Peer are as in Socket; Peer has port zero, and Local may have no address,
	// where the kernel has forgotten them.
	Local, Peer netip.AddrPort
	Outcome     Outcome
	// Sent and Received are bytes of payload. Sent has what was sent at least once,
	// whether it has arrived or not.
	Sent, Received int64
}

// ErrLost says that sockets have ended of which nothing was told, because too many did
// at once.
var ErrLost = errors.New("the ends of some sockets were not told: too many at once")

// Ends hears of the ends of the TCP sockets of one network namespace: those that
// connect as well as those that are accepted or listen. One goroutine may call Read;
// Close may be called from any, and then Read once more, which lets go of the rest.
type Ends struct {
	file *os.File
	conn syscall.RawConn
	buf  []byte

	diag      *Diag
	closeDiag sync.Once
}

// OpenEnds returns the ends of sockets in the namespace ns from now on. Buffer is how
// many bytes of messages, by the kernel's reckoning, wait for Read at most: some 1000 for
// each. The error is ErrNoDiag where the kernel cannot list sockets: then it does not tell of
// their ends either.
func OpenEnds(ns int, buffer int) (*Ends, error) {
	var fd int
	err := pods.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	e := &Ends{file: os.NewFile(uintptr(fd), "sock_diag"), buf: make([]byte, 4<<10)}
	fail := func(err error) (*Ends, error) {
		e.file.Close()
		return nil, fmt.Errorf("hear of sockets' ends: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return fail(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail(err)
	}
	for _, group := range []int{groupTCPDestroy, groupTCP6Destroy} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fail(err)
		}
	}
	if e.conn, err = e.file.SyscallConn(); err != nil {
		return fail(err)
	}
	if e.diag, err = Open(ns); err != nil {
		return fail(err)
	}
	if err := e.diag.check(); err != nil {
		e.diag.Close()
		return fail(err)
	}
	return e, nil
}

// Close ends Read.
func (e *Ends) Close() error { return e.file.Close() }

// Read waits for ends and appends those that there are, at most a few hundred. The error
// is os.ErrClosed after Close, and ErrLost where some are missing; then those that
// are returned are good, and it may be called again.
func (e *Ends) Read(ends []End) ([]End, error) { return e.read(ends, true) }

// ReadNow is Read without waiting: there may be none.
func (e *Ends) ReadNow(ends []End) ([]End, error) { return e.read(ends, false) }

func (e *Ends) read(ends []End, wait bool) ([]End, error) {
	const most = 512
	var failed error
	first := len(ends)
	err := e.conn.Read(func(fd uintptr) bool {
		for len(ends)-first < most {
			n, err := recv(int(fd), e.buf)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return !wait || len(ends) > first
			case errors.Is(err, unix.ENOBUFS):
				failed = ErrLost
				return true
			case err != nil:
				failed = fmt.Errorf("hear of sockets' ends: %w", err)
				return true
			}
			if end, ok := e.parse(e.buf[:n]); ok {
				ends = append(ends, end)
			}
		}
		return true
	})
	if err != nil {
		e.closeDiag.Do(e.diag.Close)
		return ends, os.ErrClosed
	}
	return ends, failed
}

// parse reads a message.
func (e *Ends) parse(b []byte) (End, bool) {
	if len(b) < unix.SizeofNlMsghdr || binary.NativeEndian.Uint16(b[4:]) != sockDiagByFamily {
		return End{}, false
	}
	s, ok := parseSocket(b[unix.SizeofNlMsghdr:])
	if !ok {
		return End{}, false
	}
	end := endOf(&s)
	end.At = time.Now()
	if doubtful(&s, &end) && !givenUp(&s) && !e.leftWaiting(&s) {
		end.Received--
	}
	return end, true
}

// endOf says what the kernel's description of a socket that is no more comes to.
//
// The kernel counts sequence numbers, and SYN and FIN have one each. Acknowledged ones of
// this side begin with its SYN. Received ones begin behind the peer's SYN, and have its
// FIN where that has come: of an aborted connection it is assumed that it has not, and
// of others see doubtful.
func endOf(s *Socket) End {
	i := &s.Info
	end := End{
		Cookie: s.Cookie, Local: s.Local, Peer: s.Peer,
		Sent: int64(i.Bytes_sent - min(i.Bytes_sent, i.Bytes_retrans)), Received: int64(i.Bytes_received),
	}
	// Bytes_sent knows payload alone.
	switch finAcknowledged := int64(i.Bytes_acked) > end.Sent+1; {
	case s.Peer.Port() == 0 && s.Unsent > neverConnected:
		end.Outcome = Disconnected
	case s.Peer.Port() == 0, i.Bytes_acked == 0:
		end.Outcome = NeverConnected
	case !finAcknowledged:
		end.Outcome = Aborted
	case s.Unread == 1:
		// All has been read but one: the FIN, which came after close(2).
		end.Received--
	}
	if i.Data_segs_in == 0 {
		end.Received = 0
	}
	return end
}

// neverConnected is what a socket has at most "unsent" that the kernel has disconnected
// without its having been connected. It moves the next sequence number beyond the peer's
// greatest window by two (tcp_disconnect), and a SYN may be unacknowledged.
const neverConnected = 3

// doubtful reports whether end counts the peer's FIN as a byte if that has come: the
// connection was closed in good order, and the application has read all there was. That is
// so if the peer has closed it first, and if this side has, as long as the peer has not.
func doubtful(s *Socket, end *End) bool {
	return end.Outcome == Closed && s.Unread == 0 && end.Received > 0
}

// givenUp reports whether the kernel has waited for the peer's FIN in vain, in a socket that
// it kept for that (see End.At). Otherwise what ends one is the peer's acknowledgement or
// its FIN, which has one too, a moment ago; for this it has waited for 700 ms at least
// (tcp_fin_time: three and a half times the least retransmission timeout of 200 ms).
func givenUp(s *Socket) bool { return s.Info.Last_ack_recv > 500 }

// leftWaiting reports whether a connection that is closed waits for the peer's FIN.
// Where that came first, nothing is left of it; where it came into the wait, it waits for
// stray packets (TIME_WAIT), as it does where the application had only closed its side and
// has read the FIN. The latter is much more often so by the time that this asks.
func (e *Ends) leftWaiting(s *Socket) bool {
	waits := false
	q := question{kind: sockDiagByFamily, family: s.Family, states: ^uint32(0), id: s.ID}
	for i := range 8 {
		q.id[40+i] = 0xff // INET_DIAG_NOCOOKIE: what waits has another one
	}
	// An error means that there is none.
	_ = e.diag.ask(&q, func(s *Socket) { waits = s.State == finWait2 })
	return waits
}
