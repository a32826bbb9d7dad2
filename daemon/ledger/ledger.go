// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Config bounds a Ledger.
type Config struct {
	// Node is the name of the node, for records.
	Node string
	// MaxBytes bounds all records together, and MaxSandboxBytes those of one Sandbox.
	// Zero: 64 MiB and 8 MiB. A record takes about 300 bytes.
	MaxBytes, MaxSandboxBytes int64
}

const (
	defaultMaxBytes        = 64 << 20
	defaultMaxSandboxBytes = 8 << 20
)

// Owner names a Sandbox, or a RouteGroup.
type Owner struct {
	Name  routing.Name
	Group bool
}

// Pod is what is known of a pod of this node.
type Pod struct {
	Name     routing.Name
	Workload string // such as Deployment/cart
	Sandbox  string
}

// Ledger keeps the records of one node. See the package's comment.
type Ledger struct {
	cfg      Config
	began    time.Time
	inForce  atomic.Int64 // when traffic began to come, after began in nanoseconds
	traces   traces
	pods     atomic.Pointer[map[routing.Cookie]*Pod]
	table    atomic.Pointer[routing.Table]
	announce func(Announcement) // nil: there are no other nodes
	pending  pending
	strays   strays
	open     open

	mu    sync.Mutex
	seq   uint64
	bytes int64
	books map[Owner]*book
	// last is the book of lastOf, which most records are for that were made last.
	last   *book
	lastOf *routing.SandboxInfo
	added  chan struct{} // closed, and another one made, when a record is added and somebody waits
	wants  bool

	dropped uint64
	unread  uint64 // see Missed
	unended uint64 // see MissedEnds

	flows atomic.Uint64 // the last FlowID
}

// New returns an empty Ledger.
func New(cfg Config) *Ledger {
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, defaultMaxBytes)
	cfg.MaxSandboxBytes = cmp.Or(cfg.MaxSandboxBytes, defaultMaxSandboxBytes)
	l := &Ledger{cfg: cfg, began: time.Now(), books: map[Owner]*book{}, added: make(chan struct{})}
	seen, calls := &l.traces.seen, &l.pending.calls
	seen.length, seen.most = traceWindow, maxTraces
	seen.weigh, seen.heaviest = func(t *trace) int64 { return int64(len(t.hops)) }, maxAllHops
	calls.length, calls.most = pendingWindow, maxPending
	calls.weigh, calls.heaviest = waiting.size, maxPendingBytes
	l.open.calls = map[TraceID]int{}
	l.flows.Store(uint64(l.began.UnixNano()))
	l.pods.Store(&map[routing.Cookie]*Pod{})
	l.table.Store(new(routing.Table))
	return l
}

// InForce says that from now on traffic comes by this agent alone, which another one may
// have routed before, and has on its own ledger. It may be called again, when another
// one that has had a part of it is gone.
func (l *Ledger) InForce() { l.inForce.Store(int64(time.Since(l.began))) }

// begins is from when on all that leaves records is here.
func (l *Ledger) begins() time.Time { return l.began.Add(time.Duration(l.inForce.Load())) }

// SetPods says which pods are on this node. The map is the Ledger's from then on.
func (l *Ledger) SetPods(pods map[routing.Cookie]*Pod) { l.pods.Store(&pods) }

func (l *Ledger) podOf(c routing.Cookie) *Pod { return (*l.pods.Load())[c] }

// SetTable says what is in force. Ledgers of Sandboxes that are gone are forgotten,
// and so are traces that are too old.
func (l *Ledger) SetTable(t *routing.Table) {
	l.table.Store(t)
	l.traces.tick(time.Now())
	l.mu.Lock()
	defer l.mu.Unlock()
	for o, b := range l.books {
		if sb := t.SandboxNamed(o.Name, o.Group); sb == nil || sb.ID != b.owner.ID {
			l.forget(o)
		}
	}
}

func (l *Ledger) forget(o Owner) {
	if b := l.books[o]; b != nil {
		l.bytes -= b.bytes
		delete(l.books, o)
		l.last, l.lastOf = nil, nil
	}
}

func ownerOf(sb *routing.SandboxInfo) Owner { return Owner{sb.Name, sb.Group} }

// Add takes in an entry. It does not keep it, but what it says. Its time becomes the
// wall's: that may have been set, or drifted, since the ledger began.
func (l *Ledger) Add(e *Entry) {
	now := time.Now()
	e.At = now.Add(-now.Sub(e.At))
	e.caller = l.podOf(e.Source)
	if e.Answer.IsValid() {
		e.answering, _ = l.table.Load().PodAt(e.Answer)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bookOf(e.Owner)
	if b == nil {
		return
	}
	l.seq++
	e.seq = l.seq
	l.bytes += b.add(e, now, l.cfg.MaxSandboxBytes)
	for b.bytes > l.cfg.MaxSandboxBytes {
		l.shrink(b)
	}
	for l.bytes > l.cfg.MaxBytes {
		l.shrink(l.largest())
	}
	if l.wants {
		l.wants = false
		close(l.added)
		l.added = make(chan struct{})
	}
}

// bookOf returns an owner's book, or nil: it was deleted, and another one of its name
// made. The caller holds the lock.
func (l *Ledger) bookOf(owner *routing.SandboxInfo) *book {
	if owner == l.lastOf {
		return l.last
	}
	o := ownerOf(owner)
	b := l.books[o]
	if b != nil && b.owner.ID > owner.ID {
		return nil
	}
	if b != nil && b.owner.ID < owner.ID {
		l.forget(o)
		b = nil
	}
	if b == nil {
		b = &book{owner: routing.SandboxInfo{ID: owner.ID, Name: owner.Name, Group: owner.Group}}
		l.books[o] = b
	}
	l.last, l.lastOf = b, owner
	return b
}

// shrink forgets a book's oldest records.
func (l *Ledger) shrink(b *book) {
	bytes, records := b.shrink()
	l.bytes -= bytes
	l.dropped += uint64(records)
}

func (l *Ledger) largest() (most *book) {
	for _, b := range l.books {
		if most == nil || b.bytes > most.bytes {
			most = b
		}
	}
	return most
}

// Missed says how many flows left no record, since the agent started, because the
// ring between the kernel and this process was full. Whose they were nobody knows, so
// every ledger's Page says it.
func (l *Ledger) Missed(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unread = n
}

// MissedEnds adds flows to those whose records do not say what they carried because
// something was lost here, not because of how they ended.
func (l *Ledger) MissedEnds(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unended += uint64(n)
}

// FlowID returns a number for a flow that no other of this node has, nor had of an
// agent before.
func (l *Ledger) FlowID() uint64 { return l.flows.Add(1) }

// Query says which entries are wanted.
type Query struct {
	// After leaves out what the reader has: Page.Next of the page before.
	After uint64
	// Since leaves out what is older; the zero Time: nothing.
	Since time.Time
	// Trace leaves out what is not of this trace; the zero TraceID: nothing.
	Trace TraceID
	// Limit is how many there are at most, the newest. Zero: all.
	Limit int
}

// Page is a part of a ledger.
type Page struct {
	// Entries are in the order in which they were added; to be read only.
	Entries []*Entry
	// Next is the After of the next query.
	Next uint64
	// Since is when the ledger begins: of what was recorded later, all is here. Records'
	// times are those of what they tell of, which may have begun long before.
	Since time.Time
	// Dropped is how many records have been dropped, and Omitted how many more
	// would have been on the page without its limit.
	Dropped, Omitted int64
	// Unread is how many flows of this node left no record, whosever they were, and
	// Unended is what MissedEnds has counted.
	Unread, Unended int64
}

// Read returns a part of an owner's ledger. An owner that nobody has heard of has
// an empty one.
func (l *Ledger) Read(o Owner, q Query) Page {
	l.mu.Lock()
	p := Page{Next: l.seq, Since: l.begins(), Unread: int64(l.unread), Unended: int64(l.unended)}
	var chunks []chunk
	b := l.books[o]
	if b != nil {
		p.Dropped, chunks = b.dropped, slices.Clone(b.chunks)
		if b.dropped > 0 {
			p.Since = b.since
		}
	}
	l.mu.Unlock()
	if len(chunks) == 0 {
		return p
	}
	q.choose(&p, chunks, &b.owner)
	return p
}

// Wait returns when something was added after the record that after stands for, to
// whichever ledger, or ctx is over.
func (l *Ledger) Wait(ctx context.Context, after uint64) error {
	for {
		l.mu.Lock()
		if l.seq > after {
			l.mu.Unlock()
			return nil
		}
		l.wants = true
		added := l.added
		l.mu.Unlock()
		select {
		case <-added:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stats are figures for metrics.
type Stats struct {
	// Records and Bytes are what is kept now.
	Records, Bytes int64
	// Added and Dropped count records; Unread counts flows that left none, and Unended
	// what MissedEnds has.
	Added, Dropped, Unread, Unended uint64
	// Traces is how many traces are remembered.
	Traces int64
}

// Stats returns the figures.
func (l *Ledger) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Bytes: l.bytes, Added: l.seq, Dropped: l.dropped, Unread: l.unread, Unended: l.unended, Traces: l.traces.known.Load()}
	for _, b := range l.books {
		s.Records += b.records
	}
	return s
}
