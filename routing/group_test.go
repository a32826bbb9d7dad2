// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
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
			Members:   []string{"pr-42", "pr-43", "not-there"},
			Redirects: append(slices.Clone(in.Sandboxes[0].Redirects), other)},
	)
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"shop", "other-1"}, Service: "other",
		Ports: []EndpointPort{{"", 443, TCP}}, Endpoints: []Endpoint{{Addr: ip("10.244.1.30"), Ready: true}}})
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

func TestAGroupsKeyCountsInRequestsOfItsMembersPods(t *testing.T) {
	in := withGroup()
	const forkOf43, stranger, injector = 43, 44, 45
	in.Pods = append(in.Pods,
		Pod{Name: Name{"shop", "fork-of-43"}, Netns: forkOf43, Sandbox: "pr-43"},
		Pod{Name: Name{"shop", "injector"}, Netns: injector, Sandbox: "pr-43", Inject: true},
		Pod{Name: Name{"shop", "stranger"}, Netns: stranger, Sandbox: "pr-44"})
	in.Sandboxes = append(in.Sandboxes,
		Sandbox{Name: Name{"shop", "pr-44"}, Key: "key-of-pr-44", Redirects: []Redirect{
			{From: ServiceRef{Service: "dns"}, To: Target{Address: ip("10.44.44.44")}}}},
		Sandbox{Name: Name{"shop", "solo"}, Group: true, Key: "key-of-solo", Members: []string{"pr-44"}, Redirects: []Redirect{
			{From: ServiceRef{Service: "dns"}, To: Target{Address: ip("10.44.44.44")}}}},
		Sandbox{Name: Name{"shop", "keyless"}, Group: true, Members: []string{"pr-45"}},
		Sandbox{Name: Name{"shop", "pr-45"}, Key: "key-of-pr-45"})
	in.Pods = append(in.Pods, Pod{Name: Name{"shop", "alone"}, Netns: 46, Sandbox: "pr-45"})
	tb := mustCompile(t, in, nil)
	const route, other, group = "10.96.0.7:80", "10.96.0.10:443", "x-sidetrack-key: key-of-group"
	for _, tc := range []struct {
		name    string
		source  Cookie
		dst     string
		headers []string
		want    string
	}{
		{"a request with the group's key that a fork passes on", forkOf43, route, []string{group}, "fork redirected RouteGroup shop/pr-42"},
		{"to what the fork's sandbox redirects itself", forkOf43, other, []string{group}, "fork redirected sandbox shop/pr-43"},
		{"without a key", forkOf43, route, nil, "baseline no_redirect sandbox shop/pr-43"},
		{"with another member's own key", forkOf43, route, []string{"x-sidetrack-key: key-of-pr-42"}, "baseline no_redirect sandbox shop/pr-43"},
		{"with another group's key", forkOf43, "10.96.0.9:53", []string{"x-sidetrack-key: key-of-solo"}, "baseline no_redirect sandbox shop/pr-43"},
		{"with a key that does not count before the group's", forkOf43, route, []string{"baggage: sidetrack=key-of-pr-42", group}, "fork redirected RouteGroup shop/pr-42"},
		{"with a key that nobody has", forkOf43, route, []string{"x-sidetrack-key: key-of-nobody"}, "baseline no_redirect sandbox shop/pr-43"},
		{"where the group redirects nothing", forkOf43, "10.96.0.9:53", []string{group}, "baseline no_redirect RouteGroup shop/pr-42"},
		{"from a pod of no member", stranger, route, []string{group}, "baseline no_redirect sandbox shop/pr-44"},
		{"from one with inject, as ever", injector, other, []string{group}, "fork redirected RouteGroup shop/pr-42"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := request(t, tb, tc.source, tc.dst, tc.headers...)
			if got := fmt.Sprintf("%s %s %s", d.Verdict, d.Reason, d.Sandbox.Title()); got != tc.want || d.Inject != "" {
				t.Errorf("got %q (inject %q), want %q", got, d.Inject, tc.want)
			}
		})
	}
	for source, want := range map[Cookie]bool{client: false, tester: true, runner: false, forkOf43: true, injector: false, stranger: true, 46: false} {
		if got := tb.Identity(source).Grouped; got != want {
			t.Errorf("source %d: grouped is %t, want %t", source, got, want)
		}
	}
	// Bytes that are no requests go by the identity alone.
	d, _ := tb.LookupDest(netip.MustParseAddrPort(route), TCP)
	if got := tb.DecideConnection(forkOf43, d.ID); got.Verdict != ToBaseline || got.Reason != NoRedirect {
		t.Errorf("a connection without requests: %+v", got)
	}
	// The group goes, and with it what its key is for.
	in.Sandboxes = slices.DeleteFunc(in.Sandboxes, func(s Sandbox) bool { return s.Group && s.Name.Name == "pr-42" })
	after := mustCompile(t, in, tb)
	changed := false
	after.Diff(tb, func(s *Step) bool {
		changed = changed || s.Map == Identities && s.Cookie == forkOf43 && !s.Identity.Grouped
		return true
	})
	if after.Identity(forkOf43).Grouped || !changed {
		t.Errorf("without the group: %+v; the kernel is told: %t", after.Identity(forkOf43), changed)
	}
	if d := request(t, after, forkOf43, route, group); d.Verdict != ToBaseline || d.Sandbox.Group {
		t.Errorf("with the key of a group that is gone: %+v", d)
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
	_, problems := compileBothWays(t, in, nil)
	if len(problems) != 1 || problems[0].Kind != "Sandbox" || problems[0].Object.Name != "pr-43" {
		t.Errorf("problems %v, want pr-43's alone", problems)
	}
}

func TestAGroupsKeyIsAGroups(t *testing.T) {
	in := withGroup()
	first := mustCompile(t, in, nil)
	in.Sandboxes[2].Key = "key-of-pr-43"
	second, problems := compileBothWays(t, in, first)
	if len(problems) != 1 || problems[0].Kind != "RouteGroup" || strings.Contains(problems[0].Message, "pr-43") {
		t.Errorf("problems %v, want one of the group that does not say whose key it is", problems)
	}
	if sb := second.SandboxOf([]byte("key-of-pr-43")); sb == nil || sb.Group {
		t.Errorf("pr-43's key is %+v's now", sb)
	}
}

func TestATargetMayBeInAnotherNamespace(t *testing.T) {
	in := shop()
	in.Services = append(in.Services, Service{Name: Name{"data", "route-pr-42"}, Ports: []ServicePort{{Name: "http", Port: 80, Protocol: TCP}}})
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"data", "x"}, Service: "route-pr-42",
		Ports: []EndpointPort{{"http", 7070, TCP}}, Endpoints: []Endpoint{{Addr: ip("10.244.7.7"), Ready: true}}})
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
