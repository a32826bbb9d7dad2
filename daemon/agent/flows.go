// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/sidetrack-dev/sidetrack/daemon/flows"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Flows is what the agent needs of loader.Kernel to tell the ledger of flows.
type Flows interface {
	Flows() (*loader.FlowReader, error)
	UntoldFlows() (uint64, error)
}

// recordFlows tells the ledger of tagged flows until what it returns is called.
func (a *Agent) recordFlows() (stop func() error, err error) {
	if a.cfg.Flows == nil || a.cfg.Ledger == nil {
		return func() error { return nil }, nil
	}
	r, err := a.cfg.Flows.Flows()
	if err != nil {
		return nil, err
	}
	a.flows = flows.New(flows.Config{Reader: r, Ledger: a.cfg.Ledger, Logger: a.log})
	return a.flows.Close, nil
}

// followFlows has flows followed to their end in the namespaces where the table decides
// about them. It goes before the table is in force.
func (a *Agent) followFlows(t *routing.Table) {
	if a.flows == nil || !a.cfg.FlowEnds {
		return
	}
	listening := a.listeners.cookies()
	a.flows.Watch(t, a.resolved.Namespaces, func(c routing.Cookie) bool { return listening[c] })
}

// countUntold has the ledger say how many flows it has missed.
func (a *Agent) countUntold() {
	if a.cfg.Flows == nil || a.cfg.Ledger == nil {
		return
	}
	n, err := a.cfg.Flows.UntoldFlows()
	if err != nil {
		a.log.Debug("it is not known how many flows left no record", "err", err)
		return
	}
	a.cfg.Ledger.Missed(n)
}
