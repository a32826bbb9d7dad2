// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
)

// stockFork makes a sandbox with a fork of stock, which is asked directly: so
// the load is the agents', not the shop's.
func stockFork(t *testing.T, name, key string) {
	t.Helper()
	apply(t, `
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: `+name+`, namespace: shop}
spec:
  routingKey: `+key+`
  forks:
  - workload: {name: stock}
    containers: [{name: stock, image: "sidetrack.test/shop:pr-42"}]
`)
	deleteAfterwards(t, "-n", shop, "sandbox/"+name)
	untilReady(t, name)
}

// load runs steady load from both runners while f runs, and for a moment before
// and after. It returns the sum.
func load(t *testing.T, key string, f func()) visit.Result {
	t.Helper()
	workers := runners(t)
	const connections, rate = 1000, 2000
	for _, w := range workers {
		var begun visit.Result
		err := w.order(t.Context(), http.MethodPost, "/load", visit.Load{
			URL: stock, Key: key, Version: "v1", TaggedVersion: "pr-42",
			Connections: connections / len(workers), Rate: rate / float64(len(workers)), Duration: 10 * time.Minute,
		}, &begun)
		if err != nil {
			t.Fatal(err)
		}
	}
	status := func(ctx context.Context) (sum visit.Result, err error) {
		for _, w := range workers {
			var r visit.Result
			if err := w.order(ctx, http.MethodGet, "/load", nil, &r); err != nil {
				return sum, err
			}
			sum.Open += r.Open
			sum.Requests += r.Requests
			sum.Tagged += r.Tagged
			sum.Failed += r.Failed
			sum.Misrouted += r.Misrouted
			sum.Redialled += r.Redialled
			sum.Late += r.Late
			sum.P50, sum.P99, sum.Max = max(sum.P50, r.P50), max(sum.P99, r.P99), max(sum.Max, r.Max)
			sum.Complaints = append(sum.Complaints, r.Complaints...)
		}
		return sum, nil
	}
	eventually(t, time.Minute, func(ctx context.Context) error {
		r, err := status(ctx)
		if err != nil {
			return err
		}
		if r.Open < connections || r.Requests < 2*rate {
			return fmt.Errorf("only %d connections and %d requests; %q", r.Open, r.Requests, r.Complaints)
		}
		return nil
	})
	f()
	time.Sleep(3 * time.Second)
	sum, err := status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range workers {
		var r visit.Result
		// A load without connections replaces the one that runs.
		if err := w.order(t.Context(), http.MethodPost, "/load", visit.Load{}, &r); err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// rollingUpdate replaces the agents of both nodes under load.
func rollingUpdate(t *testing.T) {
	// Of the agents that have seen all chapters until here.
	for _, n := range kube.Nodes {
		figure("an API change until it is in force on "+n.Name+": 99 of 100 within", "%s", changeP99(t, n))
	}
	key := newKey("load")
	stockFork(t, "load", key)
	stop := watchTheWay(t)
	var took time.Duration
	sum := load(t, key, func() {
		before := agents(t)
		began := time.Now()
		kubectl(t, "rollout", "restart", "-n", system, "daemonset/sidetrack-agent")
		untilReplaced(t, before)
		took = time.Since(began)
	})
	asked := stop()
	figure("rolling update of both agents under load", "%.1f s", took.Seconds())
	figure("  requests, of them tagged; failed, misrouted", "%d, %d; %d, %d", sum.Requests, sum.Tagged, sum.Failed, sum.Misrouted)
	figure("  kept-alive connections; closed between two requests", "%d; %d", sum.Open, sum.Redialled)
	figure("  longest, 99th percentile, median; sent over 1 s late", "%s, %s, %s; %d", sum.Max.Round(time.Millisecond), sum.P99.Round(10*time.Microsecond), sum.P50.Round(10*time.Microsecond), sum.Late)
	figure("  requests through all of the shop and a database, all correct", "%d", asked)
	if sum.Failed > 0 || sum.Misrouted > 0 {
		t.Errorf("%d of %d requests failed and %d were misrouted:\n%s", sum.Failed, sum.Requests, sum.Misrouted, strings.Join(sum.Complaints, "\n"))
	}
}

// untilReplaced waits until new agents have come after those before, which go on until
// they have nothing left to do.
func untilReplaced(t *testing.T, before []string) {
	t.Helper()
	kubectl(t, "rollout", "status", "-n", system, "daemonset/sidetrack-agent", "--timeout=300s")
	eventually(t, 3*time.Minute, func(ctx context.Context) error {
		out, err := kube.Kubectl(ctx, "get", "pods", "-n", system, "-l", "app.kubernetes.io/component=agent", "-o", "name")
		if err != nil {
			return err
		}
		for _, old := range before {
			if strings.Contains(out, old) {
				return fmt.Errorf("%s is still there", old)
			}
		}
		return nil
	})
}

func agents(t *testing.T) []string {
	t.Helper()
	out := strings.Fields(kubectl(t, "get", "pods", "-n", system, "-l", "app.kubernetes.io/component=agent", "-o", "name"))
	if len(out) != len(kube.Nodes) {
		t.Fatalf("%d agents on %d nodes", len(out), len(kube.Nodes))
	}
	return out
}

// watchTheWay asks through all of the shop from both nodes, tagged and not, until
// it is stopped: every answer must be right.
func watchTheWay(t *testing.T) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	asked := 0
	for _, w := range runners(t) {
		for _, check := range []func(context.Context) error{
			w.gets(front, tag(sandboxKey), ownOnWay), w.gets(front, nil, untouched),
			w.gets(ingress, tag(sandboxKey), ownOnWay),
		} {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := check(ctx)
					if ctx.Err() != nil {
						return
					}
					mu.Lock()
					asked++
					if err != nil {
						t.Errorf("%s: %v", time.Now().Format("05.000"), err)
					}
					mu.Unlock()
					time.Sleep(150 * time.Millisecond)
				}
			})
		}
	}
	return func() int {
		cancel()
		wg.Wait()
		return asked
	}
}

// outage takes the API server away for half a minute.
func outage(t *testing.T) {
	stop := watchTheWay(t)
	if err := kube.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Second)
	if err := kube.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	asked := stop()
	figure("requests through all of the shop during an outage of 30 s, all correct", "%d", asked)
	// What is new is seen again.
	key := newKey("afterwards")
	stockFork(t, "afterwards", key)
	figure("the API server's return until a new sandbox is Ready", "%.1f s", time.Since(back).Seconds())
	for _, w := range runners(t) {
		w.mustGet(t, stock, tag(key), "stock pr-42")
		w.mustGet(t, front, tag(sandboxKey), ownOnWay)
		w.mustGet(t, front, nil, untouched)
	}
}

// killedAgent ends an agent as the kernel would for want of memory.
func killedAgent(t *testing.T) {
	n := kube.Nodes[1]
	instance := []string{"get", "nodestate", n.Name, "-o", "jsonpath={.status.instance}"}
	before := kubectl(t, instance...)
	pid := agentPID(t, n.Name)
	if _, err := n.Run(t.Context(), "kill", "-KILL", strconv.Itoa(pid)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w := runners(t)[1]
	// Its programs are gone when all of its files are closed.
	eventually(t, time.Minute, func(context.Context) error {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); !os.IsNotExist(err) {
			return errors.New("the killed agent is still there")
		}
		return nil
	})
	// Without an agent untagged requests go where they always went, at once.
	w.mustGet(t, stock, nil, "stock v1")
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		out, err := kube.Kubectl(ctx, instance...)
		if err != nil {
			return err
		}
		if out == "" || out == before {
			return fmt.Errorf("no new agent has written the NodeState of %s", n.Name)
		}
		return nil
	})
	untilCovered(t)
	figure("an agent's violent death until its node is covered again", "%.1f s", time.Since(began).Seconds())
	untilReady(t, "pr-42")
	w.mustGet(t, front, tag(sandboxKey), ownOnWay)
	w.mustGet(t, front, nil, untouched)
}
