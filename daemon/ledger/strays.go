// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"hash/maphash"
	"slices"
	"sync"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Strays are calls, of traces that may be tagged ones, which came without the trace's
// key: with none, with one that is nobody's, or with another sandbox's. Somebody has lost
// it, who need not be known to have had it, where the trace's sandbox does not look: an
// answer that has one among its calls proves nothing of a fork. Most are calls of
// everybody's traces, so that noting one has to cost next to nothing.

const (
	strayBuckets = 1 << 14
	strayWays    = 4 // calls of a bucket
	strayLocks   = 1 << 6
)

// strays are the newest of all traces, by a hash of the trace: the last 16,384 are there
// but for one in some hundreds. The memory is there once there is a call: 2.7 MiB.
type strays struct {
	once    sync.Once
	seed    maphash.Seed
	buckets []strayBucket
	locks   [strayLocks]struct {
		sync.Mutex
		_ [56]byte // a cache line each
	}
}

type strayBucket struct {
	calls [strayWays]stray
	since time.Duration // of what was before it some have been forgotten
}

type stray struct {
	trace  TraceID // zero: none
	source routing.Cookie
	at     time.Duration // the newest, by the Ledger's clock
	dest   routing.DestID
	// waits: each of these calls is, or will be, among those that wait to be named.
	waits bool
}

func (s *stray) is(id TraceID, source routing.Cookie, dest routing.DestID) bool {
	return s.trace == id && s.source == source && s.dest == dest
}

// bucket returns a trace's, locked. Which it is nobody outside can tell, who may choose
// the ids of traces.
func (s *strays) bucket(id TraceID) (*strayBucket, *sync.Mutex) {
	s.once.Do(func() { s.buckets, s.seed = make([]strayBucket, strayBuckets), maphash.MakeSeed() })
	i := maphash.Bytes(s.seed, id[:]) % strayBuckets
	mu := &s.locks[i%strayLocks].Mutex
	mu.Lock()
	return &s.buckets[i], mu
}

// add notes a call, and forgets the oldest of its bucket if there is no room. Those of the
// same caller to the same destination are one.
func (s *strays) add(n stray) {
	b, mu := s.bucket(n.trace)
	defer mu.Unlock()
	oldest := &b.calls[0]
	for i := range b.calls {
		c := &b.calls[i]
		if c.is(n.trace, n.source, n.dest) {
			c.at, c.waits = max(c.at, n.at), c.waits && n.waits
			return
		}
		if c.at < oldest.at || c.trace == (TraceID{}) && oldest.trace != (TraceID{}) {
			oldest = c
		}
	}
	if oldest.trace != (TraceID{}) {
		b.since = max(b.since, oldest.at+1)
	}
	*oldest = n
}

// drop forgets a caller's calls that have waited, and are on record as having lost the
// key.
func (s *strays) drop(id TraceID, source routing.Cookie, dest routing.DestID) {
	b, mu := s.bucket(id)
	defer mu.Unlock()
	for i := range b.calls {
		if c := &b.calls[i]; c.is(id, source, dest) && c.waits {
			*c = stray{}
		}
	}
}

// of returns the calls of a trace that were noted since a time, which are all that there
// were.
func (s *strays) of(id TraceID) (calls []stray, since time.Duration) {
	b, mu := s.bucket(id)
	defer mu.Unlock()
	for _, c := range b.calls {
		if c.trace == id {
			calls = append(calls, c)
		}
	}
	return calls, b.since
}

// strayed says which Services calls of a trace went to that a sandbox redirects, and may
// lack its key, and from when on that is known. Whose they are is nobody's business who
// merely knows a trace's id. tr is what is known of it, or nil.
func (l *Ledger) strayed(id TraceID, tr *trace, owner *routing.SandboxInfo) (*ledgerv1alpha1.Strays, time.Time) {
	calls, since := l.strays.of(id)
	out := &ledgerv1alpha1.Strays{}
	t := l.table.Load()
	for _, c := range calls {
		if pod := l.podOf(c.source); c.waits && tr != nil && pod != nil && tr.received(pod.Name, t) {
			continue // it has lost the key, which is on record when the call is over: see settle
		}
		if _, ok := t.Dest(c.dest); !ok {
			// Where that was nobody knows any more.
			since = max(since, c.at+1)
			continue
		}
		// It is one, too, where the key would not have counted, because the caller is another
		// sandbox's own pod: whoever has answered was none of the owner's forks.
		if t.OfMember(c.source, c.dest, owner) {
			continue
		}
		name, target := t.Leads(owner, c.dest)
		if target == "" {
			continue // with the key it would have gone where it went
		}
		if s := (ledgerv1alpha1.Service{Namespace: name.Namespace, Name: name.Name}); !slices.Contains(out.Services, s) {
			out.Services = append(out.Services, s)
		}
	}
	return out, l.began.Add(since)
}
