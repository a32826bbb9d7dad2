// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
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
	// one: between once and twice this.
	pendingWindow   = 5 * time.Second
	maxPending      = 1 << 11
	maxOfTrace      = 16
	maxPendingBytes = 8 << 20 // of each of two windows; Config's bounds do not hold for them
)

// Announcement tells other nodes that a request of a trace was sent with a key.
type Announcement struct {
	Trace   TraceID
	Owner   Owner
	Service routing.Name
	// Endpoints are a fork's; none: whoever is behind the Service.
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

// Heard takes in what another node has announced.
func (l *Ledger) Heard(a Announcement) {
	t := l.table.Load()
	owner := t.SandboxNamed(a.Owner.Name, a.Owner.Group)
	if owner == nil || !owner.Watched || owner.Key == "" || a.Trace == (TraceID{}) {
		return
	}
	l.traces.note(t, a.Trace, owner, &hop{service: a.Service, endpoints: a.Endpoints}, time.Now())
	l.settle(a.Trace)
}

// pending are calls without a key of which nobody has said yet that they should have
// one.
type pending struct {
	mu    sync.Mutex
	calls windows[[]*Entry]
	bytes int64 // of the newer window, or somewhat more
}

// put keeps the calls of a trace. Where there are too many bytes the older half is
// forgotten. The caller holds the lock.
func (p *pending) put(id TraceID, all []*Entry) {
	if len(p.calls.now) == 0 {
		p.bytes = 0
	}
	for _, e := range all[len(p.calls.now[id]):] {
		p.bytes += e.weight()
	}
	if p.bytes > maxPendingBytes {
		p.calls.older, p.calls.now, p.bytes = p.calls.now, nil, 0
		for _, e := range all {
			p.bytes += e.weight()
		}
	}
	p.calls.put(id, all)
}

// wait keeps a call that is over.
func (l *Ledger) wait(e *Entry) {
	l.pending.mu.Lock()
	l.pending.calls.turn(time.Now())
	all, _ := l.pending.calls.get(e.Trace)
	if len(all) < maxOfTrace {
		l.pending.put(e.Trace, append(all, e))
	}
	l.pending.mu.Unlock()
	// The word may have come meanwhile.
	if l.traces.lookup(e.Trace) != nil {
		l.settle(e.Trace)
	}
}

// settle records the calls of a trace that have lost its key.
func (l *Ledger) settle(id TraceID) {
	l.pending.mu.Lock()
	all, _ := l.pending.calls.get(id)
	l.pending.calls.drop(id)
	l.pending.mu.Unlock()
	if len(all) == 0 {
		return
	}
	t, tr := l.table.Load(), l.traces.lookup(id)
	var rest []*Entry
	for _, e := range all {
		sb, pod := (*routing.SandboxInfo)(nil), l.podOf(e.Source)
		if tr != nil && pod != nil && tr.received(pod.Name, t) {
			sb = t.Lacking(e.Source, e.dest, &routing.Decision{Reason: e.Reason}, tr.owner)
		}
		if sb == nil {
			rest = append(rest, e)
			continue
		}
		e.Owner, e.Lost = sb, true
		l.Add(e)
	}
	if len(rest) == 0 {
		return
	}
	// Another hop of the trace may be told of yet.
	l.pending.mu.Lock()
	defer l.pending.mu.Unlock()
	now, _ := l.pending.calls.get(id)
	l.pending.put(id, append(rest, now...)[:min(maxOfTrace, len(rest)+len(now))])
}
