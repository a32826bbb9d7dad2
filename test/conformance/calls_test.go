// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// serveCalls starts servers of the program calls: the baseline's and each fork's.
func (w *world) serveCalls(t *testing.T, port int, args ...string) (calls string) {
	t.Helper()
	calls = program(t, "grpc", "calls")
	args = append([]string{"serve", "-port", strconv.Itoa(port)}, args...)
	w.serve(t, w.base, port, calls, append(args, "-name", "baseline")...)
	for name, fork := range w.forks {
		w.serve(t, fork, port, calls, append(args, "-name", "fork-"+name)...)
	}
	return calls
}

// wantOf is the server that has to answer on a way.
func wantOf(v way) string {
	if v == tagged || v == injected {
		return "fork-a"
	}
	return "baseline"
}

// TestGRPCCallsAreTheSameThroughTheRouter: every kind of call, as it goes and as
// it ends. See programs/grpc/calls/cases.go.
func TestGRPCCallsAreTheSameThroughTheRouter(t *testing.T) {
	w := newWorld(t)
	port := w.port()
	calls := w.serveCalls(t, port)
	comparison{cases: 13, failing: []string{}, run: func(t *testing.T, v way, only []string) results {
		args := []string{"run", "-address", fmt.Sprintf("%s:%d", serviceIP, port), "-want", wantOf(v), "-key", w.key(v)}
		return caseResults(t, w.from(v).Command(calls, append(args, only...)...))
	}}.over(t, untagged, tagged, injected)
}

// caseResults runs a program that says what its cases gave: JSON, a line for each.
func caseResults(t *testing.T, cmd *exec.Cmd) results {
	out, err := output(t, cmd, 3*time.Minute)
	if err != nil {
		t.Errorf("%s: %v\n%s", cmd.Args, err, lastLines(out, 20))
		return nil
	}
	got := results{}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "{") {
			t.Logf("it says: %s", line)
			continue
		}
		var r struct{ Case, Error string }
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Case == "" {
			t.Errorf("%s says %q: %v", cmd.Args, line, err)
			continue
		}
		got[r.Case] = passed
		if r.Error != "" {
			got[r.Case] = "failed: " + r.Error
		}
	}
	return got
}

// mixed are the keys of all sandboxes and none, as the program calls wants them.
func mixed() string {
	all := []string{"=baseline"}
	for name, key := range keys {
		all = append(all, key+"=fork-"+name)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// loaded is what "calls load" says.
type loaded struct {
	Calls, Streams, Misrouted, Failed int64
	Answered                          map[string]int64
	First                             string
	Errors                            map[string]int64
}

func (w *world) load(t *testing.T, p *lab.Pod, calls string, port int, args ...string) loaded {
	t.Helper()
	args = append([]string{"load", "-address", fmt.Sprintf("%s:%d", serviceIP, port)}, args...)
	out, err := output(t, p.Command(calls, args...), 5*time.Minute)
	var got loaded
	if jsonErr := json.Unmarshal([]byte(lastJSON(out)), &got); jsonErr != nil {
		t.Fatalf("calls load: %v\n%s", err, lastLines(out, 20))
	}
	return got
}

func lastJSON(out string) string {
	last := ""
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "{") {
			last = line
		}
	}
	return last
}

// want wants all calls to have been answered, and by everybody.
func (got loaded) want(t *testing.T, calls int64, servers int) {
	t.Helper()
	if got.Calls != calls || got.Misrouted != 0 || got.Failed != 0 {
		t.Errorf("%d calls, %d misrouted, %d failed (%s), want %d and none", got.Calls, got.Misrouted, got.Failed, oneLine(fmt.Sprint(got.Errors)), calls)
	}
	if len(got.Answered) != servers {
		t.Errorf("answered by %v, want %d servers", got.Answered, servers)
	}
	for name, n := range got.Answered {
		if n < calls/int64(servers)/2 {
			t.Errorf("%s has answered %d of %d calls", name, n, calls)
		}
	}
	t.Logf("%d calls, %d of them streams, %d misrouted, answered by %v", got.Calls, got.Streams, got.Misrouted, got.Answered)
}

// TestNoneOfFiftyThousandCallsIsMisrouted: keys of three sandboxes and none,
// mixed on eight connections.
func TestNoneOfFiftyThousandCallsIsMisrouted(t *testing.T) {
	heavy(t)
	w := newWorld(t)
	port := w.port()
	calls := w.serveCalls(t, port)
	before := w.metric("sidetrack_router_connections_total")
	w.load(t, w.client, calls, port, "-keys", mixed(), "-connections", "8", "-calls", "50000").want(t, 50000, 4)
	if n := w.metric("sidetrack_router_connections_total") - before; n != 8 {
		t.Errorf("the calls came through %v connections of the router, want 8", n)
	}
}

// TestGracefulEndsLoseNoCall: servers that end their connections every half a
// second, as a graceful stop does, and allow few streams at a time.
func TestGracefulEndsLoseNoCall(t *testing.T) {
	heavy(t)
	w := newWorld(t)
	port := w.port()
	calls := w.serveCalls(t, port, "-max-age", "500ms", "-max-streams", "5")
	const n = 20000
	t.Run("directly", func(t *testing.T) {
		w.load(t, w.stranger, calls, port, "-keys", "=baseline", "-calls", fmt.Sprint(n)).want(t, n, 1)
	})
	t.Run("through the router, untagged", func(t *testing.T) {
		w.load(t, w.client, calls, port, "-keys", "=baseline", "-calls", fmt.Sprint(n)).want(t, n, 1)
	})
	t.Run("through the router, tagged", func(t *testing.T) {
		w.load(t, w.client, calls, port, "-keys", keys["b"]+"=fork-b", "-calls", fmt.Sprint(n)).want(t, n, 1)
	})
	t.Run("through the router, mixed", func(t *testing.T) {
		w.load(t, w.client, calls, port, "-keys", mixed(), "-calls", fmt.Sprint(n)).want(t, n, 4)
	})
}
