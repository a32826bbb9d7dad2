// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"slices"
	"strings"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// A node that has seen a call without its trace's key names the caller once it knows
// that the caller had received the key, which it may have done on another node. Nodes
// announce that, but an announcement may be late, or lost. Who asks for a trace gets
// no answer that depends on it: the nodes are asked where the trace has gone, and
// where one does not know what another has said, they are told, and asked again.

// maxRounds is how often they are asked at most. Two are enough for a trace whose
// calls are over.
const maxRounds = 4

// collected is what came of asking one agent.
type collected struct {
	answer ledgerv1alpha1.NodeAnswer
	hops   []wire.Trace
}

// hopsOf returns where a trace has gone, as agents say, and whether each that has
// answered knows all of it: it has said so itself, or was told with the question. Who
// was told and does not say so has no use for it, or none yet: its answer says so (see
// TraceAnswer.Foreign and Unwatched).
func hopsOf(nodes []collected, told []wire.Trace) (hops []wire.Trace, known bool) {
	all := map[string]wire.Trace{}
	for i := range nodes {
		for _, t := range nodes[i].hops {
			all[hopKey(&t)] = t
		}
	}
	for _, t := range told {
		delete(all, hopKey(&t))
	}
	known = true
	for i := range nodes {
		if !nodes[i].answer.Answered {
			continue
		}
		own := map[string]bool{}
		for _, t := range nodes[i].hops {
			own[hopKey(&t)] = true
		}
		for key := range all {
			known = known && own[key]
		}
	}
	hops = slices.Clone(told)
	for _, t := range all {
		hops = append(hops, t)
	}
	return hops, known
}

// hopKey is the same for the same hop.
func hopKey(t *wire.Trace) string {
	return t.ServiceNamespace + "/" + t.Service + " " + strings.Join(t.Endpoints, " ")
}
