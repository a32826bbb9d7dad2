// SPDX-License-Identifier: Apache-2.0

// Command sidetrack-controller makes the forks that Sandboxes ask for and says
// what has become of them. Only flags and wiring are here.
package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/daemon/controller"
)

const name = "sidetrack-controller"

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() { program.Main(command()) }

func command() *cobra.Command {
	root := program.Root(name, "Sidetrack's controller: makes forks, resolves redirects, and says what has become of Sandboxes")
	root.AddCommand(runCommand(), ledgerCommand(), program.VersionCommand(name, buildVersion()))
	return root
}

// runFlags are the flags of "sidetrack-controller run".
type runFlags struct {
	config       controller.Config
	kubeconfig   string
	nodeSelector string
	qps          float32
	logs         program.LogFlags
}

func runCommand() *cobra.Command {
	f := runFlags{config: controller.DefaultConfig(), qps: 100}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the controller until SIGTERM",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.ErrOrStderr())
		},
	}
	f.register(cmd.Flags())
	return cmd
}

func (f *runFlags) register(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&f.kubeconfig, "kubeconfig", f.kubeconfig, "`file` that says how to reach the API server (default: as a pod of the cluster, else as kubectl would)")
	flags.StringVar(&f.config.MetricsAddress, "metrics-address", f.config.MetricsAddress, "`host:port` of /metrics; 0 serves none")
	flags.StringVar(&f.config.HealthAddress, "health-address", f.config.HealthAddress, "`host:port` of /healthz and /readyz; 0 serves none")
	flags.BoolVar(&f.config.LeaderElection, "leader-elect", f.config.LeaderElection, "let only one of several controllers act")
	flags.StringVar(&f.config.LeaderElectionNamespace, "namespace", f.config.LeaderElectionNamespace, "`namespace` of the Lease (default: the pod's own)")
	flags.StringVar(&f.nodeSelector, "node-selector", f.nodeSelector, "label `selector` of the nodes that agents run on, as the DaemonSet has it: all of them have to have a sandbox in force before it is Ready (default: every linux node)")
	flags.IntVar(&f.config.Workers, "workers", f.config.Workers, "how many objects of a kind are worked on at a time")
	flags.Float32Var(&f.qps, "kube-api-qps", f.qps, "most requests per second to the API server, over time; twice as many at once")
	f.logs.Register(flags)
}

func (f *runFlags) run(ctx context.Context, stderr io.Writer) error {
	log, err := f.logs.Logger(stderr)
	if err != nil {
		return err
	}
	if f.config.NodeSelector, err = labels.Parse(f.nodeSelector); err != nil {
		return fmt.Errorf("--node-selector: %w", err)
	}
	if f.config.REST, err = restConfig(f.kubeconfig); err != nil {
		return fmt.Errorf("find the API server: %w: give --kubeconfig outside of a cluster", err)
	}
	f.config.REST.QPS, f.config.REST.Burst = f.qps, int(2*f.qps)
	f.config.REST.UserAgent = name + "/" + buildVersion()
	f.config.Logger = log
	controller.LogTo(log)
	log.Info("sidetrack-controller runs", "version", buildVersion())
	err = controller.Run(ctx, f.config)
	log.Info("sidetrack-controller ends")
	return err
}

func restConfig(file string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if file != "" {
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: file}
	} else if c, err := rest.InClusterConfig(); err == nil {
		return c, nil
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
}

func buildVersion() string { return program.Version(version) }
