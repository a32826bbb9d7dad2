// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// routeGroup puts a second sandbox, with a fork of cart, and pr-42 under one key.
func routeGroup(t *testing.T) {
	cartKey, groupKey := newKey("pr-43"), newKey("both")
	apply(t, `
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-43, namespace: shop}
spec:
  routingKey: `+cartKey+`
  forks:
  - workload: {name: cart}
    containers: [{name: cart, env: [{name: VERSION, value: pr-43}]}]
---
apiVersion: sidetrack.dev/v1alpha1
kind: RouteGroup
metadata: {name: both, namespace: shop}
spec:
  routingKey: `+groupKey+`
  sandboxes: [{name: pr-42}, {name: pr-43}]
`)
	deleteAfterwards(t, "-n", shop, "routegroup/both", "sandbox/pr-43")
	untilReady(t, "pr-43")
	eventually(t, time.Minute, func(ctx context.Context) error {
		var g v1alpha1.RouteGroup
		if err := client.Get(ctx, ctrlclient.ObjectKey{Namespace: shop, Name: "both"}, &g); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("the route group is not ready: %+v", g.Status.Conditions)
		}
		return nil
	})
	for _, w := range runners(t) {
		w.mustGet(t, front, tag(groupKey), "front v1, cart pr-43, route pr-42 (pr-42), stock v1")
		w.mustGet(t, front, tag(cartKey), "front v1, cart pr-43, route v1 (everybody), stock v1")
		w.mustGet(t, front, tag(sandboxKey), ownOnWay)
		w.mustGet(t, front, nil, untouched)
	}
}
