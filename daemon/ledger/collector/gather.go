// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"slices"
	"sync"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// Whoever may read one sandbox may ask for much, and often. So what lists and streams
// have in memory is counted from when a node's records arrive until the reader has
// them, each user's and all users' together.
const (
	// maxGathered is how many bytes that may be: what the container's memory limit,
	// 512 MiB, leaves of it when the heap doubles before it is collected.
	maxGathered = 160 << 20
	// recordBytes is what a record takes without the words of its request, as it was
	// decoded and as it is encoded again.
	recordBytes = 1536
)

// errTooMuch is why a reader gets no list.
var errTooMuch = ledger.TooMuch{
	Reason: "the ledger's collector has as many records in memory for you, or for all its readers, as it may: try again in a moment, or ask for less with limit, since or trace",
	Again:  againSoon,
}

// size is what a record takes of the room. Words may take more as JSON than as they
// are.
func size(r *ledgerv1alpha1.Record) int64 {
	n := recordBytes + 3*(len(r.Target)+len(r.Error))
	if q := r.Request; q != nil {
		n += 3 * (len(q.Method) + len(q.Authority) + len(q.Path))
	}
	return int64(n)
}

// gathering is a reader's list in the making, into which nodes' records come in any
// order. It holds the newest ones, somewhat more of them than the limit.
type gathering struct {
	room  *room
	user  string
	limit int // zero: none

	mu      sync.Mutex
	items   []ledgerv1alpha1.Record
	bytes   int64            // of room
	omitted map[string]int64 // by node
	closed  bool
}

func newGathering(r *room, user string, limit int) *gathering {
	return &gathering{room: r, user: user, limit: limit, omitted: map[string]int64{}}
}

// add takes in records. It reports whether there was room for them.
func (g *gathering) add(items []ledgerv1alpha1.Record) bool {
	n := sizes(items)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || !g.room.take(g.user, n) {
		return false
	}
	g.bytes += n
	g.items = append(g.items, items...)
	if g.limit > 0 && len(g.items) > g.limit+max(g.limit/4, wire.AnswerRecords) {
		g.trim()
	}
	return true
}

// trim puts the records in order and leaves out the oldest that are beyond the limit.
// The caller holds the lock.
func (g *gathering) trim() {
	ledger.SortRecords(g.items)
	n := len(g.items) - g.limit
	if g.limit == 0 || n <= 0 {
		return
	}
	for i := range g.items[:n] {
		g.omitted[g.items[i].Node]++
	}
	less := sizes(g.items[:n])
	g.items = slices.Delete(g.items, 0, n) // it lets go of their words
	g.bytes -= less
	g.room.give(g.user, less)
}

// close gives back what was taken; nothing can be added after it.
func (g *gathering) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.room.give(g.user, g.bytes)
	g.bytes, g.closed, g.items = 0, true, nil
}

// list returns what has been gathered, with these answers of nodes. What it takes is
// counted until close.
func (g *gathering) list(nodes []ledgerv1alpha1.NodeAnswer) *ledgerv1alpha1.RecordList {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trim()
	list := newList()
	if len(g.items) > 0 {
		list.Items, g.items = g.items, nil
	}
	list.Nodes = nodes
	finish(list)
	for i := range list.Nodes {
		node := &list.Nodes[i]
		node.Omitted += g.omitted[node.Node]
		delete(g.omitted, node.Node) // of two agents of a node, say it once
	}
	return list
}

func sizes(all []ledgerv1alpha1.Record) (n int64) {
	for i := range all {
		n += size(&all[i])
	}
	return n
}
