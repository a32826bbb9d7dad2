// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/explain"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

func (p *program) explainCommand() *cobra.Command {
	var r explain.Request
	output := resultOutput(formatWide)
	cmd := &cobra.Command{
		Use:   "explain SANDBOX [SERVICE[:PORT] | URL]",
		Short: "Say why requests go to a sandbox's fork, or do not",
		Long: `Go through what a tagged request meets on its way to the fork: the key, the sandbox, the Service, capture, the pod
that calls, its node, coverage, the fork, who passes the key on, and what the ledger has seen; with what to do where one
of them does not hold.

Exit status: 0 when nothing is known that keeps requests from the fork, 3 otherwise.`,
		Example: p.example(`
  %[1]s explain pr-42 route
  %[1]s explain pr-42 http://route.shop/quote --from deploy/cart`),
		GroupID: "look",
		Args:    sandboxesFirst(1, cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			if r.TraceID != "" && !ledger.ValidTraceID(r.TraceID) {
				return usage(cmd, fmt.Errorf("--trace %q is not a trace id: use 32 of 0-9 a-f, not all zero", r.TraceID))
			}
			r.Sandbox = args[0]
			if len(args) > 1 {
				r.Target = args[1]
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			e, err := explain.Explain(cmd.Context(), c, r)
			if err != nil {
				return err
			}
			done, err := output.result(p.streams.Out, e)
			if !done {
				err = p.writeExplanation(e, output.wide())
			}
			if err == nil && !e.Reaches {
				err = exitStatus(exitNotReady)
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return p.complete(sandboxNames)(cmd, args, word)
			case 1:
				return p.complete(serviceNames)(cmd, args, word)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&r.From, "from", "", "`caller`: a pod's name, or KIND/NAME of a workload")
	cmd.Flags().StringVar(&r.TraceID, "trace", "", "look at the ledger's records of the trace with this `id` alone")
	output.register(cmd)
	completeFlag(cmd, "from", p.complete(workloadNames))
	return cmd
}

// writeExplanation writes the steps for people; wide with what each comes to and what
// to do in columns of their own, and with all that is known of the records.
func (p *program) writeExplanation(e *explain.Explanation, wide bool) error {
	var t columns
	if wide {
		t.head = []string{"VERDICT", "TOPIC", "DETAIL", "REMEDY"}
	}
	for _, s := range e.Steps {
		detail, remedy := asCalled(p.name, s.Detail), ""
		if s.Verdict != explain.Holds {
			remedy = asCalled(p.name, s.Remedy)
		}
		if wide {
			t.row(string(s.Verdict), s.Topic, detail, remedy)
		} else {
			t.row(string(s.Verdict), s.Topic, withRemedy(detail, remedy))
		}
	}
	if err := t.write(p.streams.Out); err != nil {
		return err
	}
	switch {
	case wide && len(e.Records) > 0:
		fmt.Fprintln(p.streams.Out)
		t := columns{head: hops.Columns()}
		for i := range e.Records {
			t.row(hops.Cells(&e.Records[i])...)
		}
		if err := t.write(p.streams.Out); err != nil {
			return err
		}
		fmt.Fprintln(p.streams.Out)
	default:
		for i := range e.Records {
			fmt.Fprintf(p.streams.Out, "  %s %s\n", e.Records[i].Time.Format("15:04:05.000"), hops.Line(&e.Records[i]))
		}
	}
	_, err := fmt.Fprintf(p.streams.Out, "%s\n", asCalled(p.name, e.Summary))
	return err
}

// withRemedy is what there is to say and what to do, in one cell.
func withRemedy(detail, remedy string) string {
	if remedy == "" {
		return detail
	}
	return detail + ": " + remedy
}
