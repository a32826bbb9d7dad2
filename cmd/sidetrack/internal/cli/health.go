// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/health"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// outputFlag is -o of commands whose results are no objects of the API.
type outputFlag string

func (o *outputFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "", "json or yaml instead of text")
	completeFlag(cmd, "output", oneOf("json", "yaml"))
}

// check refuses what is neither.
func (o outputFlag) check(cmd *cobra.Command) error {
	switch o {
	case "", "json", "yaml":
		return nil
	}
	return usage(cmd, fmt.Errorf("-o %s is unknown: use json or yaml", o))
}

// print prints a result where one of the formats is wanted, and reports whether it
// was.
func (o outputFlag) print(w io.Writer, result any) (bool, error) {
	switch o {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return true, e.Encode(result)
	case "yaml":
		text, err := yaml.Marshal(result)
		if err == nil {
			_, err = w.Write(text)
		}
		return true, err
	}
	return false, nil
}

func (p *program) statusCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "status [SANDBOX]",
		Short: "Say what is in force on which node, of one sandbox or all of the namespace",
		Long: `Say which nodes are covered, which sandboxes are in force on them, and what is wrong where they are not.

REVISION counts changes that nodes have to put in force; NODES is how many have the newest. A node is covered when its
agent works and looks at all of its pods' traffic; requests that come from elsewhere reach the baseline.`,
		GroupID: "look",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			s, err := health.Look(cmd.Context(), c, "", name)
			if err != nil {
				return err
			}
			if done, err := output.print(p.streams.Out, s); done {
				return err
			}
			return writeStatus(p.streams.Out, s, name != "")
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	output.register(cmd)
	return cmd
}

// writeStatus writes tables for people; of one sandbox all that there is.
func writeStatus(out io.Writer, s *health.Status, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	if s.NodesHidden != "" {
		fmt.Fprintf(w, "nodes: %s\n", s.NodesHidden)
	} else {
		fmt.Fprintln(w, "NODE\tAGENT\tHEARD\tPODS\tSTATE")
		for _, n := range s.Nodes {
			heard, pods, agent := "never", "", "-"
			if n.Agent != "" {
				agent, pods = n.Agent, fmt.Sprintf("%d of %d", n.Covered, n.Covered+n.Uncovered)
				heard = duration.HumanDuration(time.Duration(n.HeartbeatSeconds*float64(time.Second))) + " ago"
			}
			state := n.State
			if len(n.Behind) > 0 {
				state += ", taking over " + strings.Join(n.Behind, ", ")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Name, agent, heard, pods, state)
		}
	}
	fmt.Fprintln(w)
	if len(s.Sandboxes) > 0 {
		fmt.Fprintln(w, "SANDBOX\tREADY\tREASON\tREVISION\tNODES\tEXPIRES")
	}
	for i := range s.Sandboxes {
		sb := &s.Sandboxes[i]
		expires := "-"
		if sb.ExpiresAt != "" {
			expires = sb.ExpiresAt
		}
		fmt.Fprintf(w, "%s\t%t\t%s\t%d\t%d of %d\t%s\n", sb.Name, sb.Ready, sb.Reason, sb.Revision, sb.Programmed, sb.Nodes, expires)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		for _, problem := range n.Problems {
			fmt.Fprintf(out, "problem on %s: %s\n", n.Name, problem)
		}
	}
	for i := range s.Sandboxes {
		sb := &s.Sandboxes[i]
		if !sb.Ready {
			fmt.Fprintf(out, "%s is not ready: %s\n", sb.Name, sb.Message)
		}
		if all {
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

func (p *program) doctorCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what a cluster lacks for sandboxes, and what you may not do in it",
		Long: `Look, line by line, whether everything is there that sandboxes need: Kubernetes' version, resource definitions,
the controller, an agent that works on every node, the names under which agents look for routing keys, the ledger's API, and your permissions in the namespace.

Exit status: 0 when nothing is missing, 3 when something is.`,
		GroupID: "look",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			checks, err := health.Doctor(cmd.Context(), c, "", p.version)
			if err != nil {
				return err
			}
			if done, err := output.print(p.streams.Out, checks); done {
				if err == nil && !health.Ready(checks) {
					err = exitStatus(exitNotReady)
				}
				return err
			}
			w := tabwriter.NewWriter(p.streams.Out, 0, 0, 2, ' ', 0)
			missing := 0
			for _, c := range checks {
				text := c.Detail
				if c.Remedy != "" {
					text += ": " + c.Remedy
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", c.Result, c.Name, text)
				if c.Result == health.Missing {
					missing++
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if missing > 0 {
				return &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("%d of the things that are needed are missing", missing), Remedy: "mend the first of them"}
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	output.register(cmd)
	return cmd
}
