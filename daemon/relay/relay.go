// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrorHeader says, in one word, why a connection could not be opened:
// unresolved, refused, unreachable, timeout or failed.
const ErrorHeader = "Sidetrack-Error"

// dialTimeout is how long a server may take to accept a connection.
const dialTimeout = 15 * time.Second

// Relay opens connections for whoever asks by HTTP's CONNECT (RFC 9110, section
// 9.3.6). GET /alive answers 204 and does nothing else.
type Relay struct {
	// Idle ends Serve when nothing has been asked for, and no connection has been
	// open, for this long. Zero never does.
	Idle time.Duration

	open atomic.Int64
	last atomic.Int64 // unix nanoseconds
}

// Serve serves a listener until the context ends or nobody uses it any more, and
// closes it.
func (r *Relay) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.used()
	var tunnels sync.WaitGroup
	s := &http.Server{
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			r.used()
			switch {
			case req.Method == http.MethodConnect:
				tunnels.Add(1)
				defer tunnels.Done()
				r.connect(ctx, rw, req)
			case req.Method == http.MethodGet && req.URL.Path == "/alive":
				rw.WriteHeader(http.StatusNoContent)
			default:
				http.Error(rw, "this is a relay: it knows CONNECT host:port", http.StatusNotFound)
			}
		}),
		ReadHeaderTimeout: 30 * time.Second,
	}
	stopped := context.AfterFunc(ctx, func() { s.Close() })
	defer stopped()
	if r.Idle > 0 {
		go r.endWhenIdle(ctx, cancel)
	}
	err := s.Serve(l)
	cancel()
	tunnels.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the relay: %w", err)
}

func (r *Relay) used() { r.last.Store(time.Now().UnixNano()) }

func (r *Relay) endWhenIdle(ctx context.Context, end func()) {
	tick := time.NewTicker(max(r.Idle/10, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if r.open.Load() == 0 && time.Since(time.Unix(0, r.last.Load())) > r.Idle {
				end()
				return
			}
		}
	}
}

func (r *Relay) connect(ctx context.Context, rw http.ResponseWriter, req *http.Request) {
	r.open.Add(1)
	defer func() {
		r.used()
		r.open.Add(-1)
	}()
	d := net.Dialer{Timeout: dialTimeout}
	server, err := d.DialContext(req.Context(), "tcp", req.Host)
	if err != nil {
		rw.Header().Set(ErrorHeader, word(err))
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	hijacker, ok := rw.(http.Hijacker)
	if !ok {
		http.Error(rw, "HTTP/1.1 is needed", http.StatusHTTPVersionNotSupported)
		return
	}
	client, buffered, err := hijacker.Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	Join(withBuffered{client, buffered.Reader}, server)
}

// withBuffered is a connection of which something has been read already.
type withBuffered struct {
	net.Conn
	in *bufio.Reader
}

func (c withBuffered) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c withBuffered) CloseWrite() error { return closeWrite(c.Conn) }

// Join copies between two connections until both directions have ended. The end of
// one direction is passed on, and the other goes on; an error ends both.
func Join(a, b net.Conn) {
	var both sync.WaitGroup
	copyTo := func(to, from net.Conn) {
		defer both.Done()
		if _, err := io.Copy(to, from); err != nil {
			to.Close()
			from.Close()
			return
		}
		if closeWrite(to) != nil {
			to.Close()
		}
	}
	both.Add(2)
	go copyTo(a, b)
	go copyTo(b, a)
	both.Wait()
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// word says in one word why a connection could not be opened.
func word(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "unresolved"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return "failed"
}
