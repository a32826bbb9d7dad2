// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

// hopReply is one call that came of a request.
type hopReply struct {
	From     string `json:"from" jsonschema:"who called"`
	Service  string `json:"service" jsonschema:"which Service was called"`
	Went     string `json:"went" jsonschema:"fork, baseline (what everybody shares) or reject"`
	Pod      string `json:"pod,omitempty" jsonschema:"the pod that answered; missing where the ledger does not know it"`
	Request  string `json:"request,omitempty"`
	Status   int32  `json:"status,omitempty" jsonschema:"HTTP status"`
	Why      string `json:"why,omitempty" jsonschema:"why it did not go to a fork"`
	LostKey  string `json:"lost_key,omitempty" jsonschema:"the workload that made this call without the routing key, on behalf of a request that had it"`
	Healed   bool   `json:"healed,omitempty" jsonschema:"it went to the fork all the same, by its trace id"`
	Error    string `json:"error,omitempty"`
	Duration string `json:"duration,omitempty"`
	Depth    int    `json:"depth" jsonschema:"0 for the first call, 1 for one that came of it, and so on"`
}

// evidence is what the ledger says of one request.
type evidence struct {
	// Records are those of its trace.
	Records []ledger.Record
	// Nodes are what became of asking each node.
	Nodes []ledger.NodeAnswer
	// Began is when it was sent.
	Began time.Time
	// Unread says why there is no ledger.
	Unread string
	// Sandbox is as it was after the request.
	Sandbox *v1alpha1.Sandbox
}

// verdict is what it comes to.
type verdict struct {
	// Verified: each call of the request that a fork was to answer, a pod of a fork has
	// answered, and nothing is known to be missing.
	Verified bool
	// Doubts are why it is not verified.
	Doubts []string
	// Reached and Missed are the redirected Services that it has come to, or not.
	Reached, Missed []string
}

// judge never guesses: whatever the ledger cannot tell is a doubt.
func (e *evidence) judge() verdict {
	var v verdict
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
		case n.Since != nil && n.Since.After(e.start()):
			doubt("the ledger of node %s begins after the request", n.Node)
		case n.Omitted > 0:
			doubt("node %s has %d more records of this request", n.Node, n.Omitted)
		}
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
	v.Verified = len(v.Doubts) == 0
	return v
}

// start is when the request began, by the clock that was earlier.
func (e *evidence) start() time.Time {
	at := e.Began
	for i := range e.Records {
		if t := e.Records[i].Time.Time; t.Before(at) {
			at = t
		}
	}
	return at
}

// ready looks at what the sandbox says of itself.
func (e *evidence) ready(doubt func(string, ...any)) {
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
func (e *evidence) hop(r *ledger.Record, redirected map[string]bool, doubt func(string, ...any)) {
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
	case r.Decision == ledger.DecisionBaseline && forked:
		doubt("the call of %s was answered by what everybody shares: %s", callee, cmp.Or(r.Target, r.Reason))
	case r.Decision == ledger.DecisionFork && r.Hook == ledger.HookRouter && (r.Answer == nil || r.Answer.Pod == ""):
		doubt("which pod has answered the call of %s is not known", callee)
	case r.Decision == ledger.DecisionFork && forked:
		redirected[to] = true
	}
}

// hopsOf puts records in order, each below the call that it came of.
func hopsOf(records []ledger.Record) []hopReply {
	all := []hopReply{}
	var add func(list []*hops.Hop, depth int)
	add = func(list []*hops.Hop, depth int) {
		for _, h := range list {
			all = append(all, hopOf(h.Record, depth))
			add(h.Children, depth+1)
		}
	}
	add(hops.Tree(records), 0)
	return all
}

func hopOf(r *ledger.Record, depth int) hopReply {
	h := hopReply{From: hops.Caller(r), Service: hops.Callee(r), Went: string(r.Decision), Status: r.Status, Healed: r.Healed, Error: r.Error, Depth: depth}
	if r.Answer != nil {
		h.Pod = r.Answer.Pod
	}
	h.Request = string(r.Protocol)
	if q := r.Request; q != nil {
		h.Request = q.Method + " " + q.Path
	}
	if r.Decision != ledger.DecisionFork {
		h.Why = strings.TrimSpace(r.Reason + " " + r.Target)
	}
	if r.LostKey {
		h.LostKey = cmp.Or(r.LostBy, hops.Caller(r))
	}
	if r.LatencyNanos > 0 {
		h.Duration = time.Duration(r.LatencyNanos).Round(100 * time.Microsecond).String()
	}
	return h
}

func (h *hopReply) line() string {
	s := fmt.Sprintf("%s-> %s from %s: %s", strings.Repeat("  ", h.Depth), h.Service, h.From, h.Went)
	if h.Pod != "" {
		s += ", pod " + h.Pod
	}
	if h.Status != 0 {
		s += fmt.Sprintf(", status %d", h.Status)
	}
	for _, more := range [][2]string{{"why", h.Why}, {"KEY LOST by", h.LostKey}, {"error", h.Error}} {
		if more[1] != "" {
			s += ", " + more[0] + " " + more[1]
		}
	}
	if h.Healed {
		s += ", healed by its trace"
	}
	return s
}

// Records are there when a request is over, at the nodes that it passed; these are
// asked anew for each read.
const (
	settle     = 300 * time.Millisecond
	settleMost = 5 * time.Second
)

// gather reads the records of a trace until there are no more to come: until as
// many are there as the time before, and one of them is a fork's.
func gather(ctx context.Context, c call, sb *v1alpha1.Sandbox, trace string, began time.Time) (*evidence, error) {
	e := &evidence{Began: began, Sandbox: sb}
	of := hops.Of{Namespace: sb.Namespace, Name: sb.Name}
	last := -1
	for deadline := time.Now().Add(settleMost); ; {
		list, err := hops.Read(ctx, c.Cluster, of, ledger.Options{Trace: trace, Limit: ledger.MaxLimit})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			e.Unread = err.Error()
			break
		}
		e.Records, e.Nodes = list.Items, list.Nodes
		forked := slices.ContainsFunc(list.Items, func(r ledger.Record) bool { return r.Decision == ledger.DecisionFork })
		if forked && len(list.Items) == last || time.Now().After(deadline) {
			break
		}
		last = len(list.Items)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle):
		}
	}
	var err error
	e.Sandbox, err = c.sandbox(ctx, handle(sb.Namespace, sb.Name))
	return e, err
}
