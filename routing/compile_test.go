// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, ip(s))
	}
	return out
}

const (
	client Cookie = 7 // somebody's pod
	tester Cookie = 8 // a pod of sandbox pr-42
	runner Cookie = 9 // the same, with inject
)

// shop is the input that the tests vary: two Services, one fork each.
func shop() Input {
	return Input{
		Services: []Service{
			{Name: Name{"shop", "route"}, Addresses: addrs("10.96.0.7", "fd00:96::7"), Ports: []ServicePort{{Name: "http", Port: 80, Protocol: TCP}}},
			{Name: Name{"shop", "route-pr-42"}, Addresses: addrs("10.96.0.8"), Ports: []ServicePort{{Name: "http", Port: 80, Protocol: TCP}}},
			{Name: Name{"shop", "dns"}, Addresses: addrs("10.96.0.9"), Ports: []ServicePort{{Name: "dns", Port: 53, Protocol: UDP}, {Name: "dns-tcp", Port: 53, Protocol: TCP}}},
			{Name: Name{"shop", "other"}, Addresses: addrs("10.96.0.10"), Ports: []ServicePort{{Name: "", Port: 443, Protocol: TCP}}},
		},
		Slices: []EndpointSlice{
			{Name: Name{"shop", "route-1"}, Service: "route", Ports: []EndpointPort{{"http", 8080, TCP}},
				Endpoints: []Endpoint{{Addr: ip("10.244.1.5"), Ready: true}, {Addr: ip("10.244.1.6"), Ready: false}}},
			{Name: Name{"shop", "route-2"}, Service: "route", Ports: []EndpointPort{{"http", 8080, TCP}},
				Endpoints: []Endpoint{{Addr: ip("fd00:244::5"), Ready: true}}},
			{Name: Name{"shop", "route-pr-42-1"}, Service: "route-pr-42", Ports: []EndpointPort{{"http", 9090, TCP}},
				Endpoints: []Endpoint{{Addr: ip("10.244.2.9"), Ready: true}, {Addr: ip("10.244.2.8"), Ready: true}, {Addr: ip("10.244.2.7"), Ready: false}}},
			{Name: Name{"shop", "dns-1"}, Service: "dns", Ports: []EndpointPort{{"dns", 5353, UDP}, {"dns-tcp", 5353, TCP}},
				Endpoints: []Endpoint{{Addr: ip("10.244.1.20"), Ready: true}}},
		},
		Pods: []Pod{
			{Name: Name{"shop", "client"}, Netns: client},
			{Name: Name{"shop", "tester"}, Netns: tester, Sandbox: "pr-42"},
			{Name: Name{"shop", "runner"}, Netns: runner, Sandbox: "pr-42", Inject: true},
		},
		Sandboxes: []Sandbox{{
			Name: Name{"shop", "pr-42"}, Key: "key-of-pr-42", Existing: Idle,
			Redirects: []Redirect{
				{From: ServiceRef{Service: "route"}, To: Target{Service: "route-pr-42"}, Field: "spec.redirects[0]"},
				{From: ServiceRef{Service: "dns", Port: "dns"}, To: Target{Address: ip("10.9.9.9"), Port: "5300"}, Field: "spec.redirects[1]"},
			},
		}},
	}
}

func mustCompile(t *testing.T, in Input, prev *Table) *Table {
	t.Helper()
	tb, problems := compileBothWays(t, in, prev)
	for _, p := range problems {
		t.Errorf("unexpected problem: %s", p)
	}
	return tb
}

func flow(tb *Table, c Cookie, dst string, p Protocol) string {
	return tb.flowInWords(c, DestKey{netip.MustParseAddrPort(dst).Addr().Unmap(), netip.MustParseAddrPort(dst).Port(), p})
}

func TestFlowsGoByTheirSourcesIdentity(t *testing.T) {
	tb := mustCompile(t, shop(), nil)
	const forks = "fork 10.244.2.8:9090 10.244.2.9:9090"
	for _, tc := range []struct {
		name   string
		source Cookie
		dst    string
		proto  Protocol
		want   string
	}{
		{"the sandbox's pod to the cluster IP", tester, "10.96.0.7:80", TCP, forks},
		{"to an endpoint", tester, "10.244.1.5:8080", TCP, forks},
		{"to an endpoint that is not ready", tester, "10.244.1.6:8080", TCP, forks},
		{"to the IPv6 cluster IP, where the fork has IPv4 only", tester, "[fd00:96::7]:80", TCP, forks},
		{"to an IPv6 endpoint", tester, "[fd00:244::5]:8080", TCP, forks},
		{"to the v4-mapped cluster IP", tester, "[::ffff:10.96.0.7]:80", TCP, forks},
		{"with inject as well, in the kernel", runner, "10.96.0.7:80", TCP, forks},
		{"another port of the cluster IP", tester, "10.96.0.7:81", TCP, "baseline"},
		{"another protocol", tester, "10.96.0.7:80", UDP, "baseline"},
		{"UDP to an address", tester, "10.96.0.9:53", UDP, "fork 10.9.9.9:5300"},
		{"a port that the redirect leaves out", tester, "10.96.0.9:53", TCP, "baseline"},
		{"the fork's own Service", tester, "10.96.0.8:80", TCP, "baseline"},
		{"somebody else's pod", client, "10.96.0.7:80", TCP, "baseline"},
		{"a namespace that nobody knows", 12345, "10.96.0.7:80", TCP, "baseline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := flow(tb, tc.source, tc.dst, tc.proto); got != tc.want {
				t.Errorf("%s from %d to %s: %s, want %s", tc.proto, tc.source, tc.dst, got, tc.want)
			}
		})
	}
}

func request(t *testing.T, tb *Table, c Cookie, dst string, headers ...string) Decision {
	t.Helper()
	d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP)
	if !ok {
		t.Fatalf("destination %s is not in the table", dst)
	}
	names := DefaultKeyNames()
	var set KeySet
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if p := names.Place([]byte(name)); p != Nowhere {
			set.Add(&names, p, []byte(value))
		}
	}
	return tb.DecideRequest(c, d.ID, &set)
}

func TestRequestsGoByTheirKey(t *testing.T) {
	tb := mustCompile(t, shop(), nil)
	const right, wrong = "baggage: sidetrack=key-of-pr-42", "baggage: sidetrack=key-of-nobody"
	for _, tc := range []struct {
		name    string
		source  Cookie
		dst     string
		headers []string
		want    string
	}{
		{"without a key", client, "10.96.0.7:80", nil, "baseline untagged shop/route"},
		{"with the key", client, "10.96.0.7:80", []string{right}, "fork redirected shop/route"},
		{"with the key, to an endpoint", client, "10.244.1.5:8080", []string{right}, "fork redirected shop/route"},
		{"with a key that nobody has", client, "10.96.0.7:80", []string{wrong}, "baseline unknown_key shop/route"},
		{"with an unknown key in baggage and the right one in the header", client, "10.96.0.7:80", []string{wrong, "x-sidetrack-key: key-of-pr-42"}, "fork redirected shop/route"},
		{"with the key, where its sandbox redirects nothing", client, "10.96.0.10:443", []string{right}, "baseline no_redirect shop/other"},
		{"from an injected pod", runner, "10.96.0.7:80", nil, "fork redirected shop/route inject"},
		{"from an injected pod with its own unknown key", runner, "10.96.0.7:80", []string{wrong}, "fork redirected shop/route"},
		{"from an injected pod to a Service without a redirect", runner, "10.96.0.10:443", nil, "baseline no_redirect shop/other inject"},
		{"from the sandbox's pod, whose identity wins over the header", tester, "10.96.0.7:80", []string{wrong}, "fork redirected shop/route"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := request(t, tb, tc.source, tc.dst, tc.headers...)
			got := fmt.Sprintf("%s %s %s", d.Verdict, d.Reason, d.Service)
			if d.Inject != "" {
				got += " inject"
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if (d.Verdict == ToFork) != (len(d.Endpoints) > 0) {
				t.Errorf("verdict %s with endpoints %v", d.Verdict, d.Endpoints)
			}
		})
	}
}

func TestATaggedRequestIsNeverSilentlyTheBaselines(t *testing.T) {
	const key = "x-sidetrack-key: key-of-pr-42"
	for _, tc := range []struct {
		name   string
		change func(*Input)
		want   Verdict
	}{
		{"no ready endpoint", func(in *Input) {
			for i := range in.Slices[2].Endpoints {
				in.Slices[2].Endpoints[i].Ready = false
			}
		}, Refuse},
		{"no EndpointSlice", func(in *Input) { in.Slices = slices.Delete(in.Slices, 2, 3) }, Refuse},
		{"no such Service", func(in *Input) { in.Services = slices.Delete(in.Services, 1, 2) }, Refuse},
		{"no such port", func(in *Input) { in.Sandboxes[0].Redirects[0].To.Port = "grpc" }, Refuse},
		{"an ExternalName Service", func(in *Input) { in.Services[1].ExternalName = "example.com" }, Refuse},
		{"an address that is none", func(in *Input) { in.Sandboxes[0].Redirects[0].To = Target{Address: ip("127.0.0.1")} }, Refuse},
		{"unavailable: Baseline", func(in *Input) {
			in.Slices = slices.Delete(in.Slices, 2, 3)
			in.Sandboxes[0].Redirects[0].Unavailable = Baseline
		}, ToBaseline},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := shop()
			tc.change(&in)
			tb, _ := compileBothWays(t, in, nil)
			if d := request(t, tb, client, "10.96.0.7:80", key); d.Verdict != tc.want || d.Reason != Unavailable || d.Sandbox == nil || d.Target == "" {
				t.Errorf("request: %+v, want verdict %s for reason unavailable, with sandbox and target", d, tc.want)
			}
			if got := flow(tb, tester, "10.96.0.7:80", TCP); got != tc.want.String() {
				t.Errorf("flow: %s, want %s", got, tc.want)
			}
		})
	}
}

func TestProblemsNameTheObjectTheFieldAndTheRemedy(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
		want   string
	}{
		{"a Service that is not there", func(in *Input) { in.Sandboxes[0].Redirects[0].From.Service = "rout" },
			`Sandbox shop/pr-42: spec.redirects[0].from.service: there is no Service shop/rout: create it or correct the name; the redirect is not in force`},
		{"a port that is not there", func(in *Input) { in.Sandboxes[0].Redirects[0].From.Port = "81" },
			`Sandbox shop/pr-42: spec.redirects[0].from.port: Service shop/route has no port "81", it has http (80/TCP): use one of these or leave it out for all; the redirect is not in force`},
		{"a target's port that cannot be told", func(in *Input) {
			in.Services[1].Ports = []ServicePort{{Name: "a", Port: 1, Protocol: TCP}, {Name: "b", Port: 2, Protocol: TCP}}
		}, `Sandbox shop/pr-42: spec.redirects[0].to: Service shop/route-pr-42 has no TCP port that answers to "http" or 80, it has a (1/TCP), b (2/TCP): set to.port; tagged traffic finds no fork until then`},
		{"two redirects for one port", func(in *Input) {
			in.Sandboxes[0].Redirects = append(in.Sandboxes[0].Redirects, Redirect{From: ServiceRef{Service: "route"}, To: Target{Address: ip("10.1.1.1")}, Field: "spec.redirects[2]"})
		}, `Sandbox shop/pr-42: spec.redirects[2].from: port 80/TCP of Service shop/route is redirected by an earlier entry, which holds: remove one of the two`},
		{"a bad routing key", func(in *Input) { in.Sandboxes[0].Key = "short"; in.Pods = nil },
			`Sandbox shop/pr-42: spec.routingKey: is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~; until then only flows of the sandbox's own pods are tagged`},
		{"somebody else's routing key", func(in *Input) {
			in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"shop", "pr-43"}, Key: "key-of-pr-42"})
		}, `Sandbox shop/pr-43: spec.routingKey: is in use already: choose another; until then only flows of the sandbox's own pods are tagged`},
		{"a pod of a sandbox that is not there", func(in *Input) { in.Pods[1].Sandbox = "pr-24" },
			`Pod shop/tester: metadata.labels[sidetrack.dev/sandbox]: there is no Sandbox shop/pr-24: create it or correct the label; the pod's traffic is not tagged`},
		{"inject without a key", func(in *Input) { in.Sandboxes[0].Key = "" },
			`Pod shop/runner: metadata.labels[sidetrack.dev/inject]: Sandbox shop/pr-42 has no routing key to inject: set spec.routingKey; until then the pod's flows are redirected in the kernel alone`},
		{"inject without a sandbox", func(in *Input) { in.Pods[2].Sandbox = "" },
			`Pod shop/runner: metadata.labels[sidetrack.dev/inject]: has no effect without the label sidetrack.dev/sandbox`},
		{"a port number that is none", func(in *Input) { in.Sandboxes[0].Redirects[1].To.Port = "dns" },
			`Sandbox shop/pr-42: spec.redirects[1].to.port: an address needs a port number from 1 to 65535, not "dns"; tagged traffic finds no fork until then`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := shop()
			tc.change(&in)
			_, problems := compileBothWays(t, in, nil)
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if diff := cmp.Diff([]string{tc.want}, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestANewcomerCannotTakeOverARoutingKey(t *testing.T) {
	in := shop()
	first := mustCompile(t, in, nil)
	in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"attack", "aaa"}, Key: "key-of-pr-42"})
	second, problems := compileBothWays(t, in, first)
	if len(problems) != 1 {
		t.Errorf("problems: %v, want one", problems)
	}
	if sb := second.SandboxOf([]byte("key-of-pr-42")); sb == nil || sb.Name.Name != "pr-42" {
		t.Errorf("the key is %+v's now, want pr-42's as before", sb)
	}
}

func TestOnlyServicesWithARedirectAreCaptured(t *testing.T) {
	in := shop()
	in.Pods = in.Pods[:2] // nobody injects
	tb := mustCompile(t, in, nil)
	for dst, want := range map[string]bool{
		"10.96.0.7:80": true, "[fd00:96::7]:80": true, "10.244.1.5:8080": true, "10.244.1.6:8080": true, "[fd00:244::5]:8080": true,
		"10.96.0.8:80": false, "10.96.0.9:53": false, "10.244.1.20:5353": false, "10.96.0.10:443": false,
	} {
		if d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP); (ok && d.Captured) != want {
			t.Errorf("%s: captured %v, want %v", dst, ok && d.Captured, want)
		}
	}
	if !tb.Captures() {
		t.Error("Captures is false, want true")
	}
	in.Sandboxes[0].Key = ""
	if tb = mustCompile(t, in, nil); tb.Captures() {
		t.Error("a sandbox without a routing key captures; no request could be tagged for it")
	}
	if got := flow(tb, tester, "10.96.0.7:80", TCP); !strings.HasPrefix(got, "fork") {
		t.Errorf("without a routing key the sandbox's flow goes to %s, want the fork", got)
	}
}

func TestAnEndpointOfSeveralServicesIsRedirectedForEach(t *testing.T) {
	in := shop()
	in.Services = append(in.Services, Service{Name: Name{"shop", "a-headless"}, Ports: []ServicePort{{Name: "http", Port: 8080, Protocol: TCP}}})
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"shop", "a-headless-1"}, Service: "a-headless",
		Ports: []EndpointPort{{"http", 8080, TCP}}, Endpoints: []Endpoint{{Addr: ip("10.244.1.5"), Ready: true}}})
	in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"shop", "pr-43"}, Key: "key-of-pr-43",
		Redirects: []Redirect{{From: ServiceRef{Service: "a-headless"}, To: Target{Address: ip("10.43.43.43")}}}})
	tb := mustCompile(t, in, nil)
	for key, want := range map[string]string{"key-of-pr-42": "10.244.2.8:9090", "key-of-pr-43": "10.43.43.43:8080"} {
		d := request(t, tb, client, "10.244.1.5:8080", "x-sidetrack-key: "+key)
		if d.Verdict != ToFork || d.Endpoints[0].String() != want {
			t.Errorf("%s: %+v, want the fork at %s", key, d, want)
		}
	}
}

func TestIdsOutliveChangesAndAreNotUsedAgain(t *testing.T) {
	in := shop()
	first := mustCompile(t, in, nil)
	cluster := netip.MustParseAddrPort("10.96.0.7:80")
	d1, _ := first.LookupDest(cluster, TCP)

	in.Slices[2].Endpoints = in.Slices[2].Endpoints[:1]
	second := mustCompile(t, in, first)
	if d2, _ := second.LookupDest(cluster, TCP); d2 != d1 {
		t.Errorf("another fork endpoint changed the destination from %+v to %+v", d1, d2)
	}
	if first.SandboxNamed(Name{"shop", "pr-42"}, false).ID != second.SandboxNamed(Name{"shop", "pr-42"}, false).ID {
		t.Error("the sandbox's id changed")
	}

	gone := in
	gone.Sandboxes, gone.Pods = nil, nil
	third := mustCompile(t, gone, second)
	if _, ok := third.LookupDest(cluster, TCP); ok {
		t.Error("the destination is still in the table without any redirect")
	}
	if k, ok := third.Dest(d1.ID); !ok || k.Addr != cluster.Addr() {
		t.Errorf("the id of a captured connection under way leads to %v, %v; want %v", k, ok, cluster)
	}
	var set KeySet
	if d := third.DecideRequest(client, d1.ID, &set); d.Verdict != ToBaseline {
		t.Errorf("a request on such a connection: %+v, want the baseline", d)
	}
	fourth := mustCompile(t, in, third)
	if d4, _ := fourth.LookupDest(cluster, TCP); d4.ID == d1.ID {
		t.Errorf("id %d was used again", d4.ID)
	}
	names := DefaultKeyNames()
	set.Add(&names, InHeader, []byte("key-of-pr-42"))
	if d := fourth.DecideRequest(client, d1.ID, &set); d.Verdict != ToFork {
		t.Errorf("a tagged request on a connection that is older than the redirect's return: %+v, want the fork", d)
	}
}

func TestATaggedConnectionOutlivesItsEndpointsSlice(t *testing.T) {
	names := DefaultKeyNames()
	var tagged, untagged KeySet
	tagged.Add(&names, InHeader, []byte("key-of-pr-42"))
	in := shop()
	tb := mustCompile(t, in, nil)
	endpoint, _ := tb.LookupDest(netip.MustParseAddrPort("10.244.1.5:8080"), TCP)
	check := func(when string) {
		t.Helper()
		if d := tb.DecideRequest(client, endpoint.ID, &tagged); d.Verdict != ToFork {
			t.Errorf("%s: a tagged request: %+v, want the fork", when, d)
		}
		if d := tb.DecideRequest(client, endpoint.ID, &untagged); d.Verdict != ToBaseline {
			t.Errorf("%s: an untagged request: %+v, want the baseline", when, d)
		}
	}
	check("while it is there")
	in.Slices[0].Endpoints = in.Slices[0].Endpoints[1:]
	tb = mustCompile(t, in, tb)
	check("when the endpoint has left")

	in.Services = append(in.Services, Service{Name: Name{"shop", "a-headless"}, Ports: []ServicePort{{Name: "http", Port: 8080, Protocol: TCP}}})
	in.Slices = append(in.Slices, EndpointSlice{Name: Name{"shop", "a-headless-1"}, Service: "a-headless",
		Ports: []EndpointPort{{"http", 8080, TCP}}, Endpoints: []Endpoint{{Addr: ip("10.244.1.6"), Ready: true}}})
	in.Sandboxes[0].Redirects = append(in.Sandboxes[0].Redirects, Redirect{From: ServiceRef{Service: "a-headless"}, To: Target{Address: ip("10.43.43.43")}})
	tb = mustCompile(t, in, tb)
	check("when another Service shares the rest")

	in.Services[0].Addresses = nil
	in.Slices[0].Endpoints, in.Slices[1].Endpoints = nil, nil
	tb = mustCompile(t, in, tb)
	check("when its Service has no address left")
	tb = mustCompile(t, in, tb)
	check("and later")

	if d := tb.DecideRequest(client, MaxDestID, &tagged); d.Verdict != Refuse || d.Sandbox == nil {
		t.Errorf("a tagged request to a destination that nobody knows: %+v, want it refused", d)
	}
	if d := tb.DecideRequest(client, MaxDestID, &untagged); d.Verdict != ToBaseline || d.Reason != UnknownDest {
		t.Errorf("an untagged request to a destination that nobody knows: %+v, want the baseline", d)
	}
}

func TestPortsThatPeopleHaveNotNamedAlike(t *testing.T) {
	in := shop()
	in.Slices[0].Ports[0].Name, in.Slices[1].Ports[0].Name = "", "web"
	in.Slices[2].Ports[0].Name = "other"
	tb := mustCompile(t, in, nil)
	if d := request(t, tb, client, "10.244.1.5:8080", "x-sidetrack-key: key-of-pr-42"); d.Verdict != ToFork {
		t.Errorf("to an endpoint: %+v, want the fork", d)
	}
	in.Services[0].Ports = append(in.Services[0].Ports, ServicePort{Name: "admin", Port: 81, Protocol: TCP})
	_, problems := compileBothWays(t, in, nil)
	var got []string
	for _, p := range problems {
		if p.Kind == "Service" {
			got = append(got, p.String())
		}
	}
	want := []string{
		`Service shop/route: spec.ports: no EndpointSlice of it has a TCP port named "admin": give the ports of both the same names; until then its endpoints on this port are not known`,
		`Service shop/route: spec.ports: no EndpointSlice of it has a TCP port named "http": give the ports of both the same names; until then its endpoints on this port are not known`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestDeletedDestinationsAreForgottenInTheEnd(t *testing.T) {
	in := shop()
	var tb *Table
	for i := range 3 * maxRetired / 2 {
		in.Services[0].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})}
		if i%3 == 0 { // fewer generations, more destinations in each
			tb, _ = compileBothWays(t, in, tb)
		}
		if i > 600 {
			break
		}
	}
	if len(tb.retired) > maxRetired || len(tb.byID) != len(tb.dests)+len(tb.retired) {
		t.Errorf("%d ids known, %d destinations, %d retired", len(tb.byID), len(tb.dests), len(tb.retired))
	}
}

func TestTheOrderOfTheInputDoesNotMatter(t *testing.T) {
	for seed := range 50 {
		in := world{rand.New(rand.NewPCG(uint64(seed), 3))}.input()
		a, pa := compileBothWays(t, in, nil)
		r := rand.New(rand.NewPCG(uint64(seed), 4))
		for _, shuffle := range []func(){
			func() { r.Shuffle(len(in.Services), swapper(in.Services)) },
			func() { r.Shuffle(len(in.Slices), swapper(in.Slices)) },
			func() { r.Shuffle(len(in.Pods), swapper(in.Pods)) },
			func() { r.Shuffle(len(in.Sandboxes), swapper(in.Sandboxes)) },
		} {
			shuffle()
		}
		b, pb := compileBothWays(t, in, nil)
		if diff := cmp.Diff(pa, pb); diff != "" {
			t.Fatalf("problems differ:\n%s", diff)
		}
		for d := range a.dests {
			for c := Cookie(100); c < 106; c++ {
				if x, y := a.flowInWords(c, d), b.flowInWords(c, d); x != y {
					t.Fatalf("flow from %d to %v: %q or %q", c, d, x, y)
				}
			}
		}
	}
}

func swapper[T any](s []T) func(i, j int) {
	return func(i, j int) { s[i], s[j] = s[j], s[i] }
}

func TestDecidingDoesNotAllocate(t *testing.T) {
	tb := mustCompile(t, shop(), nil)
	names := DefaultKeyNames()
	d, _ := tb.LookupDest(netip.MustParseAddrPort("10.96.0.7:80"), TCP)
	var set KeySet
	value := []byte("key-of-pr-42")
	set.Add(&names, InHeader, value)
	if n := testing.AllocsPerRun(100, func() {
		if tb.DecideRequest(client, d.ID, &set).Verdict != ToFork {
			t.Fatal("not the fork")
		}
		tb.DecideConnection(client, d.ID)
	}); n != 0 {
		t.Errorf("%v allocations a decision, want none", n)
	}
}

func BenchmarkCompileAMillionRoutes(b *testing.B) {
	in := bigInput(100_000, 10)
	b.ReportAllocs()
	for b.Loop() {
		tb, problems := Compile(in, nil)
		if len(problems) > 0 || tb.Size().Routes != 1_000_000 {
			b.Fatalf("%d routes, %d problems", tb.Size().Routes, len(problems))
		}
		runtime.KeepAlive(tb)
	}
}

// bigInput makes an input of many sandboxes that redirect the same Services, each to
// an address of its own.
func bigInput(sandboxes, redirects int) Input {
	var in Input
	for i := range redirects {
		in.Services = append(in.Services, Service{Name: Name{"shop", fmt.Sprintf("svc%d", i)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}, Ports: []ServicePort{{Name: "http", Port: 80, Protocol: TCP}}})
	}
	for i := range sandboxes {
		s := Sandbox{Name: Name{"shop", fmt.Sprintf("pr-%d", i)}, Key: fmt.Sprintf("routing-key-%d", i)}
		for j := range redirects {
			s.Redirects = append(s.Redirects, Redirect{From: ServiceRef{Service: fmt.Sprintf("svc%d", j)},
				To: Target{Address: netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})}})
		}
		in.Sandboxes = append(in.Sandboxes, s)
	}
	return in
}
