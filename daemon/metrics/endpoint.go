// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// lastScrape is how long a scrape under way may take when serving stops.
	lastScrape = time.Second
	// vacate is how long an agent that was killed may take to leave the address.
	vacate = time.Second
)

// Endpoint serves metrics at an address, by turns with other agents' Endpoints:
// while one serves, the listener is handed to the next.
type Endpoint struct {
	address string
	server  func() *http.Server

	mu       sync.Mutex
	listener *net.TCPListener // nil: there is none
	serving  *http.Server
	failed   error
	done     sync.WaitGroup
}

// NewEndpoint returns an Endpoint that makes a server each time it starts.
func NewEndpoint(address string, server func() *http.Server) *Endpoint {
	return &Endpoint{address: address, server: server}
}

// Address is the address as configured.
func (e *Endpoint) Address() string { return e.address }

// Bound is the address as it is; empty while nobody listens.
func (e *Endpoint) Bound() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listener == nil {
		return ""
	}
	return e.listener.Addr().String()
}

// Listen takes the address. Nothing is served before Start.
func (e *Endpoint) Listen() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.listen()
}

func (e *Endpoint) listen() error {
	l, err := net.Listen("tcp", e.address)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	e.listener = l.(*net.TCPListener)
	return nil
}

// Inherit takes another agent's listener. The file stays the caller's.
func (e *Endpoint) Inherit(f *os.File) error {
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("serve metrics with another agent's listener: %w", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return errors.Join(errors.New("serve metrics with another agent's listener: it is no TCP socket"), l.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listener = tcp
	return nil
}

// File returns a duplicate of the listener, or nil when nobody listens.
func (e *Endpoint) File() (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listener == nil {
		return nil, nil
	}
	f, err := e.listener.File()
	if err != nil {
		return nil, fmt.Errorf("duplicate the metrics listener: %w", err)
	}
	return f, nil
}

// Start serves, and takes the address first when that has not been done. It
// does nothing while it serves.
func (e *Endpoint) Start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.serving != nil {
		return nil
	}
	for end := time.Now().Add(vacate); e.listener == nil; time.Sleep(20 * time.Millisecond) {
		if err := e.listen(); err != nil && (!errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end)) {
			return err
		}
	}
	server, listener := e.server(), e.listener
	e.serving = server
	e.done.Go(func() {
		// Stop closes the listener before the server, or after.
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.failed = fmt.Errorf("serve metrics: %w", err)
		}
	})
	return nil
}

// Stop ends serving in this process. Connections that nobody has accepted are
// the next agent's, if it has the listener.
func (e *Endpoint) Stop() error {
	e.mu.Lock()
	server, listener := e.serving, e.listener
	e.serving, e.listener = nil, nil
	e.mu.Unlock()
	var err error
	if server != nil {
		// In the background: whoever hands over does not wait for a scrape.
		stop, cancel := context.WithTimeout(context.Background(), lastScrape)
		e.done.Go(func() {
			defer cancel()
			if server.Shutdown(stop) != nil {
				_ = server.Close() // its listener is closed already
			}
		})
	}
	if listener != nil {
		// The server closes it too, whoever comes first.
		if e := listener.Close(); !errors.Is(e, net.ErrClosed) {
			err = e
		}
	}
	return err
}

// Close is Stop, waits, and says what went wrong meanwhile.
func (e *Endpoint) Close() error {
	err := e.Stop()
	e.done.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(err, e.failed)
}
