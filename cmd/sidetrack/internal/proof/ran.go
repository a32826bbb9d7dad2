// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"slices"
	"time"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Ran is a command that has run in a pod of a sandbox, whose requests nobody has
// given a trace.
type Ran struct {
	// Pod is what it ran in.
	Pod string
	// Began is when, by the clock of the pod's node, or a moment before.
	Began time.Time
}

// How long records of the last calls are waited for where none of a fork is there.
const ranMost = 2 * time.Second

// skew is what the clocks of two nodes may differ by.
const skew = 50 * time.Millisecond

// ToRun waits until a sandbox is in force, and what is from before it closed, and
// returns it as it is then: what Account is to know of.
func ToRun(ctx context.Context, c *cluster.Cluster, namespace, name string, progress task.Progress) (*v1alpha1.Sandbox, error) {
	sb, err := sandbox.Wait(ctx, c, namespace, name, sandbox.DefaultWait(), progress)
	if err != nil {
		return nil, err
	}
	return Covered(ctx, c, sb, progress)
}

// Account reads what is on record of a sandbox's traffic since a command began, and
// says at which Services forks have answered, and what is known to have gone elsewhere.
// It is less than a proof, and Verified is never set: without a trace it is not known
// which calls the command's requests led to, nor which of them have lost the key.
// Calls that other pods of the sandbox have begun are left out, as far as it is known.
// Where no fork has answered, that is a doubt. sb is the sandbox as it was before.
func Account(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, r Ran) (Verdict, error) {
	e := &Evidence{Sent: Sent{Began: r.Began}, Before: sb}
	of := hops.Of{Namespace: sb.Namespace, Name: sb.Name}
	for deadline := time.Now().Add(ranMost); ; {
		list, err := hops.Read(ctx, c, of, ledger.Options{Since: r.Began, Limit: ledger.MaxLimit})
		if ctx.Err() != nil {
			return Verdict{}, ctx.Err()
		}
		if err != nil {
			e.Unread = err.Error()
			break
		}
		e.Records, e.Nodes = r.own(sb, list.Items), list.Nodes
		if slices.ContainsFunc(e.Records, func(r ledger.Record) bool { return r.Decision == ledger.DecisionFork }) || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return Verdict{}, ctx.Err()
		case <-time.After(settle):
		}
	}
	var err error
	if e.Sandbox, err = sandbox.Get(ctx, c, sb.Namespace, sb.Name); err != nil {
		return Verdict{}, err
	}
	e.Services = named(ctx, c, e.Sandbox)
	return e.account(), ctx.Err()
}

// own are the records that may be the command's: none from before its first call, none
// of what other testers have begun, which are the sandbox's pods that no workload owns,
// and what forks have called only where somebody else has called a fork.
func (r Ran) own(sb *v1alpha1.Sandbox, all []ledger.Record) []ledger.Record {
	from := r.Began
	if i := slices.IndexFunc(all, func(rec ledger.Record) bool { return rec.Source.Pod == r.Pod }); i >= 0 {
		if first := all[i].Time.Add(-skew); first.After(from) {
			from = first
		}
	}
	other := func(rec *ledger.Record) bool { return byTester(sb, rec) && rec.Source.Pod != r.Pod }
	begun := tracesOf(all, other)
	mine := slices.DeleteFunc(slices.Clone(all), func(rec ledger.Record) bool {
		return rec.Time.Time.Before(from) || other(&rec) || begun[rec.TraceID]
	})
	// What forks call of their own accord is no request's doing.
	byFork := func(rec ledger.Record) bool { return rec.Source.Sandbox == sb.Name && rec.Source.Pod != r.Pod }
	if !slices.ContainsFunc(mine, func(rec ledger.Record) bool { return rec.Decision == ledger.DecisionFork && !byFork(rec) }) {
		mine = slices.DeleteFunc(mine, byFork)
	}
	return mine
}

// byTester reports whether a pod has called that sends requests for people, tests and
// models: one of the sandbox that no workload owns.
func byTester(sb *v1alpha1.Sandbox, r *ledger.Record) bool {
	return r.Source.Sandbox == sb.Name && r.Source.Namespace == sb.Namespace && r.Source.Workload == ""
}

// tracesOf are the traces of some records.
func tracesOf(all []ledger.Record, some func(*ledger.Record) bool) map[string]bool {
	traces := map[string]bool{}
	for i := range all {
		if all[i].TraceID != "" && some(&all[i]) {
			traces[all[i].TraceID] = true
		}
	}
	return traces
}

// mostOthers is how many calls Others reads.
const mostOthers = 200

// Others reads the sandbox's calls since the request began that may have come of it and
// do not say so: they have no trace, or one that somebody on the way has begun. Calls
// of the traces of other requests that testers have sent are left out.
func (e *Evidence) Others(ctx context.Context, c *cluster.Cluster) ([]ledger.Record, error) {
	sb := e.Sandbox
	list, err := hops.Read(ctx, c, hops.Of{Namespace: sb.Namespace, Name: sb.Name}, ledger.Options{Since: e.Start(), Limit: mostOthers})
	if err != nil {
		return nil, err
	}
	begun := tracesOf(list.Items, func(r *ledger.Record) bool { return byTester(sb, r) })
	return slices.DeleteFunc(list.Items, func(r ledger.Record) bool {
		return r.TraceID == e.Sent.Trace || begun[r.TraceID] || byTester(sb, &r)
	}), nil
}

// account is Judge for calls that no trace joins.
func (e *Evidence) account() Verdict {
	var v Verdict
	doubt := v.doubt
	if !e.heard(doubt, e.Sent.Began, "command", "of this time", func(*ledger.NodeAnswer) {}) {
		return v
	}
	e.calls(&v, doubt)
	if len(v.Reached) == 0 {
		doubt("no call to a fork is on record while it ran")
	}
	return v
}
