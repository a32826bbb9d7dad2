// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func (p *program) sandboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "sandbox",
		Aliases: []string{"sandboxes", "sb"},
		Short:   "Create, change, look at, wait for and delete sandboxes",
		GroupID: "loop",
	}
	cmd.AddCommand(p.createCommand(), p.applyCommand(), p.getCommand(), p.listCommand(), p.waitCommand(), p.deleteCommand(), p.keyCommand())
	return cmd
}

// waitFlags say whether and how long to wait.
type waitFlags struct {
	wait    bool
	options sandbox.WaitOptions
}

func (f *waitFlags) register(flags *pflag.FlagSet) {
	f.options = sandbox.DefaultWait()
	flags.DurationVar(&f.options.Timeout, "timeout", f.options.Timeout, "how long to wait at most; 0 is for ever")
	flags.DurationVar(&f.options.FailAfter, "fail-after", f.options.FailAfter, "give up when something that waiting does not help against, such as a missing image, has stood for this long")
}

func (p *program) createCommand() *cobra.Command {
	var r sandbox.Request
	var wait waitFlags
	var update bool
	var dryRun string
	output := objectOutput()
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a sandbox, or change it with --update",
		Long: `Create a sandbox: forks of workloads with your images and variables, and redirects of Services.

An image or variable without a container in front means the only container there is; a variable, failing
that, the only one that has been given an image. CONTAINER may be the name of a workload that has one container.`,
		Example: p.example(`
  # your version of one workload, for two hours, and wait until it takes requests
  %[1]s sandbox create pr-42 --fork deploy/route --image registry/route:pr-42 --ttl 2h --wait

  # two workloads, a variable, and a database of its own
  %[1]s sandbox create pr-42 --fork route --fork sts/stock --image route=registry/route:pr-42 --image stock=registry/stock:pr-42 \
    --env route/LOG_LEVEL=debug --redirect postgres:5432=postgres-pr-42 --wait

  # the next attempt
  %[1]s sandbox create pr-42 --update --fork deploy/route --image registry/route:pr-42-2 --ttl 2h --wait`),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			r.Name = args[0]
			if dryRun != "none" && dryRun != "client" && dryRun != "server" {
				return usage(cmd, fmt.Errorf("--dry-run=%s is unknown: use none, client or server", dryRun))
			}
			if err := output.check(cmd); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			sb, err := r.Build(ctx, c)
			if err != nil {
				return err
			}
			done := "created"
			switch {
			case dryRun == "client":
				done = "created (dry run)"
			case update:
				done = "applied"
				err = sandbox.Apply(ctx, c, sb, dryRun == "server")
			default:
				err = sandbox.Create(ctx, c, sb, dryRun == "server")
			}
			if err != nil {
				return err
			}
			for _, name := range sandbox.Unobserved(ctx, c, sb) {
				fmt.Fprintf(p.streams.ErrOut, "%s: --observe names %s, and there is no such Service in namespace %s: nothing is seen there until there is\n", p.name, name, sb.Namespace)
			}
			if dryRun == "server" {
				done += " (server dry run)"
			}
			if wait.wait && dryRun == "none" {
				fmt.Fprintf(p.streams.ErrOut, "sandbox/%s %s\n", sb.Name, done)
				if sb, err = sandbox.Wait(ctx, c, sb.Namespace, sb.Name, wait.options, p.progress()); err != nil {
					return err
				}
				done = "ready"
			}
			return p.said(sb, done, output)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&r.Forks, "fork", nil, "`workload` to fork: NAME of a Deployment, or KIND/NAME with deploy, sts, ds, rs or cronjob; may be repeated")
	flags.StringArrayVar(&r.Images, "image", nil, "`image` of a fork: IMAGE, CONTAINER=IMAGE or WORKLOAD/CONTAINER=IMAGE; may be repeated")
	flags.StringArrayVar(&r.Env, "env", nil, "`variable` of a fork: NAME=VALUE, or NAME- to remove one, with CONTAINER/ or WORKLOAD/CONTAINER/ in front; may be repeated")
	flags.StringArrayVar(&r.Redirects, "redirect", nil, "`redirect` of a Service's tagged traffic: SERVICE[:PORT]=TARGET[:PORT], where TARGET is a Service, NAMESPACE/SERVICE or an address; may be repeated")
	flags.StringVar(&r.Unavailable, "unavailable", "", "what --redirect does while its target has no ready endpoint: Reject, the default, or Baseline")
	flags.StringVar(&r.TTL, "ttl", "", "delete the sandbox after this `duration`, such as 2h")
	flags.StringVar(&r.RoutingKey, "routing-key", "", "routing `key`; one is made when it is left out")
	flags.StringVar(&r.ExistingConnections, "existing-connections", "", "what happens to connections from before the sandbox: Idle, the default, All or Leave")
	flags.StringSliceVar(&r.Observe, "observe", nil, "`services` in whose traffic to look for who loses the routing key; * is all of the namespace, none is none (default: those that are redirected)")
	flags.StringVar(&r.Propagate, "propagate", "", "what stands for a routing key that was lost: TraceID, or nothing")
	flags.StringToStringVarP(&r.Labels, "labels", "l", nil, "labels of the sandbox, for RouteGroups")
	flags.BoolVar(&update, "update", false, "change the sandbox when there is one")
	flags.BoolVar(&wait.wait, "wait", false, "wait until tagged requests reach the forks")
	wait.register(flags)
	flags.StringVar(&dryRun, "dry-run", "none", "none, client (print only) or server (have the API server validate it, store nothing)")
	output.register(cmd)
	completeFlag(cmd, "fork", p.complete(workloadNames))
	completeFlag(cmd, "existing-connections", oneOf("Idle", "All", "Leave"))
	completeFlag(cmd, "unavailable", oneOf("Reject", "Baseline"))
	completeFlag(cmd, "dry-run", oneOf("none", "client", "server"))
	completeFlag(cmd, "propagate", oneOf("TraceID"))
	completeFlag(cmd, "observe", p.complete(serviceNames))
	return cmd
}

// said prints what has become of a sandbox: a line, or the object.
func (p *program) said(sb *v1alpha1.Sandbox, done string, output *output) error {
	sb.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind))
	if printed, err := output.object(p.streams.Out, sb); printed {
		return err
	}
	_, err := fmt.Fprintf(p.streams.Out, "sandbox/%s %s\n", sb.Name, done)
	return err
}

func (p *program) waitCommand() *cobra.Command {
	var wait waitFlags
	what, output := "ready", objectOutput()
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a sandbox is ready, or deleted",
		Long: `Wait until tagged requests reach the sandbox's forks, and say meanwhile what it waits for.
When a fork fails, what its containers say themselves is printed, and the exit status is 3.`,
		Args: sandboxesFirst(1, cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Name: args[0]}}
			switch {
			case what != "ready" && what != "deleted":
				return usage(cmd, fmt.Errorf("--for=%s is unknown: use ready or deleted", what))
			case what == "deleted" && output.printer != nil && output.format != formatName:
				return &task.Failure{Kind: task.Usage, Message: "-o " + output.format + ": there is no object left after --for=deleted", Remedy: "use -o name, or leave -o out"}
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			if what == "ready" {
				sb, err = sandbox.Wait(cmd.Context(), c, "", args[0], wait.options, p.progress())
			} else {
				err = sandbox.WaitGone(cmd.Context(), c, "", args[0], wait.options.Timeout)
			}
			if err != nil {
				return err
			}
			return p.said(sb, what, output)
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	cmd.Flags().StringVar(&what, "for", what, "what to wait for: ready or deleted")
	wait.register(cmd.Flags())
	output.register(cmd)
	completeFlag(cmd, "for", oneOf("ready", "deleted"))
	return cmd
}

func (p *program) deleteCommand() *cobra.Command {
	var missing bool
	wait, timeout := true, 2*time.Minute
	output := nameOutput()
	cmd := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete sandboxes, forks and all",
		Args:    sandboxesFirst(math.MaxInt, cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			var failed error
			for _, name := range args {
				gone, err := p.remove(cmd, c, name, missing, wait, timeout)
				if gone {
					err = p.said(&v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Name: name}}, "deleted", output)
				}
				failed = errors.Join(failed, err)
			}
			return only(failed)
		},
		ValidArgsFunction: p.complete(sandboxNames),
	}
	cmd.Flags().BoolVar(&wait, "wait", wait, "wait until the sandbox is gone")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait at most; 0 is for ever")
	cmd.Flags().BoolVar(&missing, "ignore-not-found", false, "it is no error when a sandbox is not there")
	output.register(cmd)
	return cmd
}

// remove deletes a sandbox, and reports whether it was there and is deleted.
func (p *program) remove(cmd *cobra.Command, c *cluster.Cluster, name string, missing, wait bool, timeout time.Duration) (bool, error) {
	err := sandbox.Delete(cmd.Context(), c, "", name)
	if missing && isNotFound(err) {
		return false, nil
	}
	if err == nil && wait {
		err = sandbox.WaitGone(cmd.Context(), c, "", name, timeout)
	}
	return err == nil, err
}

func (p *program) keyCommand() *cobra.Command {
	header := false
	cmd := &cobra.Command{
		Use:   "key NAME",
		Short: "Print a sandbox's routing key",
		Long:  `Print a sandbox's routing key. It is a secret: who knows it can send requests to the forks.`,
		Example: p.example(`
  curl -H "$(%[1]s sandbox key pr-42 --header)" https://shop.example/`),
		Args: sandboxesFirst(1, cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			sb, err := sandbox.Get(cmd.Context(), c, "", args[0])
			if err != nil {
				return err
			}
			if sb.Status.RoutingKey == "" {
				return &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("sandbox %s has no routing key yet", sb.Name), Remedy: p.name + " sandbox wait " + sb.Name}
			}
			text := sb.Status.RoutingKey
			if header {
				names, err := exchange.NamesOf(sb)
				if err != nil {
					return err
				}
				text = "baggage: " + names.Baggage(text)
			}
			_, err = fmt.Fprintln(p.streams.Out, text)
			return err
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	cmd.Flags().BoolVar(&header, "header", false, "print the header that tags a request")
	return cmd
}
