// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

var update = flag.Bool("update", false, "write the commands' reference into docs/cli.md")

// begin is after what people have written.
const begin = "<!-- What follows is written by go test ./cmd/sidetrack/internal/cli -update. -->\n"

// TestTheReferenceHasEveryCommandAndFlag compares docs/cli.md with what the
// commands' help says.
func TestTheReferenceHasEveryCommandAndFlag(t *testing.T) {
	name := filepath.Join("..", "..", "..", "..", "docs", "cli.md")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	written, got, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("docs/cli.md lacks the line %q", begin)
	}
	var b strings.Builder
	reference(&b, newProgram(t.Context(), "sidetrack", "test", genericiooptions.NewTestIOStreamsDiscard()).command())
	if *update {
		if err := os.WriteFile(name, []byte(written+begin+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(b.String(), got); d != "" {
		t.Errorf("docs/cli.md is not what the commands say (-want +got); go test ./cmd/sidetrack/internal/cli -update writes it:\n%s", d)
	}
}

func reference(b *strings.Builder, cmd *cobra.Command) {
	if cmd.Runnable() && cmd.HasParent() && !cmd.HasSubCommands() {
		fmt.Fprintf(b, "\n### %s\n\n%s.\n", strings.TrimSuffix(cmd.UseLine(), " [flags]"), strings.TrimSuffix(cmd.Short, "."))
		if cmd.NonInheritedFlags().HasAvailableFlags() {
			b.WriteString("\n| flag | |\n|---|---|\n")
		}
		cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" {
				row(b, f)
			}
		})
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			reference(b, sub)
		}
	}
}

func row(b *strings.Builder, f *pflag.Flag) {
	kind, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if kind != "" {
		name += " " + kind
	}
	if d := f.DefValue; d != "" && d != "[]" && d != "false" && d != "0" && d != "0s" {
		usage += " (default " + d + ")"
	}
	fmt.Fprintf(b, "| `%s` | %s |\n", name, strings.ReplaceAll(strings.ReplaceAll(usage, "|", `\|`), "\n", " "))
}
