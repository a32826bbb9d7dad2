// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/loader"
)

func uninstallCommand() *cobra.Command {
	bpffs, run := loader.DefaultConfig().BPFFS, "/run"
	var logs program.LogFlags
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything that an agent which is gone has left: pins, links, its socket; nobody else's",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logs.Logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			// First, since it refuses while an agent runs.
			if err := loader.Uninstall(bpffs, log); err != nil {
				return err
			}
			return removeRunFolder(run)
		},
	}
	cmd.Flags().StringVar(&bpffs, "bpffs", bpffs, "`directory` where the BPF file system is mounted")
	cmd.Flags().StringVar(&run, "run", run, "`directory` with the agent's folder sidetrack, in which its socket is")
	logs.Register(cmd.Flags())
	return cmd
}

// removeRunFolder removes the folder sidetrack below run with the sockets in it.
// It is not emptied of folders: none of them would be ours.
func removeRunFolder(run string) error {
	dir := filepath.Join(run, "sidetrack")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the agent's folder: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the agent's socket: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove the agent's folder: %w", err)
	}
	return nil
}

// waitCommand is what stays of a DaemonSet's pod whose work has been done before
// it: such a pod is started again when it ends.
func waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait",
		Short: "Do nothing until SIGTERM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}
