// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const secret = "a-secret-routing-key"

// counters stand for the kernel's.
type counters struct {
	hits map[routing.RouteKey]loader.HitCount
	err  error
}

func (c counters) Exits() ([]loader.ExitCount, error) {
	return []loader.ExitCount{{Program: "connect4", Reason: "redirected", Count: 7}}, c.err
}

func (c counters) Hits() (map[routing.RouteKey]loader.HitCount, error) { return c.hits, nil }

// stats stand for the router's.
type stats router.Stats

func (s stats) Stats() router.Stats { return router.Stats(s) }

var shopRoute = routing.Name{Namespace: "shop", Name: "route"}

// compile returns a table of n sandboxes that each redirect the Service shop/route.
func compile(t *testing.T, n int) *routing.Table {
	t.Helper()
	in := routing.Input{Services: []routing.Service{{
		Name:      routing.Name{Namespace: "shop", Name: "route"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
		Ports:     []routing.ServicePort{{Port: 80, Protocol: routing.TCP}},
	}}}
	for i := range n {
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{
			Name: routing.Name{Namespace: "shop", Name: fmt.Sprintf("pr-%04d", i)}, Key: fmt.Sprintf("%s-%d", secret, i),
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "route"}, To: routing.Target{Address: netip.MustParseAddr("10.0.0.9")}}},
		})
	}
	table, problems := routing.Compile(in, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return table
}

// routes counts one flow for each route of the table.
func routes(t *routing.Table) map[routing.RouteKey]loader.HitCount {
	out := map[routing.RouteKey]loader.HitCount{}
	t.Diff(nil, func(s *routing.Step) bool {
		if s.Map == routing.Routes {
			out[s.RouteKey] = loader.HitCount{Redirected: 3, Refused: 1}
		}
		return true
	})
	return out
}

type records ledger.Stats

func (r records) Stats() ledger.Stats { return ledger.Stats(r) }

func get(t *testing.T, m *Metrics, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

// ours returns the sample lines of our own metrics, without the histogram.
func ours(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "sidetrack_") && !strings.Contains(line, "_bucket{") && !strings.HasPrefix(line, "sidetrack_build_info") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

func TestMetricsNameSandboxAndServiceAndNeverAKey(t *testing.T) {
	table := compile(t, 1)
	m := New("v0", Sources{
		Kernel: counters{hits: routes(table)},
		Router: stats{
			Open: 2, Streams: 8, Accepted: 9, FromClients: 100, ToClients: 200, Tunnels: 1, Retries: 4,
			Requests: map[router.RequestKey]uint64{
				{Service: shopRoute, Verdict: routing.ToBaseline, Reason: routing.Untagged}:                                                          11,
				{Sandbox: routing.Name{Namespace: "shop", Name: "pr-0000"}, Service: shopRoute, Verdict: routing.ToFork, Reason: routing.Redirected}: 12,
				{Sandbox: router.Overflow, Service: router.Overflow, Verdict: routing.ToFork, Reason: routing.Redirected}:                            13,
			},
			Errors: map[string]uint64{"client_reset": 6},
		},
		Ledger: records{Records: 3, Bytes: 1500, Added: 5, Dropped: 2, Unread: 1, Unended: 2},
		State: func() State {
			return State{
				Table: table, Listeners: 2, PodsWithoutListener: 1, PodsCovered: 7, PodsWithoutNamespace: 3,
				Problems:             map[string]int{"manifest": 1, "object": 0, "kernel": 0},
				ClosedConnections:    ClosedConnections{Idle: 1, Limit: 2, All: 3},
				UncoveredConnections: map[routing.Name]int{{Namespace: "shop", Name: "route"}: 5},
			}
		},
	})
	m.Changed(40 * time.Millisecond)
	m.Applied(20*time.Millisecond, nil)
	m.Applied(30*time.Millisecond, errors.New("full"))
	code, text := get(t, m, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, text)
	}
	if strings.Contains(text, secret) {
		t.Error("a routing key is shown")
	}
	want := []string{
		`sidetrack_apply_duration_seconds_sum{result="error"} 0.03`,
		`sidetrack_apply_duration_seconds_count{result="error"} 1`,
		`sidetrack_apply_duration_seconds_sum{result="ok"} 0.02`,
		`sidetrack_apply_duration_seconds_count{result="ok"} 1`,
		`sidetrack_change_seconds_sum 0.04`,
		`sidetrack_change_seconds_count 1`,
		`sidetrack_closed_connections_total{why="all"} 3`,
		`sidetrack_closed_connections_total{why="idle"} 1`,
		`sidetrack_closed_connections_total{why="limit"} 2`,
		`sidetrack_coverage_gaps{kind="connection"} 5`,
		`sidetrack_coverage_gaps{kind="pod_without_listener"} 1`,
		`sidetrack_coverage_gaps{kind="pod_without_namespace"} 3`,
		`sidetrack_flows_total{namespace="shop",sandbox="pr-0000",service="route",verdict="fork"} 3`,
		`sidetrack_flows_total{namespace="shop",sandbox="pr-0000",service="route",verdict="reject"} 1`,
		`sidetrack_generation 1`,
		`sidetrack_ledger_bytes 1500`,
		`sidetrack_ledger_dropped_total 2`,
		`sidetrack_ledger_records 3`,
		`sidetrack_ledger_records_total 5`,
		`sidetrack_ledger_unended_flows_total 2`,
		`sidetrack_ledger_untold_flows_total 1`,
		`sidetrack_listeners 2`,
		`sidetrack_pods{coverage="covered"} 7`,
		`sidetrack_pods{coverage="uncovered"} 4`,
		`sidetrack_problems{in="kernel"} 0`,
		`sidetrack_problems{in="manifest"} 1`,
		`sidetrack_problems{in="object"} 0`,
		`sidetrack_program_exits_total{program="connect4",reason="redirected"} 7`,
		`sidetrack_ready 1`,
		`sidetrack_requests_total{namespace="",reason="redirected",sandbox="(other)",service="",verdict="fork"} 13`,
		`sidetrack_requests_total{namespace="shop",reason="redirected",sandbox="pr-0000",service="route",verdict="fork"} 12`,
		`sidetrack_requests_total{namespace="shop",reason="untagged",sandbox="",service="route",verdict="baseline"} 11`,
		`sidetrack_router_bytes_total{direction="from_clients"} 100`,
		`sidetrack_router_bytes_total{direction="to_clients"} 200`,
		`sidetrack_router_connections 2`,
		`sidetrack_router_connections_moved_total{direction="in"} 0`,
		`sidetrack_router_connections_moved_total{direction="out"} 0`,
		`sidetrack_router_connections_total 9`,
		`sidetrack_router_errors_total{reason="client_reset"} 6`,
		`sidetrack_router_retries_total 4`,
		`sidetrack_router_streams 8`,
		`sidetrack_router_tunnels_total 1`,
		`sidetrack_table_entries{map="backends"} 1`,
		`sidetrack_table_entries{map="destinations"} 1`,
		`sidetrack_table_entries{map="identities"} 0`,
		`sidetrack_table_entries{map="routes"} 1`,
		`sidetrack_uncovered_connections{namespace="shop",service="route"} 5`,
	}
	if diff := cmp.Diff(want, ours(text)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestSeriesAreBoundedAndTheirSumIsKept(t *testing.T) {
	table := compile(t, maxSeries+50)
	m := New("v0", Sources{Kernel: counters{hits: routes(table)}, Router: stats{}, Ledger: records{}, State: func() State { return State{Table: table} }})
	_, text := get(t, m, "/metrics")
	n := strings.Count(text, `sidetrack_flows_total{namespace="shop"`)
	if n != 2*maxSeries {
		t.Errorf("%d series are named, want %d", n, 2*maxSeries)
	}
	if want := `sidetrack_flows_total{namespace="",sandbox="(other)",service="",verdict="fork"} 150`; !strings.Contains(text, want) {
		t.Errorf("no line %s", want)
	}
}

func TestWhoIsShownByNameStaysSoWhileItIsThere(t *testing.T) {
	var c seriesCap
	all := map[series]bool{}
	for i := range maxSeries {
		all[series{sandbox: fmt.Sprintf("m%04d", i)}] = true
	}
	c.admit(maps.Keys(all))
	first := series{sandbox: "a-newcomer-that-sorts-first"}
	all[first] = true
	if c.admit(maps.Keys(all))[first] {
		t.Error("the newcomer has displaced somebody")
	}
	delete(all, series{sandbox: "m0007"})
	if !c.admit(maps.Keys(all))[first] {
		t.Error("there is room, but the newcomer does not get it")
	}
}

func TestReadyzSaysWhyNot(t *testing.T) {
	state := State{NotReady: "the first table is not in the kernel: raise --max-destinations"}
	m := New("v0", Sources{Kernel: counters{}, Router: stats{}, Ledger: records{}, State: func() State { return state }})
	if code, body := get(t, m, "/readyz"); code != http.StatusServiceUnavailable || body != state.NotReady+"\n" {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get(t, m, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d", code)
	}
	state = State{Table: compile(t, 1)}
	if code, body := get(t, m, "/readyz"); code != http.StatusOK || body != "ok: generation 1\n" {
		t.Errorf("ready: %d %q", code, body)
	}
}

func TestACounterThatCannotBeReadDoesNotHideTheOthers(t *testing.T) {
	m := New("v0", Sources{Kernel: counters{err: errors.New("no map")}, Router: stats{}, Ledger: records{}, State: func() State { return State{Table: compile(t, 1)} }})
	_, text := get(t, m, "/metrics")
	if !strings.Contains(text, "sidetrack_generation 1") {
		t.Errorf("the generation is missing:\n%s", text)
	}
}
