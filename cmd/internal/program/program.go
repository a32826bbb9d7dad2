// SPDX-License-Identifier: Apache-2.0

// Package program is what all of our programs have in common: they end on a
// signal, print their errors in one line, know their version and log alike. It
// knows nothing of what any of them does.
package program

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Main runs root, whose context ends with SIGTERM or SIGINT, and ends the
// process.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, root.Name()+": "+strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

// Root returns a program's command without subcommands.
func Root(name, short string) *cobra.Command {
	return &cobra.Command{
		Use:               name,
		Short:             short,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.NoArgs,
	}
}

// Version returns linked, what the linker has set, or else what Go knows of the
// module's version.
func Version(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// VersionCommand prints a program's version.
func VersionCommand(name, version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s, %s/%s)\n", name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// LogFlags say how the log looks.
type LogFlags struct{ level, format string }

// Register adds the flags.
func (l *LogFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&l.level, "log-level", "info", "least important `level` that is logged: debug, info, warn or error")
	flags.StringVar(&l.format, "log-format", "text", "`format` of the log: text or json")
}

// Logger returns a logger that writes to w, or says which flag is wrong.
func (l *LogFlags) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is unknown: use debug, info, warn or error", l.level)
	}
	switch options := (&slog.HandlerOptions{Level: level}); l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format: %q is unknown: use text or json", l.format)
}
