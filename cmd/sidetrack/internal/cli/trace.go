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
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

func (p *program) traceCommand() *cobra.Command {
	var o ledger.Options
	var since time.Duration
	f := hopFlags{output: resultOutput(formatWide, formatName)}
	group := false
	cmd := &cobra.Command{
		Use:   "trace SANDBOX",
		Short: "Print where tagged requests went: the ledger as a tree of hops",
		Long: `Print the hops of tagged requests and flows: who called which Service, where it was sent and why, which pod has
answered, and how. Calls are below the call that they came of, where they have the same trace (traceparent), or where
pods and times tell. A hop that has lost the routing key is marked with the workload that lost it. A
connection that is no HTTP has the bytes that it has carried, or is marked as under way.

With --follow, go on and print what comes until interrupted, or the sandbox is gone: the hops of a trace once nothing more has come of it for a
moment, and later ones below the calls that they came of, which are printed again (as above). A call is on record when it
is over, so one that lasts comes after the calls that came of it: these are printed again below it.

-o wide has a table with bytes, latencies, nodes and traces; -o name the pods that have answered, as pod/NAME, each once.`,
		Example: p.example(`
  %[1]s trace pr-42 --since 5m
  %[1]s trace pr-42 --follow
  %[1]s trace pr-42 --trace 4bf92f3577b34da6a3ce929d0e0e4736 -o wide`),
		GroupID: "look",
		Args:    sandboxesFirst(1, cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.output.check(cmd); err != nil {
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
			var sb *v1alpha1.Sandbox
			if group {
				err = isRouteGroup(cmd.Context(), c, args[0])
			} else {
				sb, err = sandbox.Get(cmd.Context(), c, "", args[0])
			}
			if err != nil {
				return err
			}
			if o.Follow {
				err := untilGone(cmd.Context(), c, sb, lateRecords, func(ctx context.Context) error { return p.followHops(ctx, c, of, o, &f) })
				if errors.Is(err, context.Canceled) {
					return nil // The user has seen enough.
				}
				return err
			}
			list, err := hops.Read(cmd.Context(), c, of, o)
			if err != nil {
				return err
			}
			if len(list.Items) == 0 && f.output.printer == nil {
				fmt.Fprintf(p.streams.ErrOut, "no record of tagged traffic: send a request with the key of %s, or see %s explain %s SERVICE\n", args[0], p.name, args[0])
			}
			return p.writeHops(list, c.Namespace, &f)
		},
		ValidArgsFunction: firstOnly(p.complete(sandboxNames)),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on until interrupted, or the sandbox is gone")
	flags.DurationVar(&since, "since", 0, "leave out what is older than this")
	flags.StringVar(&o.Trace, "trace", "", "only of the trace with this `id`")
	flags.IntVar(&o.Limit, "limit", 0, fmt.Sprintf("how many records at most, the newest; %d when it is left out", ledger.DefaultLimit))
	flags.BoolVar(&group, "group", false, "SANDBOX is the name of a RouteGroup")
	flags.BoolVar(&f.headless, "no-headers", false, "leave out the head of -o wide")
	f.output.register(cmd)
	return cmd
}

// isRouteGroup says which route groups there are where this is none.
func isRouteGroup(ctx context.Context, c *cluster.Cluster, name string) error {
	key := client.ObjectKey{Namespace: c.Namespace, Name: name}
	var g v1alpha1.RouteGroup
	err := c.Objects.Get(ctx, key, &g)
	if !isNotFound(err) {
		return cluster.Explain(err, "read RouteGroup "+name)
	}
	var all v1alpha1.RouteGroupList
	var names []string
	if c.Objects.List(ctx, &all, client.InNamespace(c.Namespace)) == nil {
		for i := range all.Items {
			names = append(names, all.Items[i].Name)
		}
	}
	return c.NotThere(ctx, err, "RouteGroup", key, strings.Join(names, ", "))
}

// hopFlags say how hops are printed.
type hopFlags struct {
	output   *output
	headless bool
	// named are the pods whose names are printed already.
	named map[string]bool
	// told is what has been said of what is missing.
	told hops.Told
}

// followHops prints what there is and what comes until ctx ends.
func (p *program) followHops(ctx context.Context, c *cluster.Cluster, of hops.Of, o ledger.Options, f *hopFlags) error {
	if f.output.printer != nil || f.output.names() {
		return hops.Follow(ctx, c, of, o, func(list *ledger.RecordList) error { return p.writeHops(list, c.Namespace, f) })
	}
	var live hops.Live
	write := func(last bool) error {
		for _, roots := range live.Due(time.Now(), last) {
			if err := p.writeTrees(roots, f); err != nil {
				return err
			}
		}
		return nil
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
		p.writeGaps(f.told.Gaps(list))
		return nil
	})
	cause := context.Cause(ctx)
	cancel(nil)
	writing.Wait()
	last := write(true)
	if cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return errors.Join(err, last)
}

// writeTrees prints trees for people.
func (p *program) writeTrees(roots []*hops.Hop, f *hopFlags) error {
	if f.output.wide() {
		t := columns{head: hops.Columns(), rows: hops.Rows(roots)}
		if f.headless {
			t.head = nil
		}
		// Of a stream the head is printed once.
		f.headless = f.headless || len(t.rows) > 0
		return t.write(p.streams.Out)
	}
	var b strings.Builder
	hops.Write(&b, roots)
	_, err := io.WriteString(p.streams.Out, b.String())
	return err
}

// writeHops prints records: as trees or names for people, as they are for programs, one
// document for each part of a stream.
func (p *program) writeHops(list *ledger.RecordList, namespace string, f *hopFlags) error {
	if done, err := f.output.result(p.streams.Out, list); done {
		return err
	}
	if f.output.names() {
		return p.writePods(list, namespace, f)
	}
	if err := p.writeTrees(hops.Tree(list.Items), f); err != nil {
		return err
	}
	p.writeGaps(f.told.Gaps(list))
	return nil
}

// writePods prints the names of the pods that have answered. Those of other namespaces
// have no name that kubectl would know here.
func (p *program) writePods(list *ledger.RecordList, namespace string, f *hopFlags) error {
	if f.named == nil {
		f.named = map[string]bool{}
	}
	pods, elsewhere := hops.Answered(list.Items, namespace)
	for _, name := range pods {
		if !f.named[name] {
			f.named[name] = true
			if _, err := fmt.Fprintf(p.streams.Out, "pod/%s\n", name); err != nil {
				return err
			}
		}
	}
	for _, name := range elsewhere {
		if !f.named[name] {
			f.named[name] = true
			fmt.Fprintf(p.streams.ErrOut, "%s: a pod of another namespace has answered, too: %s\n", p.name, name)
		}
	}
	p.writeGaps(f.told.Gaps(list))
	return nil
}

func (p *program) writeGaps(gaps []string) {
	for _, gap := range gaps {
		fmt.Fprintf(p.streams.ErrOut, "%s: %s\n", p.name, gap)
	}
}
