// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/compare"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
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

func baseline(r *ledger.Record) {
	r.Decision, r.Reason, r.Answer = ledger.DecisionBaseline, "no_redirect", &ledger.Answer{Address: "10.96.0.1:80"}
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
		r := call{secrets: &[]string{}}.answerOf(answer(c.body, c.truncated), in)
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
	if r := (call{secrets: &[]string{}}).answerOf(answer(nil, false), in); r.Headers["X-A"] == nil {
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

// What is cut may end, or begin, within a key.
func TestNoPartOfARoutingKeyIsLeftWhereATextIsCut(t *testing.T) {
	const key = "zqjwkvhxgzfbpqnmw"
	c := call{secrets: &[]string{key}}
	page := "you are " + key + " and again " + key + "."
	// tells reports whether a text has three bytes or more of the key.
	tells := func(text string) bool {
		for n := range len(key) - 2 {
			if strings.Contains(text, key[n:n+3]) {
				return true
			}
		}
		return false
	}
	for most := range len(page) + 1 {
		// The answer is cut when it is read, or is whole and cut for the reply.
		for _, read := range []int{most, len(page)} {
			a := &exchange.Answer{Body: []byte(page[:read]), Truncated: read < len(page)}
			if r := c.answerOf(a, sendInput{MaxBodyBytes: most}); tells(r.Body) {
				t.Errorf("of %d bytes, %d read: %q", most, read, r.Body)
			}
			a.Body = append([]byte{0xff, 0xfe}, a.Body...)
			r := c.answerOf(a, sendInput{MaxBodyBytes: most})
			raw, err := base64.StdEncoding.DecodeString(r.Body)
			if r.BodyEncoding != "" && (err != nil || tells(string(raw))) {
				t.Errorf("of %d bytes that are no text, %d read: %q, %v", most, read, raw, err)
			}
		}
		out := tail{most: most, redact: c.redact}
		if err := out.add(page + "\n"); err != nil || tells(out.text()) {
			t.Errorf("the last %d bytes that tests print: %q, %v", most, out.text(), err)
		}
		res := &compare.Result{Differences: []compare.Difference{{Where: "body", Baseline: "a", Sandbox: strings.Repeat("x", most) + strings.Repeat(" ", mostValue-len(page)) + page}}}
		if r := compared("shop/pr-42", res, short, c.redact); tells(r.Differences[0].Fork) {
			t.Errorf("a difference: %q", r.Differences[0].Fork)
		}
	}
	err := &toolError{"send_request", &task.Failure{Message: "no", Details: []string{strings.Repeat("x", mostDetail-10) + page}}, c.redact}
	if tells(err.Error()) {
		t.Errorf("a failure: %q", err.Error())
	}
}
