// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

const (
	// staleAfter is how long an agent, or a node, may be silent.
	staleAfter = 40 * time.Second
	// lagGrace is how long nodes may take over a change of endpoints without
	// being said to have fallen behind.
	lagGrace = 2 * time.Second
)

// versions are resource versions up to which nodes must have put in force what
// the API server has. An empty one asks for nothing.
type versions struct {
	sandboxes, routeGroups, services, slices string
}

// newer returns the later one of two resource versions.
func newer(a, b string) string {
	if a == "" {
		return b
	}
	if c, err := resourceversion.CompareResourceVersion(a, b); err == nil && c < 0 {
		return b
	}
	return a
}

// reached reports whether have is not before want.
func reached(have, want string) bool {
	if want == "" {
		return true
	}
	c, err := resourceversion.CompareResourceVersion(have, want)
	return err == nil && c >= 0
}

func (v versions) reachedBy(a *v1alpha1.AppliedVersions) bool {
	return a != nil && reached(a.Sandboxes, v.sandboxes) && reached(a.RouteGroups, v.routeGroups) &&
		reached(a.Services, v.services) && reached(a.EndpointSlices, v.slices)
}

// coverage is what nodes have put in force.
type coverage struct {
	total, programmed int32
	// uncovered names nodes without a working agent and says why; behind those
	// whose agent has not come that far; ignored those that do not count.
	uncovered, behind, ignored []string
}

// complete reports that every node that has to has everything in force.
func (c *coverage) complete() bool { return c.total > 0 && c.programmed == c.total }

// cluster is what the controller knows of nodes and their agents at one time.
type cluster struct {
	nodes  []corev1.Node
	states map[string]*v1alpha1.NodeState
	// heard is when an agent was last heard of.
	heard    map[string]time.Time
	selector labels.Selector
	now      time.Time
}

// cover decides which nodes have to be covered, and are.
func (c *cluster) cover(want versions) coverage {
	var out coverage
	for i := range c.nodes {
		n := &c.nodes[i]
		counts, why := c.counts(n)
		if why != "" {
			out.ignored = append(out.ignored, n.Name+" ("+why+")")
		}
		if !counts {
			continue
		}
		out.total++
		if why := c.uncovered(n); why != "" {
			out.uncovered = append(out.uncovered, n.Name+" ("+why+")")
			continue
		}
		if !want.reachedBy(c.states[n.Name].Status.Applied) {
			out.behind = append(out.behind, n.Name)
			continue
		}
		out.programmed++
	}
	slices.Sort(out.uncovered)
	slices.Sort(out.behind)
	slices.Sort(out.ignored)
	return out
}

// counts reports whether a node has to be covered, and why not where that is
// worth saying.
func (c *cluster) counts(n *corev1.Node) (bool, string) {
	if os := cmp.Or(n.Status.NodeInfo.OperatingSystem, n.Labels[corev1.LabelOSStable], "linux"); os != "linux" {
		return false, ""
	}
	if n.DeletionTimestamp != nil || !c.selector.Matches(labels.Set(n.Labels)) {
		return false, ""
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue && c.now.Sub(cond.LastTransitionTime.Time) > staleAfter {
			return false, "not Ready"
		}
	}
	return true, ""
}

// uncovered says what is wrong with a node's agent.
func (c *cluster) uncovered(n *corev1.Node) string {
	s := c.states[n.Name]
	switch {
	case s == nil:
		return "no agent"
	case s.Status.BootID != n.Status.NodeInfo.BootID:
		return "no agent since it has been rebooted"
	case c.now.Sub(c.heard[n.Name]) > staleAfter:
		return "its agent is silent"
	case s.Status.Applied == nil:
		return "its agent has nothing in force yet"
	}
	return ""
}

// describe says what a coverage lacks, and what to do about it.
func (c *coverage) describe() (reason, message string) {
	switch {
	case c.total == 0:
		reason, message = reasonNoNodes, "there is no Ready linux node whose traffic could be routed"
	case len(c.uncovered) > 0:
		reason = reasonNodeUncover
		message = fmt.Sprintf("%d of %d nodes have no working agent: %s: look at the pods of the DaemonSet sidetrackd on them; traffic from there reaches the baseline",
			len(c.uncovered), c.total, join(c.uncovered, ", "))
	case len(c.behind) > 0:
		reason = reasonWaiting
		message = fmt.Sprintf("%d of %d nodes have it in force, waiting for %s", c.programmed, c.total, join(c.behind, ", "))
	default:
		reason = reasonProgrammed
		message = fmt.Sprintf("in force on %d of %d nodes", c.programmed, c.total)
	}
	if len(c.ignored) > 0 {
		message += fmt.Sprintf("; left out: %s", join(c.ignored, ", "))
	}
	return reason, message
}

// signature changes when a node becomes covered or uncovered.
func (c *cluster) signature() string {
	out := c.cover(versions{})
	return fmt.Sprint(out.total, out.uncovered, out.ignored)
}

// heartbeats says when agents were last heard of, by the controller's own clock:
// nodes' clocks differ.
type heartbeats struct {
	mu   sync.Mutex
	last map[string]heartbeat
}

type heartbeat struct {
	instance string
	sent     time.Time
	heard    time.Time
}

// hear takes note of what agents say and returns when each was last heard of.
func (h *heartbeats) hear(states []v1alpha1.NodeState, now time.Time) map[string]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := make(map[string]heartbeat, len(states))
	heard := make(map[string]time.Time, len(states))
	for i := range states {
		s := &states[i]
		var sent time.Time
		if s.Status.HeartbeatTime != nil {
			sent = s.Status.HeartbeatTime.Time
		}
		b, known := h.last[s.Name]
		switch {
		case !known && sent.After(now), known && (b.sent != sent || b.instance != s.Status.Instance):
			b.heard = now
		case !known:
			// It may be what an agent has left that is gone for days.
			b.heard = sent
		}
		b.sent, b.instance = sent, s.Status.Instance
		last[s.Name], heard[s.Name] = b, b.heard
	}
	h.last = last
	return heard
}
