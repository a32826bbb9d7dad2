// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

const trace = "4bf92f3577b34da6a3ce929d0e0e4736"

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

// call is a record: when it began and how long it took, in milliseconds.
func call(at, took int, from, service, answer string) ledger.Record {
	r := ledger.Record{
		Time: metav1.NewMicroTime(noon.Add(time.Duration(at) * time.Millisecond)), LatencyNanos: int64(took) * 1e6, TraceID: trace,
		Node: "n1", Hook: ledger.HookRouter, Protocol: ledger.ProtocolHTTP1, Decision: ledger.DecisionBaseline, Reason: "no_redirect", Status: 200,
		Source: ledger.Source{Namespace: "shop", Pod: from + "-1", Workload: "Deployment/" + from}, Service: &ledger.Service{Namespace: "shop", Name: service, Port: 80},
		Request: &ledger.Request{Method: "GET", Path: "/" + service},
	}
	if answer != "" {
		r.Answer = &ledger.Answer{Address: "10.1.0.1:8080", Namespace: "shop", Pod: answer}
	} else {
		r.Answer = &ledger.Answer{Address: "10.96.0.1:80"}
	}
	return r
}

func TestCallsAreBelowTheCallThatTheyCameOf(t *testing.T) {
	front := call(0, 100, "runner", "front", "front-1")
	cart := call(10, 80, "front", "cart", "cart-1")
	route := call(20, 50, "cart", "route", "route-pr-42-1")
	route.Decision, route.Reason = ledger.DecisionFork, "redirected"
	// The second call of cart, of another request's time: cart-1 answers two at once.
	mail := call(75, 5, "cart", "mail", "mail-1")
	mail.LostKey, mail.LostBy = true, "Deployment/cart"
	other := call(30, 5, "runner", "stock", "stock-1")
	other.TraceID, other.Decision, other.Reason, other.Status, other.Answer = "", ledger.DecisionReject, "unavailable", 503, nil
	flow := call(40, 0, "route-pr-42", "postgres", "postgres-pr-42-1")
	flow.Hook, flow.Protocol, flow.Request, flow.Status, flow.TraceID, flow.Decision = ledger.HookConnect, ledger.ProtocolTCP, nil, 0, "", ledger.DecisionFork
	flow.Source.Sandbox = "pr-42"
	var b strings.Builder
	Write(&b, Tree([]ledger.Record{mail, flow, other, route, front, cart}))
	want := `12:00:00.000  trace ` + trace + `
  Deployment/runner -> front.shop:80 GET /front => BASELINE front-1 (no_redirect) 200 100ms
  └─ Deployment/front -> cart.shop:80 GET /cart => BASELINE cart-1 (no_redirect) 200 80ms
     ├─ Deployment/cart -> route.shop:80 GET /route => FORK route-pr-42-1 200 50ms
     └─ Deployment/cart -> mail.shop:80 GET /mail => BASELINE mail-1 (no_redirect) 200 5ms [KEY LOST by Deployment/cart]
12:00:00.030  without a trace
  Deployment/runner -> stock.shop:80 GET /stock => REJECT (unavailable) 503 5ms
  Deployment/route-pr-42 of pr-42 -> postgres.shop:80 tcp => FORK postgres-pr-42-1
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestWhoHasAnsweredTellsTwoCallsAtOnceApart(t *testing.T) {
	one, two := call(0, 100, "runner", "front", "front-1"), call(5, 100, "runner", "front", "front-2")
	child := call(50, 10, "front", "cart", "cart-1")
	roots := Tree([]ledger.Record{one, two, child})
	if len(roots) != 2 || len(roots[0].Children) != 1 || len(roots[1].Children) != 0 {
		t.Errorf("%d roots, below them %d and %d", len(roots), len(roots[0].Children), len(roots[1].Children))
	}
	// Behind a Service's own address it is not known who has answered: the trace tells.
	one.Answer.Pod = ""
	if roots := Tree([]ledger.Record{one, child}); len(roots) != 1 || len(roots[0].Children) != 1 {
		t.Errorf("with the trace: %d roots", len(roots))
	}
	// Without a trace the times do, where only one call comes into question.
	one.TraceID, two.TraceID, child.TraceID, two.Answer.Pod = "", "", "", ""
	grandchild := call(52, 4, "cart", "route", "")
	grandchild.TraceID, child.Answer.Pod = "", ""
	if roots := Tree([]ledger.Record{one, child, grandchild}); len(roots) != 1 || len(roots[0].Children) != 1 || len(roots[0].Children[0].Children) != 1 {
		t.Errorf("with the times: %d roots", len(roots))
	}
	// It goes on after the other one's end, so neither came of the other.
	two.Source.Pod, two.Time, two.LatencyNanos = "runner-2", metav1.NewMicroTime(noon.Add(40*time.Millisecond)), 300e6
	if roots := Tree([]ledger.Record{one, two, child}); len(roots) != 3 {
		t.Errorf("with two that come into question: %d roots", len(roots))
	}
	// One that was over is nobody's parent.
	late := call(300, 10, "front", "cart", "cart-1")
	if roots := Tree([]ledger.Record{call(0, 100, "runner", "front", "front-1"), late}); len(roots) != 2 {
		t.Errorf("after its end: %d roots", len(roots))
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	got := Gaps(&ledger.RecordList{Nodes: []ledger.NodeAnswer{
		{Node: "n1", Answered: true}, {Node: "n2", Message: "timeout"}, {Node: "n3", Answered: true, Dropped: 3, MissedFlows: 4, MissedEnds: 6, Omitted: 5},
	}})
	if len(got) != 5 || !strings.Contains(got[0], "node n2 has not answered, and its hops are missing: timeout") || !strings.Contains(got[1], "3 oldest") {
		t.Errorf("%q", got)
	}
}

// recorded is an API server that answers as it has been recorded.
func recorded(t *testing.T, h http.HandlerFunc) *cluster.Cluster {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := cluster.Connect(&rest.Config{Host: s.URL}, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRecordsAreReadAndFollowedOverABrokenStream(t *testing.T) {
	var asked atomic.Int64
	asks := make(chan string, 8)
	c := recorded(t, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		n := asked.Add(1)
		e := json.NewEncoder(rw)
		switch r.URL.Path {
		case "/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/pr-42/records":
			_ = e.Encode(ledger.RecordList{Items: []ledger.Record{call(0, 1, "a", "b", "b-1")}})
		case "/apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/shop/sandboxes/pr-42/records":
			asks <- r.URL.RawQuery
			// A slow request began before the others, and was over during the gap. One of
			// before the stream is none of it.
			all := []ledger.Record{call(2000, 1, "a", "b", "b-1")}
			if n > 2 {
				all = append(all, call(0, 4000, "a", "slow", "s-1"), call(2500, 1, "a", "c", "c-1"), call(-3600_000, 1, "a", "old", "o-1"))
			}
			_ = e.Encode(ledger.RecordList{Items: all})
			// And breaks off.
		default:
			http.NotFound(rw, r)
		}
	})
	list, err := Read(t.Context(), c, Of{Name: "pr-42"}, ledger.Options{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	enough := errors.New("enough")
	var got []string
	err = Follow(t.Context(), c, Of{Namespace: "shop", Name: "pr-42"}, ledger.Options{Limit: 5}, func(l *ledger.RecordList) error {
		for i := range l.Items {
			got = append(got, l.Items[i].Service.Name)
		}
		if asked.Load() > 4 {
			return enough
		}
		return nil
	})
	if want := []string{"b", "slow", "c"}; !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("of %q: %q, %v", want, got, err)
	}
	if first, second := <-asks, <-asks; first != "follow=true&limit=5" || second != "follow=true&limit=20000" {
		t.Errorf("it asks %q and then %q", first, second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Follow(ctx, c, Of{Name: "pr-42"}, ledger.Options{}, func(*ledger.RecordList) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWhatTheLimitHasLeftOutIsNotNewWhenAStreamGoesOn(t *testing.T) {
	on := func(node string, at int, service string) ledger.Record {
		r := call(at, 1, "a", service, service+"-1")
		r.Node = node
		return r
	}
	lost := on("n1", 400, "lost")
	lost.LostKey = true
	var asked atomic.Int64
	c := recorded(t, func(rw http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		rw.Header().Set("Content-Type", "application/json")
		list := ledger.RecordList{
			Items: []ledger.Record{on("n1", 1000, "one"), on("n1", 1100, "two"), on("n2", 900, "three")},
			Nodes: []ledger.NodeAnswer{{Node: "n1", Answered: true, Omitted: 2}, {Node: "n2", Answered: true}},
		}
		if r.URL.Query().Get("limit") != "2" {
			list.Nodes[0].Omitted = 0
			// On the other node nothing was left out: what is older there is new.
			list.Items = append(list.Items, on("n1", 100, "old"), on("n1", 200, "older"), on("n2", 300, "slow"), lost, on("n1", 1200, "new"))
		}
		_ = json.NewEncoder(rw).Encode(list)
		// And breaks off.
	})
	enough := errors.New("enough")
	var got []string
	err := Follow(t.Context(), c, Of{Namespace: "shop", Name: "pr-42"}, ledger.Options{Limit: 2}, func(l *ledger.RecordList) error {
		for i := range l.Items {
			got = append(got, l.Items[i].Service.Name)
		}
		if asked.Load() > 2 {
			return enough
		}
		return nil
	})
	if want := []string{"one", "two", "three", "slow", "lost", "new"}; !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("it shows %q, want %q (%v)", got, want, err)
	}
}

func TestAClusterWithoutALedgerSaysSo(t *testing.T) {
	c := recorded(t, http.NotFound)
	_, err := Read(t.Context(), c, Of{Name: "pr-42"}, ledger.Options{})
	if err == nil || !strings.Contains(err.Error(), "this cluster serves no ledger") {
		t.Errorf("%v", err)
	}
	if err := Follow(t.Context(), c, Of{Name: "pr-42"}, ledger.Options{}, nil); err == nil || !strings.Contains(err.Error(), "this cluster serves no ledger") {
		t.Errorf("following: %v", err)
	}
	status := func(code int, reason metav1.StatusReason, message string) *cluster.Cluster {
		return recorded(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(code)
			_ = json.NewEncoder(rw).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message,
				Details: &metav1.StatusDetails{Group: ledger.Group, Kind: "sandboxes", Name: "pr-42"}})
		})
	}
	for _, x := range []struct {
		code   int
		reason metav1.StatusReason
		want   string
	}{
		{403, metav1.StatusReasonForbidden, "you may not read the ledger of pr-42"},
		{503, metav1.StatusReasonServiceUnavailable, "the ledger does not answer"},
		{404, metav1.StatusReasonNotFound, "no such sandbox"},
	} {
		_, err := Read(t.Context(), status(x.code, x.reason, "no such sandbox"), Of{Name: "pr-42"}, ledger.Options{})
		var f *task.Failure
		if err == nil || !strings.Contains(err.Error(), x.want) || !errors.As(err, &f) {
			t.Errorf("%d: %v, want %q", x.code, err, x.want)
		}
	}
}

func TestALongStreamRemembersWhatMayComeAgainAndNoMore(t *testing.T) {
	s := newSeen()
	for i := range 5 * leastSeen {
		// Two alike are two.
		if n := len(s.fresh([]ledger.Record{call(i*100, 1, "a", "b", "b-1"), call(i*100, 1, "a", "b", "b-1")})); n != 2 {
			t.Fatalf("of two records %d come through", n)
		}
	}
	if len(s.known) > 2*leastSeen {
		t.Errorf("%d are remembered", len(s.known))
	}
	if !s.broken() {
		t.Error("nothing has come before")
	}
	last := (5*leastSeen - 1) * 100
	one := call(last, 1, "a", "b", "b-1")
	if got := s.fresh([]ledger.Record{call(last-1000, 1, "a", "b", "b-1"), one, one, one}); len(got) != 1 {
		t.Errorf("of one that is new %d come through", len(got))
	}
}

func TestAPathGivesTheTerminalNoCommands(t *testing.T) {
	r := call(0, 1, "a", "b", "b-1")
	r.Request.Path = "/\x1b[2J\u009b2J\u202eevil/grün"
	if got := Line(&r); !strings.Contains(got, "/\ufffd[2J\ufffd2J\ufffdevil/grün") {
		t.Errorf("%q", got)
	}
}
