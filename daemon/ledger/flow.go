// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"net/netip"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Flow is a tagged flow that the kernel has told of; see loader.Flow.
type Flow struct {
	At        time.Time
	Source    routing.Cookie
	Sandbox   routing.SandboxID
	Dialled   netip.AddrPort
	Protocol  routing.Protocol
	Datagrams bool
	Verdict   routing.Verdict
	Reason    routing.Reason
	Endpoint  netip.AddrPort

	// ID joins the flow's records; zero: this is the only one.
	ID uint64
	// Open says that it is under way, and nothing of what follows but Answer is known.
	Open bool
	// Answer is who answers, where it is known otherwise than by Endpoint or Dialled.
	Answer netip.AddrPort
	// Lasted, Sent and Received are as in Entry; Error says how it ended otherwise than
	// in good order, or why that is not known.
	Lasted         time.Duration
	Sent, Received int64
	Error          string
}

// AddFlow records a flow. One of a sandbox that is gone leaves none.
func (l *Ledger) AddFlow(f Flow) {
	t := l.table.Load()
	sb := t.Sandbox(f.Sandbox)
	if sb == nil {
		return
	}
	e := Entry{
		At: f.At, Hook: AtConnect, Protocol: TCP,
		Owner: sb, Source: f.Source, Dialled: f.Dialled,
		Verdict: f.Verdict, Reason: f.Reason, Answer: f.Endpoint,
		Flow: f.ID, Open: f.Open, Latency: f.Lasted, Sent: f.Sent, Received: f.Received, Error: f.Error,
	}
	if f.Datagrams {
		e.Hook = AtSendMsg
	}
	if f.Protocol == routing.UDP {
		e.Protocol = UDP
	}
	if f.Verdict == routing.ToBaseline {
		e.Answer = f.Dialled
	}
	if f.Answer.IsValid() {
		e.Answer = f.Answer
	}
	if d, ok := t.LookupDest(f.Dialled, f.Protocol); ok {
		e.Service, e.Target = t.Leads(sb, d.ID)
		e.Port = t.ServicePort(d.ID, e.Service)
	}
	l.Add(&e)
}
