// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/sidetrack-dev/sidetrack/daemon/agent"
	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
)

// openFor is how long an agent may hold the lock and not answer, because it is
// just taking over from another or ending, before it counts as one that cannot
// hand over.
const openFor = 5 * time.Second

// settle is how long a new agent has to be in force before the old one, which
// stays, gives it connections.
const settle = 3 * time.Second

// handoverFlags say how agents take turns.
type handoverFlags struct {
	socket string
	ready  string
	stay   bool
}

func (h *handoverFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&h.socket, "handover-socket", h.socket, "`path` of the socket by which one agent takes over from another without a failed request (default: none, and a second agent is refused)")
	flags.BoolVar(&h.stay, "handover-stay", h.stay, "wait for SIGTERM after having handed over, and act again should the other agent end: for where whatever ends is started again (always with --kubernetes)")
	flags.StringVar(&h.ready, "ready-socket", h.ready, "`path` of the socket that `sidetrackd ready` asks (default: with --kubernetes one that only this container finds, else none)")
}

// openKernel opens the kernel, beside an agent that runs if there is one that
// hands over.
func (h *handoverFlags) openKernel(ctx context.Context, cfg loader.Config, log *slog.Logger) (*loader.Kernel, *agent.Predecessor, error) {
	if h.socket == "" {
		k, err := open(cfg)
		return k, nil, err
	}
	if err := handover.Check(h.socket); err != nil {
		return nil, nil, fmt.Errorf("--handover-socket: %w", err)
	}
	for end := time.Now().Add(openFor); ; {
		p, err := agent.FindPredecessor(ctx, h.socket, handover.Hello{Version: buildVersion(), Mark: cfg.Mark}, log)
		if err != nil && !errors.Is(err, handover.ErrNobody) {
			return nil, nil, err
		}
		cfg.Legacy = nil
		if p != nil {
			cfg.Legacy = p.Legacy
		}
		k, err := open(cfg)
		if err == nil {
			return k, p, nil
		}
		p.Close()
		switch {
		case !errors.Is(err, loader.ErrRunning) || p != nil:
			return nil, nil, err
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case time.Now().After(end):
			return nil, nil, fmt.Errorf("%w. It cannot hand over: nobody answers at %s, so it is of an earlier version or runs with another --handover-socket or none. Nothing has changed; once it has ended, this agent can start", err, h.socket)
		}
	}
}

func open(cfg loader.Config) (*loader.Kernel, error) {
	k, err := loader.Open(cfg)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: run the agent as root, or with what `sidetrackd check` names", err)
	}
	return k, err
}

// endpoint prepares to serve metrics: at once, or, where the predecessor serves
// at this address, in its turn.
func endpoint(e *metrics.Endpoint, p *agent.Predecessor) error {
	// What it had to give is taken by the end of this.
	defer p.Taken()
	if p != nil && p.Metrics != nil && p.MetricsAddress == e.Address() {
		return e.Inherit(p.Metrics)
	}
	if err := e.Listen(); err != nil {
		return err
	}
	return e.Start()
}

// turns is the agent's part; nil without a socket.
func (h *handoverFlags) turns(p *agent.Predecessor, k *loader.Kernel, r *router.Router, e *metrics.Endpoint, kubernetes bool) *agent.HandoverConfig {
	if h.socket == "" {
		return nil
	}
	cfg := &agent.HandoverConfig{
		Socket: h.socket, Predecessor: p, Kernel: k, Router: r, Metrics: e, Version: buildVersion(), Stay: h.stay || kubernetes,
	}
	if cfg.Stay {
		cfg.Settle = settle
	}
	return cfg
}
