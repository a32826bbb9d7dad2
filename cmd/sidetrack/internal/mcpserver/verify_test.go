// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
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

// proof is evidence without a doubt; change makes another of it.
func proof(change func(*evidence)) *evidence {
	since := metav1.NewMicroTime(sentAt.Add(-time.Hour))
	e := &evidence{
		Began: sentAt, Records: []ledger.Record{record("route", nil)},
		Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &since}, {Node: "n2", Answered: true, Since: &since, Dropped: 7}},
		Sandbox: &v1alpha1.Sandbox{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42", Generation: 3},
			Status: v1alpha1.SandboxStatus{
				Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, ObservedGeneration: 3}},
				Redirects:  []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}}, {From: v1alpha1.RedirectFrom{Service: "stock"}}},
			},
		},
	}
	if change != nil {
		change(e)
	}
	return e
}

func baseline(r *ledger.Record) {
	r.Decision, r.Reason, r.Answer = ledger.DecisionBaseline, "no_redirect", &ledger.Answer{Address: "10.96.0.1:80"}
}

func TestWhatForksHaveAnsweredIsVerified(t *testing.T) {
	v := proof(nil).judge()
	if !v.Verified || !slices.Equal(v.Reached, []string{"route"}) || !slices.Equal(v.Missed, []string{"stock"}) {
		t.Errorf("%+v", v)
	}
	// Calls to what the sandbox does not redirect belong to everybody's.
	v = proof(func(e *evidence) {
		e.Records = append(e.Records, record("front", baseline), record("route", func(r *ledger.Record) {
			baseline(r)
			r.Service.Namespace = "other"
		}))
	}).judge()
	if !v.Verified {
		t.Errorf("with hops of others: %+v", v)
	}
	// A flow leaves a record without a pod where its target is no pod.
	v = proof(func(e *evidence) {
		e.Records = append(e.Records, record("stock", func(r *ledger.Record) {
			r.Hook, r.Protocol, r.Answer.Pod, r.Request = ledger.HookConnect, ledger.ProtocolTCP, "", nil
		}))
	}).judge()
	if !v.Verified || len(v.Missed) != 0 {
		t.Errorf("with a flow: %+v", v)
	}
	v = proof(func(e *evidence) {
		e.Records[0].LostKey, e.Records[0].LostBy, e.Records[0].Healed = true, "Deployment/cart", true
	}).judge()
	if !v.Verified {
		t.Errorf("healed: %+v", v)
	}
}

func TestWhatTheLedgerCannotTellIsNeverGuessed(t *testing.T) {
	late := metav1.NewMicroTime(sentAt.Add(time.Second))
	for _, c := range []struct {
		name   string
		change func(*evidence)
		says   string
	}{
		{"no ledger", func(e *evidence) { e.Unread = "it does not answer" }, "the ledger cannot be read: it does not answer"},
		{"nobody asked", func(e *evidence) { e.Nodes = nil }, "no node has been asked"},
		{"a node that does not answer", func(e *evidence) { e.Nodes[1].Answered, e.Nodes[1].Message = false, "timeout" }, "node n2 has not answered, and its hops are not known: timeout"},
		{"a ledger that begins later", func(e *evidence) { e.Nodes[0].Since = &late }, "the ledger of node n1 begins after the request"},
		{"more than were read", func(e *evidence) { e.Nodes[0].Omitted = 3 }, "node n1 has 3 more records"},
		{"no record", func(e *evidence) { e.Records = nil }, "no call of this request is known to have been answered by a fork"},
		{"only hops of others", func(e *evidence) { e.Records = []ledger.Record{record("front", baseline)} }, "no call of this request is known"},
		{"a fork in another namespace", func(e *evidence) { e.Records[0].Service.Namespace = "other" }, "no call of this request is known"},
		{"the baseline answers", func(e *evidence) { baseline(&e.Records[0]) }, "the call of route.shop:80 was answered by what everybody shares: no_redirect"},
		{"one of two by the baseline", func(e *evidence) { e.Records = append(e.Records, record("stock", baseline)) }, "the call of stock.shop:80 was answered by what everybody shares"},
		{"a lost key", func(e *evidence) {
			e.Records = append(e.Records, record("stock", func(r *ledger.Record) {
				baseline(r)
				r.LostKey, r.LostBy = true, "Deployment/route"
			}))
		}, "Deployment/route called stock.shop:80 without the routing key"},
		{"a lost key on the way to a Service of others", func(e *evidence) {
			e.Records = append(e.Records, record("front", func(r *ledger.Record) {
				baseline(r)
				r.LostKey = true
			}))
		}, "Deployment/cart called front.shop:80 without the routing key"},
		{"refused", func(e *evidence) {
			e.Records[0].Decision, e.Records[0].Answer, e.Records[0].Target = ledger.DecisionReject, nil, "no endpoint is ready"
		}, "the call of route.shop:80 was refused: no endpoint is ready"},
		{"a failure on the way", func(e *evidence) { e.Records[0].Error = "connection reset" }, "the call of route.shop:80 failed: connection reset"},
		{"an unknown pod", func(e *evidence) { e.Records[0].Answer.Pod = "" }, "which pod has answered the call of route.shop:80 is not known"},
		{"no answer", func(e *evidence) { e.Records[0].Answer = nil }, "which pod has answered"},
		{"not in force everywhere", func(e *evidence) { e.Sandbox.Generation = 4 }, "not every node has the sandbox in force"},
		{"not in force", func(e *evidence) { e.Sandbox.Status.Conditions[0].Status = metav1.ConditionFalse }, "not every node has the sandbox in force"},
		{"connections from before", func(e *evidence) { e.Sandbox.Status.UncoveredConnections = 2 }, "2 connections from before the sandbox are still open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := proof(c.change).judge()
			if v.Verified || !strings.Contains(strings.Join(v.Doubts, "\n"), c.says) {
				t.Errorf("verified %t, %q: want %q", v.Verified, v.Doubts, c.says)
			}
		})
	}
}

func TestHopsAreToldBelowTheCallThatTheyCameOf(t *testing.T) {
	route := record("route", nil)
	stock := record("stock", func(r *ledger.Record) {
		baseline(r)
		r.Time = metav1.NewMicroTime(route.Time.Add(time.Microsecond))
		r.Source = ledger.Source{Namespace: "shop", Pod: "route-fork-1", Workload: "Deployment/route-fork", Sandbox: "pr-42"}
		r.LostKey, r.LostBy, r.Error = true, "Deployment/route-fork", "reset"
	})
	got := hopsOf([]ledger.Record{stock, route})
	want := []hopReply{
		{From: "Deployment/cart", Service: "route.shop:80", Went: "fork", Pod: "route-fork-1", Request: "GET /", Status: 200, Duration: "1ms"},
		{From: "Deployment/route-fork of pr-42", Service: "stock.shop:80", Went: "baseline", Request: "GET /", Status: 200, Why: "no_redirect", LostKey: "Deployment/route-fork", Error: "reset", Duration: "1ms", Depth: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hops (-want +got):\n%s", diff)
	}
	if l := got[1].line(); l != "  -> stock.shop:80 from Deployment/route-fork of pr-42: baseline, status 200, why no_redirect, KEY LOST by Deployment/route-fork, error reset" {
		t.Errorf("the line is %q", l)
	}
}

func TestALargeBodyIsCutAndSaysHowToGetTheRest(t *testing.T) {
	answer := func(body []byte, truncated bool) *exchange.Answer {
		return &exchange.Answer{Status: 200, Body: body, Truncated: truncated, Header: http.Header{"Content-Type": {"text/plain"}, "X-A": {"b"}}}
	}
	in := sendInput{MaxBodyBytes: 5}
	for _, c := range []struct {
		body           []byte
		truncated      bool
		want, encoding string
		cut            bool
	}{
		{[]byte("12345"), false, "12345", "", false},
		{[]byte("12345"), true, "12345", "", true},
		{[]byte("1234é"), true, "1234", "", true},
		{[]byte("123456"), false, "12345", "", true},
		{[]byte{0xff, 0xfe}, false, "//4=", "base64", false},
		{[]byte{0xff, 0xfe, 0, 1, 2, 3}, true, "//4AAQI=", "base64", true},
	} {
		r := answerOf(answer(c.body, c.truncated), in)
		if r.Body != c.want || r.BodyEncoding != c.encoding || (r.BodyCut != "") != c.cut {
			t.Errorf("%q: body %q, encoding %q, %q", c.body, r.Body, r.BodyEncoding, r.BodyCut)
		}
		if c.cut && !strings.Contains(r.BodyCut, "max_body_bytes") {
			t.Errorf("it does not say how to get more: %q", r.BodyCut)
		}
		if r.Headers != nil || r.ContentType != "text/plain" {
			t.Errorf("headers %v, %q", r.Headers, r.ContentType)
		}
	}
	in.Detail = full
	if r := answerOf(answer(nil, false), in); r.Headers["X-A"] == nil {
		t.Errorf("in full the headers are %v", r.Headers)
	}
}

func TestTheEndOfWhatTestsPrintIsKept(t *testing.T) {
	out := tail{most: 10}
	for _, line := range []string{"first\n", "second\n", "three\n", "4\n"} {
		if err := out.add(line); err != nil {
			t.Fatal(err)
		}
	}
	if out.text() != "three\n4\n" || out.cut() != "the last 8 of 21 bytes" {
		t.Errorf("%q, %q", out.text(), out.cut())
	}
	if err := out.add(strings.Repeat("x", 30) + "end"); err != nil || out.text() != "xxxxxxxend" {
		t.Errorf("%v, %q", err, out.text())
	}
	l := logItem{Text: "one\ntwo\nthree\n"}
	l.shorten(8, short)
	if l.Text != "three\n" || !strings.Contains(l.Cut, "detail: full") {
		t.Errorf("%+v", l)
	}
}

func TestARoutingKeyIsTakenOutOfWhateverRepeatsIt(t *testing.T) {
	c := call{secrets: &[]string{}}
	c.hide(nil)
	c.hide(&v1alpha1.Sandbox{Status: v1alpha1.SandboxStatus{RoutingKey: "s3cret-key"}})
	if got := c.redact(`{"baggage":"a=1,sidetrack=s3cret-key"}`); got != `{"baggage":"a=1,sidetrack=[routing key]"}` {
		t.Error(got)
	}
	named := &v1alpha1.Sandbox{Status: v1alpha1.SandboxStatus{RoutingKey: "feature-42"}}
	named.Namespace, named.Name = "shop", "feature-42"
	c.hide(named)
	if got := c.redact(`{"sandbox":"shop/feature-42"}`); got != `{"sandbox":"shop/feature-42"}` {
		t.Errorf("the handle is hidden: %s", got)
	}
	c.reveal()
	if got := c.redact("s3cret-key"); got != "s3cret-key" {
		t.Error(got)
	}
}
