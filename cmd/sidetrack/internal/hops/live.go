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
// are written again. It may be used concurrently.
type Live struct {
	mu     sync.Mutex
	groups []*group // in order of their last records
	count  int
}

// group is a trace, or what has none.
type group struct {
	trace       string
	records     []ledger.Record
	written     int // of records, the first
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
		if g.written == len(g.records) {
			g.first = at
		}
		g.records = append(g.records, *r)
		g.last = at
		l.groups = append(l.groups, g)
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
			g.records, g.written = slices.Clone(g.records[g.written:]), 0
			i++
		default:
			l.count -= len(g.records)
			l.groups = slices.Delete(l.groups, i, i+1)
		}
	}
}

// Write writes what is due at a time; all that there is if last is set.
func (l *Live) Write(b *strings.Builder, at time.Time, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.groups {
		if g.written == len(g.records) || !last && at.Sub(g.last) < quiet && at.Sub(g.first) < patience {
			continue
		}
		isNew := map[*ledger.Record]bool{}
		for i := g.written; i < len(g.records); i++ {
			isNew[&g.records[i]] = true
		}
		Write(b, fresh(Tree(g.records), isNew))
		g.written = len(g.records)
	}
}

// fresh leaves out trees in which nothing is new, and marks what was written before.
func fresh(all []*Hop, isNew map[*ledger.Record]bool) (out []*Hop) {
	for _, h := range all {
		h.Children = fresh(h.Children, isNew)
		h.again = !isNew[h.Record]
		if len(h.Children) > 0 || !h.again {
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
