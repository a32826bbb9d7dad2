// SPDX-License-Identifier: Apache-2.0

package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// root is where the API server shows the page.
const root = "/apis/ledger.sidetrack.dev/v1alpha1/ui/"

// apiServer stands for the API server: it serves the page and what the page asks for.
type apiServer struct {
	*httptest.Server

	mu        sync.Mutex
	sandboxes []v1alpha1.Sandbox
	groups    []v1alpha1.RouteGroup
	nodes     []v1alpha1.NodeState
	pods      metav1.Table
	forbidden map[string]string // what may not be read, by a part of its path
	streams   []chan *ledger.RecordList
	begin     *ledger.RecordList
	full      []time.Time // when streams were asked for that were refused, while busy is true
	busy      bool
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{forbidden: map[string]string{}, begin: &ledger.RecordList{Items: []ledger.Record{}}}
	mux := http.NewServeMux()
	mux.Handle(root, Handler())
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/sandboxes", a.list("", func(string) any { return v1alpha1.SandboxList{Items: a.sandboxes} }))
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/routegroups", a.list("", func(string) any { return v1alpha1.RouteGroupList{Items: a.groups} }))
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/namespaces/{namespace}/sandboxes", a.list("", func(ns string) any {
		list := v1alpha1.SandboxList{Items: []v1alpha1.Sandbox{}}
		for _, sb := range a.sandboxes {
			if sb.Namespace == ns {
				list.Items = append(list.Items, sb)
			}
		}
		return list
	}))
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/namespaces/{namespace}/routegroups", a.list("", func(ns string) any {
		list := v1alpha1.RouteGroupList{Items: []v1alpha1.RouteGroup{}}
		for _, g := range a.groups {
			if g.Namespace == ns {
				list.Items = append(list.Items, g)
			}
		}
		return list
	}))
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/namespaces/{namespace}/sandboxes/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, sb := range a.sandboxes {
			if sb.Name == r.PathValue("name") && sb.Namespace == r.PathValue("namespace") {
				writeJSON(w, http.StatusOK, sb)
				return
			}
		}
		http.NotFound(w, r)
	})
	mux.HandleFunc("GET /apis/sidetrack.dev/v1alpha1/nodestates", a.list("", func(string) any { return v1alpha1.NodeStateList{Items: a.nodes} }))
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", a.list("as=Table", func(string) any { return a.pods }))
	mux.HandleFunc("GET /apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/{namespace}/{resource}/{name}/records", a.records)
	a.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		a.Server.CloseClientConnections() // streams do not end by themselves
		a.Server.Close()
	})
	return a
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// refuses answers as an API server does whose RBAC forbids it.
func (a *apiServer) refuses(w http.ResponseWriter, r *http.Request) bool {
	for part, message := range a.forbidden {
		if strings.Contains(r.URL.Path, part) {
			writeJSON(w, http.StatusForbidden, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: message})
			return true
		}
	}
	return false
}

func (a *apiServer) list(accept string, of func(namespace string) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.refuses(w, r) {
			return
		}
		if !strings.Contains(r.Header.Get("Accept"), accept) {
			http.Error(w, "asked for more than "+accept, http.StatusNotAcceptable)
			return
		}
		writeJSON(w, http.StatusOK, of(r.PathValue("namespace")))
	}
}

func (a *apiServer) records(w http.ResponseWriter, r *http.Request) {
	q, err := ledger.ParseOptions(r.URL.Query(), time.Now())
	if err != nil || !q.Follow {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	if a.refuses(w, r) {
		a.mu.Unlock()
		return
	}
	if a.busy {
		a.full = append(a.full, time.Now())
		a.mu.Unlock()
		w.Header().Set("Retry-After", "4")
		writeJSON(w, http.StatusTooManyRequests, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests, Message: "as many streams are open as there may be"})
		return
	}
	more := make(chan *ledger.RecordList, 16)
	a.streams = append(a.streams, more)
	begin := a.begin
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	for list := begin; ; {
		if json.NewEncoder(w).Encode(list) != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case list = <-more:
			if list == nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// say sends something to all who follow; nil ends their streams.
func (a *apiServer) say(list *ledger.RecordList) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.streams {
		s <- list
	}
	if list == nil {
		a.streams = nil
	}
}

func (a *apiServer) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// page returns the address of the page with something chosen.
func (a *apiServer) page(where string) string { return a.URL + root + Index + "#/" + where }

// ---- a shop

const secret = "key-that-nobody-is-to-see-0123456789"

func when(age time.Duration) metav1.MicroTime { return metav1.NewMicroTime(time.Now().Add(-age)) }

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}
}

// shop fills the API server with a sandbox that has everything, and others.
func (a *apiServer) shop() {
	expires := metav1.NewTime(time.Now().Add(72 * time.Minute))
	heartbeat, old := when(4*time.Second), when(5*time.Minute)
	pr42 := v1alpha1.Sandbox{
		ObjectMeta: metav1.ObjectMeta{Name: "pr-42", Namespace: "shop"},
		Spec:       v1alpha1.SandboxSpec{RoutingKey: secret},
		Status: v1alpha1.SandboxStatus{
			RoutingKey: secret, ExpiresAt: &expires, UncoveredConnections: 3, Nodes: &v1alpha1.NodeCount{Programmed: 2, Total: 3},
			Conditions: []metav1.Condition{
				condition("Ready", false, "NotProgrammed", "1 of 3 nodes does not have it in force yet: node-3"),
				condition("Accepted", true, "Accepted", ""),
				condition("ForksReady", true, "Ready", ""),
				condition("Programmed", false, "NodesBehind", "1 of 3 nodes is behind: node-3 (its agent has been silent for 5 minutes)"),
			},
			Forks: []v1alpha1.ForkStatus{
				{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Name: "route-pr-42-abcdefghij", Replicas: 1, Ready: 1},
				{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "stock"}, Name: "stock-pr-42-klmnopqrst", Replicas: 2, Ready: 1, Message: "container stock: CrashLoopBackOff: exit status 1"},
			},
			Redirects: []v1alpha1.RedirectStatus{
				{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "route-pr-42-abcdefghij"}, Fork: "Deployment/route", Endpoints: 1},
				{From: v1alpha1.RedirectFrom{Service: "postgres"}, To: v1alpha1.RedirectTo{Service: "postgres-pr-42"}, Endpoints: 0, Message: "it has no ready endpoint"},
			},
		},
	}
	ready := func(namespace, name string) v1alpha1.Sandbox {
		return v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Status: v1alpha1.SandboxStatus{
			RoutingKey: secret, Nodes: &v1alpha1.NodeCount{Programmed: 3, Total: 3}, Conditions: []metav1.Condition{condition("Ready", true, "Ready", "")},
		}}
	}
	row := func(cells ...any) metav1.TableRow { return metav1.TableRow{Cells: cells} }
	a.change(func() {
		a.sandboxes = []v1alpha1.Sandbox{pr42, ready("shop", "pr-57"), ready("pay", "pr-9")}
		a.groups = []v1alpha1.RouteGroup{{ObjectMeta: metav1.ObjectMeta{Name: "all", Namespace: "shop"}, Status: v1alpha1.RouteGroupStatus{Sandboxes: []string{"pr-42", "pr-57"}, RoutingKey: secret}}}
		for i, at := range []*metav1.MicroTime{&heartbeat, &heartbeat, &old} {
			a.nodes = append(a.nodes, v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i+1)}, Status: v1alpha1.NodeStateStatus{
				AgentVersion: "v0.1.0", HeartbeatTime: at, Pods: v1alpha1.PodCoverage{Covered: 14, Uncovered: int32(i / 2)},
				Connections: []v1alpha1.ServiceConnections{{Namespace: "shop", Service: "route", Uncovered: 3}},
			}})
		}
		a.pods = metav1.Table{
			ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name"}, {Name: "Ready"}, {Name: "Status"}, {Name: "Restarts"}, {Name: "Age"}, {Name: "IP"}, {Name: "Node"}},
			Rows: []metav1.TableRow{row("route-pr-42-abcdefghij-7d9f8-x2x4z", "1/1", "Running", 0, "12m", "10.0.0.4", "node-1"),
				row("stock-pr-42-klmnopqrst-6c5b4-bbbbb", "0/1", "CrashLoopBackOff", 7, "12m", "10.0.0.9", "node-2")},
		}
	})
}

// hop makes a record of a call.
func hop(age time.Duration, trace int, from, service string, decision ledger.Decision, answer, path string, status int32, took time.Duration) ledger.Record {
	workload, pod, _ := strings.Cut(from, " ")
	r := ledger.Record{
		Time: when(age), Node: "node-1", Hook: ledger.HookRouter, Protocol: ledger.ProtocolHTTP1,
		Tag:     ledger.Tag{Kind: "Sandbox", Namespace: "shop", Name: "pr-42"},
		Source:  ledger.Source{Namespace: "shop", Workload: workload, Pod: pod},
		Service: &ledger.Service{Namespace: "shop", Name: service, Port: 80}, Dialled: "10.96.0.7:80",
		Decision: decision, Reason: "redirected", Request: &ledger.Request{Method: "GET", Authority: service, Path: path},
		Status: status, SentBytes: 431, ReceivedBytes: 1208, LatencyNanos: int64(took), ParentID: "00f067aa0ba902b7",
	}
	if trace > 0 {
		r.TraceID = fmt.Sprintf("4bf92f3577b34da6%016x", trace)
	}
	if decision != ledger.DecisionFork {
		r.Reason = "no_redirect"
	}
	switch {
	case answer != "":
		r.Answer = &ledger.Answer{Address: "10.0.0.4:8080", Namespace: "shop", Pod: answer}
	case decision == ledger.DecisionBaseline:
		r.Answer = &ledger.Answer{Address: "10.96.0.7:80"}
	}
	return r
}

const (
	frontend = "Deployment/frontend frontend-5d4f8c7b9-bcdfg"
	checkout = "Deployment/checkout checkout-7c9d8f6b5-hjklm"
	routeRun = "Deployment/route-pr-42-abcdefghij route-pr-42-abcdefghij-7d9f8-x2x4z"
	tests    = "Job/tests tests-9xkzv"
)

// journey is what one request of the tests leaves: through the shop to the fork.
func journey(trace int, age time.Duration, losesKey bool) []ledger.Record {
	pod := func(workload string) string { return strings.Fields(workload)[1] }
	ms := time.Millisecond
	records := []ledger.Record{
		hop(age, trace, tests, "frontend", ledger.DecisionBaseline, "", fmt.Sprintf("/orders/%d", trace), 200, 42*ms),
		hop(age-2*ms, trace, frontend, "checkout", ledger.DecisionBaseline, pod(checkout), "/checkout", 200, 35*ms),
		hop(age-6*ms, trace, checkout, "route", ledger.DecisionFork, pod(routeRun), "/route?", 200, 9*ms),
		hop(age-8*ms, trace, routeRun, "map", ledger.DecisionBaseline, "map-6f8b9c7d5-qrstv", "/tiles", 200, 3*ms),
	}
	records[0].Source.Sandbox, records[3].Source.Sandbox = "pr-42", "pr-42"
	if losesKey {
		lost := hop(age-20*ms, trace, checkout, "stock", ledger.DecisionBaseline, "stock-6f8b9c7d5-wxzbc", "/stock/7", 200, 4*ms)
		lost.LostKey, lost.LostBy, lost.Reason = true, "Deployment/checkout", "untagged"
		records = append(records, lost)
	}
	return records
}
