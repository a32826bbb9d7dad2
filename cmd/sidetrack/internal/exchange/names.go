// SPDX-License-Identifier: Apache-2.0

package exchange

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Names is where nodes look for a routing key. The zero value stands for what agents
// have that were told nothing else.
// Its Header is empty where nodes have none in common.
type Names v1alpha1.KeyNames

// NamesOf returns the names that all nodes know, as the controller says in a sandbox's
// status. It fails where they have none in common: a request that is tagged for one node
// is untagged, and the baseline's, at another.
func NamesOf(sb *v1alpha1.Sandbox) (Names, error) {
	k := sb.Status.KeyNames
	switch {
	case k == nil:
		return Names{}, nil
	case len(k.Members) == 0:
		return Names{}, &task.Failure{
			Kind:    task.NotReady,
			Message: "no name tags a request for all nodes: " + cmp.Or(k.Message, "their agents look for routing keys under different names"),
			Remedy:  "ask whoever runs the cluster; sidetrack doctor says what the agents have",
		}
	}
	return Names{Members: k.Members, Header: k.Header}, nil
}

// used are the names with the defaults in the place of none.
func (n Names) used() Names {
	if len(n.Members) == 0 {
		return Names(v1alpha1.DefaultKeyNames())
	}
	return n
}

// Baggage is the value of a baggage header that tags a request.
func (n Names) Baggage(key string) string { return n.used().Members[0] + "=" + key }

// Tag adds a routing key to a request that has none, as a member of baggage. An
// empty key changes nothing.
func (n Names) Tag(h http.Header, key string) {
	if key == "" || n.In(h) {
		return
	}
	h.Add("Baggage", n.Baggage(key))
}

// In reports whether a request's headers have a routing key.
func (n Names) In(h http.Header) bool {
	n = n.used()
	if n.Header != "" && h.Get(n.Header) != "" {
		return true
	}
	for _, header := range []string{"Baggage", "Tracestate"} {
		for _, line := range h.Values(header) {
			for member := range strings.SplitSeq(line, ",") {
				name, value, ok := strings.Cut(member, "=")
				value, _, _ = strings.Cut(value, ";")
				if ok && slices.Contains(n.Members, strings.TrimSpace(name)) && strings.TrimSpace(value) != "" {
					return true
				}
			}
		}
	}
	return false
}
