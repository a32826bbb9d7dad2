// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// batchSize is how many steps go into one system call.
const batchSize = 4096

// writer applies steps in their order. Neighbours that do the same to the same
// map go together: the kernel applies a batch from its first entry to its last.
type writer struct {
	kind       routing.Map
	deleting   bool
	backends   batch[bpf.SdBackendKey, bpf.SdEndpoint]
	routes     batch[bpf.SdRouteKey, bpf.SdRoute]
	dests      batch[bpf.SdDestKey, bpf.SdDest]
	identities batch[uint64, bpf.SdIdentity]

	goneRoutes map[routing.RouteKey]bool
}

func newWriter(maps map[string]*ebpf.Map) *writer {
	w := &writer{goneRoutes: map[routing.RouteKey]bool{}}
	w.backends.to, w.backends.flag = maps[bpf.SdMapSdBackends], "--max-backends"
	w.routes.to, w.routes.flag = maps[bpf.SdMapSdRoutes], "--max-flow-routes"
	w.dests.to, w.dests.flag = maps[bpf.SdMapSdDests], "--max-destinations"
	w.identities.to, w.identities.flag = maps[bpf.SdMapSdIdentities], "--max-identities"
	return w
}

func (w *writer) step(s *routing.Step) error {
	if s.Map != w.kind || s.Delete != w.deleting {
		if err := w.flush(); err != nil {
			return err
		}
		w.kind, w.deleting = s.Map, s.Delete
	}
	full := false
	switch s.Map {
	case routing.Backends:
		full = w.backends.add(bpfBackendKey(s.BackendKey), bpfEndpoint(s.Backend))
	case routing.Routes:
		full = w.routes.add(bpfRouteKey(s.RouteKey), bpfRoute(s.Route))
		if s.Delete {
			w.goneRoutes[s.RouteKey] = true
		}
	case routing.Dests:
		full = w.dests.add(bpfDestKey(s.DestKey), bpfDest(s.Dest))
	case routing.Identities:
		full = w.identities.add(uint64(s.Cookie), bpfIdentity(s.Identity))
	default:
		return fmt.Errorf("unknown map %d", s.Map)
	}
	if full {
		return w.flush()
	}
	return nil
}

// flush writes what has been gathered.
func (w *writer) flush() error {
	switch w.kind {
	case routing.Backends:
		return w.backends.write(w.deleting)
	case routing.Routes:
		return w.routes.write(w.deleting)
	case routing.Dests:
		return w.dests.write(w.deleting)
	case routing.Identities:
		return w.identities.write(w.deleting)
	}
	return nil
}

// batch is what one system call will do to one map.
type batch[K, V any] struct {
	to     *ebpf.Map
	flag   string // that sets the map's size
	keys   []K
	values []V
}

// add reports whether the batch is full.
func (b *batch[K, V]) add(k K, v V) bool {
	b.keys = append(b.keys, k)
	b.values = append(b.values, v)
	return len(b.keys) == batchSize
}

func (b *batch[K, V]) write(deleting bool) error {
	var err error
	if deleting {
		err = b.delete(b.keys)
	} else {
		err = b.put(b.keys, b.values)
	}
	b.keys, b.values = b.keys[:0], b.values[:0]
	return err
}

func (b *batch[K, V]) put(keys []K, values []V) error {
	for tries := 0; len(keys) > 0; tries++ {
		n, err := b.to.BatchUpdate(keys, values, nil)
		if err == nil {
			return nil
		}
		if n > 0 {
			tries = 0
		}
		keys, values = keys[n:], values[n:]
		switch {
		case errors.Is(err, unix.ENOMEM) && tries < 10:
			// A map that is not preallocated takes elements from a reserve that the
			// kernel refills behind the scenes: give it a moment.
			time.Sleep(time.Millisecond << tries)
		case errors.Is(err, unix.E2BIG):
			return fmt.Errorf("map %s is full: raise %s: %w", b.to, b.flag, err)
		default:
			return fmt.Errorf("write to map %s: %w", b.to, err)
		}
	}
	return nil
}

func (b *batch[K, V]) delete(keys []K) error {
	for len(keys) > 0 {
		n, err := b.to.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map %s: %w", b.to, err)
		}
		// Somebody else has deleted it; so much the better.
		keys = keys[min(n+1, len(keys)):]
	}
	return nil
}
