// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Call is a request whose head has been read and that a table has decided about.
type Call struct {
	Table    *routing.Table
	Source   routing.Cookie
	Dest     routing.DestID
	Dialled  netip.AddrPort
	Protocol Protocol
	// Keyed says that the request came with a routing key, known or not.
	Keyed bool
	// Traceparent is the value of the header of this name; empty where there is
	// none, or more than one.
	Traceparent []byte
	// Spare is an entry that may be used again (see Finish); nil: there is none.
	Spare *Entry
}

// Concerns reports whether Open is to be asked about a request to dest that t has
// decided about like this. Of untagged ones it is only while a tagged trace is
// remembered, and where somebody wants to know of calls to dest that lose a key. A nil
// Ledger is concerned with nothing.
func (l *Ledger) Concerns(t *routing.Table, dest routing.DestID, d *routing.Decision) bool {
	return l != nil && (d.Sandbox != nil || l.traces.any() || l.watches(t, dest))
}

// watches reports whether somebody wants to know of calls to dest that lose a key, and
// other nodes may know of the trace.
func (l *Ledger) watches(t *routing.Table, dest routing.DestID) bool {
	return l.announce != nil && t.Watched(dest)
}

// Open begins the entry of a request, and returns nil for one that leaves none, which
// may be said of it only when it is over (see Finish).
// Where the request belongs to a tagged trace, comes from a pod that has received a
// request of the trace with the key, and has none, and the trace's sandbox has asked
// for it (propagate), Open changes the decision into what it would have been with the
// key.
func (l *Ledger) Open(c *Call, d *routing.Decision) *Entry {
	now := l.now()
	id, parent := parseTraceparent(c.Traceparent)
	lost, healed := false, false
	owner := d.Sandbox
	keyed := c.Keyed && d.Sandbox != nil || d.Inject != ""
	var tr *trace
	if id != (TraceID{}) {
		tr = l.traces.lookup(id)
	}
	if tr != nil && !keyed && !c.Keyed {
		if sb := c.Table.Lacking(c.Source, c.Dest, d, tr.owner); sb != nil {
			// Who never had the key has not lost it. A trace's id is no secret: calls of
			// pods that it has not led to stay what they are, whoever else sends it.
			if pod := l.podOf(c.Source); pod != nil && tr.received(pod.Name, c.Table) {
				lost, owner = true, sb
				if sb.Propagate {
					*d = c.Table.DecideFor(sb, c.Dest)
					healed, keyed = true, true
				}
			}
		}
	}
	waits := false
	if owner == nil || tr != nil && tr.owner.ID != owner.ID {
		if id != (TraceID{}) && d.Reason != routing.UnknownDest && l.watches(c.Table, c.Dest) {
			waits = owner == nil && !c.Keyed && l.mayHaveLost(c)
			l.strays.add(stray{trace: id, source: c.Source, dest: c.Dest, at: now.Sub(l.began), waits: waits})
		}
		if owner == nil && !waits {
			return nil
		}
	}
	e := c.entry()
	e.At, e.Hook, e.Protocol = now, AtRouter, c.Protocol
	e.Owner, e.Source, e.Dialled, e.dest = owner, c.Source, c.Dialled, c.Dest
	e.Trace, e.Parent, e.Lost, e.Healed = id, parent, lost, healed
	e.Decided(c.Table, c.Dest, d)
	e.keyed = keyed && id != (TraceID{})
	return e
}

// Going notes that the request of an entry is about to be sent with a key, by what d
// has decided, to whom: the endpoint that the router is connected to, or the one that
// somebody on the way has chosen in its place. It may be called again where it is sent
// anew. It returns what the request has to wait for before that, if anything: that
// other nodes have been told. That is closed after a moment in any case.
func (l *Ledger) Going(t *routing.Table, e *Entry, d *routing.Decision, to netip.AddrPort) <-chan struct{} {
	if e == nil || !e.keyed || d.Verdict == routing.Refuse {
		return nil
	}
	one := [1]netip.AddrPort{to}
	h, fresh := l.traces.note(t, e.Trace, e.Owner, d.Service, one[:e.receivers(t, d, to)], l.announce != nil && e.Owner.Propagate, l.now())
	if h == nil {
		return nil // it is another sandbox's trace
	}
	if fresh {
		l.tell(e.Trace, e.Owner, h)
		l.settle(e.Trace)
	}
	return h.untold()
}

// Waits reports whether Going would have a request wait that is about to be sent to
// somebody. With the zero AddrPort: whether it would for some.
func (l *Ledger) Waits(t *routing.Table, e *Entry, d *routing.Decision, to netip.AddrPort) bool {
	if e == nil || !e.keyed || d.Verdict == routing.Refuse || l.announce == nil || !e.Owner.Propagate {
		return false
	}
	tr := l.traces.lookup(e.Trace)
	switch {
	case tr == nil || !to.IsValid():
		return true
	case tr.owner.ID != e.Owner.ID:
		return t.Sandbox(tr.owner.ID) == nil
	}
	one := [1]netip.AddrPort{to}
	h := tr.hop(d.Service, one[:e.receivers(t, d, to)])
	return h == nil || h.untold() != nil
}

// receivers is how many endpoints are known of which one gets the request: to, or none
// where that is the Service's own address.
func (e *Entry) receivers(t *routing.Table, d *routing.Decision, to netip.AddrPort) int {
	if d.Verdict == routing.ToBaseline && to == e.Dialled {
		if _, ok := t.PodAt(to); !ok {
			return 0
		}
	}
	return 1
}

// mayHaveLost reports whether an untagged call of a trace, to where somebody wants to
// know of, may turn out to have lost its key: it comes from a pod that somebody could
// be seen to send the key to.
func (l *Ledger) mayHaveLost(c *Call) bool {
	pod := l.podOf(c.Source)
	return pod != nil && c.Table.Serves(pod.Name)
}

// OpenConnection begins the entry of a connection that is no HTTP, by what its
// source's identity has decided, and returns nil for one that leaves none. A nil
// Ledger opens none.
func (l *Ledger) OpenConnection(c *Call, d *routing.Decision) *Entry {
	if l == nil || d.Sandbox == nil {
		return nil
	}
	e := c.entry()
	e.At, e.Hook, e.Protocol = l.now(), AtRouter, Opaque
	e.Owner, e.Source, e.Dialled = d.Sandbox, c.Source, c.Dialled
	e.Decided(c.Table, c.Dest, d)
	return e
}

// Decided notes a decision, also one that has changed since the entry was opened.
func (e *Entry) Decided(t *routing.Table, dest routing.DestID, d *routing.Decision) {
	e.Verdict, e.Reason, e.Target, e.Service = d.Verdict, d.Reason, d.Target, d.Service
	e.Port = t.ServicePort(dest, d.Service)
	if d.Refused != "" {
		e.Fail(d.Refused)
	}
}

// now is the time by one clock only; see Add. Asking for the wall's as well takes twice
// as long.
func (l *Ledger) now() time.Time { return l.began.Add(time.Since(l.began)) }

// entry returns an empty one.
func (c *Call) entry() *Entry {
	e := c.Spare
	if e == nil {
		return &Entry{text: make([]byte, 0, 128)}
	}
	*e = Entry{text: e.text[:0]}
	return e
}

// End notes that an entry's request or connection is over now, or panics: it was before.
func (e *Entry) End() {
	if e.ended {
		panic("ledger: an entry has ended twice")
	}
	e.ended = true
	e.Latency = time.Since(e.At)
}

// Finish takes in an entry that has ended, or ends now. It reports whether the entry may
// be used again: one of an untagged call is kept for some tens of seconds, and recorded only if
// the word comes by then that its trace is a tagged one.
func (l *Ledger) Finish(e *Entry) (free bool) {
	if e.finished {
		panic("ledger: an entry is finished twice")
	}
	if !e.ended {
		e.End()
	}
	e.finished = true
	if e.begun {
		defer l.ended(e.Trace)
	}
	if e.Owner == nil {
		l.wait(e)
		return false
	}
	l.Add(e)
	return true
}
