// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"slices"
	"strconv"
)

// A Service that is deleted, perhaps to be created again, leaves connections
// behind that the router keeps open to where it led. A tagged request on one is
// addressed to that Service still, and its redirect has not been taken back: the
// baseline is no answer.

// lost is a redirect whose Service is not there.
type lost struct {
	port   string // of the Service; empty: all
	target string // in words
	why    string
}

// lose notes a redirect whose Service is not there. An owner who wants the baseline
// where there is no fork does not mind it here.
func (s *SandboxInfo) lose(from Name, r *Redirect) {
	if r.Unavailable == Baseline && r.Refused == "" {
		return
	}
	if s.lost == nil {
		s.lost = map[Name][]*lost{}
	}
	l := &lost{port: r.From.Port, target: r.To.words(s.Name.Namespace), why: r.Refused}
	if l.why == "" {
		l.why = "there is no Service " + from.String() + " any more"
	}
	s.lost[from] = append(s.lost[from], l)
}

// lostTo returns the redirect of a destination whose Services have all gone, as far
// as they matter; nil when there is none.
func (s *SandboxInfo) lostTo(info *destInfo) *lost {
	if info.class != 0 || s == nil {
		return nil
	}
	for _, p := range info.ports {
		all := s.lost[p.service]
		if i := slices.IndexFunc(all, func(l *lost) bool { return l.means(p.port) }); i >= 0 {
			return all[i]
		}
	}
	return nil
}

// means reports whether the redirect may be this port's. What a name stood for is
// not known any more.
func (l *lost) means(port uint16) bool {
	n, err := strconv.ParseUint(l.port, 10, 16)
	return err != nil || uint16(n) == port
}
