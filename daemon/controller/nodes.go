// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

const (
	// staleAfter is how long an agent, or a node, may be silent.
	staleAfter = 40 * time.Second
	// lagGrace is how long nodes may take over a change of endpoints without
	// being said to have fallen behind.
	lagGrace = 2 * time.Second
	// uncoveredGrace is how long a pod that starts may take to be covered.
	uncoveredGrace = 10 * time.Second
	// neverReady is what may lie between a Node's creation and the first thing that
	// its kubelet says of it.
	neverReady = 2 * time.Second
	// maxProblem bounds what is said of one node's problem.
	maxProblem = 256
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
	// uncovered names nodes without a working agent and says why; exposed those
	// with pods whose traffic is not looked at; behind those whose agent has not
	// come that far; ignored those that do not count.
	uncovered, exposed, behind, ignored []string
}

// complete reports that every node that has to has everything in force.
func (c *coverage) complete() bool { return c.total > 0 && c.programmed == c.total }

// cluster is what the controller knows of nodes and their agents at one time.
type cluster struct {
	nodes    []corev1.Node
	states   map[string]*v1alpha1.NodeState
	agents   map[string]heartbeat
	selector labels.Selector
	now      time.Time
}

// cover decides which nodes have to be covered, and are. Of problems with objects it
// tells those in one namespace alone, whose users read it; metav1.NamespaceAll: all.
func (c *cluster) cover(want versions, namespace string) coverage {
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
		s := &c.states[n.Name].Status
		if why := c.exposed(n, namespace); why != "" {
			out.exposed = append(out.exposed, n.Name+" ("+why+")")
			continue
		}
		if !want.reachedBy(s.Applied) {
			behind := n.Name
			if why := firstProblem(s, "Node", namespace); why != "" {
				behind += " (" + why + ")"
			}
			out.behind = append(out.behind, behind)
			continue
		}
		out.programmed++
	}
	slices.Sort(out.uncovered)
	slices.Sort(out.exposed)
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
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		return false, "never Ready"
	}
	switch ready := n.Status.Conditions[i]; {
	case ready.Status == corev1.ConditionTrue:
		return true, ""
	case ready.LastTransitionTime.Sub(n.CreationTimestamp.Time) < neverReady:
		// Until it is, no pod whose traffic could be routed starts there.
		return false, "never Ready"
	case c.now.Sub(ready.LastTransitionTime.Time) > staleAfter:
		return false, "not Ready"
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
	case c.now.Sub(c.agents[n.Name].heard) > staleAfter:
		return "its agent is silent"
	case s.Status.Applied == nil:
		return "its agent has nothing in force yet"
	}
	return ""
}

// exposed says which of a node's pods have not been covered for a while: what
// they send reaches the baseline, tagged or not.
func (c *cluster) exposed(n *corev1.Node, namespace string) string {
	s := &c.states[n.Name].Status
	since := c.agents[n.Name].uncovered
	if s.Pods.Uncovered <= 0 || since.IsZero() || c.now.Sub(since) < uncoveredGrace {
		return ""
	}
	out := fmt.Sprintf("%d of its %d pods", s.Pods.Uncovered, s.Pods.Covered+s.Pods.Uncovered)
	if why := cmp.Or(firstProblem(s, "Pod", namespace), firstProblem(s, "Node", namespace), firstProblem(s, "", namespace)); why != "" {
		out += ", the first problem: " + why
	}
	return out
}

// firstProblem is the first of an agent's problems, in words, that is about a
// kind; of any kind where that is empty. What is wrong in other namespaces than one is
// nothing for those who read of it there, unless that is metav1.NamespaceAll.
func firstProblem(s *v1alpha1.NodeStateStatus, kind, namespace string) string {
	for _, p := range s.Problems {
		if kind != "" && p.Kind != kind || namespace != metav1.NamespaceAll && p.Namespace != "" && p.Namespace != namespace {
			continue
		}
		what := p.Kind
		if p.Name != "" {
			what = strings.TrimPrefix(p.Kind+" "+strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"), " ")
		}
		if what == "" || p.Kind == "Node" {
			return short(p.Message, maxProblem)
		}
		return what + ": " + short(p.Message, maxProblem)
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
		message = fmt.Sprintf("%d of %d nodes have no working agent: %s: look at the agent's pods there, those with the label app.kubernetes.io/component=agent; traffic from there reaches the baseline",
			len(c.uncovered), c.total, join(c.uncovered, ", "))
		if len(c.exposed) > 0 {
			message += fmt.Sprintf("; pods that are not covered run on %s", join(c.exposed, ", "))
		}
	case len(c.exposed) > 0:
		reason = reasonPodsUncover
		message = fmt.Sprintf("%d of %d nodes run pods that are not covered: %s: tagged requests that these send reach the baseline; kubectl describe nodestate lists the problems",
			len(c.exposed), c.total, join(c.exposed, ", "))
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

// signature changes when a node becomes covered or uncovered, and when connections
// from before a redirect do, or the names that nodes go by.
func (c *cluster) signature() string {
	out := c.cover(versions{}, metav1.NamespaceAll)
	names := v1alpha1.CommonKeyNames{}
	if n := c.keyNames(); n != nil {
		names = *n
	}
	return fmt.Sprint(out.total, out.uncovered, out.exposed, out.ignored, c.connections(), names)
}

// keyNames is where all nodes with a working agent look for routing keys; nil while
// none says. An agent that does not say is older, and taken to do as the others.
func (c *cluster) keyNames() *v1alpha1.CommonKeyNames {
	all := map[string]v1alpha1.KeyNames{}
	for i := range c.nodes {
		n := &c.nodes[i]
		if counts, _ := c.counts(n); !counts || c.uncovered(n) != "" {
			continue
		}
		if names := c.states[n.Name].Status.KeyNames; names != nil {
			all[n.Name] = *names
		}
	}
	return v1alpha1.FindCommonKeyNames(all)
}

// connections counts those from before a redirect that agents have not covered
// yet, by Service. What an agent says that is silent does not count.
func (c *cluster) connections() map[types.NamespacedName]int64 {
	out := map[types.NamespacedName]int64{}
	for i := range c.nodes {
		n := &c.nodes[i]
		if c.uncovered(n) != "" {
			continue
		}
		for _, s := range c.states[n.Name].Status.Connections {
			out[types.NamespacedName{Namespace: s.Namespace, Name: s.Service}] += int64(s.Uncovered)
		}
	}
	return out
}

// connectionsOf is the sum of connections over the Services, in a namespace, that
// are redirected.
func (c *cluster) connectionsOf(namespace string, redirects []v1alpha1.RedirectStatus) (sum int64) {
	all := c.connections()
	for _, r := range redirects {
		from := types.NamespacedName{Namespace: namespace, Name: r.From.Service}
		sum += all[from]
		delete(all, from)
	}
	return sum
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
	// heard is when the agent was last heard of, and uncovered since when it has
	// said that there are pods that it does not cover.
	heard     time.Time
	uncovered time.Time
}

// hear takes note of what agents say and returns what is known of each. The
// result must not be changed.
func (h *heartbeats) hear(states []v1alpha1.NodeState, now time.Time) map[string]heartbeat {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := make(map[string]heartbeat, len(states))
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
		switch {
		case s.Status.Pods.Uncovered <= 0:
			b.uncovered = time.Time{}
		case b.uncovered.IsZero():
			b.uncovered = now
		}
		last[s.Name] = b
	}
	h.last = last
	return last
}

// pause is called while nobody can be heard: the time does not count as
// anybody's silence who has not been silent before.
func (h *heartbeats) pause(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Another map: callers of hear have this one.
	last := make(map[string]heartbeat, len(h.last))
	for name, b := range h.last {
		if now.Sub(b.heard) <= staleAfter {
			b.heard = now
		}
		last[name] = b
	}
	h.last = last
}
