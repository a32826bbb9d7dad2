// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestListenersThatCloseFirstServeWhoIsHeld(t *testing.T) {
	w := newWorld(t)
	silent := w.route(w.base, unix.RTN_BLACKHOLE, w.client.IPv4.String()+"/32")
	w.names(w.base)
	answered := make(chan error)
	go func() {
		c, err := w.client.Dial("tcp", w.captured(w.client))
		if err == nil {
			c.Close()
		}
		answered <- err
	}()
	w.eventually("the client waits", func() bool { return w.router.Stats().Open == 1 })
	w.router.Unlisten(cookie(t, w.client))
	silent()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	w.eventually("the listener is closed", func() bool {
		c, err := w.client.Dial("tcp", w.captured(w.client))
		if err == nil {
			c.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
}

// A SYN may be kept from a listener in the moment in which that closes. Its client
// is not to find out by itself, a second later.
func TestASYNThatAClosingListenerHasGotIsRefusedAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*loop, *namespace)
	}{
		{"while it listens no more", func(l *loop, ns *namespace) { l.closeListeners(ns) }},
		{"after the ring was looked at", func(l *loop, ns *namespace) {
			syns := l.syns
			l.syns = nil
			l.closeListeners(ns)
			l.syns = syns
		}},
		{"while the router closes", func(l *loop, ns *namespace) {
			l.stopped = true
			l.takeAllSYNs()
			l.closeListeners(ns)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var syns uint8
			// A machine may take a second for this, and the client send another SYN, but
			// hardly every time.
			for range 5 {
				w := newWorld(t)
				w.names(w.base)
				var err unix.Errno
				if err, syns = w.connectAndThen(tc.do); err != unix.ECONNREFUSED {
					t.Errorf("the client got %v", err)
				}
				if s := w.router.Stats(); s.Held != 0 || s.Open != 0 {
					t.Errorf("%+v", s)
				}
				if syns == 1 {
					return
				}
			}
			t.Errorf("the client has sent %d SYNs", syns)
		})
	}
}

// connectAndThen has a client connect and the loop do something while the SYN is in
// its ring. It returns how that ends, after how many SYNs.
func (w *world) connectAndThen(do func(*loop, *namespace)) (end unix.Errno, syns uint8) {
	w.t.Helper()
	w.router.mu.Lock()
	ns := w.router.namespaces[cookie(w.t, w.client)]
	w.router.mu.Unlock()
	to := netip.MustParseAddrPort(w.captured(w.client))
	fd := -1
	if err := w.client.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	var err error
	ns.home.call(func() {
		if err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); !errors.Is(err, unix.EINPROGRESS) {
			return
		}
		if err = ready(ns.home.syns.FD(), unix.POLLIN); err == nil {
			do(ns.home, ns)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := ready(fd, unix.POLLOUT); err != nil {
		w.t.Fatal(err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		w.t.Fatal(err)
	}
	return unix.Errno(e), 1 + uint8(info.Total_retrans)
}

// ready waits until a descriptor is ready.
func ready(fd int, events int16) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for end := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case time.Now().After(end):
			return errors.New("a descriptor is not ready")
		}
	}
}

func TestADrainThatIsOverRefusesWhoIsHeld(t *testing.T) {
	w := newWorld(t)
	w.route(w.base, unix.RTN_BLACKHOLE, w.client.IPv4.String()+"/32")
	w.names(w.base)
	answered := make(chan error)
	go func() {
		_, err := w.client.Dial("tcp", w.captured(w.client))
		answered <- err
	}()
	w.eventually("the client waits", func() bool { return w.router.Stats().Open == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := w.router.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := <-answered; !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v, want %v", err, unix.ECONNREFUSED)
	}
	w.noConnections()
}
