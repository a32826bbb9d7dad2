// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

var groupKind = v1alpha1.GroupVersion.WithKind(v1alpha1.RouteGroupKind)

// maxMembers bounds a group, named and selected ones together.
const maxMembers = 32

// groups joins Sandboxes under the keys of RouteGroups.
type groups struct{ base }

// Reconcile does it for one.
func (r *groups) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	g := &v1alpha1.RouteGroup{}
	err := r.client.Get(ctx, req.NamespacedName, g)
	switch {
	case apierrors.IsNotFound(err), err == nil && g.DeletionTimestamp != nil:
		r.memory.forget(req)
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get RouteGroup %s: %w", req, err)
	}
	known := r.memory.of(req, g.UID)
	if !reached(g.ResourceVersion, known.written) {
		return reconcile.Result{}, nil // the cache is behind, and an event will come
	}
	v := view{ctx: ctx, reader: r.client, grants: r.grants}
	next, again, err := r.decide(&v, g, known, req)
	if err != nil {
		return reconcile.Result{}, err
	}
	if equality.Semantic.DeepEqual(next, g.Status) {
		return reconcile.Result{RequeueAfter: again}, nil
	}
	version, err := writeStatus(ctx, r.client, groupKind, g, &next)
	if err != nil {
		return ignoreConflict(err)
	}
	known.written = version
	known.at(g.Generation, next.Revision, version)
	tellConditions(r.recorder, g, g.Status.Conditions, next.Conditions)
	return reconcile.Result{RequeueAfter: again}, nil
}

// decide says what a group's status is to be.
func (r *groups) decide(v *view, g *v1alpha1.RouteGroup, known *remembered, req reconcile.Request) (v1alpha1.RouteGroupStatus, time.Duration, error) {
	old := g.Status
	next := v1alpha1.RouteGroupStatus{RoutingKey: old.RoutingKey, Revision: old.Revision}
	var refused *refusal
	switch {
	case g.Spec.RoutingKey != "":
		next.RoutingKey = g.Spec.RoutingKey
		if refused = keyRefused(groupClaim(g, next.RoutingKey), v.claimants(next.RoutingKey)); refused != nil {
			next.RoutingKey = ""
		}
	case next.RoutingKey == "":
		next.RoutingKey = newRoutingKey()
	}

	var all v1alpha1.SandboxList
	v.list(&all, client.InNamespace(g.Namespace))
	targets := v.targets()
	var res resolution
	var refusals []refusal
	var notReady []string
	if refused != nil {
		refusals = append(refusals, *refused)
	} else {
		members, missing := membersOf(g, all.Items)
		refusals = append(refusals, missing...)
		for _, m := range members {
			next.Sandboxes = append(next.Sandboxes, m.Name)
			// Its own part of Ready, without the nodes: that is asked for here.
			for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionForksReady} {
				if !held(m.Status.Conditions, kind, m.Generation) {
					notReady = append(notReady, m.Name)
					break
				}
			}
		}
		res = joinRedirects(members, targets)
		next.Redirects = res.redirects
	}
	if len(next.Redirects) > maxStatusRedirects {
		refusals = append(refusals, *refuse(reasonTooMany, "the members bring %d redirects, of which the first %d are in force: make the group smaller", len(next.Redirects), maxStatusRedirects))
		next.Redirects = next.Redirects[:maxStatusRedirects]
	}
	changed := next.RoutingKey != old.RoutingKey || !sameRouting(next.Redirects, old.Redirects)
	if changed {
		next.Revision++
	}
	services, slices := versionsOf(targets, res.services, res.targets, func(types.NamespacedName) string { return "" })
	now := r.now()
	cluster := v.cluster(r.beats, r.nodes, now)
	if v.err != nil {
		return next, 0, v.err
	}
	prog, again := judge(cluster, known, programInput{
		namespace: g.Namespace, generation: g.Generation, revision: next.Revision, version: g.ResourceVersion, changed: changed, group: true,
		services: services, slices: slices,
		wasTrue: !changed && held(old.Conditions, v1alpha1.ConditionProgrammed, g.Generation),
	})
	r.memory.wait(req, !prog.strict())
	next.Nodes = nodeCount(prog.coverage)
	next.UncoveredConnections = cluster.connectionsOf(g.Namespace, next.Redirects)
	next.KeyNames = cluster.keyNames()

	c := conditions{list: deepCopyConditions(old.Conditions), generation: g.Generation}
	c.accept(refusals, res.notes)
	c.program(&prog)
	wasReady := !changed && held(old.Conditions, v1alpha1.ConditionReady, g.Generation)
	if len(notReady) > 0 && c.isTrue(v1alpha1.ConditionAccepted) {
		c.set(v1alpha1.ConditionReady, false, reasonNotForked, fmt.Sprintf("members are not ready: %s: see their conditions", join(notReady, ", ")))
	} else {
		c.ready(&prog, wasReady, next.KeyNames, next.Redirects, v1alpha1.ConditionAccepted, v1alpha1.ConditionProgrammed)
	}
	next.Conditions = c.list
	return next, again, nil
}

// membersOf returns a group's members in their order: those that it names, then
// those that it selects, by name.
func membersOf(g *v1alpha1.RouteGroup, all []v1alpha1.Sandbox) (members []*v1alpha1.Sandbox, refusals []refusal) {
	byName := map[string]*v1alpha1.Sandbox{}
	var names []string
	for i := range all {
		if all[i].DeletionTimestamp == nil {
			byName[all[i].Name] = &all[i]
			names = append(names, all[i].Name)
		}
	}
	slices.Sort(names)
	taken := map[string]bool{}
	var missing []string
	for _, ref := range g.Spec.Sandboxes {
		if m := byName[ref.Name]; m != nil && !taken[ref.Name] {
			members = append(members, m)
		} else if m == nil {
			missing = append(missing, ref.Name)
		}
		taken[ref.Name] = true
	}
	if missing != nil {
		refusals = append(refusals, *refuse(reasonMemberNotFound, "there is no Sandbox %s in namespace %s: create it or correct spec.sandboxes; the others are in force", join(missing, ", "), g.Namespace))
	}
	if g.Spec.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(g.Spec.Selector)
		if err != nil {
			refusals = append(refusals, *refuse(reasonUnsupported, "spec.selector: %v", err))
		} else {
			for _, n := range names {
				if !taken[n] && selector.Matches(labels.Set(byName[n].Labels)) {
					members = append(members, byName[n])
				}
			}
		}
	}
	if len(members) > maxMembers {
		refusals = append(refusals, *refuse(reasonTooMany, "%d sandboxes are members, of which the first %d are in force: select fewer", len(members), maxMembers))
		members = members[:maxMembers]
	}
	var unaccepted []string
	for _, m := range members {
		if m.Status.RoutingKey == "" {
			unaccepted = append(unaccepted, m.Name)
		}
	}
	if unaccepted != nil {
		refusals = append(refusals, *refuse(reasonMemberNotAccepted, "Sandbox %s is not accepted: see the conditions there", join(unaccepted, ", ")))
	}
	return members, refusals
}

// joinRedirects puts the members' redirects one after another. A port of a
// Service goes where the first of them says.
func joinRedirects(members []*v1alpha1.Sandbox, view targetView) resolution {
	var res resolution
	taken := takenPorts{}
	for _, m := range members {
		what := "Sandbox " + m.Name
		for _, s := range m.Status.Redirects {
			s.Sandbox, s.Message = m.Name, ""
			from := types.NamespacedName{Namespace: m.Namespace, Name: s.From.Service}
			svc := view.service(from)
			if svc == nil {
				continue // said there
			}
			ports := svc.Spec.Ports
			if s.From.Port != nil {
				ports = slices.Clone(ports)
				ports = slices.DeleteFunc(ports, func(p corev1.ServicePort) bool { return !isPort(p, s.From.Port.String()) })
			}
			left, note := taken.take(s, ports, what)
			if note != "" && !slices.Contains(res.notes, note) {
				res.notes = append(res.notes, note)
			}
			if len(left) == 0 {
				continue
			}
			res.redirects = append(res.redirects, left...)
			res.services = append(res.services, from)
			if s.To.Service != "" && !s.Refused {
				to := types.NamespacedName{Namespace: s.To.Namespace, Name: s.To.Service}
				if to.Namespace == "" {
					to.Namespace = m.Namespace
				}
				res.services = append(res.services, to)
				res.targets = append(res.targets, to)
			}
		}
	}
	return res
}
