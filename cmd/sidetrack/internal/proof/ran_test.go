// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster/clustertest"
)

// at is a record of so long after the command began, without a trace.
func at(after time.Duration, service string, change func(*ledger.Record)) ledger.Record {
	return record(service, func(r *ledger.Record) {
		r.Time, r.TraceID = metav1.NewMicroTime(sentAt.Add(after)), ""
		if change != nil {
			change(r)
		}
	})
}

func by(pod, workload string) func(*ledger.Record) {
	return func(r *ledger.Record) {
		r.Source = ledger.Source{Namespace: "shop", Pod: pod, Workload: workload, Sandbox: "pr-42"}
	}
}

func both(changes ...func(*ledger.Record)) func(*ledger.Record) {
	return func(r *ledger.Record) {
		for _, change := range changes {
			change(r)
		}
	}
}

// A command's exit status is green whoever has answered its requests. What the ledger
// has of the time that it ran is the sandbox's, of which some is not the command's.
func TestWhetherForksAnsweredWhileACommandRan(t *testing.T) {
	const nobody = "no call to a fork is on record while it ran"
	traced := func(r *ledger.Record) { r.TraceID = strings.Repeat("a", 32) }
	run, tester, fork := by("run-1", ""), by("proxy-1", ""), by("route-fork-1", "Deployment/route-pr-42")
	for _, c := range []struct {
		name    string
		records []ledger.Record
		reached []string
		says    string
	}{
		{"nothing was called", nil, nil, nobody},
		{"only what everybody shares", []ledger.Record{at(time.Second, "front", both(run, baseline))}, nil, nobody},
		{"the fork itself", []ledger.Record{at(time.Second, "route", run)}, []string{"route"}, ""},
		{"a fork on the way", []ledger.Record{at(time.Second, "front", both(run, baseline)), at(time.Second+time.Millisecond, "route", nil)}, []string{"route"}, ""},
		{"the clock of the fork's caller is late", []ledger.Record{at(time.Second-20*time.Millisecond, "route", nil), at(time.Second, "front", both(run, baseline))}, []string{"route"}, ""},
		{"a trace that a service has begun", []ledger.Record{at(time.Second, "front", both(run, baseline)), at(2*time.Second, "route", traced)}, []string{"route"}, ""},
		{"a fork that was called before the first request", []ledger.Record{at(200*time.Millisecond, "route", nil), at(time.Second, "front", both(run, baseline))}, nil, nobody},
		{"another tester's request", []ledger.Record{at(time.Second, "front", both(run, baseline)), at(2*time.Second, "front", both(tester, baseline, traced)), at(2*time.Second, "route", traced)}, nil, nobody},
		{"another tester's own", []ledger.Record{at(time.Second, "front", both(run, baseline)), at(2*time.Second, "route", tester)}, nil, nobody},
		{"what a fork calls by itself", []ledger.Record{at(time.Second, "front", both(run, baseline)), at(2*time.Second, "stock", fork)}, nil, nobody},
		{"what a fork calls that was called", []ledger.Record{at(time.Second, "route", run), at(2*time.Second, "stock", fork)}, []string{"route", "stock"}, ""},
		{"a key was lost", []ledger.Record{at(time.Second, "route", run), at(2*time.Second, "route", both(traced, baseline, func(r *ledger.Record) { r.LostKey, r.LostBy = true, "Deployment/cart" }))},
			[]string{"route"}, "Deployment/cart called route.shop:80 without the routing key"},
		{"once the baseline", []ledger.Record{at(time.Second, "route", run), at(2*time.Second, "route", both(run, baseline, func(r *ledger.Record) { r.Reason = "unavailable" }))},
			[]string{"route"}, "the call of route.shop:80 was answered by what everybody shares: unavailable"},
		{"refused", []ledger.Record{at(time.Second, "route", both(run, func(r *ledger.Record) {
			r.Decision, r.Answer, r.Target = ledger.DecisionReject, nil, "no endpoint is ready"
		}))},
			nil, "the call of route.shop:80 was refused: no endpoint is ready\n" + nobody},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			since := metav1.NewMicroTime(sentAt.Add(-time.Hour))
			cl, sb := served(t, func() ledger.RecordList {
				return ledger.RecordList{Items: c.records, Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &since}}}
			})
			v, err := Account(t.Context(), cl, sb, Ran{Pod: "run-1", Began: sentAt})
			if err != nil {
				t.Fatal(err)
			}
			if said := strings.Join(v.Doubts, "\n"); v.Verified || !slices.Equal(v.Reached, c.reached) || said != c.says {
				t.Errorf("verified %t, reached %q, %q: want %q", v.Verified, v.Reached, said, c.says)
			}
		})
	}
}

func TestWhatTheLedgerCannotTellOfACommandIsADoubt(t *testing.T) {
	late := metav1.NewMicroTime(sentAt.Add(time.Second))
	for says, list := range map[string]ledger.RecordList{
		"no node has been asked":                  {},
		"node n1 has not answered":                {Nodes: []ledger.NodeAnswer{{Node: "n1"}}},
		"the ledger of node n1 begins after":      {Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Since: &late}}},
		"node n1 has 3 more records of this time": {Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Omitted: 3}}},
	} {
		list.Items = []ledger.Record{at(time.Second, "route", by("run-1", ""))}
		cl, sb := served(t, func() ledger.RecordList { return list })
		v, err := Account(t.Context(), cl, sb, Ran{Pod: "run-1", Began: sentAt})
		if said := strings.Join(v.Doubts, "\n"); err != nil || !slices.Equal(v.Reached, []string{"route"}) || !strings.HasPrefix(said, says) {
			t.Errorf("%v, reached %q, %q: want %q", err, v.Reached, said, says)
		}
	}
}

// served is a cluster with convincing's sandbox, whose ledger is what f says.
func served(t *testing.T, f func() ledger.RecordList) (*cluster.Cluster, *v1alpha1.Sandbox) {
	t.Helper()
	sb := convincing(nil).Sandbox
	return clustertest.WithLedger(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		list := f()
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(list)
	}), sb), sb
}
