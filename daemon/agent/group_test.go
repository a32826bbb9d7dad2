// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"fmt"
	"testing"
)

// A fork's pod has its sandbox's label and no inject. What it passes on of a
// group's request is the group's still.
func TestAGroupsRequestGoesOnThroughAMembersFork(t *testing.T) {
	s := newShop(t)
	const group, other = "k-of-the-group", "k-of-pr-43"
	sandboxes := fmt.Sprintf(`
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-42, namespace: shop}
spec: {routingKey: %s, redirects: [{from: {service: cart}, to: {address: 10.9.9.9}}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-43, namespace: shop}
spec: {routingKey: %s, redirects: [{from: {service: route}, to: {address: %s}}]}
`, key, other, s.fork.IPv4)
	s.put("sandbox.yaml", sandboxes)
	a := s.start()
	get := func(when, want string, headers ...string) {
		t.Helper()
		if got := s.runner.MustGet("http://"+routeIP+"/", headers...); got.Server != want {
			t.Errorf("%s: a request reached %s, want %s", when, got.Server, want)
		}
	}
	get("before there is a group", "baseline", "x-sidetrack-key: "+group)
	a.after(func() {
		s.put("sandbox.yaml", sandboxes+fmt.Sprintf(`
---
apiVersion: sidetrack.dev/v1alpha1
kind: RouteGroup
metadata: {name: all, namespace: shop}
spec: {routingKey: %s, sandboxes: [{name: pr-42}, {name: pr-43}]}
`, group))
	})
	get("with the group's key", "fork", "x-sidetrack-key: "+group)
	get("with it in baggage", "fork", "baggage: a=b, sidetrack="+group)
	get("without a key", "baseline")
	get("with the other member's own key", "baseline", "x-sidetrack-key: "+other)
	get("with an unknown key", "baseline", "x-sidetrack-key: k-of-nobody")
	s.reach(s.runner, "baseline")
	s.reach(s.client, "baseline")
	a.after(func() { s.put("sandbox.yaml", sandboxes) })
	get("without the group again", "baseline", "x-sidetrack-key: "+group)
}
