// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestATaggedConnectionOutlivesItsService(t *testing.T) {
	var tagged, untagged KeySet
	names := DefaultKeyNames()
	tagged.Add(&names, InHeader, []byte("key-of-pr-42"))
	for _, tc := range []struct {
		name   string
		change func(*Redirect)
		want   Verdict
	}{
		{"of all ports", func(*Redirect) {}, Refuse},
		{"of its port by number", func(r *Redirect) { r.From.Port = "80" }, Refuse},
		{"of its port by name", func(r *Redirect) { r.From.Port = "http" }, Refuse},
		{"that may not be", func(r *Redirect) { r.Refused, r.Unavailable = "no grant", Baseline }, Refuse},
		{"whose owner wants the baseline then", func(r *Redirect) { r.Unavailable = Baseline }, ToBaseline},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := shop()
			tc.change(&in.Sandboxes[0].Redirects[0])
			tb := mustCompile(t, in, nil)
			var ids []DestID
			for _, dst := range []string{"10.96.0.7:80", "10.244.1.5:8080"} {
				d, ok := tb.LookupDest(netip.MustParseAddrPort(dst), TCP)
				if !ok {
					t.Fatalf("%s is not known", dst)
				}
				ids = append(ids, d.ID)
			}
			service := in.Services[0]
			in.Services = slices.Clone(in.Services[1:])
			// Twice: it is gone for a while.
			for range 2 {
				tb, _ = compileBothWays(t, in, tb)
				for _, id := range ids {
					d := tb.DecideRequest(client, id, &tagged)
					if d.Verdict != tc.want || d.FallBack {
						t.Errorf("a tagged request: %+v, want %s", d, tc.want)
					}
					if d.Verdict == Refuse && (d.Service != service.Name || d.Target == "" || d.Refused == "") {
						t.Errorf("the refusal does not say why: %+v", d)
					}
					if d := tb.DecideConnection(tester, id); d.Verdict != tc.want {
						t.Errorf("a connection of the sandbox's pod: %+v, want %s", d, tc.want)
					}
					if d := tb.DecideRequest(client, id, &untagged); d.Verdict != ToBaseline {
						t.Errorf("an untagged request: %+v", d)
					}
				}
			}
			if strings.HasPrefix(tc.name, "of ") {
				// Created again, at another address.
				service.Addresses = addrs("10.96.0.77")
				in.Services = append(in.Services, service)
				tb = mustCompile(t, in, tb)
				for _, id := range ids {
					if d := tb.DecideRequest(client, id, &tagged); d.Verdict != ToFork {
						t.Errorf("a tagged request when it is there again: %+v", d)
					}
				}
			}
			// The redirect is taken back.
			in.Sandboxes[0].Redirects = in.Sandboxes[0].Redirects[1:]
			tb, _ = compileBothWays(t, in, tb)
			if d := tb.DecideRequest(client, ids[0], &tagged); d.Verdict != ToBaseline {
				t.Errorf("without the redirect: %+v", d)
			}
		})
	}
}

func TestAnotherPortsRedirectIsNotMissed(t *testing.T) {
	in := shop()
	in.Services[0].Ports = append(in.Services[0].Ports, ServicePort{Name: "admin", Port: 81, Protocol: TCP})
	in.Sandboxes[0].Redirects[0].From.Port = "81"
	in.Pods[1].Inject = true             // so that all ports are known
	tb, _ := compileBothWays(t, in, nil) // nobody answers at 81
	d, _ := tb.LookupDest(netip.MustParseAddrPort("10.96.0.7:80"), TCP)
	in.Services = in.Services[1:]
	tb, _ = compileBothWays(t, in, tb)
	if got := tb.DecideRequest(tester, d.ID, &KeySet{}); got.Verdict != ToBaseline {
		t.Errorf("a request to port 80, where port 81 is redirected: %+v", got)
	}
}
