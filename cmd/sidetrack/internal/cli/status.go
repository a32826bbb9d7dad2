// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/health"
)

// statusFlags are those of status.
type statusFlags struct {
	name                           string
	allNamespaces, watch, headless bool
	output                         *output
}

func (p *program) statusCommand() *cobra.Command {
	f := statusFlags{output: resultOutput(formatWide, formatName)}
	cmd := &cobra.Command{
		Use:   "status [SANDBOX]",
		Short: "Say what is in force on which node, of one sandbox or all of the namespace",
		Long: `Say which nodes are covered, which sandboxes are in force on them, and what is wrong where they are not.

REVISION counts changes that nodes have to put in force; NODES is how many have the newest. A node is covered when its
agent works and looks at all of its pods' traffic; requests that come from elsewhere reach the baseline.

With --watch all is printed again when something other than the age of a word has changed; with -o name, what has, or is gone.`,
		Example: p.example(`
  %[1]s status
  %[1]s status pr-42 --watch
  %[1]s status -A -o wide`),
		GroupID: "look",
		Args:    sandboxesFirst(1, cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				f.name = args[0]
			}
			if f.allNamespaces && f.name != "" {
				return usage(cmd, errors.New("a sandbox cannot be named with --all-namespaces: use -n"))
			}
			if err := f.output.check(cmd); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			if f.allNamespaces {
				c.Namespace = metav1.NamespaceAll
			}
			s, err := health.Look(cmd.Context(), c, "", f.name)
			if err != nil {
				return err
			}
			if len(s.Sandboxes) == 0 && f.output.printer == nil {
				fmt.Fprintln(p.streams.ErrOut, p.nothing(cmd, c.Namespace, f.allNamespaces))
			}
			if len(s.Nodes) == 0 && s.NodesHidden == "" && f.output.printer == nil {
				fmt.Fprintf(p.streams.ErrOut, "No node has an agent: %s doctor says what is missing.\n", p.name)
			}
			if err := p.writeStatus(s, &f, nil); err != nil || !f.watch {
				return err
			}
			return p.watchStatus(cmd.Context(), c, &f, s)
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "of all namespaces")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on, and print it again when it has changed")
	flags.BoolVar(&f.headless, "no-headers", false, "leave out the tables' heads")
	f.output.register(cmd)
	return cmd
}

// How a status is watched: changes that come together are looked at together, and what
// no change tells of, such as an agent's silence, is looked for meanwhile.
const (
	statusPause = 200 * time.Millisecond
	statusAfter = 10 * time.Second
)

// watchStatus prints the status again whenever it has changed, until it is interrupted
// or the sandbox is gone.
func (p *program) watchStatus(ctx context.Context, c *cluster.Cluster, f *statusFlags, last *health.Status) error {
	kinds := []cluster.Kind{{Object: &v1alpha1.Sandbox{}, List: &v1alpha1.SandboxList{}, Namespace: c.Namespace}}
	if last.NodesHidden == "" {
		kinds = append(kinds, cluster.Kind{Object: &v1alpha1.NodeState{}, List: &v1alpha1.NodeStateList{}})
	}
	changed := cluster.Changes(ctx, c, kinds...)
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil // The user has seen enough.
		case <-changed:
		case <-time.After(statusAfter):
		}
		s, err := health.Look(ctx, c, "", f.name)
		switch {
		case ctx.Err() != nil:
			return nil
		case isNotFound(err):
			return err
		case err != nil:
			// The API server may be back in a moment.
			if told != err.Error() {
				told = err.Error()
				complain(p.streams.ErrOut, p.name, err)
			}
		case !reflect.DeepEqual(timeless(s), timeless(last)):
			if err := p.writeStatus(s, f, last); err != nil {
				return err
			}
			last, told = s, ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusPause):
		}
	}
}

// timeless is a status without how long ago agents were heard of.
func timeless(s *health.Status) *health.Status {
	out := *s
	out.Nodes = append([]health.Node(nil), s.Nodes...)
	for i := range out.Nodes {
		out.Nodes[i].HeartbeatSeconds = 0
	}
	return &out
}

// writeStatus writes it in the format that is wanted. last is what was written before,
// nil at first.
func (p *program) writeStatus(s *health.Status, f *statusFlags, last *health.Status) error {
	if done, err := f.output.result(p.streams.Out, s); done {
		return err
	}
	if f.output.names() {
		if s.NodesHidden != "" && last == nil {
			fmt.Fprintf(p.streams.ErrOut, "nodes: %s\n", s.NodesHidden)
		}
		_, err := io.WriteString(p.streams.Out, strings.Join(statusNames(s, last), ""))
		return err
	}
	if last != nil {
		fmt.Fprintf(p.streams.Out, "\n%s\n", time.Now().Format("15:04:05"))
	}
	return statusTables(p.streams.Out, s, f)
}

// statusNames are the lines of what differs from a status before, what is gone included;
// of all when there is none.
func statusNames(s, last *health.Status) (lines []string) {
	if last == nil {
		last = &health.Status{}
	}
	before, now := timeless(last).Nodes, timeless(s).Nodes
	if s.NodesHidden != "" {
		before = nil // They are not seen any more, and may be there.
	}
	for _, n := range differing(before, now, func(n health.Node) string { return n.Name }) {
		lines = append(lines, "node/"+n.Name+"\n")
	}
	for _, sb := range differing(last.Sandboxes, s.Sandboxes, func(sb health.Sandbox) string { return sb.Namespace + "/" + sb.Name }) {
		lines = append(lines, "sandbox."+v1alpha1.Group+"/"+sb.Name+"\n")
	}
	return lines
}

// differing are those that are new or other than before, and then those that are gone.
func differing[T any](before, now []T, name func(T) string) (out []T) {
	gone := map[string]T{}
	for _, x := range before {
		gone[name(x)] = x
	}
	for _, x := range now {
		if last, ok := gone[name(x)]; !ok || !reflect.DeepEqual(last, x) {
			out = append(out, x)
		}
		delete(gone, name(x))
	}
	for _, x := range before {
		if _, ok := gone[name(x)]; ok {
			out = append(out, x)
		}
	}
	return out
}

// statusTables writes tables for people; of one sandbox all that there is.
func statusTables(out io.Writer, s *health.Status, f *statusFlags) error {
	wide := f.output.wide()
	if s.NodesHidden != "" {
		fmt.Fprintf(out, "nodes: %s\n", s.NodesHidden)
	} else if err := nodeTable(s, wide, f.headless).write(out); err != nil {
		return err
	}
	if (len(s.Nodes) > 0 || s.NodesHidden != "") && len(s.Sandboxes) > 0 {
		fmt.Fprintln(out)
	}
	if err := sandboxTable(s, wide, f.headless, f.allNamespaces).write(out); err != nil {
		return err
	}
	if !wide {
		for _, n := range s.Nodes {
			for _, problem := range n.Problems {
				fmt.Fprintf(out, "problem on %s: %s\n", n.Name, problem)
			}
		}
	}
	for i := range s.Sandboxes {
		sb := &s.Sandboxes[i]
		if !sb.Ready && !wide {
			fmt.Fprintf(out, "%s is not ready: %s\n", sb.Name, sb.Message)
		}
		if f.name != "" {
			for _, f := range sb.Forks {
				fmt.Fprintf(out, "fork of %s\n", f)
			}
			for _, r := range sb.Redirects {
				fmt.Fprintf(out, "redirect %s\n", r)
			}
		}
	}
	return nil
}

func nodeTable(s *health.Status, wide, headless bool) *columns {
	t := &columns{head: []string{"NODE", "AGENT", "HEARD", "PODS", "STATE"}}
	if wide {
		t.head = append(t.head, "TAKING OVER", "PROBLEMS")
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		agent, heard, pods, state := "-", "never", "", n.State
		if n.Agent != "" {
			agent, pods = n.Agent, fmt.Sprintf("%d of %d", n.Covered, n.Covered+n.Uncovered)
			heard = duration.HumanDuration(time.Duration(n.HeartbeatSeconds*float64(time.Second))) + " ago"
		}
		behind := strings.Join(n.Behind, ", ")
		if wide {
			t.row(n.Name, agent, heard, pods, state, orNone(behind), orNone(strings.Join(n.Problems, "; ")))
			continue
		}
		if behind != "" {
			state += ", taking over " + behind
		}
		t.row(n.Name, agent, heard, pods, state)
	}
	if headless {
		t.head = nil
	}
	return t
}

func sandboxTable(s *health.Status, wide, headless, namespaces bool) *columns {
	t := &columns{head: []string{"SANDBOX", "READY", "REASON", "REVISION", "NODES", "EXPIRES"}}
	if namespaces {
		t.head = append([]string{"NAMESPACE"}, t.head...)
	}
	if wide {
		t.head = append(t.head, "GENERATION", "FORKS", "REDIRECTS", "MESSAGE")
	}
	for i := range s.Sandboxes {
		sb := &s.Sandboxes[i]
		row := []string{sb.Name, fmt.Sprint(sb.Ready), sb.Reason, fmt.Sprint(sb.Revision), fmt.Sprintf("%d of %d", sb.Programmed, sb.Nodes), orNone(sb.ExpiresAt)}
		if namespaces {
			row = append([]string{sb.Namespace}, row...)
		}
		if wide {
			row = append(row, fmt.Sprint(sb.Generation), orNone(strings.Join(sb.Forks, "; ")), orNone(strings.Join(sb.Redirects, "; ")), orNone(sb.Message))
		}
		t.row(row...)
	}
	if headless {
		t.head = nil
	}
	return t
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
