// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Without a controller the source itself finds a group's members, and whether a
// redirect may lead into another namespace: both depend on other objects, so it
// is done for each snapshot.

// group is what is kept of a RouteGroup.
type group struct {
	routing.Sandbox // without redirects
	members         []string
	selector        labels.Selector
}

// convertGroup takes what is needed of a RouteGroup that is valid.
func convertGroup(o *v1alpha1.RouteGroup) *group {
	g := &group{Sandbox: routing.Sandbox{
		Name:     routing.Name{Namespace: o.Namespace, Name: o.Name},
		Group:    true,
		Key:      o.Spec.RoutingKey,
		Existing: convertExisting(o.Spec.ExistingConnections),
	}}
	if g.Key == "" {
		g.Key = o.Status.RoutingKey
	}
	for _, m := range o.Spec.Sandboxes {
		g.members = append(g.members, m.Name)
	}
	g.selector = labels.Nothing()
	if o.Spec.Selector != nil {
		// Validate has seen to it that it is one.
		g.selector, _ = metav1.LabelSelectorAsSelector(o.Spec.Selector)
	}
	return g
}

// groupAdvice says what a RouteGroup asks for that only the controller does.
func groupAdvice(o *v1alpha1.RouteGroup) []routing.Problem {
	if o.Spec.RoutingKey != "" || o.Status.RoutingKey != "" {
		return nil
	}
	return []routing.Problem{{
		Kind: v1alpha1.RouteGroupKind, Object: routing.Name{Namespace: o.Namespace, Name: o.Name}, Field: "spec.routingKey",
		Message: "standalone mode cannot generate one that anybody could read: write one; until then the group has no effect",
	}}
}

// member is a sandbox that a group may take in.
type member struct {
	sandbox *routing.Sandbox
	labels  map[string]string
}

// join returns the group with its members' redirects, and which members that it
// names are not there.
func (g *group) join(all []member) (routing.Sandbox, []string) {
	out := g.Sandbox
	known := map[string]*routing.Sandbox{}
	var selected []string
	for _, m := range all {
		if m.sandbox.Name.Namespace != g.Name.Namespace {
			continue
		}
		known[m.sandbox.Name.Name] = m.sandbox
		if !slices.Contains(g.members, m.sandbox.Name.Name) && g.selector.Matches(labels.Set(m.labels)) {
			selected = append(selected, m.sandbox.Name.Name)
		}
	}
	slices.Sort(selected)
	var missing []string
	for _, name := range slices.Concat(g.members, selected) {
		if s := known[name]; s != nil {
			out.Members = append(out.Members, name)
			out.Redirects = append(out.Redirects, s.Redirects...)
		} else {
			missing = append(missing, name)
		}
	}
	return out, missing
}

// grant is what is kept of a ReferenceGrant: which namespaces' Sandboxes may refer to
// which Services of its own.
type grant struct {
	name     routing.Name
	from, to []string // an empty name in to means all
}

func convertGrant(o *gatewayv1.ReferenceGrant) *grant {
	g := &grant{name: routing.Name{Namespace: o.Namespace, Name: o.Name}}
	for _, f := range o.Spec.From {
		if f.Group == v1alpha1.Group && f.Kind == v1alpha1.SandboxKind {
			g.from = append(g.from, string(f.Namespace))
		}
	}
	for _, t := range o.Spec.To {
		switch {
		case t.Group != "" || t.Kind != "Service":
		case t.Name == nil:
			g.to = append(g.to, "")
		default:
			g.to = append(g.to, string(*t.Name))
		}
	}
	return g
}

func (g *grant) allows(from string, to routing.Name) bool {
	return g.name.Namespace == to.Namespace && slices.Contains(g.from, from) &&
		(slices.Contains(g.to, "") || slices.Contains(g.to, to.Name))
}

// permit refuses the sandbox's redirects into namespaces without a grant, and says
// so. It changes the sandbox and nothing that an earlier one has shared.
func permit(s *routing.Sandbox, grants []*grant) []routing.Problem {
	var problems []routing.Problem
	cloned := false
	for i := range s.Redirects {
		to := routing.Name{Namespace: s.Redirects[i].To.Namespace, Name: s.Redirects[i].To.Service}
		if to.Namespace == "" || to.Namespace == s.Name.Namespace {
			continue
		}
		if !cloned {
			s.Redirects, cloned = slices.Clone(s.Redirects), true
		}
		r := &s.Redirects[i]
		r.Refused = ""
		if slices.ContainsFunc(grants, func(g *grant) bool { return g.allows(s.Name.Namespace, to) }) {
			continue
		}
		r.Refused = fmt.Sprintf("no ReferenceGrant in namespace %s lets Sandboxes of namespace %s refer to it", to.Namespace, s.Name.Namespace)
		problems = append(problems, routing.Problem{
			Kind: v1alpha1.SandboxKind, Object: s.Name, Field: r.Field + ".to",
			Message: fmt.Sprintf("%s; tagged traffic is refused until there is one, with from {group: %s, kind: %s, namespace: %s} and to {group: \"\", kind: Service, name: %s}",
				r.Refused, v1alpha1.Group, v1alpha1.SandboxKind, s.Name.Namespace, to.Name),
		})
	}
	return problems
}
