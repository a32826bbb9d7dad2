// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// A trace that has come to one node with its key may lose it on another. So nodes
// tell each other of the traces of sandboxes that are watched, as their requests are
// sent. Where a trace id may stand for the key, the request waits until the others
// have been told, for a moment at most: else who receives it could call on before
// its own node knows. Where it only serves to name who has lost a key, nobody
// waits, and a call that came before the word of its trace is looked at again.

const (
	// announceLimit is how long a request waits at most for other nodes to be told.
	announceLimit = 250 * time.Millisecond
	// A call without a key waits so long for somebody to tell that it should have had
	// one: between once and twice this. Announcements take less, but may not arrive;
	// whoever asks for a trace brings them again: see Settle.
	pendingWindow   = 20 * time.Second
	maxPending      = 1 << 11
	maxOfTrace      = 16
	maxPendingBytes = 8 << 20 // of each of two windows; Config's bounds do not hold for them
)

// Announcement tells other nodes that a request of a trace was sent with a key.
type Announcement struct {
	Trace   TraceID
	Owner   Owner
	Service routing.Name
	// Endpoints are those of which one got it; none: whoever is behind the Service.
	Endpoints []netip.AddrPort
	// Told has to be called once the others have been told. It may be nil.
	Told func()
}

// Announce has announcements given to f, which must not wait. It is called before
// there is traffic.
func (l *Ledger) Announce(f func(Announcement)) { l.announce = f }

// tell announces a hop that is new, if anybody on another node might want to know.
func (l *Ledger) tell(id TraceID, owner *routing.SandboxInfo, h *hop) {
	if l.announce == nil || !owner.Watched {
		return
	}
	a := Announcement{Trace: id, Owner: ownerOf(owner), Service: h.service, Endpoints: h.endpoints}
	if h.told != nil {
		a.Told = sync.OnceFunc(func() { close(h.told) })
		time.AfterFunc(announceLimit, a.Told)
	}
	l.announce(a)
}

// hears reports whether this node takes in what others say of an owner's traces. A
// nil owner is one that it does not know.
func hears(owner *routing.SandboxInfo) bool {
	return owner != nil && owner.Watched && owner.Key != ""
}

// Heard takes in what another node has announced.
func (l *Ledger) Heard(a Announcement) {
	t := l.table.Load()
	owner := t.SandboxNamed(a.Owner.Name, a.Owner.Group)
	if !hears(owner) || a.Trace == (TraceID{}) {
		return
	}
	l.traces.note(t, a.Trace, owner, a.Service, a.Endpoints, false, time.Now())
	l.settle(a.Trace)
}

// pending are calls without a key of which nobody has said yet that they should have
// one.
type pending struct {
	mu    sync.Mutex
	calls windows[waiting]
}

// waiting are the calls of one trace.
type waiting struct {
	calls []*Entry
	// left is when one was last left out that is like none of them; zero: never.
	left time.Time
}

func (w waiting) size() (n int64) {
	for _, e := range w.calls {
		n += e.weight()
	}
	return n
}

// with adds a call. Of many from one pod to one destination some are enough: who has
// lost the key is named by any of them.
func (w waiting) with(e *Entry, at time.Time) waiting {
	if len(w.calls) < maxOfTrace {
		w.calls = append(w.calls, e)
		return w
	}
	if !slices.ContainsFunc(w.calls, func(o *Entry) bool { return o.Source == e.Source && o.dest == e.dest }) {
		w.left = at
	}
	return w
}

// wait keeps a call that is over.
func (l *Ledger) wait(e *Entry) {
	now := time.Now()
	l.pending.mu.Lock()
	l.pending.calls.turn(now)
	all, _ := l.pending.calls.get(e.Trace)
	l.pending.calls.put(e.Trace, all.with(e, now), now)
	l.pending.mu.Unlock()
	// The word may have come meanwhile.
	if l.traces.lookup(e.Trace) != nil {
		l.settle(e.Trace)
	}
}

// settle records the calls of a trace that have lost its key. When it returns, that
// has been done for all calls that are over and all hops that were known before.
func (l *Ledger) settle(id TraceID) {
	// Whoever settles it at the same time has to be waited for.
	l.pending.mu.Lock()
	defer l.pending.mu.Unlock()
	now := time.Now()
	l.pending.calls.turn(now)
	all, ok := l.pending.calls.get(id)
	t, tr := l.table.Load(), l.traces.lookup(id)
	if tr == nil {
		return
	}
	var rest []*Entry
	for _, e := range all.calls {
		sb, pod := (*routing.SandboxInfo)(nil), l.podOf(e.Source)
		if pod != nil && tr.received(pod.Name, t) {
			sb = t.Lacking(e.Source, e.dest, &routing.Decision{Reason: e.Reason}, tr.owner)
		}
		if sb == nil {
			rest = append(rest, e)
			continue
		}
		e.Owner, e.Lost = sb, true
		l.Add(e)
		l.strays.drop(id, e.Source, e.dest)
	}
	if tr.unsettled || all.left.After(tr.since) {
		since := all.left
		if tr.unsettled && l.pending.calls.since.After(since) {
			since = l.pending.calls.since
		}
		l.traces.settled(id, tr, since, now)
	}
	if !ok || len(rest) == len(all.calls) {
		return
	}
	l.pending.calls.drop(id)
	if len(rest) > 0 || !all.left.IsZero() {
		// Another hop of the trace may be told of yet.
		l.pending.calls.put(id, waiting{rest, all.left}, now)
	}
}
