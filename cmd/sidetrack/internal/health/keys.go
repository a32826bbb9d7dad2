// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// keyNames looks whether a routing key has a name that all nodes know.
func (d *doctor) keyNames(ctx context.Context) {
	const name = "key names"
	var states v1alpha1.NodeStateList
	if err := d.c.Objects.List(ctx, &states); err != nil {
		d.unseen(name, "nodestates; status.keyNames of a sandbox has the names", err)
		return
	}
	all := map[string]v1alpha1.KeyNames{}
	agents := 0
	for i := range states.Items {
		s := &states.Items[i]
		// What a node says that has no working agent counts for nothing.
		if s.Status.Applied == nil || s.Status.HeartbeatTime == nil || time.Since(s.Status.HeartbeatTime.Time) > staleAfter {
			continue
		}
		agents++
		if s.Status.KeyNames != nil {
			all[s.Name] = *s.Status.KeyNames
		}
	}
	common := v1alpha1.FindCommonKeyNames(all)
	switch {
	case agents == 0: // Whether there are agents is said already.
	case common == nil:
		n := v1alpha1.DefaultKeyNames()
		d.add(name, Optional, "upgrade the agents, or see that routing.baggageMembers and routing.keyHeader of the chart are these",
			"the agents are older than this program and do not say where they look for routing keys; it uses member %s of baggage", n.Members[0])
	case common.Split:
		d.add(name, Missing, "give all agents the same flags", "a request may lose its routing key between nodes, and no sandbox is ready: %s", common.Message)
	case common.Message != "":
		d.add(name, Optional, "give all agents the same flags", "no plain header is known to all nodes: %s", common.Message)
	default:
		d.add(name, OK, "", "members %s of baggage and tracestate, and header %s", strings.Join(common.Members, ", "), common.Header)
	}
}
