// SPDX-License-Identifier: Apache-2.0

// Command sidetrackd is Sidetrack's node agent. Only flags and wiring are here.
package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/loader"
)

const name = "sidetrackd"

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() { program.Main(command()) }

func command() *cobra.Command {
	root := program.Root(name, "Sidetrack's node agent: tagged flows and tagged requests go to forks, all else is untouched")
	root.AddCommand(runCommand(), readyCommand(), uninstallCommand(), checkCommand(), ledgerCommand(), coveredCommand(), relayCommand(), program.VersionCommand(name, buildVersion()), waitCommand())
	return root
}

func checkCommand() *cobra.Command {
	cfg := loader.DefaultConfig()
	var kubernetes bool
	var podsCgroup string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say, line by line, whether this kernel and host can run the agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if podsCgroup != "" && !kubernetes {
				return errors.New("--pods-cgroup goes with --kubernetes: add it or leave it out")
			}
			lines := loader.Check(cfg)
			if kubernetes {
				for _, l := range pods.Check(podsCgroup) {
					lines = append(lines, loader.CheckLine(l))
				}
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			missing := 0
			for _, l := range lines {
				if l.OK {
					fmt.Fprintf(w, "ok\t%s\t%s\n", l.Name, l.Detail)
					continue
				}
				missing++
				fmt.Fprintf(w, "MISSING\t%s\t%s: %s\n", l.Name, oneLine(l.Detail), l.Remedy)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if missing > 0 {
				return fmt.Errorf("%d of the things that the agent needs are missing", missing)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.Cgroup, "cgroup", cfg.Cgroup, "`directory` of the cgroup (v2) below which traffic is looked at (default: the root of cgroup2)")
	cmd.Flags().StringVar(&cfg.BPFFS, "bpffs", cfg.BPFFS, "`directory` where the BPF file system is mounted, or is to be")
	cmd.Flags().BoolVar(&kubernetes, "kubernetes", kubernetes, "look as well whether the pods of this node of a cluster can be found")
	cmd.Flags().StringVar(&podsCgroup, "pods-cgroup", podsCgroup, "`directory` of the cgroup that the node's pods are in, with --kubernetes (default: kubepods or kubepods.slice, wherever that is)")
	return cmd
}

func buildVersion() string { return program.Version(version) }

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
