// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
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
	// Sandbox is as it was after the request.
	Sandbox *v1alpha1.Sandbox
	// Services are those of its namespace, by name, whose ports have to be known by
	// their names, as far as they could be read.
	Services map[string]*corev1.Service
}

// Verdict is what evidence comes to.
type Verdict struct {
	// Verified: each call of the request that a fork was to answer, a pod of a fork has
	// answered, and nothing is known to be missing.
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
	doubt := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(v.Doubts, text) {
			v.Doubts = append(v.Doubts, text)
		}
	}
	if e.Unread != "" {
		doubt("the ledger cannot be read: %s", e.Unread)
		return v
	}
	for _, n := range e.Nodes {
		switch {
		case !n.Answered:
			doubt("node %s has not answered, and its hops are not known: %s", n.Node, n.Message)
		case n.Since != nil && n.Since.After(e.Start()):
			doubt("the ledger of node %s begins after the request", n.Node)
		case n.Omitted > 0:
			doubt("node %s has %d more records of this request", n.Node, n.Omitted)
		}
		e.settled(&n, doubt)
		v.Unseen = v.Unseen || n.Trace != nil && n.Trace.Unwatched
	}
	if len(e.Nodes) == 0 {
		doubt("no node has been asked")
	}
	e.ready(doubt)
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
	if len(v.Reached) == 0 && len(v.Doubts) == 0 {
		doubt("no call of this request is known to have been answered by a fork")
	}
	// Where its own call is not on record, neither is how it came any further.
	if e.entry(doubt) || e.way(doubt) {
		v.Unseen = true
	}
	v.Verified = len(v.Doubts) == 0
	return v
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
	case t.Open > 0:
		doubt("not verified yet: node %s has %d calls of this request under way", n.Node, t.Open)
	case time.Duration(t.KnownNanos) < e.Age:
		doubt("node %s knows of the last %s only which calls have lost the key, and this request began %s ago",
			n.Node, time.Duration(t.KnownNanos).Round(time.Second), e.Age.Round(time.Second))
	}
}

// ready looks at what the sandbox says of itself.
func (e *Evidence) ready(doubt func(string, ...any)) {
	sb := e.Sandbox
	c := meta.FindStatusCondition(sb.Status.Conditions, v1alpha1.ConditionProgrammed)
	if c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration != sb.Generation {
		doubt("not every node has the sandbox in force")
	}
	if n := sb.Status.UncoveredConnections; n > 0 {
		doubt("%d connections from before the sandbox are still open, whose requests leave no record", n)
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

// entry looks for the request's own call. Where nobody has seen it, nobody knows that
// who was called has received the key, and what it then loses is named by nobody. It
// reports whether observing the Service would help.
func (e *Evidence) entry(doubt func(string, ...any)) bool {
	if slices.ContainsFunc(e.Records, func(r ledger.Record) bool {
		// A service may pass the traceparent on as it got it, so the span is not enough.
		return r.Hook == ledger.HookRouter && r.ParentID == e.Sent.Span && r.ParentID != "" &&
			r.Source.Pod == e.Sent.Pod && r.Source.Namespace == e.Sandbox.Namespace
	}) {
		return false
	}
	host, service := e.called()
	if service == "" {
		doubt("the call of %s itself is not on record, so it is not known whether what answers there lost the key: only Services of namespace %s can be observed; send the request to one of these",
			host, e.Sandbox.Namespace)
		return false
	}
	doubt("the call of %s.%s itself is not on record, so it is not known whether %s lost the key: observe it (spec.observe: [%s])",
		service, e.Sandbox.Namespace, service, service)
	return true
}

// way looks for callers of whom nobody has seen how the request came to them: by a
// Service that nobody captures. That they have received the key is not known either, and
// so what they lose is named by nobody. Where it is not known which pod of a Service has
// answered, it may have been any. It reports whether there are such callers.
func (e *Evidence) way(doubt func(string, ...any)) (unseen bool) {
	type pod struct{ namespace, name string }
	reached := map[pod]bool{{e.Sandbox.Namespace, e.Sent.Pod}: true}
	for i := range e.Records {
		switch r := &e.Records[i]; {
		case r.Hook != ledger.HookRouter || r.Decision == ledger.DecisionReject:
		case r.Answer == nil || r.Answer.Pod == "":
			return false
		default:
			reached[pod{r.Answer.Namespace, r.Answer.Pod}] = true
		}
	}
	for i := range e.Records {
		r := &e.Records[i]
		if r.Hook != ledger.HookRouter || r.Source.Pod == "" || reached[pod{r.Source.Namespace, r.Source.Pod}] {
			continue
		}
		doubt("how the request came to %s, which called %s, is not on record, so it is not known whether %[1]s lost the key elsewhere: observe the Service that it is behind (spec.observe)",
			hops.Caller(r), hops.Callee(r))
		unseen = true
	}
	return unseen
}

// called is the host of the request's URL, and the Service of the sandbox's namespace
// that it names, if it is the name of one.
func (e *Evidence) called() (host, service string) {
	text := e.Sent.URL
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return e.Sent.URL, ""
	}
	host = u.Hostname()
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(host), "."), ".")
	// NAME, NAME.NAMESPACE, or what the cluster's domain follows on.
	if net.ParseIP(host) != nil || len(labels) > 1 && labels[1] != e.Sandbox.Namespace || len(labels) > 2 && labels[2] != "svc" {
		return host, ""
	}
	return host, labels[0]
}
