// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// ears keeps what is told of a namespace's sockets.
type ears struct {
	t     *testing.T
	ends  *Ends
	heard chan End
	lost  atomic.Int64
}

// hear begins to listen in a pod.
func hear(t *testing.T, p *lab.Pod, buffer int) *ears {
	t.Helper()
	ns, err := os.Open(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	e, err := OpenEnds(int(ns.Fd()), buffer)
	if err != nil {
		t.Fatal(err)
	}
	h := &ears{t: t, ends: e, heard: make(chan End, 4096)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			all, err := e.Read(nil)
			for _, end := range all {
				h.heard <- end
			}
			switch {
			case errors.Is(err, os.ErrClosed):
				return
			case errors.Is(err, ErrLost):
				h.lost.Add(1)
			case err != nil:
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return h
}

// of waits for the end of a socket.
func (h *ears) of(cookie uint64) End {
	h.t.Helper()
	for after := time.After(time.Minute); ; {
		select {
		case end := <-h.heard:
			if end.Cookie == cookie {
				return end
			}
		case <-after:
			h.t.Fatalf("the end of socket %d is not told", cookie)
		}
	}
}

func cookieOf(t *testing.T, c syscall.Conn) (cookie uint64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		var inner error
		if err = raw.Control(func(fd uintptr) { cookie, inner = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) }); err == nil {
			err = inner
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

// pair is a connection within a pod.
func pair(t *testing.T, p *lab.Pod, address string) (client, server *net.TCPConn) {
	t.Helper()
	l, err := p.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := p.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestTheEndOfAConnectionIsToldToTheByte(t *testing.T) {
	pod := lab.New(t).MustPod("pod")
	// Some are told of this late (see End.At), which is as long as of waits.
	if err := pod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("10"), 0) }); err != nil {
		t.Fatal(err)
	}
	h := hear(t, pod, 1<<20)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	send := func(c *net.TCPConn, n int) { t.Helper(); _, err := c.Write(make([]byte, n)); must(err) }
	take := func(c *net.TCPConn, n int) { t.Helper(); _, err := io.ReadFull(c, make([]byte, n)); must(err) }
	end := func(c *net.TCPConn) {
		t.Helper()
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes and %v", n, err)
		}
	}
	// arrived waits for what the peer has sent, without reading it.
	arrived := func(c *net.TCPConn, n int) {
		t.Helper()
		raw, err := c.SyscallConn()
		must(err)
		must(raw.Read(func(fd uintptr) bool {
			got, _, _ := unix.Recvfrom(int(fd), make([]byte, n+1), unix.MSG_PEEK)
			return got >= n
		}))
	}
	for _, tc := range []struct {
		name           string
		do             func(client, server *net.TCPConn)
		sent, received int64
		outcome        Outcome
	}{
		{"the client closes, the server does not", func(c, s *net.TCPConn) {
			send(c, 100)
			take(s, 100)
			send(s, 1000)
			take(c, 1000)
			c.Close()
			end(s)
		}, 100, 1000, Closed},
		{"the server closes first, and the client has read that", func(c, s *net.TCPConn) {
			send(c, 100)
			take(s, 100)
			send(s, 1000)
			s.Close()
			take(c, 1000)
			end(c)
			c.Close()
		}, 100, 1000, Closed},
		{"the client closes its side only", func(c, s *net.TCPConn) {
			send(c, 100)
			must(c.CloseWrite())
			take(s, 100)
			end(s)
			send(s, 1000)
			s.Close()
			take(c, 1000)
			end(c)
			c.Close()
		}, 100, 1000, Closed},
		{"the server closes its side only", func(c, s *net.TCPConn) {
			send(s, 1000)
			must(s.CloseWrite())
			take(c, 1000)
			end(c)
			send(c, 100)
			take(s, 100)
			c.Close()
			end(s)
			s.Close()
		}, 100, 1000, Closed},
		{"one byte each", func(c, s *net.TCPConn) {
			send(c, 1)
			take(s, 1)
			send(s, 1)
			take(c, 1)
			c.Close()
			end(s)
		}, 1, 1, Closed},
		{"much", func(c, s *net.TCPConn) {
			go func() { send(c, 3_000_001) }()
			take(s, 3_000_001)
			go func() { send(s, 5_000_003) }()
			take(c, 5_000_003)
			c.Close()
			end(s)
		}, 3_000_001, 5_000_003, Closed},
		{"nothing, the client closes", func(c, s *net.TCPConn) { c.Close(); end(s) }, 0, 0, Closed},
		{"nothing, the server closes", func(c, s *net.TCPConn) { s.Close(); end(c); c.Close() }, 0, 0, Closed},
		{"sent only", func(c, s *net.TCPConn) { send(c, 100); c.Close(); take(s, 100); end(s); s.Close() }, 100, 0, Closed},
		{"received only", func(c, s *net.TCPConn) { send(s, 1000); s.Close(); take(c, 1000); end(c); c.Close() }, 0, 1000, Closed},
		{"the server resets", func(c, s *net.TCPConn) {
			send(c, 100)
			take(s, 100)
			send(s, 1000)
			take(c, 1000)
			must(s.SetLinger(0))
			s.Close()
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the client got %v", err)
			}
			c.Close()
		}, 100, 1000, Aborted},
		{"the client has not read all", func(c, s *net.TCPConn) {
			send(c, 100)
			take(s, 100)
			send(s, 1000)
			arrived(c, 1000)
			c.Close()
		}, 100, 1000, Aborted},
		{"the client aborts", func(c, s *net.TCPConn) {
			send(c, 100)
			take(s, 100)
			must(c.SetLinger(0))
			c.Close()
		}, 0, 0, Disconnected},
	} {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(tc.name+"/"+address, func(t *testing.T) {
				c, s := pair(t, pod, address)
				cookie := cookieOf(t, c)
				local, peer := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
				tc.do(c, s)
				got := h.of(cookie)
				if got.Sent != tc.sent || got.Received != tc.received || got.Outcome != tc.outcome {
					t.Errorf("%d bytes sent, %d received, outcome %d; want %d, %d, %d", got.Sent, got.Received, got.Outcome, tc.sent, tc.received, tc.outcome)
				}
				if tc.outcome != Disconnected && (got.Local != local || got.Peer != peer) {
					t.Errorf("from %s to %s, want %s and %s", got.Local, got.Peer, local, peer)
				}
			})
		}
	}
	// Both at once: the server's FIN comes with its acknowledgement of the client's, as
	// long as it comes before the kernel sends that by itself, after 40 ms.
	for range 100 {
		c, s := pair(t, pod, "127.0.0.1:0")
		cookie := cookieOf(t, c)
		send(c, 100)
		take(s, 100)
		send(s, 1000)
		take(c, 1000)
		began := time.Now()
		c.Close()
		s.Close()
		quick := time.Since(began) < 20*time.Millisecond
		if got := h.of(cookie); quick && (got.Sent != 100 || got.Received != 1000 || got.Outcome != Closed) {
			t.Fatalf("both close: %+v", got)
		}
	}
	// Of a few hundred, where processors are slow, the acknowledgement comes while close(2)
	// lets go of one: then the kernel gives up waiting for a FIN.
	for range 300 {
		c, s := pair(t, pod, "127.0.0.1:0")
		cookie := cookieOf(t, c)
		send(s, 1000)
		take(c, 1000)
		acknowledged := make(chan error, 1)
		go func() { _, err := s.Read(make([]byte, 1)); acknowledged <- err }()
		c.Close()
		if err := <-acknowledged; !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if got := h.of(cookie); got.Sent != 0 || got.Received != 1000 || got.Outcome != Closed {
			t.Fatalf("the client closes, the server does not: %+v", got)
		}
		s.Close()
	}
	if n := h.lost.Load(); n > 0 {
		t.Errorf("%d times something was lost", n)
	}
}

// TestWhoNeverConnectedIsTold: the kernel tells of blocking sockets, which it
// disconnects itself, otherwise than of others.
func TestWhoNeverConnectedIsTold(t *testing.T) {
	pod := lab.New(t).MustPod("pod")
	h := hear(t, pod, 1<<20)
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	for name, nonblock := range map[string]int{"blocking": 0, "non-blocking": unix.SOCK_NONBLOCK} {
		t.Run(name, func(t *testing.T) {
			var fd int
			err := pod.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|nonblock, 0)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil {
				t.Fatal(err)
			}
			err = lab.Connect(fd, &unix.SockaddrInet4{Addr: nobody.Addr().As4(), Port: int(nobody.Port())})
			if err != unix.ECONNREFUSED && err != unix.EINPROGRESS {
				t.Fatal(err)
			}
			unix.Close(fd)
			if got := h.of(cookie); got.Outcome != NeverConnected || got.Sent != 0 || got.Received != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestWhatIsLostIsSaid(t *testing.T) {
	pod := lab.New(t).MustPod("pod")
	ns, err := os.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	e, err := OpenEnds(int(ns.Fd()), 1)
	if err != nil {
		t.Fatal(err)
	}
	open := func() {
		t.Helper()
		l, err := pod.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	// Nobody reads meanwhile. The kernel tells when it has time to.
	for end := time.Now().Add(time.Minute); drops(t, pod) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is lost")
		}
		open()
	}
	told := 0
	for lost := false; !lost; {
		all, err := e.Read(nil)
		told += len(all)
		if lost = errors.Is(err, ErrLost); !lost && err != nil {
			t.Fatal(err)
		}
	}
	// And goes on.
	for before := told; told == before; {
		open()
		all, err := e.Read(nil)
		if err != nil && !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		told += len(all)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := e.Read(nil); errors.Is(err, os.ErrClosed) {
			break
		}
	}
}

// drops is how many messages netlink has not delivered in a pod.
func drops(t *testing.T, p *lab.Pod) (n int) {
	t.Helper()
	err := p.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(text)) {
			// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
			if f := strings.Fields(line); len(f) > 8 {
				d, _ := strconv.Atoi(f[8])
				n += d
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
