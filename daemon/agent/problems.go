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

// update takes all problems that there are now. It returns how many there are by
// where they come from, and what says those that are new.
func (l *problemLog) update(objects []source.Problem, table []routing.Problem, apply error) (kinds map[string]int, say func()) {
	now := map[string]bool{}
	kinds = map[string]int{"manifest": 0, "object": 0, "kernel": 0}
	var lines []func()
	note := func(kind, text string, line func()) {
		kinds[kind]++
		if !now[text] && !l.known[text] {
			lines = append(lines, line)
		}
		now[text] = true
	}
	for _, p := range objects {
		text := p.String()
		switch {
		case p.File == "" && p.Kind != "": // the API server's
			note("object", text, func() { l.log.Warn("object", "problem", text) })
		case p.Refused:
			note("manifest", text, func() { l.log.Error("manifest refused, its last good state stays", "problem", text) })
		default:
			note("manifest", text, func() { l.log.Warn("manifest", "problem", text) })
		}
	}
	for _, p := range table {
		text := p.String()
		note("object", text, func() { l.log.Warn("object", "problem", text) })
	}
	if apply != nil {
		note("kernel", apply.Error(), func() {
			l.log.Error("change is not in force in the kernel, the old state stays", "err", apply)
		})
	}
	for text := range l.known {
		if !now[text] {
			lines = append(lines, func() { l.log.Info("solved", "problem", text) })
		}
	}
	l.known = now
	return kinds, func() {
		for _, line := range lines {
			line()
		}
	}
}
