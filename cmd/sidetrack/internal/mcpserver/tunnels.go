// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// kept is how long a tunnel stays for the next request, which spares that the start
// of a pod. Nothing depends on it: without one another is opened.
const kept = time.Minute

// tunnels are those that are open. Each belongs to one sandbox.
type tunnels struct {
	mu   sync.Mutex
	open map[tunnelKey]*shared
}

type tunnelKey struct {
	sandbox types.UID
	tagged  bool
}

// shared is a tunnel that several calls may use at once.
type shared struct {
	*tunnel.Tunnel
	users int
	// gone: it is not in the map any more, and ends with its last user.
	gone  bool
	timer *time.Timer
}

// with calls f with a way to dial from a pod of the sandbox, or from one beside it
// where tagged is false. A pod that has vanished since the last call is replaced: f
// is called again then, and has not sent anything before.
func (t *tunnels) with(ctx context.Context, c call, sb *v1alpha1.Sandbox, tagged bool, f func(dial dialFunc) error) error {
	key := tunnelKey{sb.UID, tagged}
	for attempt := 0; ; attempt++ {
		s, fresh, err := t.get(ctx, c, sb, key)
		if err != nil {
			return err
		}
		broken := false
		var mu sync.Mutex
		err = f(func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := s.DialContext(ctx, network, address)
			// What the relay says of the address is no fault of the tunnel.
			if e := (*tunnel.DialError)(nil); err != nil && ctx.Err() == nil && !errors.As(err, &e) {
				mu.Lock()
				broken = true
				mu.Unlock()
			}
			return conn, err
		})
		mu.Lock()
		again := broken
		mu.Unlock()
		t.put(key, s, again)
		if !again || fresh || attempt > 0 {
			return err
		}
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func (t *tunnels) get(ctx context.Context, c call, sb *v1alpha1.Sandbox, key tunnelKey) (s *shared, fresh bool, err error) {
	t.mu.Lock()
	if s = t.open[key]; s != nil {
		s.users++
		s.timer.Stop()
	}
	t.mu.Unlock()
	if s != nil {
		return s, false, nil
	}
	image, err := c.server.ownImage(ctx, c.Cluster)
	if err != nil {
		return nil, false, err
	}
	opened, err := tunnel.Open(ctx, c.Cluster, tunnel.Options{
		Sandbox: sb, Tagged: key.tagged, Image: image, ServiceAccount: c.server.o.ServiceAccount,
	}, c.progress)
	if err != nil {
		return nil, false, err
	}
	s = &shared{Tunnel: opened, users: 1}
	s.timer = time.AfterFunc(kept, func() { t.expire(key, s) })
	s.timer.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil || t.open[key] != nil {
		s.gone = true // Another call was faster, or the server is at its end.
	} else {
		t.open[key] = s
	}
	return s, true, nil
}

func (t *tunnels) put(key tunnelKey, s *shared, broken bool) {
	t.mu.Lock()
	s.users--
	if broken && !s.gone {
		s.gone = true
		delete(t.open, key)
	}
	end := s.gone && s.users == 0
	if !end && s.users == 0 {
		s.timer.Reset(kept)
	}
	t.mu.Unlock()
	if end {
		// What is left ends by itself soon, and goes with the sandbox.
		_ = s.Close()
	}
}

func (t *tunnels) expire(key tunnelKey, s *shared) {
	t.mu.Lock()
	end := s.users == 0 && !s.gone
	if end {
		s.gone = true
		delete(t.open, key)
	}
	t.mu.Unlock()
	if end {
		_ = s.Close()
	}
}

// close ends all, those in use with their last user.
func (t *tunnels) close() {
	t.mu.Lock()
	var idle []*shared
	for _, s := range t.open {
		s.timer.Stop()
		s.gone = true
		if s.users == 0 {
			idle = append(idle, s)
		}
	}
	t.open = nil
	t.mu.Unlock()
	var all sync.WaitGroup
	for _, s := range idle {
		all.Go(func() { _ = s.Close() })
	}
	all.Wait()
}
