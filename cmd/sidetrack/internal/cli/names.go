// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// sandboxName is the name in what -o name prints of a sandbox, and in what else kubectl
// takes for one, such as sandbox/pr-42. Other text stays as it is.
func sandboxName(text string) string {
	switch kind, name, _ := strings.Cut(text, "/"); kind {
	case "sandbox", "sandboxes", "sandbox.sidetrack.dev", "sandboxes.sidetrack.dev":
		if name != "" {
			return name
		}
	}
	return text
}

// sandboxesFirst has the first arguments, so many at most, be names of sandboxes.
func sandboxesFirst(most int, next cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := next(cmd, args); err != nil {
			return err
		}
		for i := range args[:min(most, len(args))] {
			args[i] = sandboxName(args[i])
		}
		return nil
	}
}
