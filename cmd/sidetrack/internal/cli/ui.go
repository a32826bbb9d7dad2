// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/cli/browser"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/ui"
)

func (p *program) uiCommand() *cobra.Command {
	var port uint16
	var open, all bool
	cmd := &cobra.Command{
		Use:   "ui [SANDBOX]",
		Short: "Look at sandboxes and at where requests went, in a browser",
		Long: `Serve the cluster's page on 127.0.0.1 until it is interrupted, and print the address to open.

The page shows what you may read, and cannot change anything. Whoever has the address can read with your rights
while this runs: it is for you alone.`,
		Example: p.example(`
  # the sandboxes of the namespace, one of them chosen
  %[1]s ui pr-42 -n shop

  # on another machine, with: ssh -L 8443:127.0.0.1:8443 that-machine
  %[1]s ui --port 8443`),
		Args:    sandboxesFirst(1, cobra.MaximumNArgs(1)),
		GroupID: "look",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if all && len(args) > 0 {
				return usage(cmd, fmt.Errorf("a sandbox is in one namespace: leave out --all-namespaces or %s", args[0]))
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			// What cannot be shown is better said here than in a browser.
			if err := c.Core.Discovery().RESTClient().Get().AbsPath(ui.Index).Do(ctx).Error(); err != nil {
				return noPage(err)
			}
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
			if err != nil {
				return &task.Failure{Message: fmt.Sprintf("cannot serve the page: %v", err), Remedy: "choose another --port, or leave it out", Err: err}
			}
			defer l.Close()
			where := "/" + c.Namespace
			switch {
			case all:
				where = ""
			case len(args) > 0:
				where += "/sandboxes/" + args[0]
			}
			s, err := ui.New(c.Config, l, where)
			if err != nil {
				return cluster.Explain(err, "serve the page")
			}
			if _, err := fmt.Fprintln(p.streams.Out, s.Link(false)); err != nil {
				return err
			}
			fmt.Fprintln(p.streams.ErrOut, "The address is for you alone. Ctrl-C ends it.")
			if open {
				browser.Stdout, browser.Stderr = io.Discard, io.Discard
				// Beside the serving: some browsers are waited for until they end, and none has
				// anything to show before somebody serves it.
				go func() {
					// Other users of this machine see the arguments of a browser.
					if err := browser.OpenURL(s.Link(true)); err != nil && ctx.Err() == nil {
						fmt.Fprintf(p.streams.ErrOut, "no browser could be opened (%v): open the address yourself\n", err)
					}
				}()
			}
			return s.Run(ctx)
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVar(&open, "open", false, "open the address in the browser, too")
	flags.Uint16Var(&port, "port", 0, "`port` on 127.0.0.1 (default: a free one)")
	flags.BoolVarP(&all, "all-namespaces", "A", false, "show the sandboxes of all namespaces")
	return cmd
}

// noPage says why there is no page.
func noPage(err error) error {
	failure := &task.Failure{Message: "cannot read the cluster's page: " + err.Error(), Err: err}
	switch {
	case apierrors.IsNotFound(err):
		failure.Message, failure.Remedy = "this cluster has no page", "install Sidetrack, or a version of it that has one: kubectl apply --server-side -f deploy/install.yaml, then sidetrack doctor"
	case apierrors.IsServiceUnavailable(err):
		failure.Remedy = "the ledger's collector, which serves it, cannot be reached: kubectl get apiservice v1alpha1.ledger.sidetrack.dev"
	case apierrors.IsForbidden(err):
		failure.Remedy = "ask whoever runs the cluster to bind ClusterRole sidetrack-ledger-ask to you"
	default:
		return cluster.Explain(err, "read the cluster's page")
	}
	return failure
}
