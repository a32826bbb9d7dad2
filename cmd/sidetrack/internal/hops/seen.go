// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"encoding/json"
	"hash/maphash"
	"slices"
	"time"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// late is how much later than others a record may come that is of the same time:
// nodes' clocks differ, and a call that has lost its key is told of when the word of
// its trace has come.
const late = time.Minute

// leastSeen is how many records are remembered before any is forgotten.
const leastSeen = 4096

// seen tells, after a stream has broken off, what has come already. Records come when
// they are over, so it goes by that: when they have begun says nothing of it.
type seen struct {
	seed   maphash.Seed
	known  map[uint64]*sighting
	newest time.Time
	most   int // forget some when there are more
	// cut is where the stream that goes on begins, and again what of it is known. Zero
	// and empty: it is the first.
	cut   time.Time
	again map[uint64]int
	// floors are, by node, where the first stream began whose limit has left out what
	// was before.
	floors map[string]time.Time
}

type sighting struct {
	over  time.Time
	times int
}

func newSeen() *seen {
	return &seen{seed: maphash.MakeSeed(), known: map[uint64]*sighting{}, most: leastSeen, floors: map[string]time.Time{}}
}

func over(r *ledger.Record) time.Time { return r.Time.Add(time.Duration(r.LatencyNanos)) }

// broken says that what comes now is of another stream, and reports whether
// anything has come before.
func (s *seen) broken() bool {
	if s.newest.IsZero() {
		return false
	}
	s.cut = s.newest.Add(-late)
	s.again = make(map[uint64]int, len(s.known))
	for h, k := range s.known {
		s.again[h] = k.times
	}
	return true
}

// begins takes notice of what a stream has left out: what it was not to give does not
// become new by its breaking off.
func (s *seen) begins(list *ledger.RecordList) {
	if s.again != nil {
		return
	}
	for _, n := range list.Nodes {
		if n.Omitted == 0 {
			continue
		}
		for i := range list.Items {
			r := &list.Items[i]
			if at, ok := s.floors[n.Node]; r.Node == n.Node && (!ok || over(r).Before(at)) {
				s.floors[n.Node] = over(r)
			}
		}
	}
}

// old reports whether a record is from before what the streams are about.
func (s *seen) old(r *ledger.Record) bool {
	at := over(r)
	// What has lost its key may have been told of since, and is rather shown than lost.
	return at.Before(s.cut) || s.again != nil && !r.LostKey && at.Before(s.floors[r.Node])
}

// fresh leaves out what has come before.
func (s *seen) fresh(all []ledger.Record) []ledger.Record {
	all = slices.DeleteFunc(all, func(r ledger.Record) bool {
		if s.old(&r) {
			return true
		}
		at := over(&r)
		text, err := json.Marshal(&r)
		if err != nil {
			return false // It came as JSON.
		}
		h := maphash.Bytes(s.seed, text)
		if s.again[h] > 0 {
			s.again[h]--
			return true
		}
		k := s.known[h]
		if k == nil {
			k = &sighting{over: at}
			s.known[h] = k
		}
		k.times++
		if at.After(s.newest) {
			s.newest = at
		}
		return false
	})
	if len(s.known) > s.most {
		for h, k := range s.known {
			if k.over.Before(s.newest.Add(-late)) {
				delete(s.known, h)
			}
		}
		s.most = max(leastSeen, 2*len(s.known))
	}
	return all
}
