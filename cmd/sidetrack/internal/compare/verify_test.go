// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster/clustertest"
)

// ledgerOf is a cluster with a sandbox of the Service route, in force, whose ledger is
// what h answers.
func ledgerOf(t *testing.T, h http.HandlerFunc) (*cluster.Cluster, *v1alpha1.Sandbox) {
	t.Helper()
	sb := &v1alpha1.Sandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42", Generation: 3},
		Status: v1alpha1.SandboxStatus{
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue, ObservedGeneration: 3}},
			Redirects:  []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}}},
		},
	}
	return clustertest.WithLedger(t, h, sb), sb
}

// recorded answers with what a node has of the trace that is asked for: a call of route.
func recorded(change func(n int64, r *ledger.Record)) http.HandlerFunc {
	var mu sync.Mutex
	traces := map[string]int64{}
	since := metav1.NewMicroTime(time.Now().Add(-time.Hour))
	return func(rw http.ResponseWriter, r *http.Request) {
		trace := r.URL.Query().Get("trace")
		mu.Lock()
		if traces[trace] == 0 {
			traces[trace] = int64(len(traces) + 1)
		}
		n := traces[trace]
		mu.Unlock()
		rec := ledger.Record{
			Time: metav1.NowMicro(), Node: "n1", Hook: ledger.HookRouter, Protocol: ledger.ProtocolHTTP1, TraceID: trace, Status: 200,
			Service: &ledger.Service{Namespace: "shop", Name: "route", Port: 80}, Decision: ledger.DecisionFork,
			Answer: &ledger.Answer{Address: "10.0.0.9:80", Namespace: "shop", Pod: "route-fork-1"},
		}
		change(n, &rec)
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(ledger.RecordList{Items: []ledger.Record{rec}, Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &since, Trace: &ledger.TraceAnswer{KnownNanos: time.Hour.Nanoseconds(), Strays: &ledger.Strays{}}}}})
	}
}

func refused(status int, reason metav1.StatusReason) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_ = json.NewEncoder(rw).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(status), Reason: reason, Message: "no"}) //nolint:gosec // an HTTP status
	}
}

// A fork that answers as the baseline does, and a key that is lost on the way, look the
// same from outside: the ledger alone tells them apart.
func TestThatNothingDiffersIsVerifiedByTheLedgerOnly(t *testing.T) {
	lost := func(r *ledger.Record) {
		r.Decision, r.LostKey, r.LostBy = ledger.DecisionBaseline, true, "Deployment/cart"
	}
	for _, c := range []struct {
		name   string
		ledger http.HandlerFunc
		// differ: the fork's answer differs, so that it is asked several times.
		differ bool
		says   string
	}{
		{"a fork has answered", recorded(func(int64, *ledger.Record) {}), false, ""},
		{"forks have answered otherwise", recorded(func(int64, *ledger.Record) {}), true, ""},
		{"the key was lost", recorded(func(_ int64, r *ledger.Record) { lost(r) }), false, "Deployment/cart called route.shop:80 without the routing key"},
		{"the key was lost once", recorded(func(n int64, r *ledger.Record) {
			if n == 2 {
				lost(r)
			}
		}), true, "Deployment/cart called route.shop:80 without the routing key"},
		{"a Service that is not redirected", recorded(func(_ int64, r *ledger.Record) {
			r.Service.Name, r.Decision = "stock", ledger.DecisionBaseline
		}), false, "no call of this request is known to have been answered by a fork"},
		{"no ledger in the cluster", refused(http.StatusNotFound, metav1.StatusReasonNotFound), false, "it cannot be told whether a fork answered: the ledger cannot be read: this cluster serves no ledger"},
		{"a ledger for others", refused(http.StatusForbidden, metav1.StatusReasonForbidden), false, "it cannot be told whether a fork answered: the ledger cannot be read: you may not read the ledger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl, sb := ledgerOf(t, c.ledger)
			r := compareOnce(t, side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, _ int64) {
				fmt.Fprintf(rw, `{"fork": %t}`, tagged && c.differ)
			}), Options{Samples: 3})
			if r.Verified {
				t.Error("it is verified before the ledger has been read")
			}
			if (len(r.Differences) > 0) != c.differ {
				t.Fatalf("differences %q", places(r.Differences))
			}
			if err := Verify(t.Context(), cl, sb, &r); err != nil {
				t.Fatal(err)
			}
			if said := strings.Join(r.NotVerified, "\n"); r.Verified != (c.says == "") || !strings.Contains(said, c.says) || r.Verified != (said == "") {
				t.Errorf("verified %t, %q: want %q", r.Verified, said, c.says)
			}
		})
	}
}

// A sandbox of two Services, of which requests come to one: nothing was compared of a
// change to the other.
func TestServicesThatRequestsDidNotComeToAreNamed(t *testing.T) {
	for name, want := range map[string]struct {
		differ          bool
		reached, missed []string
	}{
		"one request":                {false, []string{"route"}, []string{"stock"}},
		"the second comes elsewhere": {true, nil, []string{"route", "stock"}},
	} {
		t.Run(name, func(t *testing.T) {
			cl, sb := ledgerOf(t, recorded(func(n int64, r *ledger.Record) {
				if n == 2 {
					r.Service.Name = "stock"
				}
			}))
			sb.Status.Redirects = []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}}, {From: v1alpha1.RedirectFrom{Service: "stock"}}}
			if err := cl.Objects.Update(t.Context(), sb); err != nil {
				t.Fatal(err)
			}
			r := compareOnce(t, side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, _ int64) {
				fmt.Fprintf(rw, `{"fork": %t}`, tagged && want.differ)
			}), Options{Samples: 3})
			if err := Verify(t.Context(), cl, sb, &r); err != nil {
				t.Fatal(err)
			}
			if !r.Verified || !slices.Equal(r.Reached, want.reached) || !slices.Equal(r.Missed, want.missed) {
				t.Errorf("verified %t, reached %q, missed %q", r.Verified, r.Reached, r.Missed)
			}
		})
	}
}

func TestWhatNobodyHasAnsweredIsNotVerified(t *testing.T) {
	cl, sb := ledgerOf(t, recorded(func(int64, *ledger.Record) {}))
	r := compareOnce(t, side(t, func(_ http.ResponseWriter, _ *http.Request, tagged bool, n int64) {
		if tagged && n == 2 {
			panic(http.ErrAbortHandler)
		}
	}), Options{Samples: 3})
	if err := Verify(t.Context(), cl, sb, &r); err != nil {
		t.Fatal(err)
	}
	if r.Verified || len(r.NotVerified) != 1 || r.NotVerified[0] != "a request to the sandbox was answered by nobody" {
		t.Errorf("verified %t, %q", r.Verified, r.NotVerified)
	}
}
