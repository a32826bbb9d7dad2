// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// KeyNames is where the agent of a node looks for a request's routing key.
type KeyNames struct {
	// Members are the names of the members of the baggage and tracestate headers that
	// carry a routing key, as the agent's flag --baggage-member has them. The first is
	// the one that the agent adds to requests.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=256
	// +kubebuilder:validation:items:Pattern="^[a-z][a-z0-9_-]*$"
	Members []string `json:"members"`
	// Header is the name of the plain header that carries one, in lower case, as the
	// agent's flag --key-header has it.
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern="^[a-z0-9!#$%&'*+.^_`|~-]+$"
	Header string `json:"header"`
}

// DefaultKeyNames returns the names that agents go by unless they are told otherwise.
func DefaultKeyNames() KeyNames {
	return KeyNames{Members: []string{"sidetrack", "sd-routing-key"}, Header: "x-sidetrack-key"}
}

// CommonKeyNames is where the agents of all nodes look for a request's routing key.
type CommonKeyNames struct {
	// Members are the names of the members of baggage and tracestate that all nodes
	// know. A request is tagged with the first. Empty where there is none.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Members []string `json:"members,omitempty"`
	// Header is the name of the plain header that all nodes know, in lower case. Empty
	// where they know different ones.
	// +optional
	Header string `json:"header,omitempty"`
	// Message says which nodes differ, where some do, and in which flag.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
	// Split is set where what one node tags another one does not know: a request that
	// passes both may lose its key on the way, so that nothing is Ready.
	// +optional
	Split bool `json:"split,omitempty"`
}

// FindCommonKeyNames compares the names that nodes' agents go by, each by its node's
// name. It returns nil where there are none to compare. Members keep the order that
// they have on the first node by name.
//
// A member that a node adds to requests by itself has to be known to every other
// node, not only one of its members: a pod of a sandbox calls by way of its own node,
// and what it calls does by way of another one.
func FindCommonKeyNames(nodes map[string]KeyNames) *CommonKeyNames {
	if len(nodes) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(nodes))
	first := nodes[names[0]]
	out := &CommonKeyNames{Members: slices.Clone(first.Members), Header: first.Header}
	var messages []string
	for _, n := range names[1:] {
		have := nodes[n]
		out.Members = slices.DeleteFunc(out.Members, func(m string) bool { return !slices.Contains(have.Members, m) })
		if !strings.EqualFold(have.Header, first.Header) && out.Header != "" {
			out.Header = ""
			messages = append(messages, fmt.Sprintf("--key-header is %s on node %s and %s on node %s", first.Header, names[0], have.Header, n))
		}
	}
	if adds, lacks, ok := unknownMember(nodes, names); ok {
		out.Split = true
		messages = slices.Insert(messages, 0, fmt.Sprintf("--baggage-member is %s on node %s, which adds the first of them to requests, and %s on node %s, which does not look for that one",
			strings.Join(nodes[adds].Members, ","), adds, strings.Join(nodes[lacks].Members, ","), lacks))
	}
	if len(messages) > 0 {
		const most = 1024
		out.Message = strings.Join(messages, "; ") + ": give all agents the same, by routing.baggageMembers and routing.keyHeader of the chart, or wait until they have been replaced"
		if len(out.Message) > most {
			out.Message = strings.ToValidUTF8(out.Message[:most-3], "") + "…"
		}
	}
	return out
}

// unknownMember finds a node that adds a member to requests which another does not
// know.
func unknownMember(nodes map[string]KeyNames, names []string) (adds, lacks string, found bool) {
	var seen []string // Thousands of nodes have one or two members between them.
	for _, adds := range names {
		members := nodes[adds].Members
		if len(members) == 0 || slices.Contains(seen, members[0]) {
			continue
		}
		seen = append(seen, members[0])
		for _, lacks := range names {
			if !slices.Contains(nodes[lacks].Members, members[0]) {
				return adds, lacks, true
			}
		}
	}
	return "", "", false
}
