// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

func (p *program) traceCommand() *cobra.Command {
	var o ledger.Options
	var since time.Duration
	var output outputFlag
	group := false
	cmd := &cobra.Command{
		Use:   "trace SANDBOX",
		Short: "Print where tagged requests went: the ledger as a tree of hops",
		Long: `Print the hops of tagged requests and flows: who called which Service, where it was sent and why, which pod has
answered, and how. Calls are below the call that they came of, where they have the same trace (traceparent), or where
pods and times tell. A hop that has lost the routing key is marked with the workload that lost it.

With --follow, go on and print what comes until interrupted: the hops of a trace once nothing more has come of it for a
moment, and later ones below the calls that they came of, which are printed again.`,
		Example: p.example(`
  %[1]s trace pr-42 --since 5m
  %[1]s trace pr-42 --follow`),
		GroupID: "look",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			if o.Trace != "" && !ledger.ValidTraceID(o.Trace) {
				return usage(cmd, fmt.Errorf("--trace %q is not a trace id: use 32 of 0-9 a-f, not all zero", o.Trace))
			}
			if o.Limit < 0 || o.Limit > ledger.MaxLimit {
				return usage(cmd, fmt.Errorf("--limit is from 1 to %d", ledger.MaxLimit))
			}
			if since > 0 {
				o.Since = time.Now().Add(-since)
			}
			of := hops.Of{Name: args[0]}
			if group {
				of.Resource = "routegroups"
			}
			c, err := p.connect()
			if err != nil {
				return err
			}
			// The ledger has nothing to say of what is not there, and does not say that.
			if !group {
				if _, err := sandbox.Get(cmd.Context(), c, "", args[0]); err != nil {
					return err
				}
			}
			if o.Follow {
				err := p.followHops(cmd.Context(), c, of, o, output)
				if errors.Is(err, context.Canceled) {
					return nil // The user has seen enough.
				}
				return err
			}
			list, err := hops.Read(cmd.Context(), c, of, o)
			if err != nil {
				return err
			}
			if len(list.Items) == 0 && output == "" {
				fmt.Fprintf(p.streams.ErrOut, "no record of tagged traffic: send a request with the key of %s, or see %s explain %s SERVICE\n", args[0], p.name, args[0])
			}
			return p.writeHops(list, output)
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on until interrupted")
	flags.DurationVar(&since, "since", 0, "leave out what is older than this")
	flags.StringVar(&o.Trace, "trace", "", "only of the trace with this `id`")
	flags.IntVar(&o.Limit, "limit", 0, fmt.Sprintf("how many records at most, the newest; %d when it is left out", ledger.DefaultLimit))
	flags.BoolVar(&group, "group", false, "SANDBOX is the name of a RouteGroup")
	output.register(cmd)
	return cmd
}

// followHops prints what there is and what comes until ctx ends.
func (p *program) followHops(ctx context.Context, c *cluster.Cluster, of hops.Of, o ledger.Options, output outputFlag) error {
	if output != "" {
		return hops.Follow(ctx, c, of, o, func(list *ledger.RecordList) error { return p.writeHops(list, output) })
	}
	var live hops.Live
	var told hops.Told
	write := func(last bool) error {
		var b strings.Builder
		live.Write(&b, time.Now(), last)
		_, err := io.WriteString(p.streams.Out, b.String())
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var writing sync.WaitGroup
	writing.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := write(false); err != nil {
					cancel(err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := hops.Follow(ctx, c, of, o, func(list *ledger.RecordList) error {
		live.Add(list.Items, time.Now())
		p.writeGaps(told.Gaps(list))
		return nil
	})
	cause := context.Cause(ctx)
	cancel(nil)
	writing.Wait()
	if cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return errors.Join(err, write(true))
}

// writeHops prints records: as a tree for people, as they are for programs, one
// document for each part of a stream.
func (p *program) writeHops(list *ledger.RecordList, output outputFlag) error {
	if output == "yaml" {
		if _, err := io.WriteString(p.streams.Out, "---\n"); err != nil {
			return err
		}
	}
	if done, err := output.print(p.streams.Out, list); done {
		return err
	}
	var b strings.Builder
	hops.Write(&b, hops.Tree(list.Items))
	if _, err := io.WriteString(p.streams.Out, b.String()); err != nil {
		return err
	}
	p.writeGaps(hops.Gaps(list))
	return nil
}

func (p *program) writeGaps(gaps []string) {
	for _, gap := range gaps {
		fmt.Fprintf(p.streams.ErrOut, "%s: %s\n", p.name, gap)
	}
}
