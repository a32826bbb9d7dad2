// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"maps"
	"net/netip"
	"strings"
	"testing"
)

func captured(tb *Table, dst string) bool {
	d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP)
	return ok && d.Captured
}

func TestAnObservedServiceIsCapturedAndNotRedirected(t *testing.T) {
	in := shop()
	in.Sandboxes[0].Observe = []string{"other"}
	tb := mustCompile(t, in, nil)
	if !captured(tb, "10.96.0.10:443") {
		t.Error("the observed Service is not captured")
	}
	if captured(tb, "10.96.0.9:53") {
		t.Error("a Service that nobody has named is captured")
	}
	if got := request(t, tb, client, "10.96.0.10:443", "x-sidetrack-key: key-of-pr-42"); got.Verdict != ToBaseline || got.Reason != NoRedirect || got.Sandbox == nil {
		t.Errorf("a tagged request: %s, %s", got.Verdict, got.Reason)
	}
	if got := request(t, tb, client, "10.96.0.10:443"); got.Verdict != ToBaseline || got.Reason != Untagged || got.Sandbox != nil {
		t.Errorf("an untagged request: %s, %s", got.Verdict, got.Reason)
	}
	if got := flow(tb, tester, "10.96.0.10:443", TCP); got != "baseline" {
		t.Errorf("a flow of the sandbox's pod: %s", got)
	}
}

func TestADestinationHasTheEndpointsOfItsServicesAlone(t *testing.T) {
	in := shop()
	in.Sandboxes[0].Observe = []string{"dns"}
	tb := mustCompile(t, in, nil)
	for dst, service := range map[string]string{"10.96.0.7:80": "route", "[fd00:96::7]:80": "route", "10.96.0.9:53": "dns"} {
		want := map[netip.AddrPort]bool{}
		for _, s := range in.Slices {
			for _, e := range s.Endpoints {
				for _, p := range s.Ports {
					if s.Service == service && p.Protocol == TCP {
						want[netip.AddrPortFrom(e.Addr, p.Port)] = true
					}
				}
			}
		}
		d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP)
		if !ok {
			t.Fatalf("%s is not in the table", dst)
		}
		if len(want) == 0 {
			t.Fatalf("Service %s has no endpoints here", service)
		}
		got := map[netip.AddrPort]bool{}
		for a := range tb.Endpoints(d.ID) {
			got[a] = true
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: endpoints %v, want %v", dst, got, want)
		}
	}
	for range tb.Endpoints(MaxDestID) {
		t.Error("a destination that is not there has an endpoint")
	}
}

func TestEveryServiceOfTheNamespaceIsObservedAndNoneOfAnother(t *testing.T) {
	in := shop()
	in.Sandboxes[0].ObserveAll = true
	in.Services = append(in.Services,
		Service{Name: Name{"else", "where"}, Addresses: addrs("10.96.0.77"), Ports: []ServicePort{{Name: "", Port: 80, Protocol: TCP}}},
		Service{Name: Name{"shop", "alias"}, ExternalName: "example.com"})
	tb := mustCompile(t, in, nil)
	for dst, want := range map[string]bool{"10.96.0.9:53": true, "10.96.0.10:443": true, "10.96.0.8:80": true, "10.96.0.77:80": false} {
		if got := captured(tb, dst); got != want {
			t.Errorf("%s captured: %t, want %t", dst, got, want)
		}
	}
	if d, ok := tb.LookupDest(netip.MustParseAddrPort("10.96.0.9:53"), UDP); !ok || d.Captured {
		t.Error("datagrams are captured")
	}
}

func TestWhatCannotBeObservedIsAProblemOnlyWhereItIsNamed(t *testing.T) {
	in := shop()
	in.Services = append(in.Services, Service{Name: Name{"shop", "alias"}, ExternalName: "example.com"})
	in.Sandboxes[0].Observe = []string{"nobody", "alias"}
	_, problems := compileBothWays(t, in, nil)
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	want := []string{
		"Sandbox shop/pr-42: spec.observe: Service shop/alias is of type ExternalName, which has no addresses to observe: name the Service it stands for; it is not observed",
		"Sandbox shop/pr-42: spec.observe: there is no Service shop/nobody: create it or correct the name; it is not observed",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("problems %q, want %q", got, want)
	}
}

func TestNothingIsObservedForASandboxWithoutAKey(t *testing.T) {
	in := shop()
	in.Sandboxes[0].Observe, in.Sandboxes[0].Key, in.Pods = []string{"other"}, "", nil
	if captured(mustCompile(t, in, nil), "10.96.0.10:443") {
		t.Error("it is captured though nobody could tag a request")
	}
	in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"shop", "all"}, Group: true, Key: "key-of-the-group", Members: []string{"pr-42"}})
	if !captured(mustCompile(t, in, nil), "10.96.0.10:443") {
		t.Error("it is not captured though the key of its group tags requests")
	}
}

func TestAGroupPropagatesWhereAllItsMembersDo(t *testing.T) {
	in := shop()
	in.Sandboxes[0].Propagate = true
	in.Sandboxes = append(in.Sandboxes,
		Sandbox{Name: Name{"shop", "pr-43"}, Key: "key-of-pr-43"},
		Sandbox{Name: Name{"shop", "all"}, Group: true, Key: "key-of-the-group", Members: []string{"pr-42", "pr-43"}})
	for _, want := range []bool{false, true} {
		in.Sandboxes[1].Propagate = want
		if got := mustCompile(t, in, nil).SandboxOf([]byte("key-of-the-group")).Propagate; got != want {
			t.Errorf("the group propagates: %t, want %t", got, want)
		}
	}
}

func TestADestinationIsWatchedWhereASandboxOfItsOwnWantsToKnow(t *testing.T) {
	watched := func(tb *Table, dst string) bool {
		d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP)
		return ok && tb.Watched(d.ID)
	}
	const redirected, observed = "10.96.0.7:80", "10.96.0.10:443"
	for _, tc := range []struct {
		name                 string
		change               func(*Input)
		redirected, observed bool
	}{
		{"nobody asks", func(*Input) {}, false, false},
		{"the sandbox observes another Service", func(in *Input) { in.Sandboxes[0].Observe = []string{"other"} }, true, true},
		{"the sandbox propagates", func(in *Input) { in.Sandboxes[0].Propagate = true }, true, false},
		{"another sandbox observes another Service", func(in *Input) {
			in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"shop", "watcher"}, Key: "key-of-watcher", Observe: []string{"other"}})
		}, false, true},
		{"one without a key observes", func(in *Input) {
			in.Sandboxes = append(in.Sandboxes, Sandbox{Name: Name{"shop", "watcher"}, ObserveAll: true})
		}, false, false},
	} {
		in := shop()
		tc.change(&in)
		tb := mustCompile(t, in, nil)
		if !captured(tb, redirected) {
			t.Fatal("the redirected Service is not captured")
		}
		if got := watched(tb, redirected); got != tc.redirected {
			t.Errorf("%s: the redirected Service is watched: %t", tc.name, got)
		}
		if got := watched(tb, observed); got != tc.observed {
			t.Errorf("%s: the observed Service is watched: %t", tc.name, got)
		}
	}

	// One that nobody asks about any more, though a connection to it lives on.
	in := shop()
	in.Sandboxes[0].Observe = []string{"other"}
	before := mustCompile(t, in, nil)
	d, _ := before.LookupDest(netip.MustParseAddrPort(observed), TCP)
	in.Sandboxes[0].Observe = nil
	if after := mustCompile(t, in, before); !before.Watched(d.ID) || after.Watched(d.ID) {
		t.Errorf("watched before: %t, after: %t", before.Watched(d.ID), after.Watched(d.ID))
	}
}
