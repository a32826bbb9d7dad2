// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// world is a targetView of what is written down.
type world struct {
	services map[string]*corev1.Service
	slices   map[string][]*discoveryv1.EndpointSlice
	grants   []gatewayv1.ReferenceGrant
}

func newWorld(t *testing.T, services ...string) *world {
	w := &world{services: map[string]*corev1.Service{}, slices: map[string][]*discoveryv1.EndpointSlice{}}
	for _, text := range services {
		s := parse[*corev1.Service](t, text)
		if s.Namespace == "" {
			s.Namespace = "shop"
		}
		w.services[s.Namespace+"/"+s.Name] = s
	}
	return w
}

// ready gives a Service endpoints on all of its ports.
func (w *world) ready(service string, addresses ...string) {
	s := w.services[service]
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	for _, p := range s.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	for _, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	w.slices[service] = append(w.slices[service], slice)
}

func (w *world) view() targetView {
	return targetView{
		service: func(n types.NamespacedName) *corev1.Service { return w.services[n.String()] },
		slices:  func(n types.NamespacedName) []*discoveryv1.EndpointSlice { return w.slices[n.String()] },
		granted: func(from string, to types.NamespacedName) (bool, string) {
			return permitted(w.grants, from, to), grantRemedy(from, to, true)
		},
	}
}

// told writes redirects in one line each.
func told(all []v1alpha1.RedirectStatus) (out []string) {
	for _, r := range all {
		from, to := r.From.Service, r.To.Service+r.To.Address
		if r.From.Port != nil {
			from += ":" + r.From.Port.String()
		}
		if r.To.Namespace != "" {
			to = r.To.Namespace + "/" + to
		}
		line := fmt.Sprintf("%s > %s %s %d", from, to, r.Unavailable, r.Endpoints)
		if r.Refused {
			line += " refused"
		}
		if r.Fork != "" {
			line += " " + r.Fork
		}
		out = append(out, line)
	}
	return out
}

const (
	routeService = `{metadata: {name: route}, spec: {ports: [{name: http, port: 80, protocol: TCP}, {name: admin, port: 81, protocol: TCP}]}}`
	forkService1 = `{metadata: {name: route-fork}, spec: {clusterIP: None, ports: [{name: http, port: 80, protocol: TCP}, {name: admin, port: 81, protocol: TCP}]}}`
	stubService  = `{metadata: {name: stub}, spec: {ports: [{port: 9, protocol: TCP}]}}`
	alias        = `{metadata: {name: alias}, spec: {type: ExternalName, externalName: x}}`
	elsewhere    = `{metadata: {name: stub, namespace: stubs}, spec: {ports: [{port: 9, protocol: TCP}]}}`
)

func TestRedirectsAreResolved(t *testing.T) {
	const workload = "Deployment/route"
	made := func(addresses ...string) []fork {
		only := map[string]bool{}
		for _, a := range addresses {
			only[a] = true
		}
		return []fork{{ref: v1alpha1.WorkloadRef{Name: "route"}, addresses: only, services: []forkService{{"route", &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "route-fork"}}}}}}
	}
	refusedFork := made()
	refusedFork[0].refusal = refuse(reasonSelected, "its pods would be selected")
	orphan := []fork{{ref: v1alpha1.WorkloadRef{Name: "route"}, orphan: true, refusal: refuse(reasonWorkloadNotFound, "gone"), addresses: map[string]bool{"10.0.0.1": true}}}
	before := []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "route-fork"}, Unavailable: "Reject", Fork: workload}}
	for _, tt := range []struct {
		name     string
		services []string
		spec     string // of redirects
		forks    []fork
		before   []v1alpha1.RedirectStatus
		want     []string
		refused  []string
		note     string
	}{
		{name: "a Service to another", services: []string{routeService, stubService}, spec: `[{from: {service: route, port: http}, to: {service: stub}}]`,
			want: []string{"route:http > stub Reject 1"}},
		{name: "an address", services: []string{routeService}, spec: `[{from: {service: route}, to: {address: 10.9.9.9}, unavailable: Baseline}]`,
			want: []string{"route > 10.9.9.9 Baseline 1"}},
		{name: "the own namespace is named", services: []string{routeService, stubService}, spec: `[{from: {service: route, port: 80}, to: {service: stub, namespace: shop}}]`,
			want: []string{"route:80 > stub Reject 1"}},
		{name: "no such Service", spec: `[{from: {service: route}, to: {service: stub}}]`,
			want: []string{"route > stub Reject 0"}, refused: []string{reasonServiceNotFound, reasonServiceNotFound}},
		{name: "no such port", services: []string{routeService, stubService}, spec: `[{from: {service: route, port: grpc}, to: {service: stub}}]`,
			want: []string{"route:grpc > stub Reject 0"}, refused: []string{reasonPortNotFound}},
		{name: "an alias", services: []string{alias, stubService, routeService}, spec: `[{from: {service: alias}, to: {service: stub}}, {from: {service: route}, to: {service: alias}}]`,
			want: []string{"alias > stub Reject 0", "route > alias Reject 0"}, refused: []string{reasonUnsupported, reasonUnsupported}},
		{name: "the target has no such port", services: []string{stubService, routeService}, spec: `[{from: {service: route, port: http}, to: {service: stub, port: http}}]`,
			want: []string{"route:http > stub Reject 0"}, refused: []string{reasonPortNotFound}},
		{name: "no grant", services: []string{routeService, elsewhere}, spec: `[{from: {service: route, port: http}, to: {service: stub, namespace: stubs}}]`,
			want: []string{"route:http > stubs/stub Reject 0 refused"}, refused: []string{reasonRefNotPermitted}},
		{name: "no grant looks the same without the Service", services: []string{routeService}, spec: `[{from: {service: route, port: http}, to: {service: stub, namespace: stubs}}]`,
			want: []string{"route:http > stubs/stub Reject 0 refused"}, refused: []string{reasonRefNotPermitted}},
		{name: "a fork that is not made yet is rejected", services: []string{routeService}, forks: made(),
			want: []string{"route > route-fork Reject 0 " + workload}},
		{name: "of a fork's Service only its present pods count", services: []string{routeService, forkService1}, forks: made("10.0.0.1"),
			want: []string{"route > route-fork Reject 1 " + workload}},
		{name: "a refused fork is not the baseline", services: []string{routeService, forkService1}, forks: refusedFork,
			want: []string{"route > route-fork Reject 0 refused " + workload}},
		{name: "the spec goes before the fork, port by port", services: []string{routeService, forkService1, stubService}, forks: made("10.0.0.1"),
			spec: `[{from: {service: route, port: admin}, to: {service: stub}}]`,
			want: []string{"route:admin > stub Reject 1", "route:http > route-fork Reject 1 " + workload}, note: "the fork of Deployment/route gives way to spec.redirects[0]"},
		{name: "the spec takes all of it", services: []string{routeService, forkService1}, forks: made("10.0.0.1"),
			spec: `[{from: {service: route}, to: {address: 10.9.9.9}}]`,
			want: []string{"route > 10.9.9.9 Reject 1"}, note: "all of it"},
		{name: "the earlier of two of the spec wins", services: []string{routeService},
			spec: `[{from: {service: route, port: 80}, to: {address: 10.9.9.8}}, {from: {service: route}, to: {address: 10.9.9.9}}]`,
			want: []string{"route:80 > 10.9.9.8 Reject 1", "route:admin > 10.9.9.9 Reject 1"}, note: "spec.redirects[1] gives way to spec.redirects[0]"},
		{name: "the baseline's Service is gone", services: []string{forkService1}, forks: []fork{{ref: v1alpha1.WorkloadRef{Name: "route"}, addresses: map[string]bool{"10.0.0.1": true}}}, before: before,
			want: []string{"route > route-fork Reject 1 " + workload}},
		{name: "the baseline's Service does not select it any more", services: []string{routeService, forkService1}, forks: []fork{{ref: v1alpha1.WorkloadRef{Name: "route"}}}, before: before},
		{name: "the baseline is gone", services: []string{routeService, forkService1}, forks: orphan, before: before,
			want: []string{"route > route-fork Reject 1 " + workload}},
		{name: "the spec does not ask for the fork any more", services: []string{routeService, forkService1}, before: before},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.services...)
			for _, s := range []string{"shop/stub", "shop/route-fork"} {
				if w.services[s] != nil {
					w.ready(s, "10.0.0.1")
				}
			}
			if w.services["shop/route-fork"] != nil {
				w.ready("shop/route-fork", "10.0.0.77") // of a pod that is gone
			}
			sb := sandbox("pr-42")
			sb.Status.Redirects = tt.before
			if tt.spec != "" {
				sb.Spec.Redirects = parse[[]v1alpha1.Redirect](t, tt.spec)
			}
			got := resolve(sb, tt.forks, w.view())
			if diff := cmp.Diff(tt.want, told(got.redirects)); diff != "" {
				t.Errorf("redirects (-want +got):\n%s", diff)
			}
			var reasons []string
			for _, r := range got.refusals {
				reasons = append(reasons, r.reason)
				if strings.Count(r.message, ":") == 0 {
					t.Errorf("message without a remedy: %s", r.message)
				}
			}
			if diff := cmp.Diff(tt.refused, reasons); diff != "" {
				t.Errorf("refusals (-want +got):\n%s\n%v", diff, got.refusals)
			}
			if notes := strings.Join(got.notes, "; "); !strings.Contains(notes, tt.note) || (tt.note == "") != (notes == "") {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
		})
	}
}

func TestGrants(t *testing.T) {
	const holds = `{metadata: {namespace: stubs}, spec: {from: [{group: sidetrack.dev, kind: Sandbox, namespace: shop}], to: [{group: "", kind: Service, name: stub}]}}`
	for _, tt := range []struct {
		name, grant string
		want        bool
	}{
		{"one that holds", holds, true},
		{"of all Services", strings.Replace(holds, ", name: stub", "", 1), true},
		{"of another Service", strings.Replace(holds, "name: stub", "name: other", 1), false},
		{"in another namespace", strings.Replace(holds, "namespace: stubs", "namespace: shop", 1), false},
		{"for another namespace", strings.Replace(holds, "namespace: shop", "namespace: aaa", 1), false},
		{"for every namespace there is not", strings.Replace(holds, "namespace: shop", `namespace: "*"`, 1), false},
		{"for another kind", strings.Replace(holds, "kind: Sandbox", "kind: RouteGroup", 1), false},
		{"for another group", strings.Replace(holds, "sidetrack.dev", "gateway.networking.k8s.io", 1), false},
		{"of another kind", strings.Replace(holds, "kind: Service", "kind: Secret", 1), false},
		{"of another group", strings.Replace(holds, `group: ""`, "group: x.dev", 1), false},
		{"that is being deleted", strings.Replace(holds, "namespace: stubs}", `namespace: stubs, deletionTimestamp: "2026-11-01T12:00:00Z"}`, 1), false},
		{"that says nothing", `{metadata: {namespace: stubs}, spec: {from: [], to: []}}`, false},
		{"the second of its lists' items", `{metadata: {namespace: stubs}, spec: {from: [{group: x, kind: y, namespace: z}, {group: sidetrack.dev, kind: Sandbox, namespace: shop}], to: [{group: "", kind: Service, name: x}, {group: "", kind: Service, name: stub}]}}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := []gatewayv1.ReferenceGrant{{}, parse[gatewayv1.ReferenceGrant](t, tt.grant)}
			if got := permitted(all, "shop", types.NamespacedName{Namespace: "stubs", Name: "stub"}); got != tt.want {
				t.Errorf("permitted: %v", got)
			}
		})
	}
	if without := grantRemedy("shop", types.NamespacedName{Namespace: "stubs", Name: "stub"}, false); !strings.Contains(without, grantsResource) {
		t.Errorf("a cluster without the resource: %s", without)
	}
}

func TestWhoKeepsAKey(t *testing.T) {
	at := func(minute int) metav1.Time { return metav1.NewTime(noon.Add(time.Duration(minute) * time.Minute)) }
	claim := func(uid string, created metav1.Time, holds bool) claimant {
		return claimant{kind: v1alpha1.SandboxKind, name: types.NamespacedName{Namespace: "secret-team", Name: uid}, uid: types.UID(uid), created: created, holds: holds}
	}
	for _, tt := range []struct {
		name    string
		me      claimant
		other   claimant
		refused bool
	}{
		{"nobody but me", claim("a", at(0), true), claim("a", at(0), true), false},
		{"the younger one", claim("a", at(1), false), claim("b", at(0), false), true},
		{"the older one", claim("a", at(0), false), claim("b", at(1), false), false},
		{"who has it keeps it, though younger", claim("a", at(0), false), claim("b", at(1), true), true},
		{"me, who has it", claim("a", at(1), true), claim("b", at(0), false), false},
		{"both have it after a race", claim("a", at(1), true), claim("b", at(0), true), true},
		{"a tie", claim("b", at(0), false), claim("a", at(0), false), true},
		{"the other side of the tie", claim("a", at(0), false), claim("b", at(0), false), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := keyRefused(tt.me, []claimant{tt.me, tt.other})
			if (got != nil) != tt.refused {
				t.Errorf("refused: %+v", got)
			}
			if got != nil && (got.reason != reasonKeyInUse || strings.Contains(got.message, "secret-team")) {
				t.Errorf("refusal %+v", got)
			}
			if back := keyRefused(tt.other, []claimant{tt.me}); tt.me.uid != tt.other.uid && (got != nil) == (back != nil) {
				t.Error("both have it, or none")
			}
		})
	}
}

func TestMembersOfAGroup(t *testing.T) {
	member := func(name, labels, key string) v1alpha1.Sandbox {
		sb := v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		if labels != "" {
			sb.Labels = map[string]string{"team": labels}
		}
		sb.Status.RoutingKey = key
		return sb
	}
	all := []v1alpha1.Sandbox{member("z", "a", "k1"), member("b", "a", "k2"), member("c", "", "k3"), member("d", "b", "k4"), member("e", "", "")}
	ending := member("ending", "a", "k5")
	ending.DeletionTimestamp = &metav1.Time{Time: noon}
	all = append(all, ending)
	for _, tt := range []struct {
		name, spec, want, reason string
	}{
		{"named ones in their order, then selected ones by name", `{sandboxes: [{name: z}, {name: c}], selector: {matchLabels: {team: a}}}`, "z c b", ""},
		{"an expression", `{selector: {matchExpressions: [{key: team, operator: Exists}]}}`, "b d z", ""},
		{"named twice", `{sandboxes: [{name: c}, {name: c}]}`, "c", ""},
		{"one that is not there", `{sandboxes: [{name: gone}, {name: c}]}`, "c", reasonMemberNotFound},
		{"one that is being deleted", `{sandboxes: [{name: ending}]}`, "", reasonMemberNotFound},
		{"one that is not accepted", `{sandboxes: [{name: e}]}`, "e", reasonMemberNotAccepted},
		{"an empty selector is everything", `{selector: {}}`, "b c d e z", reasonMemberNotAccepted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &v1alpha1.RouteGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: parse[v1alpha1.RouteGroupSpec](t, tt.spec)}
			members, refusals := membersOf(g, all)
			var names []string
			for _, m := range members {
				names = append(names, m.Name)
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("members %s, want %s", got, tt.want)
			}
			reason := ""
			if len(refusals) > 0 {
				reason = refusals[0].reason
			}
			if reason != tt.reason {
				t.Errorf("refusals %v", refusals)
			}
		})
	}
}

func TestTheFirstMemberThatRedirectsAPortWins(t *testing.T) {
	w := newWorld(t, routeService)
	member := func(name, redirects string) *v1alpha1.Sandbox {
		sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		sb.Status.Redirects = parse[[]v1alpha1.RedirectStatus](t, redirects)
		return sb
	}
	got := joinRedirects([]*v1alpha1.Sandbox{
		member("one", `[{from: {service: route, port: http}, to: {address: 10.0.0.1}, endpoints: 1}]`),
		member("two", `[{from: {service: route}, to: {address: 10.0.0.2}, endpoints: 1}, {from: {service: gone}, to: {address: 10.0.0.2}, endpoints: 1}]`),
		member("three", `[{from: {service: route, port: 81}, to: {address: 10.0.0.3}, endpoints: 1}]`),
	}, w.view())
	var by []string
	for _, r := range got.redirects {
		by = append(by, r.Sandbox)
	}
	if diff := cmp.Diff([]string{"route:http > 10.0.0.1  1", "route:admin > 10.0.0.2  1"}, told(got.redirects)); diff != "" || strings.Join(by, " ") != "one two" {
		t.Errorf("redirects of %v (-want +got):\n%s", by, diff)
	}
	if len(got.notes) != 2 || !strings.Contains(got.notes[0], "Sandbox two gives way to Sandbox one") || !strings.Contains(got.notes[1], "Sandbox three gives way to Sandbox two") {
		t.Errorf("notes %q", got.notes)
	}
}
