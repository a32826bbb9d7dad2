// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// group joins pr-42, which redirects nothing, and pr-43, which redirects route.
func group() []routing.Sandbox {
	member, other := sandbox("0123456789"), sandbox("1234567890")
	member.Redirects, other.Name.Name = nil, "pr-43"
	return []routing.Sandbox{member, other, {
		Name: routing.Name{Namespace: "shop", Name: "all"}, Group: true, Key: "2345678901", Existing: routing.All,
		Members: []string{"pr-42", "pr-43"}, Redirects: other.Redirects,
	}}
}

func TestAMembersPodHasAListener(t *testing.T) {
	r := rehearse(t)
	r.say("tagged", group()[:2]...)
	r.want("router: generation 1", "router: listen in client",
		"kernel: steer [client:1]", "kernel: generation 1", "kernel: steer [client:1]")
	r.say("tagged", group()...)
	r.want("router: generation 2", "router: listen in runner",
		"kernel: steer [client:1 runner:1]", "kernel: generation 2", "kernel: steer [client:1 runner:1]")
	r.say("tagged", group()[:2]...)
	r.want("router: generation 3",
		"kernel: steer [client:1 runner:1]", "kernel: generation 3", "kernel: steer [client:1]")
	r.await("router: unlisten in runner")
}

func TestConnectionsOfAMembersPodFromBeforeAGroupAreLookedFor(t *testing.T) {
	const member, owner = routing.Cookie(8), routing.Cookie(9)
	all := []pods.Namespace{{Cookie: member}, {Cookie: owner}}
	cover := func(listening bool, sandboxes ...routing.Sandbox) coverage {
		table, _ := routing.Compile(routing.Input{
			Services: []routing.Service{shopService}, Sandboxes: sandboxes,
			Pods: []routing.Pod{
				{Name: routing.Name{Namespace: "shop", Name: "a"}, Netns: member, Sandbox: "pr-42"},
				{Name: routing.Name{Namespace: "shop", Name: "b"}, Netns: owner, Sandbox: "pr-43"},
			},
		}, nil)
		return coverage{table, map[routing.Cookie]bool{member: listening, owner: listening}}
	}
	dst := netip.MustParseAddrPort("10.96.0.7:80")
	before, after := cover(false, group()[:2]...), cover(true, group()...)
	if _, _, covered := before.of(member, dst); covered {
		t.Error("covered without a group")
	}
	if dest, _, covered := after.of(member, dst); !covered || dest.Existing != routing.All {
		t.Errorf("with a group: covered is %t, the policy %d", covered, dest.Existing)
	}
	if gains := after.gains(before, all); len(gains) != 1 || gains[0].Cookie != member {
		t.Errorf("gains %v, want the member's that redirects nothing", gains)
	}
	// Its own sandbox decides, in the kernel, that the baseline answers.
	fallback := group()
	fallback[0].Redirects = []routing.Redirect{{
		From: routing.ServiceRef{Service: "route"}, To: routing.Target{Service: "gone"}, Unavailable: routing.Baseline,
	}}
	if _, _, covered := cover(true, fallback...).of(member, dst); covered {
		t.Error("what the pod's own sandbox leaves to the baseline is not the router's")
	}
}
