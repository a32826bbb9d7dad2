// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"slices"
	"strings"
	"sync"
	"time"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// How a stream is put in order. A call is on record when it is over, so what came of
// it is on record before.
const (
	// quiet is how long nothing comes of a trace before it is written, and patience how
	// long it waits at most.
	quiet    = 500 * time.Millisecond
	patience = 5 * time.Second
	// mostLive is how many records are remembered, so that later ones are written below
	// them.
	mostLive = 500
)

// Live puts a stream's records in order for people: hops of a trace are written
// together, once it is quiet, and one that comes later below those that it came of, which
// are written again. So are those that it is found to be above of: a call that lasts is
// on record after what came of it. It may be used concurrently.
type Live struct {
	mu     sync.Mutex
	groups []*group // in order of their last records
	count  int
}

// group is a trace, or what has none.
type group struct {
	trace   string
	records []ledger.Record
	written int // of records, the first
	// above has, of each that is written, the index of the one that it was written
	// below, or -1.
	above       []int
	first, last time.Time
}

// Add takes records in, which came at a time.
func (l *Live) Add(records []ledger.Record, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range records {
		r := &records[i]
		n := slices.IndexFunc(l.groups, func(g *group) bool { return g.trace == r.TraceID })
		var g *group
		if n < 0 {
			g = &group{trace: r.TraceID}
		} else {
			g = l.groups[n]
			l.groups = slices.Delete(l.groups, n, n+1)
		}
		g.last = at
		l.groups = append(l.groups, g)
		l.count -= g.replace(r)
		if g.written == len(g.records) {
			g.first = at
		}
		g.records = append(g.records, *r)
		l.count++
	}
	for i := 0; i < len(l.groups) && l.count > mostLive; {
		g := l.groups[i]
		switch {
		case g.written == 0:
			i++ // it is not written yet
			continue
		case g.written < len(g.records) || i == len(l.groups)-1:
			// What is written of it is known to whoever reads.
			l.count -= g.written
			g.records, g.written, g.above = slices.Clone(g.records[g.written:]), 0, nil
			i++
		default:
			l.count -= len(g.records)
			l.groups = slices.Delete(l.groups, i, i+1)
		}
	}
}

// replace takes out the record of a flow that was under way when it was made, where r is
// that of its end, and returns how many there were. What has been written of it is known to whoever reads.
func (g *group) replace(r *ledger.Record) int {
	if r.Flow == "" || r.Open {
		return 0
	}
	n := slices.IndexFunc(g.records, func(o ledger.Record) bool { return o.Open && o.Flow == r.Flow && o.Node == r.Node })
	if n < 0 {
		return 0
	}
	g.records = slices.Delete(g.records, n, n+1)
	if n >= g.written {
		return 1
	}
	g.written--
	// Nothing comes of a flow, so nothing is below it.
	g.above = slices.Delete(g.above, n, n+1)
	for i := range g.above {
		if g.above[i] > n {
			g.above[i]--
		}
	}
	return 1
}

// Write writes what is due at a time; all that there is if last is set.
func (l *Live) Write(b *strings.Builder, at time.Time, last bool) {
	for _, roots := range l.Due(at, last) {
		Write(b, roots)
	}
}

// Due returns the trees that are to be written at a time, of one trace after the other;
// all that there are if last is set. They count as written then.
func (l *Live) Due(at time.Time, last bool) (due [][]*Hop) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.groups {
		if g.written == len(g.records) || !last && at.Sub(g.last) < quiet && at.Sub(g.first) < patience {
			continue
		}
		due = append(due, g.write())
	}
	return due
}

// write returns what is new of a trace, below what it came of.
func (g *group) write() []*Hop {
	index := make(map[*ledger.Record]int, len(g.records))
	for i := range g.records {
		index[&g.records[i]] = i
	}
	roots := Tree(g.records)
	above := make([]int, len(g.records))
	var place func(hops []*Hop, parent int)
	place = func(hops []*Hop, parent int) {
		for _, h := range hops {
			i := index[h.Record]
			above[i] = parent
			place(h.Children, i)
		}
	}
	place(roots, -1)
	before, written := g.above, g.written
	g.above, g.written = above, len(g.records)
	return fresh(roots, func(r *ledger.Record) (again, show bool) {
		i := index[r]
		again = i < written
		return again, !again || above[i] != before[i]
	})
}

// fresh leaves out trees in which there is nothing to show, and marks what was written
// before.
func fresh(all []*Hop, of func(*ledger.Record) (again, show bool)) (out []*Hop) {
	for _, h := range all {
		h.Children = fresh(h.Children, of)
		again, show := of(h.Record)
		h.again = again
		if len(h.Children) > 0 || show {
			out = append(out, h)
		}
	}
	return out
}

// Told says what a stream's records do not show, as Gaps does, and once: of a number
// again when it is twice what was said, and of a node that does not answer again when it
// has answered since, or for another reason. The zero value is ready. It may not be
// used concurrently.
type Told struct {
	silent  map[string]string // by node, why
	numbers map[number]int64  // what was said last
}

// number names one that a node tells of.
type number struct{ node, what string }

// Gaps returns what is new of a part of the stream.
func (t *Told) Gaps(list *ledger.RecordList) []string {
	if t.silent == nil {
		t.silent, t.numbers = map[string]string{}, map[number]int64{}
	}
	var fresh ledger.RecordList
	for _, n := range list.Nodes {
		why, said := t.silent[n.Node]
		switch {
		case n.Answered:
			delete(t.silent, n.Node)
		case said && why == n.Message:
			n.Answered = true
		default:
			t.silent[n.Node] = n.Message
		}
		t.again(n.Node, "dropped", &n.Dropped)
		t.again(n.Node, "missed", &n.MissedFlows)
		t.again(n.Node, "ends", &n.MissedEnds)
		t.again(n.Node, "omitted", &n.Omitted)
		fresh.Nodes = append(fresh.Nodes, n)
	}
	return Gaps(&fresh)
}

// again makes a number zero that need not be said.
func (t *Told) again(node, what string, n *int64) {
	key := number{node, what}
	if said := t.numbers[key]; *n == 0 || said > 0 && *n/2 < said {
		*n = 0
		return
	}
	t.numbers[key] = *n
}
