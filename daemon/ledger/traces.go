// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"slices"
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
	maxHops     = 32              // of a trace
	maxAllHops  = 1 << 17         // for each window
)

// windows are things by trace. Two windows take turns: what is in the older one is
// forgotten with it. It is not safe for concurrent use.
type windows[T any] struct {
	length     time.Duration
	most       int           // things in a window
	weigh      func(T) int64 // nil: only their number counts
	heaviest   int64         // what they may weigh together
	now, older map[TraceID]T
	weight     int64     // of now
	began      time.Time // now's
	// since is from when on nothing that was put here has been forgotten. Zero:
	// nothing ever has.
	since time.Time
}

func (w *windows[T]) len() int { return len(w.now) + len(w.older) }

func (w *windows[T]) get(id TraceID) (v T, ok bool) {
	if v, ok = w.now[id]; !ok {
		v, ok = w.older[id]
	}
	return v, ok
}

// put keeps v. turn has been called for the same time.
func (w *windows[T]) put(id TraceID, v T, at time.Time) {
	w.lighten(id)
	if w.weigh != nil {
		w.weight += w.weigh(v)
	}
	if _, ok := w.now[id]; !ok && len(w.now) >= w.most || w.weight > w.heaviest && len(w.now) > 0 {
		delete(w.now, id)
		w.rotate(at)
		if w.weigh != nil {
			w.weight = w.weigh(v)
		}
	}
	if w.now == nil {
		w.now = map[TraceID]T{}
	}
	w.now[id] = v
}

// lighten takes the weight of what is there off.
func (w *windows[T]) lighten(id TraceID) {
	if v, ok := w.now[id]; ok && w.weigh != nil {
		w.weight -= w.weigh(v)
	}
}

func (w *windows[T]) drop(id TraceID) {
	w.lighten(id)
	delete(w.now, id)
	delete(w.older, id)
}

// rotate forgets the older window.
func (w *windows[T]) rotate(at time.Time) {
	if len(w.older) > 0 {
		w.since = w.began
	}
	w.older, w.now, w.weight, w.began = w.now, nil, 0, at
}

// turn forgets what is too old.
func (w *windows[T]) turn(at time.Time) {
	switch age := at.Sub(w.began); {
	case age < w.length:
		return
	case age < 2*w.length:
		w.rotate(at)
	default:
		// What is there was put within the first length.
		if w.len() > 0 {
			w.since = w.began.Add(w.length)
		}
		w.older, w.now, w.weight, w.began = nil, nil, 0, at
	}
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
	// since is from when on it is known which calls have lost the key; of what was
	// over before, some may have been forgotten.
	since time.Time
	// unsettled says that calls which have been waiting were not looked at again since
	// the newest hop became known: see Ledger.settle.
	unsettled bool
}

// hop is where a request of a trace went with the key: to endpoints, of which one has
// got it, or to whoever is behind a Service.
type hop struct {
	service   routing.Name
	endpoints []netip.AddrPort
	// told is closed when the other nodes know of it, or will not in time; nil: nobody
	// has to.
	told chan struct{}
}

// leads reports whether a hop is to the only one of these endpoints; without any: to
// whoever is behind the Service.
func (h *hop) leads(service routing.Name, endpoints []netip.AddrPort) bool {
	return h.service == service && slices.Equal(h.endpoints, endpoints)
}

// untold returns what is closed when the others know; nil: nobody has to be waited for.
func (h *hop) untold() <-chan struct{} {
	if h.told == nil {
		return nil
	}
	select {
	case <-h.told:
		return nil
	default:
		return h.told
	}
}

// hop returns the one that leads there, or nil.
func (tr *trace) hop(service routing.Name, endpoints []netip.AddrPort) *hop {
	for _, h := range tr.hops {
		if h.leads(service, endpoints) {
			return h
		}
	}
	return nil
}

// any reports whether any trace is known. It is one load.
func (t *traces) any() bool { return t.known.Load() > 0 }

// note remembers that a request of a trace has gone somewhere with its owner's key, as
// hop says. It returns the hop that is known now, and whether it was not before; with
// waits a new one has told. A trace is whose key it was seen with first for as long as
// it is remembered and its owner is in the table: of another's key nothing is noted,
// and nil returned. Else whoever knows a trace's id, and has any key, could end what
// its owner has asked for.
func (t *traces) note(table *routing.Table, id TraceID, owner *routing.SandboxInfo, service routing.Name, endpoints []netip.AddrPort, waits bool, at time.Time) (*hop, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turn(at)
	tr, ok := t.seen.get(id)
	if ok && tr.owner.ID != owner.ID && table.Sandbox(tr.owner.ID) != nil {
		return nil, false
	}
	ours := ok && tr.owner.ID == owner.ID
	if ours {
		if known := tr.hop(service, endpoints); known != nil {
			if _, ok := t.seen.now[id]; !ok {
				t.keep(id, tr, at)
			}
			return known, false
		}
	}
	next := &trace{owner: owner, since: t.seen.since, unsettled: true}
	if ours {
		next.since = tr.since
		if len(tr.hops) >= maxHops {
			next.since = at // who has received it is not known any more
		}
		next.hops = append(next.hops, tr.hops[max(0, len(tr.hops)-maxHops+1):]...)
	}
	h := &hop{service: service, endpoints: slices.Clone(endpoints)}
	if waits {
		h.told = make(chan struct{})
	}
	next.hops = append(next.hops, h)
	t.keep(id, next, at)
	return h, true
}

// settled notes that the calls of a trace were looked at again for all that is known
// of it, and from when on there were all of them. It does nothing where more has
// become known meanwhile.
func (t *traces) settled(id TraceID, tr *trace, since, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now, _ := t.seen.get(id); now != tr {
		return
	}
	next := *tr
	next.unsettled = false
	if since.After(next.since) {
		next.since = since
	}
	t.turn(at)
	t.keep(id, &next, at)
}

// forgotten is from when on no trace has been forgotten.
func (t *traces) forgotten() time.Time {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.seen.since
}

func (t *traces) keep(id TraceID, tr *trace, at time.Time) {
	t.seen.put(id, tr, at)
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
