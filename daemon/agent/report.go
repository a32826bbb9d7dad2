// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"reflect"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/nodestate"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Reporter is told what is in force.
type Reporter interface {
	Report(s nodestate.State, urgent bool)
	// Act says whether this agent acts, or another one that it takes turns with.
	Act(acts bool)
	// Close ends it; nothing is in force any more.
	Close() error
}

// report is what is kept for the Reporter.
type report struct {
	to Reporter // nil: nobody wants to know
	// applied are the versions of the newest snapshot that is in force, and counted those
	// of the newest of which it is known, too, which connections are older; nil: of none.
	applied source.Versions
	counted *source.Versions
	now     nodestate.State
	told    nodestate.State // urgently
}

// same takes in a snapshot, and reports whether it differs from the last one in
// its versions alone.
func (a *Agent) same(next source.Snapshot) bool {
	if !next.Same || a.compiled == nil {
		if since := a.snapshot.Since; !since.IsZero() {
			next.Since = since // of a change that is not in force yet
		}
		a.snapshot = next
		return false
	}
	inForce := a.report.applied == a.snapshot.Versions
	a.snapshot.Versions = next.Versions
	if inForce {
		a.report.applied = next.Versions
		// Whoever waits for such a version has been seen to change something.
		a.tell(!next.Since.IsZero())
	}
	return true
}

// brought notes what has become of the newest snapshot, and tells the Reporter.
func (a *Agent) brought(err error, uncovered int, problems []routing.Problem) {
	if err == nil {
		a.report.applied = a.snapshot.Versions
		if since := a.snapshot.Since; !since.IsZero() && a.cfg.Changed != nil {
			a.cfg.Changed(time.Since(since))
		}
		a.snapshot.Since = time.Time{} // the next time it is another change
	}
	for _, p := range a.snapshot.Problems {
		if p.Kind != "" {
			problems = append(slices.Clip(problems), p.Problem)
		}
	}
	if err != nil {
		// First, so that it is not cut off.
		problems = slices.Insert(slices.Clone(problems), 0, routing.Problem{
			Kind: "Node", Message: "the newest state is not in force in the kernel, the one before stays: " + err.Error(),
		})
	}
	a.report.now.Problems = problems
	a.report.now.Uncovered = a.resolved.Uncovered + uncovered
	a.report.now.Covered = max(0, len(a.resolved.Pods)-uncovered)
	a.tell(true)
}

func (a *Agent) tell(urgent bool) {
	if a.report.to == nil {
		return
	}
	s := a.report.now
	if left := a.sweeper.uncovered(); len(left) > 0 {
		s.Connections = left
	}
	// Who waits for something to be in force may send a request at once. It must be told
	// of connections that this does not hold for before, or at the same time.
	if a.applied != nil && a.sweeper.counted() {
		v := a.report.applied
		a.report.counted = &v
	}
	if a.applied != nil && a.report.counted == nil {
		return // in a moment; what the agent before this one has said holds as long
	}
	if v := a.report.counted; v != nil {
		s.Applied = &v1alpha1.AppliedVersions{
			Sandboxes:      v.Sandboxes,
			RouteGroups:    v.RouteGroups,
			Services:       v.Services,
			EndpointSlices: v.EndpointSlices,
		}
	}
	// Pods come and go; that they are covered can wait for the next heartbeat.
	known := a.report.told
	known.Covered = s.Covered
	if urgent = urgent && !reflect.DeepEqual(known, s); urgent {
		a.report.told = s
	}
	a.report.to.Report(s, urgent)
}

// acts tells the Reporter of this agent's turn.
func (a *Agent) acts(yes bool) {
	if a.report.to != nil {
		a.report.to.Act(yes)
	}
}

// silence ends what is told.
func (a *Agent) silence() error {
	if a.report.to == nil {
		return nil
	}
	return a.report.to.Close()
}
