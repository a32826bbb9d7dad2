// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

// Evidence is what the ledger says of one request.
type Evidence struct {
	// Records are those of its trace.
	Records []ledger.Record
	// Nodes are what became of asking each node.
	Nodes []ledger.NodeAnswer
	// Sent is the request.
	Sent Sent
	// Age is how long ago it was sent when the ledger was read.
	Age time.Duration
	// Unread says why there is no ledger.
	Unread string
	// Before and Sandbox are the sandbox as it was before the request, and after it.
	Before, Sandbox *v1alpha1.Sandbox
	// Services are those of its namespace, by name, whose ports have to be known by
	// their names, as far as they could be read.
	Services map[string]*corev1.Service
}

// Verdict is what evidence comes to.
type Verdict struct {
	// Verified: each call of the request that a fork was to answer, a pod of a fork has
	// answered, and nothing is known to be missing. It says nothing of Missed: a call that
	// somebody has made without key and trace is nobody's.
	Verified bool
	// Doubts are why it is not verified.
	Doubts []string
	// Reached and Missed are the redirected Services that it has come to, or not.
	Reached, Missed []string
	// Unseen: some of the doubts would be none if the sandbox observed more Services.
	Unseen bool
}

// Judge never guesses: whatever the ledger cannot tell is a doubt.
func (e *Evidence) Judge() Verdict {
	var v Verdict
	doubt := v.doubt
	if !e.heard(doubt, e.Start(), "request", "of this request", func(n *ledger.NodeAnswer) {
		e.settled(n, doubt)
		v.Unseen = v.Unseen || n.Trace != nil && (n.Trace.Unwatched || n.Trace.Strays != nil && len(n.Trace.Strays.Services) > 0)
	}) {
		return v
	}
	e.calls(&v, doubt)
	if len(v.Reached) == 0 && len(v.Doubts) == 0 {
		doubt("no call of this request is known to have been answered by a fork")
	}
	v.Verified = len(v.Doubts) == 0
	return v
}

// heard looks at whether there is a ledger, at what each node has said of the time since
// something began, and at the sandbox. It reports whether calls are to be looked at.
func (e *Evidence) heard(doubt func(string, ...any), began time.Time, what, records string, each func(*ledger.NodeAnswer)) bool {
	if e.Unread != "" {
		doubt("the ledger cannot be read: %s", e.Unread)
		return false
	}
	if len(e.Sandbox.Status.Redirects) == 0 {
		doubt(nowhere)
		e.ready(doubt)
		return false
	}
	for i := range e.Nodes {
		n := &e.Nodes[i]
		switch {
		case !n.Answered:
			doubt("node %s has not answered, and its hops are not known: %s", n.Node, n.Message)
		case n.Since != nil && n.Since.After(began):
			doubt("the ledger of node %s begins after the %s", n.Node, what)
		case n.Omitted > 0:
			doubt("node %s has %d more records %s", n.Node, n.Omitted, records)
		}
		each(n)
	}
	if len(e.Nodes) == 0 {
		doubt("no node has been asked")
	}
	e.ready(doubt)
	return true
}

// nowhere is what no request helps against, nor what else is observed.
const nowhere = "no Service leads to a fork of the sandbox: none selects the pods of what it forks, and it redirects none"

// doubt notes a doubt, once.
func (v *Verdict) doubt(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(v.Doubts, text) {
		v.Doubts = append(v.Doubts, text)
	}
}

// calls looks at all calls, and notes at which Services forks have answered.
func (e *Evidence) calls(v *Verdict, doubt func(string, ...any)) {
	redirected := map[string]bool{}
	for _, r := range e.Sandbox.Status.Redirects {
		redirected[r.From.Service] = false
	}
	for i := range e.Records {
		e.hop(&e.Records[i], redirected, doubt)
	}
	for service, reached := range redirected {
		if reached {
			v.Reached = append(v.Reached, service)
		} else {
			v.Missed = append(v.Missed, service)
		}
	}
	slices.Sort(v.Reached)
	slices.Sort(v.Missed)
}

// Start is when the request began, by the clock that was earlier.
func (e *Evidence) Start() time.Time {
	at := e.Sent.Began
	for i := range e.Records {
		if t := e.Records[i].Time.Time; t.Before(at) {
			at = t
		}
	}
	return at
}

// settled looks at whether a node has named each call that has lost the key.
func (e *Evidence) settled(n *ledger.NodeAnswer, doubt func(string, ...any)) {
	t := n.Trace
	switch {
	case !n.Answered:
	case t == nil:
		doubt("node %s does not say whether it knows every call of this request: its agent, or the ledger's collector, is of an older version", n.Node)
	case t.Foreign:
		doubt("node %s takes the request's trace for another sandbox's, and does not look for calls that lost this one's key", n.Node)
	case t.Unwatched:
		doubt("not verified: the sandbox observes nothing, so a workload on another node that loses the routing key would not be seen: set spec.observe to the Services on the way, sidetrack sandbox create … --observe SERVICE --update")
	case t.Strays == nil:
		doubt("node %s does not say whether calls of this request came without the routing key from somebody who never had it: its agent, or the ledger's collector, is of an older version", n.Node)
	case t.Open > 0:
		doubt("not verified yet: node %s has %d calls of this request under way", n.Node, t.Open)
	case time.Duration(t.KnownNanos) < e.Age:
		doubt("node %s knows of the last %s only which calls have lost the key, and this request began %s ago: send it again",
			n.Node, time.Duration(t.KnownNanos).Round(time.Second), e.Age.Round(time.Second))
	}
	if t == nil || t.Strays == nil {
		return
	}
	for _, s := range t.Strays.Services {
		doubt("a call of this request to %s.%s came without the routing key, from somebody of whom it is not known how the request came there: to see who has lost the key, observe the Services on the way (spec.observe; \"*\" is all of the namespace)",
			s.Name, s.Namespace)
	}
}

// ready looks at what the sandbox says of itself.
func (e *Evidence) ready(doubt func(string, ...any)) {
	sb, was := e.Sandbox, e.Before
	if sb.UID != was.UID || sb.Generation != was.Generation || sb.Status.Revision != was.Status.Revision {
		doubt("the sandbox was changed meanwhile: try it again")
	}
	for _, s := range []*v1alpha1.Sandbox{was, sb} {
		c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionProgrammed)
		if c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration != s.Generation {
			doubt("not every node has the sandbox in force")
		}
	}
	// They may have been closed since, and have carried calls of this request before.
	if n := max(was.Status.UncoveredConnections, sb.Status.UncoveredConnections); n > 0 {
		doubt("%d connections from before the sandbox were open when the request was sent, or are still, whose requests leave no record", n)
	}
	e.flows(doubt)
}

// flows looks at what leaves no record of a request: connections of the sandbox's own
// pods go to forks without a router, whatever is said on them, and to what everybody
// shares where a redirect gives way.
func (e *Evidence) flows(doubt func(string, ...any)) {
	for _, sb := range []*v1alpha1.Sandbox{e.Before, e.Sandbox} {
		for i := range sb.Status.Redirects {
			r := &sb.Status.Redirects[i]
			if len(sb.Status.Forks) > 0 && r.Unavailable == v1alpha1.UnavailableBaseline && r.Endpoints == 0 && !r.Refused {
				doubt("the redirect of %s has no ready endpoint and gives way to what everybody shares: whether a fork has called that for this request is not known", r.From.Service)
			}
		}
	}
}

// hop looks at one call, and notes whether it came to a fork.
func (e *Evidence) hop(r *ledger.Record, redirected map[string]bool, doubt func(string, ...any)) {
	callee := hops.Callee(r)
	own := r.Service != nil && r.Service.Namespace == e.Sandbox.Namespace
	to := ""
	if own {
		to = r.Service.Name
	}
	_, forked := redirected[to]
	switch {
	case r.LostKey && !r.Healed:
		doubt("%s called %s without the routing key", cmp.Or(r.LostBy, hops.Caller(r)), callee)
	case r.Error != "":
		doubt("the call of %s failed: %s", callee, r.Error)
	case r.Decision == ledger.DecisionReject:
		doubt("the call of %s was refused: %s", callee, cmp.Or(r.Target, r.Reason))
	case r.Decision == ledger.DecisionBaseline && forked && e.redirects(r):
		doubt("the call of %s was answered by what everybody shares: %s", callee, cmp.Or(r.Target, r.Reason))
	case r.Decision == ledger.DecisionFork && r.Hook == ledger.HookRouter && (r.Answer == nil || r.Answer.Pod == ""):
		doubt("which pod has answered the call of %s is not known", callee)
	case r.Decision == ledger.DecisionFork && forked:
		redirected[to] = true
	}
}

// noRedirect is a record's reason where no redirect is the port's that was called.
const noRedirect = "no_redirect"

// redirects reports whether the port of a redirected Service that a call went to may be
// one that is redirected: it is said not to be, or it is known which are.
func (e *Evidence) redirects(r *ledger.Record) bool {
	// A redirect that gives way to the baseline has another reason, and was this port's.
	if r.Reason != noRedirect || r.Service.Port == 0 {
		return true
	}
	return slices.ContainsFunc(e.Sandbox.Status.Redirects, func(s v1alpha1.RedirectStatus) bool {
		return s.From.Service == r.Service.Name && e.covers(s.From, r.Service.Port)
	})
}

// covers reports whether a redirect may be a port's.
func (e *Evidence) covers(from v1alpha1.RedirectFrom, port int32) bool {
	if from.Port == nil {
		return true
	}
	if from.Port.Type == intstr.Int {
		return from.Port.IntVal == port
	}
	svc := e.Services[from.Service]
	if svc == nil {
		return true
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == from.Port.StrVal })
	return i < 0 || svc.Spec.Ports[i].Port == port
}
