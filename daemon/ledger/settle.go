// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"sync"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// Whoever wants to know whether all of a trace is on record must not have to guess how
// long a record may take. So a node says what of the trace is still under way, and
// how far back it knows all that it should; and it is told first where other nodes
// have seen the trace go with its key, in case their announcements have not arrived.

// open are the calls that are under way.
type open struct {
	mu    sync.Mutex
	calls map[TraceID]int
}

// Begin says that the request of an entry is about to be sent. Finish has to be called
// for it, and until then its trace has a call under way.
func (l *Ledger) Begin(e *Entry) {
	if e.Trace == (TraceID{}) || e.begun {
		return
	}
	e.begun = true
	l.open.mu.Lock()
	defer l.open.mu.Unlock()
	l.open.calls[e.Trace]++
}

// ended takes back Begin. What is to be known of the entry is known by then.
func (l *Ledger) ended(id TraceID) {
	l.open.mu.Lock()
	defer l.open.mu.Unlock()
	if l.open.calls[id]--; l.open.calls[id] <= 0 {
		delete(l.open.calls, id)
	}
}

// UnderWay is how many calls of traces are under way.
func (l *Ledger) UnderWay() (n int) {
	l.open.mu.Lock()
	defer l.open.mu.Unlock()
	for _, c := range l.open.calls {
		n += c
	}
	return n
}

// Settled adds what Settle has said to what List has returned after it; nil: nothing. What
// had been dropped by then is not known: the list's Since does not tell that to who has
// another clock.
func Settled(list *ledgerv1alpha1.RecordList, answer *ledgerv1alpha1.TraceAnswer) {
	n := &list.Nodes[0]
	if n.Trace = answer; answer != nil {
		answer.KnownNanos = min(answer.KnownNanos, max(time.Since(n.Since.Time).Nanoseconds(), 0))
	}
}

// Settle takes in where a trace of an owner has gone with its key, as other nodes have
// said, looks at the calls of the trace again, and says how far this node's records
// of it can be relied on when they are read next. It returns where this node knows it
// to have gone. Of a trace that is not the owner's nothing is said. Of an owner whose
// traces nodes do not tell each other of, nothing is claimed to be known: calls that
// have lost its key elsewhere have not been kept.
func (l *Ledger) Settle(o Owner, id TraceID, told []Announcement) ([]Announcement, ledgerv1alpha1.TraceAnswer) {
	for _, a := range told {
		if a.Owner == o && a.Trace == id {
			l.Heard(a)
		}
	}
	// A call is counted here until it is on record or waits, so this comes first.
	l.open.mu.Lock()
	under := l.open.calls[id]
	l.open.mu.Unlock()
	l.settle(id)
	tr := l.traces.lookup(id)
	for tr != nil && tr.unsettled {
		l.settle(id)
		tr = l.traces.lookup(id)
	}
	now := time.Now()
	since := l.traces.forgotten()
	sb := l.table.Load().SandboxNamed(o.Name, o.Group)
	var answer ledgerv1alpha1.TraceAnswer
	var hops []Announcement
	switch {
	case tr == nil:
	case ownerOf(tr.owner) != o:
		answer.Foreign = true
	default:
		since = tr.since
		answer.Open = int64(under)
		for _, h := range tr.hops {
			hops = append(hops, Announcement{Trace: id, Owner: o, Service: h.service, Endpoints: h.endpoints})
		}
	}
	if from := l.begins(); since.Before(from) {
		since = from
	}
	if l.announce != nil && hears(sb) && !answer.Foreign {
		var from time.Time
		if answer.Strays, from = l.strayed(id, tr, sb); from.After(since) {
			since = from
		}
	}
	answer.KnownNanos = max(now.Sub(since).Nanoseconds(), 0)
	if !hears(sb) || !sb.AllWatched {
		answer.Unwatched, answer.KnownNanos = true, 0
	}
	return hops, answer
}
