// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster/clustertest"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
)

// twoForks is a sandbox in force that forks route and stock.
func twoForks() *v1alpha1.Sandbox {
	fork := func(name string) v1alpha1.RedirectStatus {
		return v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: name}, Fork: "Deployment/" + name, Endpoints: 1}
	}
	workload := func(name string) v1alpha1.ForkStatus {
		return v1alpha1.ForkStatus{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: name}, Ready: 1, Replicas: 1}
	}
	condition := func(kind string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionTrue, ObservedGeneration: 3}
	}
	return &v1alpha1.Sandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42", UID: "u", Generation: 3},
		Spec:       v1alpha1.SandboxSpec{Observe: []string{"route", "stock"}},
		Status: v1alpha1.SandboxStatus{
			Conditions: []metav1.Condition{condition(v1alpha1.ConditionProgrammed), condition(v1alpha1.ConditionReady)},
			Forks:      []v1alpha1.ForkStatus{workload("route"), workload("stock")},
			Redirects:  []v1alpha1.RedirectStatus{fork("route"), fork("stock")},
		},
	}
}

// behind is a call to a cluster that has these objects, and a ledger that is the list.
func behind(t *testing.T, list *ledger.RecordList, objects ...client.Object) call {
	t.Helper()
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		out := *list
		if trace := r.URL.Query().Get("trace"); trace != "" {
			out.Items = nil
			for _, rec := range list.Items {
				if rec.TraceID == trace {
					out.Items = append(out.Items, rec)
				}
			}
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(out)
	})
	return call{Cluster: clustertest.WithLedger(t, h, objects...), secrets: &[]string{}}
}

// onRecord is a node that knows all there is to know.
func onRecord(records ...ledger.Record) *ledger.RecordList {
	since := metav1.NewMicroTime(sentAt.Add(-time.Hour))
	return &ledger.RecordList{Items: records, Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &since,
		Trace: &ledger.TraceAnswer{KnownNanos: (1000000 * time.Hour).Nanoseconds(), Strays: &ledger.Strays{}}}}}
}

func untracedRecord(service string) ledger.Record {
	return record(service, func(r *ledger.Record) { r.TraceID = "" })
}

// inTrace is a call of another trace.
func inTrace(service string, change func(*ledger.Record)) ledger.Record {
	r := record(service, change)
	r.TraceID = strings.Repeat("b", 32)
	return r
}

// A model does what next says: it has to lead on, and not in a circle.
func TestWhatIsNotKnownHasARemedyThatHelps(t *testing.T) {
	everything := func(sb *v1alpha1.Sandbox) { sb.Spec.Observe = []string{v1alpha1.ObserveAll} }
	for _, c := range []struct {
		name     string
		list     *ledger.RecordList
		change   func(*v1alpha1.Sandbox)
		verified bool
		next     []string // what it says
		not      string   // what it does not
	}{
		{name: "all forks", list: onRecord(record("route", nil), record("stock", nil)), verified: true},
		// Who has changed stock has got no proof of it, and may have been answered by the baseline.
		{name: "one of two forks", list: onRecord(record("route", nil)), verified: true, next: []string{"says nothing of your change to stock", "is answered by what everybody shares"}},
		{name: "the other without a trace", list: onRecord(record("route", nil), untracedRecord("stock")), verified: true, next: []string{"calls to stock as well", "this request's trace id"}},
		{name: "no fork", list: onRecord(record("front", baseline)), next: []string{`observe: ["*"]`}},
		{name: "no fork, without a trace", list: onRecord(record("front", baseline), untracedRecord("route")), next: []string{"traceparent", "other_hops"}},
		{name: "no fork, in a trace that a service has begun", list: onRecord(record("front", baseline), inTrace("route", nil)), next: []string{"traceparent", "other_hops"}},
		{name: "no fork, beside another's request", list: onRecord(record("front", baseline), inTrace("route", nil), inTrace("front", func(r *ledger.Record) {
			baseline(r)
			r.Source = ledger.Source{Namespace: "shop", Pod: "proxy-2", Sandbox: "pr-42"}
		})), next: []string{`observe: ["*"]`}, not: "other_hops"},
		{name: "no fork, and all is observed", list: onRecord(record("front", baseline)), change: everything, next: []string{"does not come to route, stock", "passes neither"}, not: "observe:"},
		{name: "no Service leads to the fork", list: onRecord(record("front", baseline)), change: func(sb *v1alpha1.Sandbox) { sb.Status.Redirects = nil }, next: []string{"list_workloads", "redirects"}, not: "observe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sb := twoForks()
			if c.change != nil {
				c.change(sb)
			}
			k := behind(t, c.list, sb)
			e, err := proof.Gather(t.Context(), k.Cluster, sb, proof.Sent{Trace: record("", nil).TraceID, Began: sentAt})
			if err != nil {
				t.Fatal(err)
			}
			var r sendReply
			if err := r.prove(t.Context(), k, e); err != nil {
				t.Fatal(err)
			}
			if r.Verified != c.verified || (r.Next == "") != (c.next == nil) || c.not != "" && strings.Contains(r.Next, c.not) {
				t.Errorf("verified %t (%q), next %q", r.Verified, r.NotVerified, r.Next)
			}
			for _, w := range c.next {
				if !strings.Contains(r.text(), w) {
					t.Errorf("it does not say %q:\n%s", w, r.text())
				}
			}
		})
	}
}

func TestARequestWithoutAnAnswerTellsHowFarItCame(t *testing.T) {
	k := behind(t, onRecord(record("route", func(r *ledger.Record) { r.Status, r.Error = 0, "the connection ended" })), twoForks())
	lost := &exchange.Unanswered{TraceID: record("", nil).TraceID, Err: http.ErrServerClosed}
	err := k.notAnswered(t.Context(), lost, twoForks(), sentAt)
	got := (&toolError{"send_request", err, k.redact}).Error()
	for _, w := range []string{"no answer: ", "trace_id: " + lost.TraceID, "-> route.shop:80 from Deployment/cart: fork, pod route-fork-1, error the connection ended", "next: the hops tell"} {
		if !strings.Contains(got, w) {
			t.Errorf("it does not say %q:\n%s", w, got)
		}
	}
	for says, why := range map[string]error{
		"raise timeout_seconds":                           &exchange.TimeoutError{After: time.Second},
		"run_tests with an image that has a client of it": errors.New(`net/http: HTTP/1.x transport connection broken: malformed HTTP response "\x00\x00\x06\x04"`),
		"without TLS": &tls.CertificateVerificationError{Err: errors.New("unknown authority")},
	} {
		err := k.notAnswered(t.Context(), &exchange.Unanswered{TraceID: lost.TraceID, Err: fmt.Errorf("GET x: %w", why)}, twoForks(), sentAt)
		if got := (&toolError{"send_request", err, k.redact}).Error(); !strings.Contains(got, "next: ") || !strings.Contains(got, says) {
			t.Errorf("of %v it does not say %q:\n%s", why, says, got)
		}
	}
	// Whose sandbox has ended meanwhile has no fork whose logs could be read.
	k = behind(t, onRecord())
	got = (&toolError{"send_request", k.notAnswered(t.Context(), lost, twoForks(), sentAt), k.redact}).Error()
	if !strings.Contains(got, "sandbox pr-42 is gone: somebody has deleted it") || !strings.Contains(got, "next: call create_sandbox for it again") || strings.Contains(got, "sandbox_logs") {
		t.Errorf("of a sandbox that is gone it says:\n%s", got)
	}
}

func TestAnImageUnderTheSameTagIsWarnedOf(t *testing.T) {
	forked := func(image string) *v1alpha1.Sandbox {
		sb := twoForks()
		sb.Spec.Forks = []v1alpha1.Fork{{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Containers: []v1alpha1.ContainerOverride{{Name: "app", Image: image}}}}
		return sb
	}
	same := forked("shop:1")
	same.Spec.Observe, same.Generation = []string{"*"}, 4
	if got := sameForks(forked("shop:1"), same); len(got) != 1 || !strings.Contains(got[0], "push it under a new one") {
		t.Errorf("the same image: %q", got)
	}
	again := forked("shop:1")
	again.UID = "another"
	none := twoForks()
	for name, c := range map[string][2]*v1alpha1.Sandbox{"another image": {forked("shop:1"), forked("shop:2")}, "the first": {nil, forked("shop:1")}, "made again": {forked("shop:1"), again}, "no forks": {none, none}} {
		if got := sameForks(c[0], c[1]); got != nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestAForkThatNoServiceLeadsToIsNotSaidToBeReached(t *testing.T) {
	if r := sandboxOf(twoForks(), short); !r.Ready || r.Notes != nil || !strings.Contains(r.text(), "requests with its routing key reach its forks") {
		t.Errorf("%q\n%s", r.Notes, r.text())
	}
	sb := twoForks()
	sb.Status.Redirects = sb.Status.Redirects[:1]
	if r := sandboxOf(sb, short); len(r.Notes) != 1 || !strings.Contains(r.text(), "NOTE: no Service selects the pods of Deployment/stock") {
		t.Errorf("one of two: %q\n%s", r.Notes, r.text())
	}
	sb.Status.Redirects, sb.Status.Forks = nil, sb.Status.Forks[:1]
	if r := sandboxOf(sb, short); strings.Contains(r.text(), "requests with its routing key reach") || len(r.Notes) != 1 {
		t.Errorf("none: %q\n%s", r.Notes, r.text())
	}
}

func TestWhatObserveNamesInVainIsSaid(t *testing.T) {
	k := behind(t, onRecord(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "route"}})
	sb := twoForks()
	if got := unknownServices(t.Context(), k, sb); len(got) != 1 || !strings.Contains(got[0], "observe names stock") {
		t.Errorf("%q", got)
	}
	sb.Spec.Observe = []string{v1alpha1.ObserveAll}
	if got := unknownServices(t.Context(), k, sb); got != nil {
		t.Errorf("all: %q", got)
	}
}
