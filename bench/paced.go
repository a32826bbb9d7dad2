// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// single is one connection that carries single requests.
type single struct {
	path  *Path
	fd    int
	head  []byte
	check checker
	times []time.Duration
}

// paced sends single requests to all paths in turn, in a new order in each turn,
// so that whatever slows the machine down for a while slows all of them down.
func (l *Load) paced() ([]Measured, error) {
	interval := time.Second / time.Duration(l.Rate)
	turns := int(l.For/interval)/len(l.Paths) + 1
	all := make([]*single, 0, len(l.Paths))
	for i := range l.Paths {
		s, err := l.single(&l.Paths[i], turns)
		if err != nil {
			return nil, err
		}
		defer unix.Close(s.fd)
		all = append(all, s)
	}
	buf := make([]byte, 8<<10)
	turn := func() error {
		for _, s := range all {
			began := time.Now()
			if err := s.ask(buf); err != nil {
				return fmt.Errorf("%s: %w", s.path.Target, err)
			}
			// A request that took long delays the next; none are sent in a burst.
			if d := interval - time.Since(began); d > 0 {
				sleep(d)
			}
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return nil
	}
	for end := time.Now().Add(l.Warmup); time.Now().Before(end); {
		if err := turn(); err != nil {
			return nil, err
		}
	}
	for _, s := range all {
		s.times = s.times[:0]
	}
	w, err := l.open()
	if err != nil {
		return nil, err
	}
	for range turns {
		if err := turn(); err != nil {
			return nil, err
		}
	}
	m, err := w.close()
	if err != nil {
		return nil, err
	}
	results := make([]Measured, len(l.Paths))
	for _, s := range all {
		slices.Sort(s.times)
		one := m
		one.Requests = len(s.times)
		one.Median = float64(s.times[len(s.times)/2].Nanoseconds())
		one.P99 = float64(s.times[len(s.times)*99/100].Nanoseconds())
		for i := range l.Paths {
			if s.path == &l.Paths[i] {
				results[i] = one
			}
		}
	}
	return results, nil
}

// single connects along a path.
func (l *Load) single(p *Path, turns int) (*single, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("set TCP_NODELAY: %w", err), unix.Close(fd))
	}
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, errors.Join(fmt.Errorf("set SO_RCVTIMEO: %w", err), unix.Close(fd))
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(p.Target.Port()), Addr: p.Target.Addr().As4()}); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", p.Target, err), unix.Close(fd))
	}
	return &single{
		path: p, fd: fd, head: requestHead(l.Host, l.Key, p.Tagged, false), check: checker{want: p.Want},
		times: make([]time.Duration, 0, 2*turns),
	}, nil
}

// ask sends one request and takes the time until the whole answer is there.
func (s *single) ask(buf []byte) error {
	sent := time.Now()
	if n, errno := send(s.fd, s.head); errno != 0 || n != len(s.head) {
		return fmt.Errorf("send: %d bytes: %w", n, errno)
	}
	for have := 0; ; {
		n, errno := recv(s.fd, buf[have:])
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("receive: %w", errno)
		case n == 0:
			return errors.New("receive: the connection has ended before the answer")
		}
		have += n
		length, err := s.check.next(buf[:have])
		if err != nil {
			return err
		}
		if length != 0 {
			s.times = append(s.times, time.Since(sent))
			return nil
		}
	}
}
