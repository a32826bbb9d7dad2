// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/podlog"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

const (
	usualLines = 50
	mostLines  = 5000
	// mostLog is how many bytes of a container's log are told in short.
	mostLog = 8 << 10
	// mostFullLog is how many in full.
	mostFullLog = 256 << 10
)

type logsInput struct {
	Sandbox      string `json:"sandbox" jsonschema:"name, or namespace/name"`
	Workload     string `json:"workload,omitempty" jsonschema:"only of the fork of this workload"`
	Container    string `json:"container,omitempty" jsonschema:"only of this container"`
	Lines        int    `json:"lines,omitempty" jsonschema:"how many lines of each container, the newest"`
	SinceSeconds int    `json:"since_seconds,omitempty" jsonschema:"only lines that are not older"`
	Previous     bool   `json:"previous,omitempty" jsonschema:"of the run before, where a container was started again"`
	Detail       detail `json:"detail,omitempty" jsonschema:"short tells 8 KiB of each container at most, full 256 KiB"`
}

type logsReply struct {
	Sandbox string    `json:"sandbox"`
	Logs    []logItem `json:"logs"`
}

type logItem struct {
	Workload  string `json:"workload" jsonschema:"what the fork is a copy of"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
	Text      string `json:"text"`
	Cut       string `json:"cut,omitempty" jsonschema:"says that there is more, and how to get it"`
}

func sandboxLogs() tool {
	return define("sandbox_logs", "Read the forks' logs", "",
		`Read what the containers of a sandbox's forks have written: the newest lines of each. It does not read the logs of what everybody shares.`,
		reads, func(p properties) {
			tuneDetail(p)
			between(p["lines"], 1, mostLines, usualLines)
			between(p["since_seconds"], 0, 7*24*3600, 0)
		}, func(ctx context.Context, c call, in logsInput) (*logsReply, error) {
			sb, err := c.sandbox(ctx, in.Sandbox)
			if err != nil {
				return nil, err
			}
			var want string
			if in.Workload != "" {
				if want, err = forkNamed(sb, in.Workload); err != nil {
					return nil, err
				}
			}
			selector, err := sandbox.PodSelector(sb.Name)
			if err != nil {
				return nil, err
			}
			r := &logsReply{Sandbox: handle(sb.Namespace, sb.Name), Logs: []logItem{}}
			find := func(p *corev1.Pod, container string) *logItem {
				for i := range r.Logs {
					if r.Logs[i].Pod == p.Name && r.Logs[i].Container == container {
						return &r.Logs[i]
					}
				}
				r.Logs = append(r.Logs, logItem{Workload: sandbox.ForkedFrom(p), Pod: p.Name, Container: container})
				return &r.Logs[len(r.Logs)-1]
			}
			seen := map[string]bool{}
			o := podlog.Options{Tail: int64(in.Lines), Since: time.Duration(in.SinceSeconds) * time.Second, Previous: in.Previous}
			err = podlog.Pods(ctx, c.Cluster, sb.Namespace, selector, o, func(p *corev1.Pod, container string) bool {
				if want != "" && sandbox.ForkedFrom(p) != want {
					return false
				}
				if seen[container] = true; in.Container != "" && container != in.Container {
					return false
				}
				// One that has run once has no run before, and others may have.
				if in.Previous && restarts(p, container) == 0 {
					return false
				}
				find(p, container)
				return true
			}, func(l podlog.Line) error {
				find(l.Pod, l.Container).Text += l.Text
				return nil
			})
			if err != nil {
				return nil, err
			}
			if len(r.Logs) == 0 {
				return nil, in.nothing(r.Sandbox, seen)
			}
			most := mostLog
			if in.Detail == full {
				most = mostFullLog
			}
			for i := range r.Logs {
				r.Logs[i].Text = c.redact(r.Logs[i].Text)
				r.Logs[i].shorten(most, in.Detail)
			}
			return r, nil
		})
}

// nothing is why there is no log, given the containers that have run.
func (in logsInput) nothing(sandbox string, seen map[string]bool) error {
	switch {
	case in.Container != "" && len(seen) > 0 && !seen[in.Container]:
		return &task.Failure{Kind: task.Usage, Message: "no container " + in.Container + " of sandbox " + sandbox + " has run", Remedy: "there are " + strings.Join(slices.Sorted(maps.Keys(seen)), ", ")}
	case in.Previous && len(seen) > 0:
		return &task.Failure{Kind: task.Usage, Message: "no such container of sandbox " + sandbox + " was started again", Remedy: "leave previous out for what it has written since its start"}
	}
	return &task.Failure{Kind: task.NotReady, Message: "no such container of sandbox " + sandbox + " has run yet", Remedy: "sandbox_status says why"}
}

// restarts is how often a container was started again.
func restarts(p *corev1.Pod, container string) int32 {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return list[i].RestartCount
			}
		}
	}
	return 0
}

// forkNamed finds the workload of a fork by NAME or KIND/NAME.
func forkNamed(sb *v1alpha1.Sandbox, text string) (string, error) {
	ref, err := sandbox.ParseWorkload(text)
	if err != nil {
		return "", err
	}
	var names []string
	for _, f := range sb.Spec.Forks {
		names = append(names, sandbox.Name(f.Workload))
	}
	if !slices.Contains(names, sandbox.Name(ref)) {
		return "", &task.Failure{Kind: task.Usage, Message: fmt.Sprintf("sandbox %s has no fork of %s", sb.Name, sandbox.Name(ref)), Remedy: "it has forks of " + strings.Join(names, ", ")}
	}
	return sandbox.Name(ref), nil
}

// shorten keeps the end, whole lines of it where there are lines.
func (l *logItem) shorten(most int, d detail) {
	if len(l.Text) <= most {
		return
	}
	rest := l.Text[len(l.Text)-most:]
	if i := strings.IndexByte(rest, '\n'); i >= 0 && i+1 < len(rest) {
		rest = rest[i+1:]
	}
	l.Cut = fmt.Sprintf("the last %d of %d bytes: ask with fewer lines or since_seconds", len(rest), len(l.Text))
	if d != full {
		l.Cut += ", or with detail: full"
	}
	l.Text = strings.ToValidUTF8(rest, "�")
}

func (r *logsReply) text() string {
	var b strings.Builder
	for _, l := range r.Logs {
		fmt.Fprintf(&b, "== fork of %s, pod %s, container %s", l.Workload, l.Pod, l.Container)
		if l.Cut != "" {
			b.WriteString(", " + l.Cut)
		}
		b.WriteString("\n")
		text := strings.TrimSuffix(l.Text, "\n")
		if text == "" {
			text = "(nothing)"
		}
		b.WriteString(text + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
