// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// staleAfter is how long an agent may be silent, as NodeState says.
const staleAfter = 40 * time.Second

// Status is what is in force where.
type Status struct {
	// Nodes are missing where the user may not look at them.
	Nodes []Node `json:"nodes,omitempty"`
	// NodesHidden says why they are missing.
	NodesHidden string    `json:"nodesHidden,omitempty"`
	Sandboxes   []Sandbox `json:"sandboxes"`
}

// Node is one node, as its agent says.
type Node struct {
	Name  string `json:"name"`
	Agent string `json:"agent,omitempty"`
	// State is "covered", or what is wrong.
	State string `json:"state"`
	OK    bool   `json:"ok"`
	// HeartbeatSeconds is how long ago the agent was heard of.
	HeartbeatSeconds float64 `json:"heartbeatSeconds,omitempty"`
	// Covered and Uncovered count its pods.
	Covered   int32    `json:"covered"`
	Uncovered int32    `json:"uncovered"`
	Problems  []string `json:"problems,omitempty"`
	// Behind are sandboxes whose newest version the agent does not have in force.
	Behind []string `json:"behind,omitempty"`
}

// Sandbox is one sandbox, as the controller says.
type Sandbox struct {
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Ready      bool   `json:"ready"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
	Generation int64  `json:"generation"`
	Revision   int64  `json:"revision"`
	// Programmed of Nodes have this revision in force.
	Programmed int32 `json:"programmed"`
	Nodes      int32 `json:"nodes"`
	// Forks and Redirects are what it consists of, in words.
	Forks     []string `json:"forks,omitempty"`
	Redirects []string `json:"redirects,omitempty"`
	ExpiresAt string   `json:"expiresAt,omitempty"`
}

// Look reads the status of a sandbox, or of all of a namespace where name is
// empty. A namespace that is empty is the connection's.
func Look(ctx context.Context, c *cluster.Cluster, namespace, name string) (*Status, error) {
	if namespace == "" {
		namespace = c.Namespace
	}
	var all []v1alpha1.Sandbox
	if name != "" {
		sb, err := sandbox.Get(ctx, c, namespace, name)
		if err != nil {
			return nil, err
		}
		all = append(all, *sb)
	} else {
		var err error
		if all, err = sandbox.List(ctx, c, namespace, ""); err != nil {
			return nil, err
		}
	}
	s := &Status{Sandboxes: []Sandbox{}}
	for i := range all {
		s.Sandboxes = append(s.Sandboxes, describe(&all[i]))
	}
	nodes, hidden, err := nodes(ctx, c, all)
	s.Nodes, s.NodesHidden = nodes, hidden
	return s, err
}

func describe(sb *v1alpha1.Sandbox) Sandbox {
	out := Sandbox{
		Namespace: sb.Namespace, Name: sb.Name, Generation: sb.Generation, Revision: sb.Status.Revision,
		Reason: "Unseen", Message: "the controller has not looked at it yet",
	}
	if c := meta.FindStatusCondition(sb.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.ObservedGeneration == sb.Generation {
		out.Ready, out.Reason, out.Message = c.Status == "True", c.Reason, c.Message
	}
	if n := sb.Status.Nodes; n != nil {
		out.Programmed, out.Nodes = n.Programmed, n.Total
	}
	for _, f := range sb.Status.Forks {
		text := fmt.Sprintf("%s: %d of %d ready", sandbox.Name(f.Workload), f.Ready, f.Replicas)
		if f.Message != "" {
			text += ": " + f.Message
		}
		out.Forks = append(out.Forks, text)
	}
	for i := range sb.Status.Redirects {
		out.Redirects = append(out.Redirects, Redirect(&sb.Status.Redirects[i]))
	}
	if at := sb.Status.ExpiresAt; at != nil {
		out.ExpiresAt = at.UTC().Format(time.RFC3339)
	}
	return out
}

// Redirect says in words where a redirect leads.
func Redirect(r *v1alpha1.RedirectStatus) string {
	from, to := r.From.Service, r.To.Service
	if r.From.Port != nil {
		from += ":" + r.From.Port.String()
	}
	if r.To.Namespace != "" {
		to = r.To.Namespace + "/" + to
	}
	if r.To.Address != "" {
		to = r.To.Address
	}
	if r.To.Port != nil {
		to += ":" + r.To.Port.String()
	}
	text := fmt.Sprintf("%s -> %s", from, to)
	switch {
	case r.Refused:
		text += ", refused"
	case r.Fork != "":
		text += fmt.Sprintf(" (fork of %s), %d endpoints", r.Fork, r.Endpoints)
	default:
		text += fmt.Sprintf(", %d endpoints", r.Endpoints)
	}
	if r.Message != "" {
		text += ": " + r.Message
	}
	return text
}

// nodes reads what the agents say, beside which nodes there are.
func nodes(ctx context.Context, c *cluster.Cluster, sandboxes []v1alpha1.Sandbox) (all []Node, hidden string, err error) {
	var states v1alpha1.NodeStateList
	if err := c.Objects.List(ctx, &states); err != nil {
		if apierrors.IsForbidden(err) {
			return nil, "you may not list nodestates, which belong to the whole cluster; the sandboxes say how many nodes have them in force", nil
		}
		return nil, "", cluster.Explain(err, "list the NodeStates")
	}
	known := map[string]*v1alpha1.NodeState{}
	for i := range states.Items {
		known[states.Items[i].Name] = &states.Items[i]
	}
	var list corev1.NodeList
	// Without them, nodes that have no agent at all are not seen.
	if err := c.Objects.List(ctx, &list); err != nil && !apierrors.IsForbidden(err) {
		return nil, "", cluster.Explain(err, "list the nodes")
	}
	there := map[string]*corev1.Node{}
	for i := range list.Items {
		n := &list.Items[i]
		if system := n.Status.NodeInfo.OperatingSystem; system != "" && system != "linux" {
			continue
		}
		there[n.Name] = n
		if known[n.Name] == nil {
			all = append(all, Node{Name: n.Name, State: "no agent: tagged requests from there reach the baseline"})
		}
	}
	for name, s := range known {
		n := node(s, there[name], time.Now())
		for i := range sandboxes {
			if behind(s, &sandboxes[i]) {
				n.Behind = append(n.Behind, sandboxes[i].Namespace+"/"+sandboxes[i].Name)
			}
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return all, "", nil
}

func node(s *v1alpha1.NodeState, n *corev1.Node, now time.Time) Node {
	out := Node{Name: s.Name, Agent: s.Status.AgentVersion, Covered: s.Status.Pods.Covered, Uncovered: s.Status.Pods.Uncovered}
	if t := s.Status.HeartbeatTime; t != nil {
		out.HeartbeatSeconds = now.Sub(t.Time).Seconds()
	}
	for _, p := range s.Status.Problems {
		what := strings.TrimSpace(p.Kind + " " + strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"))
		if p.Field != "" {
			what += " " + p.Field
		}
		out.Problems = append(out.Problems, strings.TrimPrefix(what+": "+p.Message, ": "))
	}
	switch {
	case s.Status.HeartbeatTime == nil || s.Status.Applied == nil:
		out.State = "its agent has nothing in force yet"
	case now.Sub(s.Status.HeartbeatTime.Time) > staleAfter:
		out.State = "its agent is silent: see its pod"
	case n != nil && n.Status.NodeInfo.BootID != s.Status.BootID:
		out.State = "no agent since it has been rebooted"
	case out.Uncovered > 0:
		out.State = fmt.Sprintf("%d pods are not covered", out.Uncovered)
	default:
		out.State, out.OK = "covered", true
	}
	return out
}

// behind reports that an agent has not said that it has a sandbox's newest version
// in force.
func behind(s *v1alpha1.NodeState, sb *v1alpha1.Sandbox) bool {
	if s.Status.Applied == nil {
		return true
	}
	// The controller's own word: agents take over what is written into the status
	// afterwards, too, which changes nothing.
	if c := meta.FindStatusCondition(sb.Status.Conditions, v1alpha1.ConditionProgrammed); c != nil && c.Status == "True" && c.ObservedGeneration == sb.Generation {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(s.Status.Applied.Sandboxes, sb.ResourceVersion)
	return err == nil && order < 0
}
