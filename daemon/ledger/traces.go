// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// How long a trace is remembered that was seen with a routing key, and how many.
// A trace is one user's action: who calls minutes later is somebody else.
const (
	traceWindow = 2 * time.Minute // remembered for so long at least, and for twice that at most
	maxTraces   = 1 << 14         // for each window
	maxHops     = 8
)

// windows are things by trace. Two windows take turns: what is in the older one is
// forgotten with it. It is not safe for concurrent use.
type windows[T any] struct {
	length     time.Duration
	most       int
	now, older map[TraceID]T
	turned     time.Time
}

func (w *windows[T]) len() int { return len(w.now) + len(w.older) }

func (w *windows[T]) get(id TraceID) (v T, ok bool) {
	if v, ok = w.now[id]; !ok {
		v, ok = w.older[id]
	}
	return v, ok
}

func (w *windows[T]) put(id TraceID, v T) {
	if _, ok := w.now[id]; !ok && len(w.now) >= w.most {
		w.older, w.now = w.now, nil
	}
	if w.now == nil {
		w.now = map[TraceID]T{}
	}
	w.now[id] = v
}

func (w *windows[T]) drop(id TraceID) {
	delete(w.now, id)
	delete(w.older, id)
}

// turn forgets what is too old.
func (w *windows[T]) turn(at time.Time) {
	switch age := at.Sub(w.turned); {
	case age < w.length:
		return
	case age < 2*w.length:
		w.older, w.now = w.now, nil
	default:
		w.older, w.now = nil, nil
	}
	w.turned = at
}

// traces are those that were seen with a routing key.
type traces struct {
	known atomic.Int64 // how many

	mu   sync.RWMutex
	seen windows[*trace]
}

// trace is whose key a trace has and who has received it with the key. It is read
// without the lock, so a changed one is another.
type trace struct {
	owner *routing.SandboxInfo
	hops  []*hop // the newest last
}

// hop is where a request of a trace went with the key: to a fork's endpoints, or
// to whoever is behind a Service.
type hop struct {
	service   routing.Name
	endpoints []netip.AddrPort // of a fork
	// told is closed when the other nodes know of it, or will not in time; nil: nobody
	// has to.
	told chan struct{}
}

func (h *hop) same(o *hop) bool {
	if h.service != o.service || len(h.endpoints) != len(o.endpoints) {
		return false
	}
	for i := range h.endpoints {
		if h.endpoints[i] != o.endpoints[i] {
			return false
		}
	}
	return true
}

// any reports whether any trace is known. It is one load.
func (t *traces) any() bool { return t.known.Load() > 0 }

// note remembers that a request of a trace has gone somewhere with its owner's key.
// It returns the hop that is known now, and whether it was not before. A trace is
// whose key it was seen with first for as long as it is remembered and its owner is in
// the table: of another's key nothing is noted, and nil returned. Else whoever knows a
// trace's id, and has any key, could end what its owner has asked for.
func (t *traces) note(table *routing.Table, id TraceID, owner *routing.SandboxInfo, h *hop, at time.Time) (*hop, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(at)
	tr, ok := t.seen.get(id)
	next := &trace{owner: owner}
	if ok && tr.owner.ID != owner.ID && table.Sandbox(tr.owner.ID) != nil {
		return nil, false
	}
	if ok && tr.owner.ID == owner.ID {
		for _, known := range tr.hops {
			if known.same(h) {
				t.keep(id, tr)
				return known, false
			}
		}
		next.hops = append(next.hops, tr.hops[max(0, len(tr.hops)-maxHops+1):]...)
	}
	next.hops = append(next.hops, h)
	t.keep(id, next)
	return h, true
}

func (t *traces) keep(id TraceID, tr *trace) {
	t.seen.put(id, tr)
	t.known.Store(int64(t.seen.len()))
}

// turn forgets what is too old. The caller holds the lock.
func (t *traces) turn(at time.Time) {
	t.seen.turn(at)
	t.known.Store(int64(t.seen.len()))
}

// lookup returns what is known of a trace, to be read only, or nil.
func (t *traces) lookup(id TraceID) *trace {
	if !t.any() {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	tr, _ := t.seen.get(id)
	return tr
}

// tick forgets what is too old where no tagged request comes any more.
func (t *traces) tick(at time.Time) {
	if !t.any() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(at)
}

// received reports whether a pod is one of those that a request of the trace may
// have gone to with the key.
func (tr *trace) received(pod routing.Name, table *routing.Table) bool {
	for _, h := range tr.hops {
		if len(h.endpoints) == 0 && table.Behind(pod, h.service) {
			return true
		}
		for _, e := range h.endpoints {
			if p, ok := table.PodAt(e); ok && p == pod {
				return true
			}
		}
	}
	return false
}
