// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
)

// hopReply is one call that came of a request.
type hopReply struct {
	From     string `json:"from" jsonschema:"who called"`
	Service  string `json:"service" jsonschema:"which Service was called"`
	Went     string `json:"went" jsonschema:"fork, baseline (what everybody shares) or reject"`
	Pod      string `json:"pod,omitempty" jsonschema:"the pod that answered; missing where the ledger does not know it"`
	Request  string `json:"request,omitempty"`
	Status   int32  `json:"status,omitempty" jsonschema:"HTTP status"`
	Why      string `json:"why,omitempty" jsonschema:"why it did not go to a fork"`
	LostKey  string `json:"lost_key,omitempty" jsonschema:"the workload that made this call without the routing key, on behalf of a request that had it"`
	Healed   bool   `json:"healed,omitempty" jsonschema:"it went to the fork all the same, by its trace id"`
	Error    string `json:"error,omitempty"`
	Duration string `json:"duration,omitempty"`
	Carried  string `json:"carried,omitempty" jsonschema:"what a connection that is no HTTP has carried, or that it is under way"`
	Depth    int    `json:"depth" jsonschema:"0 for the first call, 1 for one that came of it, and so on"`
}

// hopsOf puts records in order, each below the call that it came of.
func hopsOf(records []ledger.Record) []hopReply {
	all := []hopReply{}
	var add func(list []*hops.Hop, depth int)
	add = func(list []*hops.Hop, depth int) {
		for _, h := range list {
			all = append(all, hopOf(h.Record, depth))
			add(h.Children, depth+1)
		}
	}
	add(hops.Tree(records), 0)
	return all
}

func hopOf(r *ledger.Record, depth int) hopReply {
	h := hopReply{From: hops.Caller(r), Service: hops.Callee(r), Went: string(r.Decision), Status: r.Status, Healed: r.Healed, Error: r.Error, Carried: hops.Carried(r), Depth: depth}
	if r.Answer != nil {
		h.Pod = r.Answer.Pod
	}
	h.Request = string(r.Protocol)
	if q := r.Request; q != nil {
		h.Request = q.Method + " " + q.Path
	}
	if r.Decision != ledger.DecisionFork {
		h.Why = strings.TrimSpace(r.Reason + " " + r.Target)
	}
	if r.LostKey {
		h.LostKey = cmp.Or(r.LostBy, hops.Caller(r))
	}
	if r.LatencyNanos > 0 {
		h.Duration = time.Duration(r.LatencyNanos).Round(100 * time.Microsecond).String()
	}
	return h
}

func (h *hopReply) line() string {
	s := fmt.Sprintf("%s-> %s from %s: %s", strings.Repeat("  ", h.Depth), h.Service, h.From, h.Went)
	if h.Pod != "" {
		s += ", pod " + h.Pod
	}
	if h.Status != 0 {
		s += fmt.Sprintf(", status %d", h.Status)
	}
	if h.Carried != "" {
		s += ", " + h.Carried
	}
	for _, more := range [][2]string{{"why", h.Why}, {"KEY LOST by", h.LostKey}, {"error", h.Error}} {
		if more[1] != "" {
			s += ", " + more[0] + " " + more[1]
		}
	}
	if h.Healed {
		s += ", healed by its trace"
	}
	return s
}
