// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/daemon/agent"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/responder"
	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// gcPercent is GOGC's default here: the agent's heap changes with its objects
// and not with traffic, so that collecting more often costs little.
const gcPercent = 50

// runFlags are the flags of "sidetrackd run".
type runFlags struct {
	origin         originFlags
	metricsAddress string
	kernel         loader.Config
	keys           routing.KeyNames
	loops          int
	maxHeld        int
	lease          time.Duration
	existingLimit  time.Duration
	drainTimeout   time.Duration
	handover       handoverFlags
	http2          http2.Limits
	ledger         ledgerFlags
	logs           program.LogFlags
}

func runCommand() *cobra.Command {
	f := runFlags{
		metricsAddress: "127.0.0.1:9464",
		kernel:         loader.DefaultConfig(),
		keys:           routing.DefaultKeyNames(),
		lease:          5 * time.Minute,
		existingLimit:  5 * time.Minute,
		drainTimeout:   10 * time.Second,
	}
	cmd := &cobra.Command{
		Use:   "run (--manifests DIR | --kubernetes --node-name NAME)",
		Short: "Run the agent until SIGTERM",
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
	f.origin.register(flags)
	flags.StringVar(&f.kernel.Cgroup, "cgroup", f.kernel.Cgroup, "`directory` of the cgroup (v2) below which traffic is looked at (default: the root of cgroup2)")
	flags.StringVar(&f.kernel.BPFFS, "bpffs", f.kernel.BPFFS, "`directory` where the BPF file system is mounted, or is to be")
	flags.StringVar(&f.metricsAddress, "metrics-address", f.metricsAddress, "`host:port` of /metrics, /healthz and /readyz")
	flags.Uint32Var(&f.kernel.Mark, "mark", f.kernel.Mark, "SO_MARK of the agent's own sockets; choose one that nobody else on this host uses")
	flags.StringSliceVar(&f.keys.Members, "baggage-member", f.keys.Members, "`names` of the baggage and tracestate members that carry a routing key; the first is the one that is injected")
	flags.StringVar(&f.keys.Header, "key-header", f.keys.Header, "`name` of the plain header that carries a routing key")
	flags.IntVar(&f.loops, "loops", f.loops, "event loops of the request router (default: a quarter of the cores, at least 1 and at most 4)")
	flags.IntVar(&f.maxHeld, "max-held-connections", router.DefaultMaxHeld, "most clients of one pod that wait for the baseline to answer their connect(2); further ones are not heard, and try again")
	flags.IntVar(&f.http2.HeaderBytes, "http2-max-header-bytes", http2.DefaultHeaderBytes, "HTTP/2: most bytes of a header block, as it comes and as what it stands for")
	flags.Uint32Var(&f.http2.TableBytes, "http2-max-table-bytes", http2.DefaultTableBytes, "HTTP/2: most bytes of header compression's table; who announces more is told of less")
	flags.IntVar(&f.http2.Streams, "http2-max-streams", http2.DefaultStreams, "HTTP/2: most streams that a connection may have open")
	flags.IntVar(&f.http2.BufferBytes, "http2-max-buffer-bytes", http2.DefaultBufferBytes, "HTTP/2: how many bytes of a connection may wait for forks that do not take them before the client is slowed down")
	flags.IntVar(&f.http2.ControlRate, "http2-control-rate", http2.DefaultControlRate, "HTTP/2: most frames a second of a connection that are neither request nor data; a stream that is reset counts as ten")
	flags.IntVar(&f.http2.Links, "http2-max-links", http2.DefaultLinks, "HTTP/2: most forks that a connection may have streams to at a time")
	flags.Uint32Var(&f.kernel.MaxFlowRoutes, "max-flow-routes", f.kernel.MaxFlowRoutes, "most redirects, counted by sandbox and Service port")
	flags.Uint32Var(&f.kernel.MaxDestinations, "max-destinations", f.kernel.MaxDestinations, "most destinations: addresses and ports of redirected Services and of their endpoints")
	flags.Uint32Var(&f.kernel.MaxBackends, "max-backends", f.kernel.MaxBackends, "most endpoints of redirects' targets")
	flags.Uint32Var(&f.kernel.MaxIdentities, "max-identities", f.kernel.MaxIdentities, "most pods of sandboxes on this node")
	flags.Uint32Var(&f.kernel.MaxNamespaces, "max-namespaces", f.kernel.MaxNamespaces, "most pods on this node")
	flags.Uint32Var(&f.kernel.MaxUDPPeers, "max-udp-peers", f.kernel.MaxUDPPeers, "most redirected peers of unconnected UDP sockets; the longest unused give way")
	flags.DurationVar(&f.lease, "lease", f.lease, "how long flow redirects go on when no agent runs")
	flags.DurationVar(&f.existingLimit, "existing-limit", f.existingLimit, "how long a connection from before a redirect that is never idle is left to the baseline (existingConnections: Idle); 0 for as long as it lasts")
	flags.DurationVar(&f.drainTimeout, "drain-timeout", f.drainTimeout, "how long requests under way may take at the end")
	f.handover.register(flags)
	f.ledger.register(flags)
	f.logs.Register(flags)
}

// run wires the agent together, inside out, and takes it apart in reverse.
func (f *runFlags) run(ctx context.Context, stderr io.Writer) (err error) {
	log, err := f.logs.Logger(stderr)
	if err != nil {
		return err
	}
	if err := f.origin.validate(f.kernel.Cgroup); err != nil {
		return err
	}
	if err := f.keys.Validate(); err != nil {
		return err
	}
	if err := f.ledger.validate(f.origin.kubernetes); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	closing := func(what string, c io.Closer) {
		if e := c.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", what, e))
		}
	}

	from, err := f.origin.open(f.kernel.Mark, f.keys, log)
	if err != nil {
		return err
	}
	defer closing("close the source", from)

	resolver, cgroup, err := f.origin.resolver(ctx, log)
	if err != nil {
		return err
	}
	defer closing("close the namespaces", resolver)
	if f.origin.kubernetes {
		f.kernel.Cgroup, f.kernel.HostPods = cgroup.AttachDir(), cgroup.V2
		f.kernel.NoMount = f.origin.kubeconfig == "" // a pod
	}

	f.kernel.Logger = log
	kernel, predecessor, err := f.handover.openKernel(ctx, f.kernel, log)
	if err != nil {
		return err
	}
	defer predecessor.Close()
	defer closing("let go of the kernel", kernel)

	f.ledger.config.Node = f.origin.nodeName
	records := ledger.New(f.ledger.config)
	if f.ledger.answer {
		answers, err := responder.Start(from.api, f.origin.nodeName, records, log)
		if err != nil {
			return err
		}
		defer closing("end the answers to the ledger's collector", answers)
	}
	rt, err := router.New(router.Config{
		Loops:      f.loops,
		MaxHeld:    f.maxHeld,
		Mark:       f.kernel.Mark,
		KeyNames:   f.keys,
		HTTP2:      f.http2,
		V6OnlyDest: kernel.V6OnlyDest,
		Ledger:     records,
		HoldSYNs:   kernel.HoldSYNs,
		Logger:     log,
	})
	if err != nil {
		return err
	}
	defer closing("close the router", rt)

	var m *metrics.Metrics
	scrapes := metrics.NewEndpoint(f.metricsAddress, func() *http.Server { return m.Server() })
	defer closing("close the metrics server", scrapes)
	a, err := agent.New(agent.Config{
		Source:        from.objects,
		Pods:          resolver,
		Kernel:        kernel,
		Router:        rt,
		Ledger:        records,
		Flows:         kernel,
		FlowEnds:      f.ledger.flowEnds,
		Mark:          f.kernel.Mark,
		Cgroup:        f.kernel.Cgroup,
		Lease:         f.lease,
		ExistingLimit: f.existingLimit,
		DrainTimeout:  f.drainTimeout,
		PodsOutlive:   f.origin.kubernetes,
		Applied:       func(took time.Duration, err error) { m.Applied(took, err) },
		Changed:       func(took time.Duration) { m.Changed(took) },
		Reporter:      from.reporter,
		Handover:      f.handover.turns(predecessor, kernel, rt, scrapes, f.origin.kubernetes),
		Logger:        log,
	})
	if err != nil {
		return err
	}
	m = metrics.New(buildVersion(), metrics.Sources{Kernel: kernel, Router: rt, Ledger: records, State: a.State})

	if err := endpoint(scrapes, predecessor); err != nil {
		return err
	}
	probes, err := f.handover.serveReady(m, f.origin.kubernetes, log)
	if err != nil {
		return err
	}
	defer closing("close the socket for probes", probes)
	readers, err := f.ledger.serve(records, log)
	if err != nil {
		return err
	}
	defer closing("close the ledger's socket", readers)

	log.Info("sidetrackd runs", "version", buildVersion(), "manifests", f.origin.manifests, "node", f.origin.nodeName, "metrics", scrapes.Bound())
	err = a.Run(ctx)
	log.Info("sidetrackd ends")
	return err
}
