// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

var sentAt = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// record is a call that a fork of the sandbox has answered; change makes another of
// it.
func record(service string, change func(*ledger.Record)) ledger.Record {
	r := ledger.Record{
		Time: metav1.NewMicroTime(sentAt.Add(10 * time.Millisecond)), Node: "n1", Hook: ledger.HookRouter, Protocol: ledger.ProtocolHTTP1,
		Source: ledger.Source{Namespace: "shop", Pod: "cart-1", Workload: "Deployment/cart"}, Service: &ledger.Service{Namespace: "shop", Name: service, Port: 80},
		Decision: ledger.DecisionFork, Reason: "redirected", Answer: &ledger.Answer{Address: "10.0.0.9:80", Namespace: "shop", Pod: service + "-fork-1"},
		Request: &ledger.Request{Method: "GET", Path: "/"}, Status: 200, LatencyNanos: 1e6, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
	if change != nil {
		change(&r)
	}
	return r
}

// convincing is evidence without a doubt; change makes another of it.
func convincing(change func(*Evidence)) *Evidence {
	since := metav1.NewMicroTime(sentAt.Add(-time.Hour))
	all := &ledger.TraceAnswer{KnownNanos: time.Hour.Nanoseconds(), Strays: &ledger.Strays{}}
	e := &Evidence{
		Sent: Sent{Trace: "4bf92f3577b34da6a3ce929d0e0e4736", Began: sentAt}, Age: 2 * time.Second,
		Records: []ledger.Record{record("route", nil), record("front", func(r *ledger.Record) {
			baseline(r)
			r.ParentID, r.Source = "00f067aa0ba902b7", ledger.Source{Namespace: "shop", Pod: "proxy-1"}
		})},
		Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &since, Trace: all}, {Node: "n2", Answered: true, Since: &since, Dropped: 7, Trace: all}},
		Sandbox: &v1alpha1.Sandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42", Generation: 3},
			Status: v1alpha1.SandboxStatus{
				Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, ObservedGeneration: 3}},
				Redirects:  []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}}, {From: v1alpha1.RedirectFrom{Service: "stock"}}},
			},
		},
	}
	e.Before = e.Sandbox.DeepCopy()
	if change != nil {
		change(e)
	}
	return e
}

// only has one port of route redirected, which a fork has answered at, and its port 80
// called as well.
func only(e *Evidence, port intstr.IntOrString) {
	e.Sandbox.Status.Redirects = []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route", Port: &port}}}
	e.Services = map[string]*corev1.Service{"route": {Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "grpc", Port: 8080}}}}}
	e.Records[0].Service.Port = 8080
	e.Records = append(e.Records, record("route", nil))
}

// givesWay has the second redirect's target gone, for which the baseline answers the
// sandbox's fork.
func givesWay(sb *v1alpha1.Sandbox) {
	sb.Status.Forks = []v1alpha1.ForkStatus{{}}
	sb.Status.Redirects[1].Unavailable = v1alpha1.UnavailableBaseline
}

func baseline(r *ledger.Record) {
	r.Decision, r.Reason, r.Answer = ledger.DecisionBaseline, "no_redirect", &ledger.Answer{Address: "10.96.0.1:80"}
}

func TestWhatForksHaveAnsweredIsVerified(t *testing.T) {
	v := convincing(nil).Judge()
	if !v.Verified || !slices.Equal(v.Reached, []string{"route"}) || !slices.Equal(v.Missed, []string{"stock"}) {
		t.Errorf("%+v", v)
	}
	// Calls to what the sandbox does not redirect belong to everybody's.
	v = convincing(func(e *Evidence) {
		e.Records = append(e.Records, record("front", baseline), record("route", func(r *ledger.Record) {
			baseline(r)
			r.Service.Namespace = "other"
		}))
	}).Judge()
	if !v.Verified {
		t.Errorf("with hops of others: %+v", v)
	}
	// A flow leaves a record without a pod where its target is no pod.
	v = convincing(func(e *Evidence) {
		e.Records = append(e.Records, record("stock", func(r *ledger.Record) {
			r.Hook, r.Protocol, r.Answer.Pod, r.Request = ledger.HookConnect, ledger.ProtocolTCP, "", nil
		}))
	}).Judge()
	if !v.Verified || len(v.Missed) != 0 {
		t.Errorf("with a flow: %+v", v)
	}
	// A redirect of one port says nothing of a Service's others.
	for _, port := range []intstr.IntOrString{intstr.FromInt32(8080), intstr.FromString("grpc")} {
		v = convincing(func(e *Evidence) {
			only(e, port)
			baseline(&e.Records[2])
		}).Judge()
		if !v.Verified || !slices.Equal(v.Reached, []string{"route"}) {
			t.Errorf("only port %s is redirected: %+v", port.String(), v)
		}
	}
	// Who refuses answers nobody, and of what routers alone see there are records.
	for name, change := range map[string]func(*v1alpha1.Sandbox){
		"it refuses":       func(sb *v1alpha1.Sandbox) { sb.Status.Redirects[1].Unavailable = v1alpha1.UnavailableReject },
		"it is refused":    func(sb *v1alpha1.Sandbox) { sb.Status.Redirects[1].Refused = true },
		"it is there":      func(sb *v1alpha1.Sandbox) { sb.Status.Redirects[1].Endpoints = 1 },
		"nobody has flows": func(sb *v1alpha1.Sandbox) { sb.Status.Forks = nil },
	} {
		v = convincing(func(e *Evidence) {
			for _, sb := range []*v1alpha1.Sandbox{e.Before, e.Sandbox} {
				givesWay(sb)
				change(sb)
			}
		}).Judge()
		if !v.Verified {
			t.Errorf("a redirect without an endpoint, and %s: %+v", name, v)
		}
	}
	v = convincing(func(e *Evidence) {
		e.Records[0].LostKey, e.Records[0].LostBy, e.Records[0].Healed = true, "Deployment/cart", true
	}).Judge()
	if !v.Verified {
		t.Errorf("healed: %+v", v)
	}
}

func TestWhatTheLedgerCannotTellIsNeverGuessed(t *testing.T) {
	late := metav1.NewMicroTime(sentAt.Add(time.Second))
	for _, c := range []struct {
		name   string
		change func(*Evidence)
		says   string
	}{
		{"no ledger", func(e *Evidence) { e.Unread = "it does not answer" }, "the ledger cannot be read: it does not answer"},
		{"nobody asked", func(e *Evidence) { e.Nodes = nil }, "no node has been asked"},
		{"a node that does not answer", func(e *Evidence) { e.Nodes[1].Answered, e.Nodes[1].Message = false, "timeout" }, "node n2 has not answered, and its hops are not known: timeout"},
		{"a ledger that begins later", func(e *Evidence) { e.Nodes[0].Since = &late }, "the ledger of node n1 begins after the request"},
		{"calls under way", func(e *Evidence) {
			e.Nodes[1].Trace = &ledger.TraceAnswer{Open: 2, KnownNanos: 1e12, Strays: &ledger.Strays{}}
		}, "not verified yet: node n2 has 2 calls of this request under way"},
		{"a node that has forgotten", func(e *Evidence) { e.Nodes[0].Trace = &ledger.TraceAnswer{KnownNanos: 1e9, Strays: &ledger.Strays{}} }, "node n1 knows of the last 1s only"},
		{"a node that does not say", func(e *Evidence) { e.Nodes[0].Trace = nil }, "node n1 does not say whether it knows every call"},
		{"another sandbox's trace", func(e *Evidence) { e.Nodes[0].Trace = &ledger.TraceAnswer{KnownNanos: 1e12, Foreign: true} }, "another sandbox's"},
		{"more than were read", func(e *Evidence) { e.Nodes[0].Omitted = 3 }, "node n1 has 3 more records"},
		{"a sandbox that observes nothing", func(e *Evidence) { e.Nodes[1].Trace = &ledger.TraceAnswer{Unwatched: true} }, "a workload on another node that loses the routing key would not be seen: set spec.observe"},
		{"a call without the key from somebody who may never have had it", func(e *Evidence) {
			e.Nodes[1].Trace = &ledger.TraceAnswer{KnownNanos: 1e12, Strays: &ledger.Strays{Services: []ledger.Service{{Namespace: "shop", Name: "stock"}}}}
		}, "a call of this request to stock.shop came without the routing key, from somebody of whom it is not known"},
		{"a sandbox that was changed meanwhile", func(e *Evidence) {
			e.Sandbox.Generation, e.Sandbox.Status.Conditions[0].ObservedGeneration = 4, 4
		}, "the sandbox was changed meanwhile: try it again"},
		{"a sandbox whose redirects have changed meanwhile", func(e *Evidence) { e.Sandbox.Status.Revision++ }, "the sandbox was changed meanwhile"},
		{"another sandbox of that name", func(e *Evidence) { e.Sandbox.UID = "another" }, "the sandbox was changed meanwhile"},
		{"a sandbox that was not in force before", func(e *Evidence) { e.Before.Status.Conditions[0].Status = metav1.ConditionFalse }, "not every node has the sandbox in force"},
		{"a node that does not look for such calls", func(e *Evidence) { e.Nodes[0].Trace = &ledger.TraceAnswer{KnownNanos: 1e12} }, "node n1 does not say whether calls of this request came without the routing key"},
		{"a redirected port that gives way", func(e *Evidence) {
			only(e, intstr.FromInt32(8080))
			baseline(&e.Records[2])
			e.Records[2].Reason = "unavailable"
		}, "the call of route.shop:80 was answered by what everybody shares"},
		{"the redirected port", func(e *Evidence) { only(e, intstr.FromInt32(80)); baseline(&e.Records[2]) }, "the call of route.shop:80 was answered by what everybody shares"},
		{"the redirected port by its name", func(e *Evidence) { only(e, intstr.FromString("http")); baseline(&e.Records[2]) }, "the call of route.shop:80 was answered by what everybody shares"},
		{"a port whose name nobody knows", func(e *Evidence) { only(e, intstr.FromString("web")); baseline(&e.Records[2]) }, "the call of route.shop:80 was answered by what everybody shares"},
		{"a port of a Service that cannot be read", func(e *Evidence) {
			only(e, intstr.FromString("grpc"))
			e.Services = nil
			baseline(&e.Records[2])
		}, "the call of route.shop:80 was answered by what everybody shares"},
		{"a port that is not known", func(e *Evidence) {
			only(e, intstr.FromInt32(8080))
			baseline(&e.Records[2])
			e.Records[2].Service.Port = 0
		}, "the call of route.shop was answered by what everybody shares"},
		{"one of two redirected ports", func(e *Evidence) {
			only(e, intstr.FromInt32(8080))
			port := intstr.FromInt32(80)
			e.Sandbox.Status.Redirects = append(e.Sandbox.Status.Redirects, v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: "route", Port: &port}})
			baseline(&e.Records[2])
		}, "the call of route.shop:80 was answered by what everybody shares"},
		{"no record", func(e *Evidence) { e.Records = nil }, "no call of this request is known to have been answered by a fork"},
		{"only hops of others", func(e *Evidence) { e.Records = e.Records[1:] }, "no call of this request is known"},
		{"a fork in another namespace", func(e *Evidence) { e.Records[0].Service.Namespace = "other" }, "no call of this request is known"},
		{"the baseline answers", func(e *Evidence) { baseline(&e.Records[0]) }, "the call of route.shop:80 was answered by what everybody shares: no_redirect"},
		{"one of two by the baseline", func(e *Evidence) { e.Records = append(e.Records, record("stock", baseline)) }, "the call of stock.shop:80 was answered by what everybody shares"},
		{"a lost key", func(e *Evidence) {
			e.Records = append(e.Records, record("stock", func(r *ledger.Record) {
				baseline(r)
				r.LostKey, r.LostBy = true, "Deployment/route"
			}))
		}, "Deployment/route called stock.shop:80 without the routing key"},
		{"a lost key on the way to a Service of others", func(e *Evidence) {
			e.Records = append(e.Records, record("front", func(r *ledger.Record) {
				baseline(r)
				r.LostKey = true
			}))
		}, "Deployment/cart called front.shop:80 without the routing key"},
		{"no Service leads to a fork", func(e *Evidence) { e.Sandbox.Status.Redirects = nil }, "no Service leads to a fork of the sandbox"},
		{"refused", func(e *Evidence) {
			e.Records[0].Decision, e.Records[0].Answer, e.Records[0].Target = ledger.DecisionReject, nil, "no endpoint is ready"
		}, "the call of route.shop:80 was refused: no endpoint is ready"},
		{"a failure on the way", func(e *Evidence) { e.Records[0].Error = "connection reset" }, "the call of route.shop:80 failed: connection reset"},
		{"an unknown pod", func(e *Evidence) { e.Records[0].Answer.Pod = "" }, "which pod has answered the call of route.shop:80 is not known"},
		{"no answer", func(e *Evidence) { e.Records[0].Answer = nil }, "which pod has answered"},
		{"not in force everywhere", func(e *Evidence) { e.Sandbox.Generation = 4 }, "not every node has the sandbox in force"},
		{"not in force", func(e *Evidence) { e.Sandbox.Status.Conditions[0].Status = metav1.ConditionFalse }, "not every node has the sandbox in force"},
		{"connections from before", func(e *Evidence) { e.Sandbox.Status.UncoveredConnections = 2 }, "2 connections from before the sandbox were open"},
		{"connections from before that have been closed since", func(e *Evidence) { e.Before.Status.UncoveredConnections = 3 }, "3 connections from before the sandbox were open when the request was sent"},
		{"a redirect that gives way to what forks call", func(e *Evidence) { givesWay(e.Sandbox) }, "the redirect of stock has no ready endpoint and gives way"},
		{"a redirect that gave way", func(e *Evidence) { givesWay(e.Before) }, "the redirect of stock has no ready endpoint and gives way"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := convincing(c.change).Judge()
			if v.Verified || !strings.Contains(strings.Join(v.Doubts, "\n"), c.says) {
				t.Errorf("verified %t, %q: want %q", v.Verified, v.Doubts, c.says)
			}
		})
	}
}
