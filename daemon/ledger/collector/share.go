// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
)

// Nobody can keep others from reading by reading much. So users, as the API server
// names them, have a share each of what there is of memory, of streams and of lists
// that are made at a time. The ServiceAccounts of a namespace have one together: whoever
// administers it makes as many as he likes.
const (
	// maxStreams and maxLists are how many requests of each kind there may be at a time,
	// and streamsEach and listsEach how many of them one user's. Agents answer at least
	// as many questions as both together.
	maxStreams  = 64
	streamsEach = 16
	maxLists    = 64
	listsEach   = 8
	// againSoon and againLater are when whoever is refused may ask again: a list is
	// made in a moment.
	againSoon  = time.Second
	againLater = 2 * time.Second
)

// accounts begins the names of ServiceAccounts, which go on with namespace:name.
const accounts = "system:serviceaccount:"

// sharer names who has the share of which a user of this name takes.
func sharer(user string) string {
	if rest, ok := strings.CutPrefix(user, accounts); ok {
		if namespace, _, ok := strings.Cut(rest, ":"); ok {
			return accounts + namespace + ":*"
		}
	}
	return user
}

// have says who has something.
func have(sharer string) string {
	if strings.HasPrefix(sharer, accounts) {
		return "the ServiceAccounts of your namespace together have"
	}
	return "you have"
}

// room is how many bytes of records there may be. It may be used concurrently.
type room struct {
	mu   sync.Mutex
	most int64
	used int64
	held map[string]int64 // by user
}

// take reports whether there was room for n bytes, which are a user's then. A user may
// have as much as is left for others: alone half of it, one of two a third. So there is
// room for whoever comes, however much others have and however long they keep it.
func (r *room) take(user string, n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == 0 {
		return true // there is always room for nothing
	}
	if r.held[user]+n > r.most-r.used-n {
		return false
	}
	if r.held == nil {
		r.held = map[string]int64{}
	}
	r.held[user] += n
	r.used += n
	return true
}

func (r *room) give(user string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == 0 {
		return // nobody's, perhaps
	}
	r.used -= n
	if r.held[user] -= n; r.held[user] == 0 {
		delete(r.held, user)
	}
}

// taken is how many bytes there are.
func (r *room) taken() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

// seats are requests that may be under way at a time. They may be used concurrently.
type seats struct {
	kind       string
	most, each int
	again      time.Duration

	mu    sync.Mutex
	n     int
	users map[string][]*seat // the newest last
}

// seat is one request.
type seat struct{ end func() }

// take has a user's request begin, or says why it may not. leave has to be called when it
// is over. Where all seats are taken, one is freed by calling end of a request of
// whoever has most, if that is at least two more than this user has; end may be nil:
// the request is not ended by others.
func (s *seats) take(user string, end func()) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := len(s.users[user])
	if own >= s.each {
		return nil, ledger.TooMuch{Reason: fmt.Sprintf("%s %d %s of the ledger open already, which is as many as one user may: end some, or try again later", have(user), own, s.kind), Again: s.again}
	}
	if s.n >= s.most && !s.free(own) {
		return nil, ledger.TooMuch{Reason: fmt.Sprintf("as many %s of the ledger are open as there may be: try again later", s.kind), Again: s.again}
	}
	if s.users == nil {
		s.users = map[string][]*seat{}
	}
	taken := &seat{end}
	s.users[user] = append(s.users[user], taken)
	s.n++
	return func() { s.leave(user, taken) }, nil
}

// free ends the newest request of whoever has most, if that is enough more than own.
// The caller holds the lock.
func (s *seats) free(own int) bool {
	most := ""
	for user, all := range s.users {
		if len(all) > len(s.users[most]) {
			most = user
		}
	}
	all := s.users[most]
	if len(all) < own+2 || all[len(all)-1].end == nil {
		return false
	}
	last := all[len(all)-1]
	s.remove(most, last)
	last.end()
	return true
}

func (s *seats) leave(user string, taken *seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(user, taken)
}

// remove does nothing when the seat is free already. The caller holds the lock.
func (s *seats) remove(user string, taken *seat) {
	all := s.users[user]
	for i, other := range all {
		if other == taken {
			s.n--
			if all = append(all[:i:i], all[i+1:]...); len(all) == 0 {
				delete(s.users, user)
			} else {
				s.users[user] = all
			}
			return
		}
	}
}
