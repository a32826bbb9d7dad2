// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// withGroup is shop with a second sandbox, pr-43, and a group of both that has
// pr-42's name.
func withGroup() Input {
	in := shop()
	other := Redirect{From: ServiceRef{Service: "other"}, To: Target{Address: ip("10.43.43.43")}, Field: "spec.redirects[0]"}
	in.Sandboxes = append(in.Sandboxes,
		Sandbox{Name: Name{"shop", "pr-43"}, Key: "key-of-pr-43", Existing: Idle, Redirects: []Redirect{other}},
		Sandbox{Name: Name{"shop", "pr-42"}, Group: true, Key: "key-of-group", Existing: Idle,
			Redirects: append(slices.Clone(in.Sandboxes[0].Redirects), other)},
	)
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"shop", "other-1"}, Service: "other",
		Ports: []EndpointPort{{"", 443, TCP}}, Endpoints: []Endpoint{{ip("10.244.1.30"), true}}})
	return in
}

func TestAGroupFollowsItsMembersRedirectsAndIsNobodysSandbox(t *testing.T) {
	tb := mustCompile(t, withGroup(), nil)
	group := "x-sidetrack-key: key-of-group"
	if d := request(t, tb, client, "10.96.0.7:80", group); d.Verdict != ToFork || !d.Sandbox.Group {
		t.Errorf("a request with the group's key to pr-42's Service: %+v", d)
	}
	if d := request(t, tb, client, "10.96.0.10:443", group); d.Verdict != ToFork || d.Endpoints[0] != netip.MustParseAddrPort("10.43.43.43:443") {
		t.Errorf("a request with the group's key to pr-43's Service: %+v", d)
	}
	if d := request(t, tb, client, "10.96.0.10:443", "x-sidetrack-key: key-of-pr-42"); d.Verdict != ToBaseline {
		t.Errorf("a member's own key follows another member's redirect: %+v", d)
	}
	// The tester's label means the sandbox, not the group of the same name.
	if got := flow(tb, tester, "10.96.0.10:443", TCP); got != "baseline" {
		t.Errorf("a pod of pr-42 to pr-43's Service: %s, want baseline", got)
	}
	if d := request(t, tb, runner, "10.96.0.7:80"); d.Inject != "key-of-pr-42" {
		t.Errorf("injected is %q, want the sandbox's own key", d.Inject)
	}
}

func TestAGroupsNameIsItsOwnInMetricsAndMessages(t *testing.T) {
	tb := mustCompile(t, withGroup(), nil)
	sandbox, group := tb.SandboxOf([]byte("key-of-pr-42")), tb.SandboxOf([]byte("key-of-group"))
	if sandbox.ID == group.ID {
		t.Fatalf("sandbox and group share the id %d", group.ID)
	}
	if got, want := group.Label(), (Name{"shop", "RouteGroup/pr-42"}); got != want {
		t.Errorf("label %v, want %v", got, want)
	}
	if got, want := group.Title(), "RouteGroup shop/pr-42"; got != want {
		t.Errorf("title %q, want %q", got, want)
	}
	if got, want := sandbox.Title(), "sandbox shop/pr-42"; got != want {
		t.Errorf("title %q, want %q", got, want)
	}
	if got := sandbox.Label(); got != (Name{"shop", "pr-42"}) {
		t.Errorf("label %v", got)
	}
}

func TestWhatIsWrongWithAMembersRedirectIsSaidOnce(t *testing.T) {
	in := withGroup()
	for i := range in.Sandboxes {
		for j := range in.Sandboxes[i].Redirects {
			if r := &in.Sandboxes[i].Redirects[j]; r.From.Service == "other" {
				r.From.Service = "gone"
			}
		}
	}
	_, problems := Compile(in, nil)
	if len(problems) != 1 || problems[0].Kind != "Sandbox" || problems[0].Object.Name != "pr-43" {
		t.Errorf("problems %v, want pr-43's alone", problems)
	}
}

func TestAGroupsKeyIsAGroups(t *testing.T) {
	in := withGroup()
	first := mustCompile(t, in, nil)
	in.Sandboxes[2].Key = "key-of-pr-43"
	second, problems := Compile(in, first)
	if len(problems) != 1 || problems[0].Kind != "RouteGroup" || strings.Contains(problems[0].Message, "pr-43") {
		t.Errorf("problems %v, want one of the group that does not say whose key it is", problems)
	}
	if sb := second.SandboxOf([]byte("key-of-pr-43")); sb == nil || sb.Group {
		t.Errorf("pr-43's key is %+v's now", sb)
	}
}

func TestATargetMayBeInAnotherNamespace(t *testing.T) {
	in := shop()
	in.Services = append(in.Services, Service{Name: Name{"data", "route-pr-42"}, Ports: []ServicePort{{"http", 80, TCP}}})
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"data", "x"}, Service: "route-pr-42",
		Ports: []EndpointPort{{"http", 7070, TCP}}, Endpoints: []Endpoint{{ip("10.244.7.7"), true}}})
	in.Sandboxes[0].Redirects[0].To.Namespace = "data"
	tb := mustCompile(t, in, nil)
	if got, want := flow(tb, tester, "10.96.0.7:80", TCP), "fork 10.244.7.7:7070"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if d := request(t, tb, client, "10.96.0.7:80", "x-sidetrack-key: key-of-pr-42"); d.Target != "Service data/route-pr-42 port 80" {
		t.Errorf("target %q", d.Target)
	}
}

func TestARefusedRedirectIsNeverAnsweredByTheBaseline(t *testing.T) {
	for name, to := range map[string]Target{
		"of a Service":                           {Service: "secrets", Namespace: "data"},
		"of one that is there and has endpoints": {Service: "route-pr-42"},
		"of an address":                          {Address: ip("10.9.9.9")},
	} {
		t.Run(name, func(t *testing.T) {
			in := shop()
			r := &in.Sandboxes[0].Redirects[0]
			// Not even where the owner wants the baseline for a fork that is not there.
			r.To, r.Refused, r.Unavailable = to, "no ReferenceGrant in data allows it", Baseline
			tb := mustCompile(t, in, nil)
			d := request(t, tb, client, "10.96.0.7:80", "x-sidetrack-key: key-of-pr-42")
			if d.Verdict != Refuse || d.FallBack || d.Refused != r.Refused || d.Target == "" {
				t.Errorf("a tagged request: %+v, want it refused with the reason", d)
			}
			if got := flow(tb, tester, "10.96.0.7:80", TCP); got != "reject" {
				t.Errorf("a tagged flow: %s, want reject", got)
			}
			if d := request(t, tb, client, "10.96.0.7:80"); d.Verdict != ToBaseline {
				t.Errorf("an untagged request: %+v", d)
			}
			// Granted: the same redirect leads somewhere, by a diff.
			in.Sandboxes[0].Redirects[0] = Redirect{From: ServiceRef{Service: "route"}, To: Target{Service: "route-pr-42"}}
			if got := flow(mustCompile(t, in, tb), tester, "10.96.0.7:80", TCP); !strings.HasPrefix(got, "fork") {
				t.Errorf("after it is allowed: %s", got)
			}
		})
	}
}
