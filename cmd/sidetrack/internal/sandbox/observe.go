// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// ObserveNone in Request.Observe is for a sandbox that observes nothing.
const ObserveNone = "none"

// mostObserved is how many Services an object may name.
const mostObserved = 128

// observed returns what a sandbox observes. A sandbox that observes nothing has nodes
// not tell each other where its requests have gone, so that nothing can be verified of
// them. Where nobody says what to observe it is what is redirected, whose traffic is
// captured in any case.
func (r Request) observed(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, p *plan) ([]string, error) {
	if slices.Contains(r.Observe, ObserveNone) {
		if len(r.Observe) > 1 {
			return nil, task.Usagef("observe %s goes with nothing else: leave it out, or the Services", ObserveNone)
		}
		return nil, nil
	}
	if len(r.Observe) > 0 || len(p.workloads) == 0 && len(sb.Spec.Redirects) == 0 {
		return r.Observe, nil
	}
	var services corev1.ServiceList
	if c.Objects.List(ctx, &services, client.InNamespace(sb.Namespace)) != nil {
		return nil, ctx.Err() // Who reads the verdict is told what to do.
	}
	var names []string
	for i := range services.Items {
		if svc := &services.Items[i]; redirected(sb, p, svc) {
			names = append(names, svc.Name)
		}
	}
	if len(names) > mostObserved || othersObserveAll(ctx, c, sb) {
		return nil, ctx.Err()
	}
	slices.Sort(names)
	return names, nil
}

// Unobserved returns the names in what a sandbox observes that no Service has, which may
// come later; none where that cannot be told. Their hops are missing without a word.
func Unobserved(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) []string {
	var services corev1.ServiceList
	if len(sb.Spec.Observe) == 0 || c.Objects.List(ctx, &services, client.InNamespace(sb.Namespace)) != nil {
		return nil
	}
	var names []string
	for _, name := range sb.Spec.Observe {
		if name != v1alpha1.ObserveAll && !slices.ContainsFunc(services.Items, func(s corev1.Service) bool { return s.Name == name }) {
			names = append(names, name)
		}
	}
	return names
}

// redirected reports whether all of a Service's TCP ports are redirected, and there is
// one.
func redirected(sb *v1alpha1.Sandbox, p *plan, svc *corev1.Service) bool {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return false
	}
	whole := slices.ContainsFunc(p.workloads, func(w *workload) bool { return selects(svc, w.labels) })
	found := false
	for _, port := range svc.Spec.Ports {
		if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
			continue
		}
		if found = whole || slices.ContainsFunc(sb.Spec.Redirects, func(r v1alpha1.Redirect) bool {
			from := r.From.Port
			return r.From.Service == svc.Name && (from == nil || from.String() == port.Name || from.IntValue() == int(port.Port))
		}); !found {
			return false
		}
	}
	return found
}

// othersObserveAll reports whether the sandbox that is there observes all of the
// namespace because somebody else has said so, which no name can be added to.
func othersObserveAll(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) bool {
	var live v1alpha1.Sandbox
	if c.Objects.Get(ctx, client.ObjectKeyFromObject(sb), &live) != nil || !slices.Contains(live.Spec.Observe, v1alpha1.ObserveAll) {
		return false
	}
	for _, m := range live.ManagedFields {
		if m.Manager != cluster.FieldManager && m.FieldsV1 != nil && bytes.Contains(m.FieldsV1.GetRawBytes(), []byte(`"f:observe"`)) {
			return true
		}
	}
	return false
}
