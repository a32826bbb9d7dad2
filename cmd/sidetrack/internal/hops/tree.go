// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// Hop is a record and the calls that came of it, in order of time.
type Hop struct {
	Record   *ledger.Record `json:"record"`
	Children []*Hop         `json:"children,omitempty"`

	again bool // it was written before
}

// slack is what the clocks of two nodes may differ by.
const slack = 50 * time.Millisecond

// Tree puts records in order: a call is put below the one that it came of. That is
// the latest call which was answered by the pod that this one came from, and was not
// over when this one began; both have the same trace, or neither has one.
//
// Where it is not known which pod has answered, the trace tells, and the times do:
// the innermost call that this one lies within. Without a trace that is so only where
// no two calls come into question of which neither came of the other.
func Tree(records []ledger.Record) []*Hop {
	all := make([]*Hop, 0, len(records))
	for i := range records {
		all = append(all, &Hop{Record: &records[i]})
	}
	slices.SortStableFunc(all, func(a, b *Hop) int { return a.Record.Time.Compare(b.Record.Time.Time) })
	var roots []*Hop
	above := map[*Hop]*Hop{}
	for i, h := range all {
		if p := parent(all[:i], above, h.Record); p != nil {
			above[h] = p
			p.Children = append(p.Children, h)
		} else {
			roots = append(roots, h)
		}
	}
	return roots
}

// parent finds the call that another one came of, among those that began before it.
// above is what has been found so far.
func parent(before []*Hop, above map[*Hop]*Hop, r *ledger.Record) *Hop {
	var within []*Hop // the latest first
	for _, h := range slices.Backward(before) {
		p := h.Record
		if p.TraceID != r.TraceID || p.Answer == nil || p.Hook != ledger.HookRouter || r.Time.After(end(p).Add(slack)) {
			continue
		}
		switch {
		case p.Answer.Pod != "":
			if r.Source.Pod != "" && p.Answer.Pod == r.Source.Pod && p.Answer.Namespace == r.Source.Namespace {
				return h
			}
		case p.Source.Pod != r.Source.Pod && !end(r).After(end(p).Add(slack)):
			within = append(within, h)
		}
	}
	if len(within) == 0 {
		return nil
	}
	if r.TraceID == "" {
		for _, other := range within[1:] {
			if !isBelow(within[0], other, above) {
				return nil
			}
		}
	}
	return within[0]
}

// isBelow reports whether a call came of another one, by way of others or not.
func isBelow(h, of *Hop, above map[*Hop]*Hop) bool {
	for ; h != nil; h = above[h] {
		if h == of {
			return true
		}
	}
	return false
}

func end(r *ledger.Record) time.Time { return r.Time.Add(time.Duration(r.LatencyNanos)) }

// Write writes trees for people, one line for each hop.
func Write(b *strings.Builder, roots []*Hop) {
	trace := "-"
	for _, h := range roots {
		if h.Record.TraceID != trace {
			trace = h.Record.TraceID
			name := "trace " + trace
			if trace == "" {
				name = "without a trace"
			}
			fmt.Fprintf(b, "%s  %s\n", h.Record.Time.Format("15:04:05.000"), name)
		}
		write(b, h, "  ", "  ")
	}
}

func write(b *strings.Builder, h *Hop, first, rest string) {
	again := ""
	if h.again {
		again = " (as above)"
	}
	fmt.Fprintf(b, "%s%s%s\n", first, Line(h.Record), again)
	for i, c := range h.Children {
		if i < len(h.Children)-1 {
			write(b, c, rest+"├─ ", rest+"│  ")
		} else {
			write(b, c, rest+"└─ ", rest+"   ")
		}
	}
}

// Line says in one line what a record says.
func Line(r *ledger.Record) string {
	parts := []string{Caller(r), "->", Callee(r)}
	if q := r.Request; q != nil {
		parts = append(parts, q.Method, q.Path)
	} else {
		parts = append(parts, string(r.Protocol))
	}
	parts = append(parts, "=>", strings.ToUpper(string(r.Decision)))
	if a := r.Answer; a != nil {
		parts = append(parts, cmp.Or(a.Pod, a.Address))
	}
	if r.Decision != ledger.DecisionFork {
		parts = append(parts, "("+strings.TrimSpace(r.Reason+" "+r.Target)+")")
	}
	switch {
	case r.GRPCStatus != nil:
		parts = append(parts, fmt.Sprintf("%d grpc %d", r.Status, *r.GRPCStatus))
	case r.Status != 0:
		parts = append(parts, fmt.Sprint(r.Status))
	}
	if r.LatencyNanos > 0 {
		parts = append(parts, time.Duration(r.LatencyNanos).Round(100*time.Microsecond).String())
	}
	if carried := Carried(r); carried != "" {
		parts = append(parts, carried)
	}
	if r.LostKey {
		parts = append(parts, "[KEY LOST by "+cmp.Or(r.LostBy, Caller(r))+"]")
	}
	if r.Healed {
		parts = append(parts, "[healed by its trace]")
	}
	if r.Error != "" {
		parts = append(parts, "error: "+r.Error)
	}
	return printable(strings.Join(parts, " "))
}

// Carried is what a connection that is no HTTP has carried, or that it is under way; empty for
// all else.
func Carried(r *ledger.Record) string {
	switch {
	case r.Open:
		return "[under way]"
	case r.Request != nil || r.SentBytes == 0 && r.ReceivedBytes == 0:
		return ""
	}
	return fmt.Sprintf("sent %d B, received %d B", r.SentBytes, r.ReceivedBytes)
}

// printable takes out what a terminal might take for a command, or show elsewhere: a
// path is what a client has sent.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Caller is who has called.
func Caller(r *ledger.Record) string {
	name := cmp.Or(r.Source.Workload, r.Source.Pod, "node "+r.Node)
	if r.Source.Sandbox != "" {
		name += " of " + r.Source.Sandbox
	}
	return name
}

// Callee is the Service that was called.
func Callee(r *ledger.Record) string {
	if r.Service == nil {
		return cmp.Or(r.Dialled, "?")
	}
	name := r.Service.Name + "." + r.Service.Namespace
	if r.Service.Port != 0 {
		name += fmt.Sprintf(":%d", r.Service.Port)
	}
	return name
}

// Gaps says what the records do not show: nodes that have not answered, and
// records that were dropped.
func Gaps(list *ledger.RecordList) []string {
	var out []string
	for _, n := range list.Nodes {
		if !n.Answered {
			out = append(out, fmt.Sprintf("node %s has not answered, and its hops are missing: %s", n.Node, n.Message))
		}
		if n.Trace != nil && n.Trace.Open > 0 {
			out = append(out, fmt.Sprintf("node %s has %d calls of this trace under way, which are not on record before they are over", n.Node, n.Trace.Open))
		}
		if n.Dropped > 0 {
			out = append(out, fmt.Sprintf("node %s has dropped its %d oldest records", n.Node, n.Dropped))
		}
		if n.MissedFlows > 0 {
			out = append(out, fmt.Sprintf("node %s has no records of %d flows, too many at once", n.Node, n.MissedFlows))
		}
		if n.MissedEnds > 0 {
			out = append(out, fmt.Sprintf("node %s does not know what %d flows have carried: too many ended or were open at once", n.Node, n.MissedEnds))
		}
		if n.Omitted > 0 {
			out = append(out, fmt.Sprintf("node %s has %d more: see them with --limit or --since", n.Node, n.Omitted))
		}
	}
	return out
}
