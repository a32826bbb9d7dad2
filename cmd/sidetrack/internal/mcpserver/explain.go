// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"fmt"
	"strings"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/explain"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

type explainInput struct {
	Sandbox string `json:"sandbox" jsonschema:"name, or namespace/name"`
	Target  string `json:"target,omitempty" jsonschema:"a Service, service:port or URL that requests should reach the fork at; all that the sandbox redirects when left out"`
	From    string `json:"from,omitempty" jsonschema:"who calls it: a pod's name, or KIND/NAME of a workload"`
	TraceID string `json:"trace_id,omitempty" jsonschema:"of send_request: explain that very request, and tell its hops"`
	Detail  detail `json:"detail,omitempty" jsonschema:"short tells what does not hold, full every step"`
}

type explainReply struct {
	Sandbox string      `json:"sandbox"`
	Reaches bool        `json:"reaches" jsonschema:"nothing is known that keeps tagged requests from the fork"`
	Summary string      `json:"summary"`
	Steps   []stepReply `json:"steps,omitempty" jsonschema:"what a request meets on its way, in order"`
	Hops    []hopReply  `json:"hops,omitempty" jsonschema:"the calls of the trace"`
	Gaps    []string    `json:"gaps,omitempty" jsonschema:"what the ledger does not show"`
}

type stepReply struct {
	Topic   string `json:"topic"`
	Verdict string `json:"verdict" jsonschema:"ok, NO, unknown or note"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy,omitempty"`
}

func explainRouting() tool {
	return define("explain_routing", "Explain why requests reach a fork or not", "",
		`Say why requests of a sandbox reach its forks, or do not: key, Service, node, coverage, fork, which service loses the routing key, and what the nodes' records show. With trace_id of send_request it is about that request, and lists its hops.`,
		reads, tuneDetail, func(ctx context.Context, c call, in explainInput) (*explainReply, error) {
			if in.TraceID != "" && !ledger.ValidTraceID(in.TraceID) {
				return nil, task.Usagef("trace_id %q is none: send_request replies with one, 32 of 0-9 a-f", in.TraceID)
			}
			sb, err := c.sandbox(ctx, in.Sandbox)
			if err != nil {
				return nil, err
			}
			e, err := explain.Explain(ctx, c.Cluster, explain.Request{Namespace: sb.Namespace, Sandbox: sb.Name, Target: in.Target, From: in.From, TraceID: in.TraceID})
			if err != nil {
				return nil, err
			}
			r := &explainReply{Sandbox: handle(sb.Namespace, sb.Name), Reaches: e.Reaches, Summary: asTools(e.Summary)}
			for _, s := range e.Steps {
				if in.Detail == full || s.Verdict != explain.Holds && (s.Verdict != explain.Note || s.Topic == "ledger" || s.Topic == "propagation") {
					v := stepReply{Topic: s.Topic, Verdict: string(s.Verdict), Detail: asTools(s.Detail)}
					if s.Verdict != explain.Holds {
						v.Remedy = asTools(s.Remedy)
					}
					r.Steps = append(r.Steps, v)
				}
			}
			if in.TraceID == "" {
				return r, nil
			}
			list, err := hops.Read(ctx, c.Cluster, hops.Of{Namespace: sb.Namespace, Name: sb.Name}, ledger.Options{Trace: in.TraceID, Limit: ledger.MaxLimit})
			if err != nil {
				return nil, err
			}
			r.Hops, r.Gaps = hopsOf(list.Items), hops.Gaps(list)
			if len(r.Hops) == 0 {
				r.Gaps = append(r.Gaps, "no hop of this trace is known: its calls went to Services that are neither forked nor observed, lost the routing key before, or were too long ago")
			}
			return r, nil
		})
}

func (r *explainReply) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.Summary)
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "- %s %s: %s", s.Verdict, s.Topic, s.Detail)
		if s.Remedy != "" {
			b.WriteString("; next: " + s.Remedy)
		}
		b.WriteString("\n")
	}
	writeHops(&b, "Hops", r.Hops)
	for _, g := range r.Gaps {
		fmt.Fprintf(&b, "- %s\n", g)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
