// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/flows"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// retryInterval is how soon what has failed is tried again without any change.
	retryInterval = 2 * time.Second
	// tidyAfter is how long nothing may have changed before the memory that the
	// last change took is given back.
	tidyAfter = time.Second
	// grace is how long a listener stays after the kernel has stopped steering to
	// it, for connections whose connect(2) is under way.
	grace = 250 * time.Millisecond
)

// Kernel is what the agent needs of loader.Kernel.
type Kernel interface {
	Apply(*routing.Table) error
	SetNamespaces(map[routing.Cookie]loader.Listener) error
	RenewLease(time.Duration) error
	DetachCapture() error
}

// Source is where the objects come from.
type Source interface {
	Snapshots() <-chan source.Snapshot
}

// Config is what an Agent is made of.
type Config struct {
	Source Source
	Pods   *pods.Resolver
	Kernel Kernel
	Router Router
	// Ledger is told which pods and sandboxes there are; nil: there is none.
	Ledger *ledger.Ledger
	// Flows tells of tagged flows, for the Ledger; nil: nobody does.
	Flows Flows
	// FlowEnds has the ledger told of flows' ends as well, which costs something for each TCP
	// socket of the host while a sandbox's pod is on it: see package flows.
	FlowEnds bool
	// Mark is the SO_MARK of the agent's own sockets: these are not closed as
	// connections from before a redirect.
	Mark uint32
	// Cgroup is the directory of the cgroup that the kernel's programs are
	// attached to; empty: the root, which everybody is in.
	Cgroup string
	// Lease is how long flow redirects go on without an agent.
	Lease time.Duration
	// ExistingLimit is how long a connection from before a redirect that is never idle
	// is left to the baseline under the policy Idle. Zero: for as long as it lasts.
	ExistingLimit time.Duration
	// DrainTimeout is how long requests under way may take when the agent ends.
	DrainTimeout time.Duration
	// PodsOutlive says that pods of a sandbox may outlive its object without anybody's
	// wanting it, as they do on a cluster: what it redirected is then refused to them.
	// Without it they are nobody's at once, since the same hand writes both.
	PodsOutlive bool
	// Applied is told how long it took to bring a change into force, and with
	// which error; may be nil.
	Applied func(took time.Duration, err error)
	// Changed is told how long it took from the moment that the source saw a change
	// until it was in force; may be nil.
	Changed func(took time.Duration)
	// Reporter is told what is in force, and closed when the agent ends; may be nil.
	Reporter Reporter
	// Handover lets agents take turns; nil: this one does not.
	Handover *HandoverConfig
	Logger   *slog.Logger
}

// Validate reports settings that cannot work.
func (c Config) Validate() error {
	if c.Lease < time.Second {
		return fmt.Errorf("lease: %s is too short to be renewed in time; use minutes", c.Lease)
	}
	if c.DrainTimeout < 0 {
		return fmt.Errorf("drain timeout: %s is negative", c.DrainTimeout)
	}
	if c.ExistingLimit < 0 {
		return fmt.Errorf("existing limit: %s is negative; use 0 for none", c.ExistingLimit)
	}
	return nil
}

// Agent is the node agent.
type Agent struct {
	cfg Config
	log *slog.Logger

	snapshot  source.Snapshot
	resolved  pods.Resolved
	compiled  *routing.Table // the newest; the router has it
	applied   *routing.Table // what the kernel has; nil at first
	listeners listeners
	gone      gone
	sweeper   *sweeper
	problems  problemLog
	report    report
	turns     *turns
	flows     *flows.Follower // nil: there is no ledger, or nobody tells of flows
	failing   bool            // what was tried last has to be tried again

	state atomic.Pointer[metrics.State]
}

// New returns an Agent. It does nothing before Run.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{
		cfg:       cfg,
		log:       cfg.Logger,
		listeners: listeners{router: cfg.Router, open: map[routing.Cookie]*listener{}},
		sweeper:   newSweeper(cfg.Mark, cfg.Cgroup, cfg.ExistingLimit, cfg.Logger),
		problems:  problemLog{log: cfg.Logger},
		report:    report{to: cfg.Reporter},
	}
	a.turns = newTurns(cfg.Handover, a)
	a.compiled = a.turns.first()
	a.state.Store(&metrics.State{NotReady: "no manifests have been read yet"})
	return a, nil
}

// State is what the agent is at, for metrics and readiness.
func (a *Agent) State() metrics.State {
	s := *a.state.Load()
	s.UncoveredConnections = a.sweeper.uncovered()
	s.ClosedConnections = a.sweeper.endings()
	if s.NotReady == "" {
		s.NotReady = a.turns.notReady()
	}
	return s
}

// Run does the agent's work until ctx is over, and then drains: new connections
// go to the baseline, requests under way are finished. Flow redirects stay.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.turns.close()) }()
	if err := a.cfg.Kernel.RenewLease(a.cfg.Lease); err != nil {
		return err
	}
	defer a.sweeper.close()
	stopFlows, err := a.recordFlows()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopFlows()) }()
	// More often than the lease needs: it is cheap, it looks after the cgroup as
	// well, and after the host has slept it brings flow redirects back soon.
	lease := time.NewTicker(min(a.cfg.Lease/3, retryInterval))
	defer lease.Stop()
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	// A change takes the memory of two generations and more, and then there may
	// be none for days. Traffic makes no garbage that would have it collected.
	tidy := time.NewTimer(tidyAfter)
	defer tidy.Stop()
	known := false
	for {
		select {
		case <-ctx.Done():
			return a.drain()
		case f := <-a.turns.calls():
			f()
		case <-a.turns.over():
			return a.drain()
		case next := <-a.cfg.Source.Snapshots():
			if a.same(next) {
				continue
			}
			known = true
			a.cfg.Pods.Set(a.snapshot.Pods)
			a.reconcile()
			tidy.Reset(tidyAfter)
		case <-a.cfg.Pods.Changes():
			if known {
				a.reconcile()
				tidy.Reset(tidyAfter)
			}
		case <-retry.C:
			if a.failing {
				a.reconcile()
			}
		case <-a.sweeper.changes:
			a.tell(true)
		case <-tidy.C:
			debug.FreeOSMemory()
		case <-a.listeners.due():
			a.listeners.closeDue()
			s := *a.state.Load()
			s.Listeners = len(a.listeners.open)
			a.state.Store(&s)
		case <-lease.C:
			a.countUntold()
			if err := a.cfg.Kernel.RenewLease(a.cfg.Lease); err != nil {
				a.log.Error("lease is not renewed; flow redirects will end when it is over", "err", err)
			}
		}
	}
}

// reconcile brings what is wanted now into force.
func (a *Agent) reconcile() {
	began := time.Now()
	a.resolved = a.cfg.Pods.Resolve()
	in := a.snapshot.Input
	in.Pods = a.resolved.Pods
	if a.cfg.PodsOutlive {
		in.Sandboxes = a.gone.with(in.Sandboxes, a.snapshot.Pods, began)
	}
	table, problems := routing.Compile(in, a.compiled)
	if a.applied == nil {
		// What reading and compiling everything has left is the most that there ever
		// is. It makes room for what filling the kernel's maps takes.
		runtime.GC()
	}

	// The router answers for ids of the old table as well, so it goes first.
	a.compiled = table
	a.cfg.Router.SetTable(table)
	a.inform(table)
	problems = append(problems, a.resolved.Problems...)

	uncovered := a.listeners.want(table, a.resolved.Namespaces)
	a.followFlows(table)
	if n := a.turns.early(newCaptures(table), a.listeners.open); n > 0 {
		// The predecessor covers more than this agent would. The rest is about to be
		// found; until then nothing of this agent is in force.
		a.failing = true
		a.state.Store(&metrics.State{NotReady: fmt.Sprintf("%d pods that the earlier agent covers have not been found yet", n)})
		return
	}
	for _, ns := range a.resolved.Namespaces {
		if err := a.listeners.failed[ns.Cookie]; err != nil {
			problems = append(problems, routing.Problem{
				Kind: "Pod", Object: a.podOf(ns.Cookie),
				Message: fmt.Sprintf("there is no listener in %s, so requests of this pod are not routed; trying again: %v", ns.Name, err),
			})
		}
	}
	err := a.apply(table)
	a.failing = err != nil || len(a.listeners.failed) > 0
	if a.cfg.Applied != nil {
		a.cfg.Applied(time.Since(began), err)
	}

	a.brought(err, uncovered, problems)

	kinds, say := a.problems.update(a.snapshot.Problems, problems, err)
	s := &metrics.State{
		Table:                a.applied,
		Problems:             kinds,
		PodsCovered:          a.report.now.Covered,
		PodsWithoutNamespace: a.resolved.Uncovered,
		PodsWithoutListener:  uncovered,
		Listeners:            len(a.listeners.open),
	}
	if a.applied == nil {
		s.NotReady = fmt.Sprintf("the first table is not in the kernel: %v", err)
	}
	if err == nil {
		a.turns.inForce() // whoever is ready can be taken over from
	}
	a.state.Store(s)
	// Whoever reads the log finds the metrics say the same.
	say()
	if err == nil {
		a.log.Debug("generation in force", "generation", table.Generation(), "took", time.Since(began))
	}
}

// apply takes the kernel to the table. Steering to a namespace begins before,
// and ends after, the table asks for it.
func (a *Agent) apply(t *routing.Table) error {
	if err := a.cfg.Kernel.SetNamespaces(a.listeners.steerable(true)); err != nil {
		// The rest of the table can be in force all the same.
		return errors.Join(err, a.applyTable(t))
	}
	if err := a.applyTable(t); err != nil {
		return err
	}
	if err := a.cfg.Kernel.SetNamespaces(a.listeners.steerable(false)); err != nil {
		return err
	}
	a.listeners.retire()
	return nil
}

func (a *Agent) applyTable(t *routing.Table) error {
	if err := a.cfg.Kernel.Apply(t); err != nil {
		return err
	}
	if a.applied == nil {
		a.recordsBegin()
	}
	a.applied = t
	a.sweeper.sweep(coverage{t, a.listeners.cookies()}, a.resolved.Namespaces)
	return nil
}

// recordsBegin tells the ledger that only from now on all that leaves records does so
// here: another agent's ledger goes with it.
func (a *Agent) recordsBegin() {
	if a.cfg.Ledger != nil {
		a.cfg.Ledger.InForce()
	}
}

// inform tells the ledger whose traffic it is that comes now.
func (a *Agent) inform(t *routing.Table) {
	if a.cfg.Ledger == nil {
		return
	}
	workloads := make(map[routing.Name]string, len(a.snapshot.Pods))
	for i := range a.snapshot.Pods {
		p := &a.snapshot.Pods[i]
		workloads[p.Name] = p.Workload
	}
	known := make(map[routing.Cookie]*ledger.Pod, len(a.resolved.Pods))
	for i := range a.resolved.Pods {
		p := &a.resolved.Pods[i]
		if p.Netns != 0 && known[p.Netns] == nil {
			known[p.Netns] = &ledger.Pod{Name: p.Name, Workload: workloads[p.Name], Sandbox: p.Sandbox}
		}
	}
	a.cfg.Ledger.SetPods(known)
	a.cfg.Ledger.SetTable(t)
}

// podOf returns a pod of a namespace.
func (a *Agent) podOf(c routing.Cookie) routing.Name {
	for _, p := range a.resolved.Pods {
		if p.Netns == c {
			return p.Name
		}
	}
	return routing.Name{}
}

// drain ends capture and lets requests under way finish.
func (a *Agent) drain() error {
	a.log.Info("draining", "timeout", a.cfg.DrainTimeout)
	s := *a.state.Load()
	s.NotReady = "the agent is ending"
	a.state.Store(&s)
	err := a.silence()
	ctx, cancel := context.WithTimeout(context.Background(), a.cfg.DrainTimeout)
	defer cancel()
	if a.turns.left(ctx) {
		// Another agent acts, and has what could move.
		var last context.CancelFunc
		ctx, last = context.WithTimeout(context.Background(), lastChance)
		defer last()
	} else {
		err = errors.Join(err, a.turns.endTurn(a.cfg.Kernel.DetachCapture))
		time.Sleep(grace)
	}
	if e := a.cfg.Router.Drain(ctx); e != nil && !errors.Is(e, context.DeadlineExceeded) {
		err = errors.Join(err, e)
	} else if e != nil {
		a.log.Warn("requests were still under way at the end of the drain", "timeout", a.cfg.DrainTimeout)
	}
	return err
}
