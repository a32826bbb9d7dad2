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
	if d, ok := t.LookupDest(f.Dialled, f.Protocol); ok {
		e.Service, e.Target = t.Leads(sb, d.ID)
		e.Port = t.ServicePort(d.ID, e.Service)
	}
	l.Add(&e)
}
