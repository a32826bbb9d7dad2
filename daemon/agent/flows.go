// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/loader"
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
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := r.Read()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				a.log.Error("flows leave no records any more", "err", err)
				return
			}
			a.cfg.Ledger.AddFlow(ledger.Flow{
				At: f.At, Source: f.Source, Sandbox: f.Sandbox, Dialled: f.Dialled, Protocol: f.Protocol,
				Datagrams: f.Datagrams, Verdict: f.Verdict, Reason: f.Reason, Endpoint: f.Endpoint,
			})
		}
	}()
	return func() error {
		err := r.Close()
		<-done
		return err
	}, nil
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
