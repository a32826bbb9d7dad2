// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// program is what all commands share.
type program struct {
	name, version string
	streams       genericiooptions.IOStreams
	// stdout is what programs that are run on this machine print to.
	stdout io.Writer
	// unread reports that nobody reads what is printed any more, so that there is nothing
	// to say to the user either.
	unread func() bool
	// kube are kubectl's flags for the cluster, the user and the namespace.
	kube *genericclioptions.ConfigFlags
	// until ends what libraries ask of the API server without a context of ours.
	until context.Context
}

func newProgram(ctx context.Context, name, version string, streams genericiooptions.IOStreams) *program {
	p := &program{name: name, version: version, streams: streams, stdout: streams.Out, unread: func() bool { return false }, kube: genericclioptions.NewConfigFlags(true), until: ctx}
	p.kube.WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		p.configure(c)
		c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &ending{p, next} })
		return c
	})
	return p
}

func (p *program) configure(c *rest.Config) {
	c.UserAgent = "sidetrack/" + p.version
	// One person's commands are no load; client-go's default would delay them.
	c.QPS, c.Burst = 50, 100
	// Deprecations are the program's, not the user's.
	c.WarningHandler = rest.NoWarnings{}
}

func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "sidetrack",
		Short: "Run a change beside a shared cluster's services: sandboxes, test runs, requests, and where traffic went",
		Long: `A sandbox puts your version of a few workloads beside the ones that everybody shares.
Requests with its routing key reach yours; all other traffic stays as it is.

  %[1]s sandbox create pr-42 --fork deploy/route --image route=registry/route:pr-42 --ttl 2h --wait
  %[1]s run --sandbox pr-42 --image registry/tests:pr-42 -- ./smoke
  %[1]s sandbox delete pr-42

Exit status: 0 done, 1 failed, 2 wrong usage, 3 not ready or not in time, 4 a difference was found,
5 no difference but it is not proved that forks answered, 130 interrupted; run gives the command's
own, 124 when it takes too long and 125 when it could not be run.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: p.name},
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.Long = fmt.Sprintf(root.Long, p.name)
	root.SetIn(p.streams.In)
	root.SetOut(p.streams.Out)
	root.SetErr(p.streams.ErrOut)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	root.AddGroup(&cobra.Group{ID: "loop", Title: "The loop:"}, &cobra.Group{ID: "look", Title: "Looking:"})
	p.kube.AddFlags(root.PersistentFlags())
	p.completeKubeFlags(root)
	root.AddCommand(p.sandboxCommand(), p.runCommand(), p.proxyCommand(), p.diffCommand(), p.traceCommand(), p.explainCommand(), p.logsCommand(), p.statusCommand(), p.doctorCommand(), p.uiCommand(), p.mcpCommand(), p.versionCommand())
	strict(root)
	return root
}

// usage makes an error of how a command is used one that says so.
func usage(cmd *cobra.Command, err error) error {
	return &task.Failure{Kind: task.Usage, Message: err.Error(), Remedy: cmd.CommandPath() + " --help", Err: err}
}

// strict has errors in arguments be errors of usage, in all commands.
func strict(cmd *cobra.Command) {
	args := cmd.Args
	if args == nil {
		args = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return usage(cmd, err)
		}
		return nil
	}
	// What a command's group prints is its help; a word that is none of its commands
	// is an error.
	if cmd.HasSubCommands() && cmd.HasParent() && cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// connect makes the clients.
func (p *program) connect() (*cluster.Cluster, error) {
	namespace, _, err := p.kube.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return nil, unreadable(err)
	}
	if err := p.configured(); err != nil {
		return nil, err
	}
	// Not kube's own, whose requests all end with the program's context: each of these has
	// one, and some clean up when that one has ended.
	cfg, err := p.kube.ToRawKubeConfigLoader().ClientConfig()
	if err != nil {
		return nil, unreadable(err)
	}
	p.configure(cfg)
	mapper, err := p.kube.ToRESTMapper()
	if err != nil {
		return nil, cluster.Explain(err, "find the API server")
	}
	return cluster.Connect(cfg, namespace, mapper)
}

// unreadable says of a kubeconfig what is wrong with it.
func unreadable(err error) error {
	if clientcmd.IsEmptyConfig(err) {
		return cluster.Explain(err, "read the kubeconfig")
	}
	return &task.Failure{Message: fmt.Sprintf("cannot read the kubeconfig: %v", err), Err: err,
		Remedy: "mend it, or name another with --kubeconfig or KUBECONFIG; kubectl config get-contexts lists what --context can be"}
}

// configured refuses to go to a port of this machine where nobody has said which
// cluster is meant.
func (p *program) configured() error {
	raw, err := p.kube.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return unreadable(err)
	}
	if len(raw.Clusters) > 0 || *p.kube.APIServer != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return nil
	}
	return &task.Failure{Message: "no cluster is configured", Remedy: "say which one with --kubeconfig or KUBECONFIG, or with --server"}
}

// progress tells a person how far a task is, on standard error: standard output
// is for what comes of it.
func (p *program) progress() task.Progress {
	began := time.Now()
	said := map[string]string{}
	return task.ProgressFunc(func(e task.Event) {
		// Counts are in the words already.
		if last, ok := said[e.Subject]; ok && last == e.State {
			return
		}
		said[e.Subject] = e.State
		mark := "…"
		if e.OK {
			mark = "ok"
		}
		fmt.Fprintf(p.streams.ErrOut, "%5.1fs  %-2s  %s: %s\n", time.Since(began).Seconds(), mark, e.Subject, asCalled(p.name, e.State))
	})
}

func (p *program) versionCommand() *cobra.Command {
	output := resultOutput()
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			platform := runtime.GOOS + "/" + runtime.GOARCH
			if done, err := output.result(p.streams.Out, map[string]string{"version": p.version, "go": runtime.Version(), "platform": platform}); done {
				return err
			}
			_, err := fmt.Fprintf(p.streams.Out, "sidetrack %s (%s, %s)\n", p.version, runtime.Version(), platform)
			return err
		},
	}
	output.register(cmd)
	return cmd
}
