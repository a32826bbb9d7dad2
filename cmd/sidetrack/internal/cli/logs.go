// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/podlog"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func (p *program) logsCommand() *cobra.Command {
	o := podlog.Options{Tail: -1}
	var fork, container string
	prefix := true
	cmd := &cobra.Command{
		Use:   "logs SANDBOX",
		Short: "Print the logs of a sandbox's forks",
		Long: `Print the logs of the containers of a sandbox's forks, each line with the fork's and the container's name in front.
With -f, go on, also with pods that take the place of others, until interrupted, or the sandbox and its pods are gone.`,
		Example: p.example(`
  %[1]s logs pr-42 -f --tail 20
  %[1]s logs pr-42 --fork route -c app --previous`),
		GroupID: "look",
		Args:    sandboxesFirst(1, cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			sb, err := sandbox.Get(cmd.Context(), c, "", args[0])
			if err != nil {
				return err
			}
			var want v1alpha1.WorkloadRef
			if fork != "" {
				if want, err = forkOf(sb, fork); err != nil {
					return err
				}
			}
			selector, err := sandbox.PodSelector(sb.Name)
			if err != nil {
				return err
			}
			seen := false
			read := func(ctx context.Context) error {
				return podlog.Pods(ctx, c, sb.Namespace, selector, o, func(pod *corev1.Pod, name string) bool {
					chosen := (container == "" || name == container) && (fork == "" || sandbox.ForkedFrom(pod) == sandbox.Name(want))
					seen = seen || chosen
					return chosen
				}, func(l podlog.Line) error {
					text := l.Text
					if !strings.HasSuffix(text, "\n") {
						text += "\n"
					}
					if prefix {
						text = fmt.Sprintf("[%s/%s %s] %s", afterSlash(sandbox.ForkedFrom(l.Pod)), l.Container, l.Pod.Name[strings.LastIndex(l.Pod.Name, "-")+1:], text)
					}
					_, err := io.WriteString(p.streams.Out, text)
					return err
				})
			}
			if o.Follow {
				err = untilGone(cmd.Context(), c, sb, lastLines, read)
			} else {
				err = read(cmd.Context())
			}
			if err == nil && !seen {
				fmt.Fprintf(p.streams.ErrOut, "no such container of sandbox %s has run yet: %s sandbox wait %s says why\n", sb.Name, p.name, sb.Name)
			}
			return err
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on until interrupted, or the sandbox is gone")
	flags.Int64Var(&o.Tail, "tail", o.Tail, "how many `lines` of what is there already; -1 is all")
	flags.DurationVar(&o.Since, "since", 0, "leave out lines that are older than this")
	flags.BoolVarP(&o.Previous, "previous", "p", false, "of the containers' last run but one")
	flags.StringVar(&fork, "fork", "", "only of the fork of this `workload`")
	flags.StringVarP(&container, "container", "c", "", "only of the container of this `name`")
	flags.BoolVar(&prefix, "prefix", prefix, "put names in front of each line")
	return cmd
}

func afterSlash(s string) string { return s[strings.LastIndex(s, "/")+1:] }

// forkOf finds the fork that is meant by NAME or KIND/NAME.
func forkOf(sb *v1alpha1.Sandbox, text string) (v1alpha1.WorkloadRef, error) {
	want, err := sandbox.ParseWorkload(text)
	if err != nil {
		return want, err
	}
	var names []string
	for _, f := range sb.Spec.Forks {
		if f.Workload.Name == want.Name && (!strings.Contains(text, "/") || f.Workload.Kind == want.Kind) {
			return f.Workload, nil
		}
		names = append(names, sandbox.Name(f.Workload))
	}
	return want, task.Usagef("sandbox %s has no fork of %s: it has %s", sb.Name, text, strings.Join(names, ", "))
}
