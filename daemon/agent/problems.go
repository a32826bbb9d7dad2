// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"

	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// problemLog says what is wrong once, and once when it is right again.
type problemLog struct {
	log   *slog.Logger
	known map[string]bool
}

// update takes all problems that there are now and returns how many there are by
// where they come from.
func (l *problemLog) update(objects []source.Problem, table []routing.Problem, apply error) map[string]int {
	now := map[string]bool{}
	kinds := map[string]int{"manifest": 0, "object": 0, "kernel": 0}
	note := func(kind, text string, say func(string)) {
		kinds[kind]++
		if !now[text] && !l.known[text] {
			say(text)
		}
		now[text] = true
	}
	for _, p := range objects {
		if p.Refused {
			note("manifest", p.String(), func(s string) { l.log.Error("manifest refused, its last good state stays", "problem", s) })
		} else {
			note("manifest", p.String(), func(s string) { l.log.Warn("manifest", "problem", s) })
		}
	}
	for _, p := range table {
		note("object", p.String(), func(s string) { l.log.Warn("object", "problem", s) })
	}
	if apply != nil {
		note("kernel", apply.Error(), func(s string) { l.log.Error("change is not in force in the kernel, the old state stays", "err", s) })
	}
	for text := range l.known {
		if !now[text] {
			l.log.Info("solved", "problem", text)
		}
	}
	l.known = now
	return kinds
}
