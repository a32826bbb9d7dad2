// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
)

// load sends requests at a steady rate over connections that it keeps. It never
// sends one again: a request without an answer has failed, as it has for a
// client whose requests are not idempotent.
type load struct {
	what visit.Load

	mu    sync.Mutex
	sum   visit.Result
	times []time.Duration
}

func newLoad(what visit.Load) *load { return &load{what: what} }

func (l *load) result() visit.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.sum
	if times := slices.Clone(l.times); len(times) > 0 {
		slices.Sort(times)
		r.P50, r.P99, r.Max = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	}
	return r
}

func (l *load) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.what.Duration)
	defer cancel()
	target, err := url.Parse(l.what.URL)
	var wg sync.WaitGroup
	for i := range l.what.Connections {
		if err != nil {
			l.fail(err)
			break
		}
		wg.Go(func() { l.connection(ctx, i, target) })
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.Done = true
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.Failed++
	l.complain(err)
}

func (l *load) complain(err error) {
	l.sum.LastFailure = time.Now()
	if len(l.sum.Complaints) < 10 {
		l.sum.Complaints = append(l.sum.Complaints, time.Now().Format("05.000 ")+err.Error())
	}
}

func (l *load) connection(ctx context.Context, i int, target *url.URL) {
	tagged := i%2 == 1
	want, request := l.what.Version, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: shop\r\n", target.RequestURI(), target.Host)
	if tagged {
		want = l.what.TaggedVersion
		request += "Baggage: sidetrack=" + l.what.Key + "\r\n"
	}
	request += "\r\n"
	address := target.Host
	if target.Port() == "" {
		address = net.JoinHostPort(target.Hostname(), "80")
	}
	every := time.Duration(float64(l.what.Connections) / l.what.Rate * float64(time.Second))
	// Spread over the first period.
	at := time.Now().Add(rand.N(every))
	var conn net.Conn
	var in *bufio.Reader
	forget := func() {
		if conn != nil {
			conn.Close()
			conn = nil
			l.count(func(r *visit.Result) { r.Open-- })
		}
	}
	defer forget()
	for ; ; at = at.Add(every) {
		select {
		case <-time.After(time.Until(at)):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		if conn != nil && closed(conn) {
			forget()
			l.count(func(r *visit.Result) { r.Redialled++ })
		}
		if conn == nil {
			c, err := net.DialTimeout("tcp", address, 10*time.Second)
			if err != nil {
				l.fail(fmt.Errorf("dial: %w", err))
				continue
			}
			conn, in = c, bufio.NewReader(c)
			l.count(func(r *visit.Result) { r.Open++ })
		}
		version, keep, err := exchange(conn, in, request)
		if err != nil || !keep {
			forget()
		}
		took := time.Since(began)
		l.count(func(r *visit.Result) {
			r.Requests++
			if tagged {
				r.Tagged++
			}
			if began.Sub(at) > time.Second {
				r.Late++
			}
			switch {
			case err != nil:
				r.Failed++
				l.complain(fmt.Errorf("tagged %t: %w", tagged, err))
			case version != want:
				r.Misrouted++
				l.complain(fmt.Errorf("tagged %t: answered by %q", tagged, version))
			}
			l.times = append(l.times, took)
		})
	}
}

func (l *load) count(f func(*visit.Result)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.sum)
}

// closed reports whether the other end has closed a connection that should be
// quiet.
func closed(conn net.Conn) bool {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = !errors.Is(err, unix.EAGAIN)
	})
	return err != nil || gone
}

// exchange sends a request and returns which version has answered it, and
// whether the connection may be used again.
func exchange(conn net.Conn, in *bufio.Reader, request string) (version string, keep bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", false, err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return "", false, fmt.Errorf("send: %w", err)
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", false, fmt.Errorf("receive: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", false, fmt.Errorf("receive: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", false, fmt.Errorf("answer %s: %.200s", resp.Status, body)
	}
	visits, err := visit.Parse(body)
	if err != nil {
		return "", false, err
	}
	if len(visits) == 0 {
		return "", false, errors.New("an answer without a visit")
	}
	return visits[0].Version, !resp.Close, nil
}
