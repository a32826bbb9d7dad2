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

// traces are those that were seen with a routing key. Two windows take turns: what
// is in the older one is forgotten with it.
type traces struct {
	known atomic.Int64 // how many

	mu         sync.RWMutex
	now, older map[TraceID]*trace
	turned     time.Time
}

// trace is whose key a trace has and who has received it with the key.
type trace struct {
	owner *routing.SandboxInfo
	hops  []hop // the newest last
}

// hop is where a request of a trace went with the key: to a fork's endpoints, or
// to whoever is behind a Service.
type hop struct {
	service   routing.Name
	endpoints []netip.AddrPort // of a fork; the table's
}

func (h *hop) same(o *hop) bool {
	return h.service == o.service && len(h.endpoints) == len(o.endpoints) &&
		(len(h.endpoints) == 0 || &h.endpoints[0] == &o.endpoints[0])
}

// any reports whether any trace is known. It is one load.
func (t *traces) any() bool { return t.known.Load() > 0 }

// note remembers that a request of a trace has gone somewhere with its owner's key.
func (t *traces) note(id TraceID, owner *routing.SandboxInfo, h hop, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(at)
	tr := t.find(id)
	if tr != nil && tr.owner.ID == owner.ID {
		for i := range tr.hops {
			if tr.hops[i].same(&h) {
				t.keep(id, tr)
				return
			}
		}
	}
	// A trace is read without the lock, so a changed one is another.
	next := &trace{owner: owner}
	if tr != nil && tr.owner.ID == owner.ID {
		from := max(0, len(tr.hops)-maxHops+1)
		next.hops = append(next.hops, tr.hops[from:]...)
	}
	next.hops = append(next.hops, h)
	t.keep(id, next)
}

func (t *traces) keep(id TraceID, tr *trace) {
	if len(t.now) >= maxTraces && t.now[id] == nil {
		t.older, t.now = t.now, nil
	}
	if t.now == nil {
		t.now = map[TraceID]*trace{}
	}
	t.now[id] = tr
	t.known.Store(int64(len(t.now) + len(t.older)))
}

func (t *traces) find(id TraceID) *trace {
	if tr := t.now[id]; tr != nil {
		return tr
	}
	return t.older[id]
}

// turn forgets what is too old. The caller holds the lock.
func (t *traces) turn(at time.Time) {
	switch age := at.Sub(t.turned); {
	case age < traceWindow:
		return
	case age < 2*traceWindow:
		t.older, t.now = t.now, nil
	default:
		t.older, t.now = nil, nil
	}
	t.turned = at
	t.known.Store(int64(len(t.now) + len(t.older)))
}

// lookup returns what is known of a trace, to be read only, or nil.
func (t *traces) lookup(id TraceID) *trace {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.find(id)
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
	for i := range tr.hops {
		h := &tr.hops[i]
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
