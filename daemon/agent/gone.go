// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// remembered is how long a deleted sandbox is remembered though no pod of it is on
// this node: one may still come, from a controller that has not heard yet.
const remembered = 10 * time.Minute

// deletedSandbox is why a deleted sandbox's redirects lead nowhere.
const deletedSandbox = "the sandbox has been deleted"

// gone remembers what sandboxes redirected that are no more. Their objects go
// before their pods do, which may have a grace period or an owner of their own: a
// fork that dials the database again in its last seconds must not find everybody's.
// It belongs to the agent's goroutine.
type gone struct {
	known map[routing.Name]*routing.Sandbox // of the last snapshot
	past  map[routing.Name]*past
}

// past is a sandbox that is gone.
type past struct {
	sandbox routing.Sandbox
	until   time.Time
}

// with returns all, and the deleted sandboxes that pods have the label of. Their
// routing keys are nobody's.
func (g *gone) with(all []routing.Sandbox, wanted []pods.Pod, now time.Time) []routing.Sandbox {
	current := make(map[routing.Name]*routing.Sandbox, len(all))
	for i := range all {
		if s := &all[i]; !s.Group {
			current[s.Name] = s
		}
	}
	for name, s := range g.known {
		if current[name] == nil && len(s.Redirects) > 0 {
			if g.past == nil {
				g.past = map[routing.Name]*past{}
			}
			g.past[name] = &past{sandbox: tombstone(s), until: now.Add(remembered)}
		}
	}
	g.known = current
	if len(g.past) == 0 {
		return all
	}
	labelled := map[routing.Name]bool{}
	for _, p := range wanted {
		if p.Sandbox != "" {
			labelled[routing.Name{Namespace: p.Name.Namespace, Name: p.Sandbox}] = true
		}
	}
	out := slices.Clone(all)
	for name, p := range g.past {
		anew := current[name]
		switch {
		case anew != nil && (anew.Key != "" || len(anew.Redirects) > 0):
			delete(g.past, name)
			continue
		case labelled[name]:
			p.until = now.Add(remembered)
		case now.After(p.until):
			delete(g.past, name)
			continue
		default:
			continue
		}
		if anew != nil {
			// Created again, and the controller has not resolved its redirects yet.
			out = slices.DeleteFunc(out, func(s routing.Sandbox) bool { return !s.Group && s.Name == name })
		}
		out = append(out, p.sandbox)
	}
	return out
}

// tombstone is what remains of a sandbox.
func tombstone(s *routing.Sandbox) routing.Sandbox {
	t := *s
	t.Key, t.Deleted = "", true
	t.Redirects = slices.Clone(s.Redirects)
	for i := range t.Redirects {
		t.Redirects[i].Refused = deletedSandbox
	}
	return t
}
