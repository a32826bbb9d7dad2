// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The server and the load generator are single-threaded loops around epoll that
// enter the kernel without telling Go's scheduler: nothing else runs in these
// processes, and the less they need of their core, the surer it is that the
// proxy between them is what is measured. They run with the garbage collector
// off and without asynchronous preemption.

const maxEvents = 128

// poller is an epoll instance.
type poller struct {
	fd     int
	events [maxEvents]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &poller{fd: fd}, nil
}

// add watches fd for the events given.
func (p *poller) add(fd int, events uint32) error {
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// wait returns what is ready, after at most that many milliseconds.
func (p *poller) wait(milliseconds int) ([]unix.EpollEvent, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events)), maxEvents, uintptr(milliseconds), 0, 0)
	switch errno {
	case 0:
		return p.events[:n], nil
	case unix.EINTR:
		return nil, nil
	}
	return nil, fmt.Errorf("epoll_pwait: %w", errno)
}

// recv returns errno as the kernel does.
func recv(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

func send(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// sleep may end early, when a signal comes. A sleep that Go's scheduler knew of
// would have its monitor wake up again and again during the next request.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// runServe is the server: it answers every request with its name.
func runServe(args []string) error {
	if len(args) != 2 {
		return errors.New("serve: want: name, port")
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return fmt.Errorf("serve: port: %w", err)
	}
	s := server{keep: response(args[0], false), closing: response(args[0], true), conns: map[int]*[]byte{}}
	if s.p, err = newPoller(); err != nil {
		return err
	}
	if s.listener, err = listen(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))); err != nil {
		return err
	}
	if err := s.p.add(s.listener, unix.EPOLLIN); err != nil {
		return err
	}
	return s.loop()
}

func listen(a netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		return -1, fmt.Errorf("bind to %s: %w", a, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return -1, fmt.Errorf("listen on %s: %w", a, err)
	}
	return fd, nil
}

type server struct {
	p             *poller
	listener      int
	keep, closing []byte
	conns         map[int]*[]byte // the incomplete request of each
	spare         []*[]byte
}

func (s *server) loop() error {
	for {
		events, err := s.p.wait(-1)
		if err != nil {
			return err
		}
		for i := range events {
			fd := int(events[i].Fd)
			if fd != s.listener {
				s.serve(fd)
				continue
			}
			if err := s.accept(); err != nil {
				return err
			}
		}
	}
}

func (s *server) accept() error {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return fmt.Errorf("set TCP_NODELAY: %w", err)
		}
		if err := s.p.add(fd, unix.EPOLLIN); err != nil {
			return err
		}
		var b *[]byte
		if n := len(s.spare); n > 0 {
			b, s.spare = s.spare[n-1], s.spare[:n-1]
		} else {
			b = new([]byte)
			*b = make([]byte, 0, 16<<10)
		}
		s.conns[fd] = b
		// The request is often there already.
		s.serve(fd)
	}
}

// serve reads what is there and answers the requests that are complete.
func (s *server) serve(fd int) {
	b := s.conns[fd]
	n, errno := recv(fd, (*b)[len(*b):cap(*b)])
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return
	case errno != 0 || n == 0:
		s.drop(fd)
		return
	}
	*b = (*b)[:len(*b)+n]
	rest := *b
	for {
		end := bytes.Index(rest, []byte("\r\n\r\n"))
		if end < 0 {
			break
		}
		answer := s.keep
		closing := bytes.Contains(rest[:end], []byte("onnection: close"))
		if closing {
			answer = s.closing
		}
		rest = rest[end+4:]
		// An answer is far smaller than any send buffer.
		if n, errno := send(fd, answer); errno != 0 || n != len(answer) || closing {
			s.drop(fd)
			return
		}
	}
	*b = (*b)[:copy((*b)[:cap(*b)], rest)]
	if len(*b) == cap(*b) {
		s.drop(fd) // a head that long is nobody's here
	}
}

func (s *server) drop(fd int) {
	unix.Close(fd)
	b := s.conns[fd]
	delete(s.conns, fd)
	*b = (*b)[:0]
	s.spare = append(s.spare, b)
}
