// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/compare"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

const (
	// mostDifferences and mostValue are how much is told in short.
	mostDifferences = 20
	mostValue       = 300
	mostCompared    = 20
)

type compareInput struct {
	Sandbox string `json:"sandbox" jsonschema:"name, or namespace/name"`
	requestInput
	Ignore  []string `json:"ignore,omitempty" jsonschema:"places that do not count, as a difference names them, such as $[*].id or header Server"`
	Samples int      `json:"samples,omitempty" jsonschema:"how many answers of each side are compared at most before a difference is believed"`
	Detail  detail   `json:"detail,omitempty" jsonschema:"short tells at most 20 differences, their values cut; full all"`
}

func (in compareInput) wait() time.Duration {
	return seconds(in.TimeoutSeconds)*time.Duration(2*in.Samples) + 2*time.Minute
}

type compareReply struct {
	Sandbox       string            `json:"sandbox"`
	Same          bool              `json:"same" jsonschema:"nothing differs beyond noise; says nothing of your code unless verified"`
	Verified      bool              `json:"verified" jsonschema:"the ledger shows that pods of the forks answered what they were to answer, at forks_reached; it says nothing of forks_not_asked"`
	NotVerified   []string          `json:"not_verified,omitempty" jsonschema:"why it is not verified"`
	ForksReached  []string          `json:"forks_reached,omitempty" jsonschema:"redirected Services at which a fork answered in each request"`
	ForksNotAsked []string          `json:"forks_not_asked,omitempty" jsonschema:"redirected Services that not every request is known to have come to: a change there may not have been compared"`
	Differences   []differenceReply `json:"differences"`
	Omitted       int               `json:"omitted,omitempty" jsonschema:"how many more differences there are"`
	Noise         []string          `json:"noise,omitempty" jsonschema:"places that vary by themselves and were left out"`
	Baseline      sideReply         `json:"baseline" jsonschema:"what everybody shares"`
	Fork          sideReply         `json:"fork" jsonschema:"the sandbox"`
	TraceID       string            `json:"trace_id,omitempty" jsonschema:"of the last request to the sandbox, or of the first that is not verified; explain_routing tells its hops"`
}

type differenceReply struct {
	Where    string `json:"where" jsonschema:"status, error, body, line N, header NAME, or a path in JSON"`
	Baseline string `json:"baseline"`
	Fork     string `json:"fork"`
}

type sideReply struct {
	Answers int    `json:"answers" jsonschema:"how many were compared"`
	Status  int    `json:"status,omitempty" jsonschema:"of the last one"`
	Error   string `json:"error,omitempty" jsonschema:"why there was no answer"`
}

func compareResponses() tool {
	return define("compare_responses", "Compare the sandbox's answers with everybody's", "",
		`Send one request to the sandbox and to what everybody shares, several times in turn, and say in what the answers differ: status, headers, JSON values; and whether forks really answered ("verified"), since where the key is lost everybody's answer is compared with itself. What varies between answers of the same side is left out as noise. The request is really sent up to 8 times to each side: use one that may be repeated.`,
		acts, func(p properties) {
			tuneDetail(p)
			tuneRequest(p)
			between(p["samples"], 2, mostCompared, compare.DefaultSamples)
		}, func(ctx context.Context, c call, in compareInput) (*compareReply, error) {
			req := in.request()
			sb, names, err := readySandbox(ctx, c, in.Sandbox, req.Header)
			if err != nil {
				return nil, err
			}
			o := compare.Options{Samples: in.Samples, Ignore: in.Ignore, Names: names}
			if o.Canonical, err = compare.NamesOfPods(ctx, c.Cluster, sb.Namespace); err != nil {
				return nil, err
			}
			if sb, err = proof.Covered(ctx, c.Cluster, sb, c.progress); err != nil {
				return nil, err
			}
			c.hide(sb) // it may be another one
			var res compare.Result
			// Beside the sandbox: both sides take the same way, and the key alone tells them
			// apart.
			err = c.server.tunnels.with(ctx, c, sb, false, func(dial dialFunc) error {
				res, err = compare.Compare(ctx, compare.Through(dial, o.Names, sb.Status.RoutingKey), req, o)
				return err
			})
			if err != nil {
				return nil, err
			}
			if res.BaselineError != "" && res.SandboxError != "" {
				return nil, unanswered(&res, sb.Namespace)
			}
			if err := compare.Verify(ctx, c.Cluster, sb, &res); err != nil {
				return nil, err
			}
			return compared(handle(sb.Namespace, sb.Name), &res, in.Detail, c.redact), nil
		})
}

// unanswered is why neither side answers.
func unanswered(res *compare.Result, namespace string) error {
	f := &task.Failure{Message: "nobody answers: " + res.SandboxError, Remedy: "correct the URL: its host is SERVICE." + namespace + "; list_workloads has the URLs. send_request tells how far a request comes"}
	if res.TimedOut {
		f.Remedy = "raise timeout_seconds; send_request tells how far a request comes"
	}
	return f
}

func compared(name string, res *compare.Result, d detail, redact func(string) string) *compareReply {
	r := &compareReply{
		Sandbox: name, Same: len(res.Differences) == 0, Verified: res.Verified, ForksReached: res.Reached, ForksNotAsked: res.Missed, Differences: []differenceReply{}, Noise: res.Noise, TraceID: res.TraceID,
		Baseline: sideReply{res.BaselineAnswers, res.BaselineStatus, res.BaselineError},
		Fork:     sideReply{res.SandboxAnswers, res.SandboxStatus, res.SandboxError},
	}
	for _, why := range res.NotVerified {
		r.NotVerified = append(r.NotVerified, asTools(why))
	}
	for i, v := range res.Differences {
		if d != full && i == mostDifferences {
			r.Omitted = len(res.Differences) - i
			break
		}
		b, f := v.Baseline, v.Sandbox
		if d != full {
			b, f = cut(redact(b), mostValue), cut(redact(f), mostValue)
		}
		r.Differences = append(r.Differences, differenceReply{v.Where, b, f})
	}
	if d != full && len(r.Noise) > mostDifferences {
		r.Noise = append(r.Noise[:mostDifferences:mostDifferences], fmt.Sprintf("and %d more", len(r.Noise)-mostDifferences))
	}
	return r
}

func (r *compareReply) text() string {
	var b strings.Builder
	if !r.Verified {
		b.WriteString("NOT VERIFIED that a fork answered: what everybody shares may have been compared with itself.\n")
		for _, why := range r.NotVerified {
			fmt.Fprintf(&b, "- %s\n", why)
		}
		if r.TraceID != "" {
			b.WriteString("next: call explain_routing with trace_id\n")
		}
	}
	if r.Verified {
		where := ", not at the same Services in each request"
		if len(r.ForksReached) > 0 {
			where = " at " + strings.Join(r.ForksReached, ", ")
		}
		fmt.Fprintf(&b, "VERIFIED: a fork answered each of the sandbox's requests%s.\n", where)
		if len(r.ForksNotAsked) > 0 {
			fmt.Fprintf(&b, "This says nothing of your change to %s: no call to it is on record in each request.\n", strings.Join(r.ForksNotAsked, ", "))
		}
	}
	if r.Same {
		fmt.Fprintf(&b, "No difference beyond noise, in %d and %d answers; status %d.\n", r.Baseline.Answers, r.Fork.Answers, r.Fork.Status)
	} else {
		fmt.Fprintf(&b, "%d differences, the same in %d answers of what everybody shares and %d of the fork:\n", len(r.Differences)+r.Omitted, r.Baseline.Answers, r.Fork.Answers)
	}
	for _, d := range r.Differences {
		fmt.Fprintf(&b, "- %s: %s, in the fork %s\n", d.Where, d.Baseline, d.Fork)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "and %d more: ask with detail: full\n", r.Omitted)
	}
	if len(r.Noise) > 0 {
		fmt.Fprintf(&b, "Left out as noise: %s\n", strings.Join(r.Noise, ", "))
	}
	if r.TraceID != "" {
		fmt.Fprintf(&b, "trace_id: %s\n", r.TraceID)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
