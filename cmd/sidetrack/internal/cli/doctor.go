// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/health"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func (p *program) doctorCommand() *cobra.Command {
	output := resultOutput(formatWide)
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
			done, err := output.result(p.streams.Out, checks)
			switch {
			case done && err == nil && !health.Ready(checks):
				return exitStatus(exitNotReady)
			case done:
				return err
			}
			return p.writeChecks(checks, output.wide())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	output.register(cmd)
	return cmd
}

// writeChecks writes what doctor has found for people; wide with what to do in a column
// of its own.
func (p *program) writeChecks(checks []health.Check, wide bool) error {
	var t columns
	if wide {
		t.head = []string{"RESULT", "CHECK", "DETAIL", "REMEDY"}
	}
	missing := 0
	for _, c := range checks {
		detail, remedy := asCalled(p.name, c.Detail), asCalled(p.name, c.Remedy)
		if wide {
			t.row(string(c.Result), c.Name, detail, remedy)
		} else {
			t.row(string(c.Result), c.Name, withRemedy(detail, remedy))
		}
		if c.Result == health.Missing {
			missing++
		}
	}
	if err := t.write(p.streams.Out); err != nil {
		return err
	}
	if missing > 0 {
		return &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("%d of the things that are needed are missing", missing), Remedy: "mend the first of them"}
	}
	return nil
}
