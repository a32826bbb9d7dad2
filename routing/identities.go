// SPDX-License-Identifier: Apache-2.0

package routing

import "slices"

// identify gives the node's namespaces their identities.
func (c *compiler) identify(pods []Pod) map[Cookie]Identity {
	identities := make(map[Cookie]Identity, len(c.base.identities))
	inject := false
	complain := func(kind string, obj Name, field, format string, args ...any) {
		c.problems = append(c.problems, problem(kind, obj, field, format, args...))
	}
	sorted := slices.Clone(pods)
	slices.SortFunc(sorted, func(a, b Pod) int { return a.Name.Compare(b.Name) })
	for i := range sorted {
		p := &sorted[i]
		if p.Sandbox == "" {
			if p.Inject {
				complain("Pod", p.Name, "metadata.labels[sidetrack.dev/inject]",
					"has no effect without the label sidetrack.dev/sandbox")
			}
			continue
		}
		name := Name{p.Name.Namespace, p.Sandbox}
		info := c.byName.of(sandboxName{Name: name})
		if info == nil {
			complain("Pod", p.Name, "metadata.labels[sidetrack.dev/sandbox]",
				"there is no Sandbox %s: create it or correct the label; the pod's traffic is not tagged", name)
			continue
		}
		injected := p.Inject && info.Key != ""
		switch {
		case info.given.Deleted:
			complain("Pod", p.Name, "metadata.labels[sidetrack.dev/sandbox]",
				"Sandbox %s has been deleted: delete the pod or correct the label; until then what the sandbox redirected is refused to it", name)
		case p.Inject && !injected:
			complain("Pod", p.Name, "metadata.labels[sidetrack.dev/inject]",
				"Sandbox %s has no routing key to inject: set spec.routingKey; until then the pod's flows are redirected in the kernel alone", name)
		}
		if p.Netns == 0 {
			continue
		}
		if _, taken := identities[p.Netns]; taken {
			continue // another pod of the same namespace; daemon/pods reports where they differ
		}
		wanted := c.grouped.of(info.ID) > 0 || info.Key != "" && info.Watched
		identities[p.Netns] = Identity{Sandbox: info.ID, Inject: injected, Grouped: wanted && !injected}
		inject = inject || injected
	}
	if inject != c.inject || inject && len(c.changed) > 0 {
		c.everyMoved, c.inject = true, inject
	}
	return identities
}
