// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/runner"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// How much of what tests print is told: the end, where the failures are.
const (
	mostOutput     = 8 << 10
	mostFullOutput = 256 << 10
	// usualRun is how long tests may take, beyond which most clients have given up.
	usualRun = 300
	mostRun  = 3600
)

type runInput struct {
	Sandbox        string            `json:"sandbox" jsonschema:"name, or namespace/name"`
	Image          string            `json:"image" jsonschema:"image that holds the tests"`
	Command        []string          `json:"command,omitempty" jsonschema:"command and arguments; what the image runs by itself when left out"`
	Env            map[string]string `json:"env,omitempty" jsonschema:"environment variables"`
	TimeoutSeconds int               `json:"timeout_seconds,omitempty" jsonschema:"how long the command may take"`
	Detail         detail            `json:"detail,omitempty" jsonschema:"short tells the last 8 KiB of what is printed, full 256 KiB"`
}

func (in runInput) wait() time.Duration {
	return time.Duration(in.TimeoutSeconds)*time.Second + 6*time.Minute
}

type runReply struct {
	Sandbox      string   `json:"sandbox"`
	Passed       bool     `json:"passed" jsonschema:"the command ended with exit code 0; says nothing of your change where no fork was reached"`
	ForksReached []string `json:"forks_reached,omitempty" jsonschema:"redirected Services at which forks answered while it ran, by the nodes' records"`
	NotVerified  []string `json:"not_verified,omitempty" jsonschema:"why what passed, or failed, may not be your change: no fork was reached, or calls went elsewhere. Calls that lost the routing key are known only where they have a traceparent"`
	Next         string   `json:"next,omitempty" jsonschema:"what to do about that"`
	ExitCode     int      `json:"exit_code"`
	Reason       string   `json:"reason,omitempty" jsonschema:"how it ended, where the code does not say all"`
	Seconds      float64  `json:"seconds"`
	Output       string   `json:"output"`
	Cut          string   `json:"cut,omitempty" jsonschema:"says that there was more output, and how to get it"`
}

func runTests() tool {
	return define("run_tests", "Run tests inside a sandbox", "your tests against it",
		`Run a command, such as a test suite, in a pod of the sandbox, and get its exit code, what it printed, and at which Services forks answered meanwhile. Its HTTP requests get the routing key by themselves, and its other connections follow the sandbox's redirects, so tests need no change. The pod is removed afterwards. An exit code other than 0 is a result, not a failure of this tool.`,
		acts, func(p properties) {
			tuneDetail(p)
			between(p["timeout_seconds"], 1, mostRun, usualRun)
			p["image"].Pattern = `\S`
		}, func(ctx context.Context, c call, in runInput) (*runReply, error) {
			sb, err := c.sandbox(ctx, in.Sandbox)
			if err != nil {
				return nil, err
			}
			image, err := c.server.ownImage(ctx, c.Cluster)
			if err != nil {
				return nil, err
			}
			req := runner.Request{
				Namespace: sb.Namespace, Sandbox: sb.Name, Image: in.Image, Command: in.Command,
				Timeout: time.Duration(in.TimeoutSeconds) * time.Second, AgentImage: image,
			}
			for name, value := range in.Env {
				if name == "" || strings.Contains(name, "=") {
					return nil, task.Usagef("env %q is not the name of a variable", name)
				}
				req.Env = append(req.Env, name+"="+value)
			}
			slices.Sort(req.Env)
			// What the ledger is asked of is a sandbox in force, as it is before the first request.
			if sb, err = proof.ToRun(ctx, c.Cluster, sb.Namespace, sb.Name, c.progress); err != nil {
				return nil, err
			}
			c.hide(sb)
			out := tail{most: mostOutput, redact: c.redact}
			if in.Detail == full {
				out.most = mostFullOutput
			}
			res, err := runner.Run(ctx, c.Cluster, req, out.add, c.progress)
			if err != nil {
				return nil, notRun(err, &out)
			}
			r := &runReply{
				Sandbox: handle(sb.Namespace, sb.Name), Passed: res.ExitCode == 0, ExitCode: res.ExitCode, Reason: res.Reason,
				Seconds: res.Took.Seconds(), Output: out.text(), Cut: out.cut(),
			}
			if r.Cut != "" && in.Detail != full {
				r.Cut += ": ask with detail: full, or have the tests print less"
			}
			v, err := proof.Account(ctx, c.Cluster, sb, proof.Ran{Pod: res.Pod, Began: res.Began})
			if err != nil {
				// What the tests have said is known, whatever becomes of the sandbox.
				v = proof.Verdict{Doubts: []string{"it is not known whether a fork answered: " + err.Error()}}
			}
			r.account(v)
			return r, nil
		})
}

// account says what the ledger knows of the time that the tests ran.
func (r *runReply) account(v proof.Verdict) {
	r.ForksReached = v.Reached
	for _, why := range v.Doubts {
		r.NotVerified = append(r.NotVerified, asTools(why))
	}
	switch {
	case len(r.NotVerified) == 0:
	case len(v.Reached) == 0:
		r.Next = "call send_request with the URL that the tests use: its hops show how far a request comes, and who loses the routing key"
	default:
		r.Next = "call explain_routing, which says where requests of the sandbox went and why"
	}
}

// notRun adds what was printed, and says what to do in words of tools.
func notRun(err error, out *tail) error {
	var f *task.Failure
	if !errors.As(err, &f) {
		return err
	}
	g := *f
	g.Err = err
	if out.total > 0 {
		g.Details = append(slices.Clone(g.Details), "it has printed:\n"+out.text())
	}
	if errors.Is(err, runner.ErrTimeout) {
		g.Remedy = "give it more time with timeout_seconds, or run fewer tests at once"
	}
	return &g
}

// tail keeps the end of what is printed.
type tail struct {
	most, total int
	redact      func(string) string // a line, before it is cut
	lines       []string
	size        int
}

func (t *tail) add(line string) error {
	if t.redact != nil {
		line = t.redact(line)
	}
	t.total += len(line)
	if len(line) > t.most {
		line = line[len(line)-t.most:]
	}
	t.lines = append(t.lines, line)
	t.size += len(line)
	for t.size > t.most {
		t.size -= len(t.lines[0])
		t.lines = t.lines[1:]
	}
	return nil
}

func (t *tail) text() string { return strings.ToValidUTF8(strings.Join(t.lines, ""), "�") }

func (t *tail) cut() string {
	if t.size == t.total {
		return ""
	}
	return fmt.Sprintf("the last %d of %d bytes", t.size, t.total)
}

func (r *runReply) text() string {
	var b strings.Builder
	if r.Passed {
		fmt.Fprintf(&b, "PASSED in %.1f s\n", r.Seconds)
	} else {
		fmt.Fprintf(&b, "FAILED with exit code %d in %.1f s", r.ExitCode, r.Seconds)
		if r.Reason != "" {
			b.WriteString(", " + r.Reason)
		}
		b.WriteString("\n")
	}
	if len(r.ForksReached) > 0 {
		fmt.Fprintf(&b, "Forks answered at %s meanwhile.\n", strings.Join(r.ForksReached, ", "))
	}
	if len(r.NotVerified) > 0 {
		b.WriteString("NOT VERIFIED that this is your change:\n")
		for _, why := range r.NotVerified {
			fmt.Fprintf(&b, "- %s\n", why)
		}
		fmt.Fprintf(&b, "next: %s\n", r.Next)
	}
	if r.Cut != "" {
		fmt.Fprintf(&b, "(%s)\n", r.Cut)
	}
	b.WriteString(r.Output)
	return strings.TrimSuffix(b.String(), "\n")
}
