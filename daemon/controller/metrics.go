// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// collector counts objects by whether they are ready, when it is asked.
type collector struct {
	reader client.Reader
	desc   *prometheus.Desc
}

// addMetrics serves the controller's own metrics beside controller-runtime's.
// The leader alone has them, so that a sum over replicas is right.
func addMetrics(m manager.Manager) error {
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		c := &collector{reader: m.GetClient(), desc: prometheus.NewDesc("sidetrack_objects",
			"How many Sandboxes and RouteGroups there are, by kind, by whether they are ready, and by the reason of that.", []string{"kind", "ready", "reason"}, nil)}
		if err := crmetrics.Registry.Register(c); err != nil {
			return err
		}
		defer crmetrics.Registry.Unregister(c)
		<-ctx.Done()
		return nil
	}))
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	type group struct{ kind, ready, reason string }
	counts := map[group]int{}
	count := func(kind string, conditions []metav1.Condition) {
		g := group{kind: kind, ready: string(metav1.ConditionUnknown), reason: "Pending"}
		if ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); ready != nil {
			g.ready, g.reason = string(ready.Status), ready.Reason
		}
		counts[g]++
	}
	ctx := context.Background()
	var sandboxes v1alpha1.SandboxList
	var groups v1alpha1.RouteGroupList
	for _, list := range []client.ObjectList{&sandboxes, &groups} {
		if err := c.reader.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			out <- prometheus.NewInvalidMetric(c.desc, err)
			return
		}
	}
	for i := range sandboxes.Items {
		count(v1alpha1.SandboxKind, sandboxes.Items[i].Status.Conditions)
	}
	for i := range groups.Items {
		count(v1alpha1.RouteGroupKind, groups.Items[i].Status.Conditions)
	}
	for g, n := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), g.kind, g.ready, g.reason)
	}
}
