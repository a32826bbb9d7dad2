// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/daemon/controller"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/collector"
)

// ledgerFlags are the flags of "sidetrack-controller ledger".
type ledgerFlags struct {
	config     collector.Config
	kubeconfig string
	logs       program.LogFlags
}

func ledgerCommand() *cobra.Command {
	f := ledgerFlags{config: collector.DefaultConfig()}
	cmd := &cobra.Command{
		Use:   "ledger --namespace NAMESPACE",
		Short: "Serve the ledgers of all nodes as the aggregated API ledger.sidetrack.dev, until SIGTERM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *ledgerFlags) register(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&f.kubeconfig, "kubeconfig", f.kubeconfig, "`file` that says how to reach the API server (default: as a pod of the cluster, else as kubectl would)")
	flags.StringVar(&f.config.Address, "address", f.config.Address, "`host:port` where the API server asks")
	flags.StringVar(&f.config.HealthAddress, "health-address", f.config.HealthAddress, "`host:port` of /healthz and /readyz; 0 serves none")
	flags.StringVar(&f.config.Service, "service", f.config.Service, "`name` of the Service that leads here, as the APIService has it")
	flags.StringVar(&f.config.Namespace, "namespace", f.config.Namespace, "`namespace` of that Service")
	flags.DurationVar(&f.config.Patience, "node-patience", f.config.Patience, "how long a node may take to answer before it is named as one that has not")
	f.logs.Register(flags)
}

func (f *ledgerFlags) run(ctx context.Context, stderr io.Writer) error {
	log, err := f.logs.Logger(stderr)
	if err != nil {
		return err
	}
	if f.config.REST, err = restConfig(f.kubeconfig); err != nil {
		return fmt.Errorf("find the API server: %w: give --kubeconfig outside of a cluster", err)
	}
	f.config.REST.UserAgent = name + "-ledger/" + buildVersion()
	// It asks for each reader.
	f.config.REST.QPS = -1
	f.config.Logger = log
	controller.LogTo(log)
	log.Info("collector of the ledger runs", "version", buildVersion())
	err = collector.Run(ctx, f.config)
	log.Info("collector of the ledger ends")
	return err
}
