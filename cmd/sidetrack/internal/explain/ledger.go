// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

// ledger looks at what has become of requests, and who has lost the key.
func (e *explainer) ledger(ctx context.Context) {
	list, err := hops.Read(ctx, e.c, hops.Of{Namespace: e.sb.Namespace, Name: e.sb.Name}, ledger.Options{Limit: maxRecords, Trace: e.r.TraceID})
	if err != nil {
		e.say("ledger", Unknown, "", "%v", err)
		return
	}
	gaps := hops.Gaps(list)
	for _, gap := range gaps {
		e.say("ledger", Note, "", "%s", gap)
	}
	e.propagation(list.Items, len(gaps) > 0)
	about := slices.DeleteFunc(slices.Clone(list.Items), func(r ledger.Record) bool {
		return e.service != "" && (r.Service == nil || r.Service.Name != e.service || r.Service.Namespace != e.sb.Namespace)
	})
	if len(about) == 0 {
		e.say("ledger", Note, "send one, and see who was called: sidetrack trace "+e.sb.Name, "no tagged request%s has been seen: either none was sent, or it lost its key before it came here", of(e.service))
		return
	}
	counts := map[ledger.Decision]int{}
	for i := range about {
		counts[about[i].Decision]++
	}
	e.say("ledger", Note, "", "%d records%s: %d to a fork, %d to the baseline, %d rejected; the newest: %s", len(about), of(e.service),
		counts[ledger.DecisionFork], counts[ledger.DecisionBaseline], counts[ledger.DecisionReject], hops.Line(&about[len(about)-1]))
	e.out.Records = about[max(0, len(about)-shownRecords):]
}

func of(service string) string {
	if service == "" {
		return ""
	}
	return " to " + service
}

// propagation names who calls without the key on behalf of a tagged request. That
// nobody does holds only where requests were seen, and every node has told of them.
func (e *explainer) propagation(records []ledger.Record, gaps bool) {
	lost := map[string]int{}
	healed := 0
	for i := range records {
		r := &records[i]
		if r.LostKey {
			lost[cmp.Or(r.LostBy, hops.Caller(r))+", calling "+hops.Callee(r)]++
		}
		if r.Healed {
			healed++
		}
	}
	var who []string
	for name, n := range lost {
		who = append(who, fmt.Sprintf("%s (%d times)", name, n))
	}
	slices.Sort(who)
	switch {
	case len(who) == 0 && !e.seesOthers():
		e.say("propagation", Note, "observe the Services in between: sidetrack sandbox create … --observe '*' --update",
			"no workload has been seen to lose the key on calls to redirected Services; calls to others are not looked at")
	case len(who) == 0 && (gaps || len(records) == 0):
		e.say("propagation", Unknown, "", "no workload has been seen to lose the key, of requests that are on record: there are %d, and some may be missing", len(records))
	case len(who) == 0:
		e.say("propagation", Holds, "", "no workload has been seen to lose the key")
	case healed > 0 && e.sb.Spec.Propagate == v1alpha1.PropagateTraceID:
		e.say("propagation", Note, "have it pass the baggage header on", "the key was lost by %s; %d calls went to the fork all the same, by their trace", strings.Join(who, ", "), healed)
	default:
		e.say("propagation", Fails, "have it pass the baggage header on, as OpenTelemetry does; or let the trace stand for the key: --propagate TraceID",
			"the key was lost by %s", strings.Join(who, ", "))
	}
}

// summarise says what it comes to: the first thing that does not hold.
func (e *explainer) summarise(r *v1alpha1.RedirectStatus) {
	what := "tagged requests"
	if e.service != "" {
		what += " to " + e.service
	}
	if e.r.From != "" {
		what += " from " + e.r.From
	}
	for _, s := range e.out.Steps {
		if s.Verdict == Fails {
			e.out.Summary = fmt.Sprintf("%s do not reach the fork, or not all: %s: %s", what, s.Topic, s.Detail)
			return
		}
	}
	e.out.Reaches = true
	e.out.Summary = "nothing is known that keeps " + what + " from the fork"
	if r == nil {
		e.out.Summary = "nothing is known that keeps " + what + " from what the sandbox redirects"
	}
}

// seesOthers reports whether the sandbox observes a Service that it does not redirect.
func (e *explainer) seesOthers() bool {
	return slices.ContainsFunc(e.sb.Spec.Observe, func(name string) bool {
		return !slices.ContainsFunc(e.sb.Status.Redirects, func(r v1alpha1.RedirectStatus) bool { return r.From.Service == name })
	})
}
