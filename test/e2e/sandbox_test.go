// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/watch"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// What requests tell of their ways through the shop. In tagged ones the fork of
// route has been there instead of route.
const (
	untouched  = "front v1, cart v1, route v1 (everybody), stock v1"
	forkOnWay  = "front v1, cart v1, route pr-42 (everybody), stock v1"
	ownOnWay   = "front v1, cart v1, route pr-42 (pr-42), stock v1"
	grantOnWay = "front v1, cart v1, route pr-42 (another), stock v1"
)

func newKey(name string) string { return name + "-" + strings.ToLower(rand.Text()) }

// sandboxKey is the key of the sandbox that several chapters use.
var sandboxKey = newKey("pr-42")

// pr42 is that sandbox; more is what follows in its spec.
func pr42(more string) string {
	return `
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-42, namespace: shop}
spec:
  routingKey: ` + sandboxKey + `
  forks:
  - workload: {kind: Deployment, name: route}
    containers: [{name: route, image: "sidetrack.test/shop:pr-42"}]
` + more
}

func getSandbox(ctx context.Context, name string) (*v1alpha1.Sandbox, error) {
	var s v1alpha1.Sandbox
	err := client.Get(ctx, ctrlclient.ObjectKey{Namespace: shop, Name: name}, &s)
	return &s, err
}

// isReady is a check for eventually.
func isReady(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := getSandbox(ctx, name)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil || string(c.Status) != "True" || c.ObservedGeneration != s.Generation {
			return fmt.Errorf("sandbox %s is not ready: %s", name, conditions(s))
		}
		return nil
	}
}

// untilReady waits for a sandbox and for the connections from before it. After
// an outage all of Kubernetes' own programs wait for up to a minute before they
// ask the API server again.
func untilReady(t *testing.T, name string) {
	t.Helper()
	eventually(t, 4*time.Minute, isReady(name))
	untilCovered(t)
}

// untilCovered waits until no connection that was opened before a redirect is
// left: the shop keeps its connections, and agents close them when they are idle.
func untilCovered(t *testing.T) {
	t.Helper()
	for _, n := range kube.Nodes {
		eventually(t, time.Minute, func(ctx context.Context) error {
			text, err := metrics(ctx, n)
			if err != nil {
				return err
			}
			if left := uncovered.FindString(text); left != "" {
				return fmt.Errorf("%s has connections from before a redirect: %s", n.Name, left)
			}
			return nil
		})
	}
}

var uncovered = regexp.MustCompile(`(?m)^sidetrack_uncovered_connections.* [1-9]\d*$`)

// metrics asks a node's agent for them.
func metrics(ctx context.Context, n *cluster.Node) (string, error) {
	return n.Run(ctx, "curl", "-sS", "--fail", "--max-time", "10", "http://127.0.0.1:9464/metrics")
}

func conditions(s *v1alpha1.Sandbox) string {
	var all []string
	for _, c := range s.Status.Conditions {
		all = append(all, fmt.Sprintf("%s %s %s: %s", c.Type, c.Status, c.Reason, c.Message))
	}
	return strings.Join(all, "; ")
}

// podTimes are when a pod was first seen, and when it was first seen ready.
type podTimes struct {
	mu             sync.Mutex
	created, ready time.Time
}

func (p *podTimes) watch(t *testing.T, label string) {
	t.Helper()
	w, err := client.Watch(t.Context(), &corev1.PodList{}, ctrlclient.InNamespace(shop), ctrlclient.MatchingLabels{v1alpha1.SandboxLabel: label})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	go func() {
		for e := range w.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok || e.Type == watch.Deleted {
				continue
			}
			p.mu.Lock()
			if p.created.IsZero() {
				p.created = time.Now()
			}
			for _, c := range pod.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.ready.IsZero() {
					p.ready = time.Now()
				}
			}
			p.mu.Unlock()
		}
	}()
}

func (p *podTimes) isReady() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready.IsZero() {
		return errors.New("the fork's pod is not ready")
	}
	return nil
}

// budget is what may pass from kubectl apply to a correct first tagged answer,
// beyond what the fork's pod takes to start. It is printed with what was
// measured; since others may use the machine, only what is far beyond it fails.
const (
	budget    = 500 * time.Millisecond
	tolerated = 4 * budget
)

func forkTwoHopsDeep(t *testing.T) {
	var pod podTimes
	pod.watch(t, "pr-42")
	w := runners(t)
	applied := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		if err := kube.ApplyYAML(t.Context(), pr42("")); err != nil {
			t.Error(err)
		}
		applied <- time.Since(began)
	}()
	// Nobody asks before the fork can answer: the shop's kept-alive connections of
	// before are closed when they are idle (spec.existingConnections), and asking
	// every few milliseconds would keep them from that.
	eventually(t, 3*time.Minute, func(context.Context) error { return pod.isReady() })
	eventually(t, time.Minute, w[0].gets(front, tag(sandboxKey), forkOnWay))
	answered := time.Now()
	byKubectl := <-applied
	eventually(t, time.Minute, isReady("pr-42"))
	ready := time.Now()
	pod.mu.Lock()
	own, made, toAnswer := pod.ready.Sub(pod.created), pod.created.Sub(began), answered.Sub(pod.ready)
	pod.mu.Unlock()
	beyond := answered.Sub(began) - own
	figure("kubectl apply of a Sandbox until a correct first tagged answer", "%d ms", answered.Sub(began).Milliseconds())
	figure("  of which the fork's pod from made to ready", "%d ms", own.Milliseconds())
	figure("  until its pod was made / from its being ready to the answer", "%d ms / %d ms", made.Milliseconds(), toAnswer.Milliseconds())
	figure(fmt.Sprintf("  beyond the pod's own start (budget %d ms), kubectl itself ran", budget.Milliseconds()), "%d ms, %d ms", beyond.Milliseconds(), byKubectl.Milliseconds())
	figure("  until Ready", "%d ms", ready.Sub(began).Milliseconds())
	if beyond > tolerated {
		t.Errorf("a correct first tagged answer took %s more than the pod's own start, of which kubectl %s; the budget is %s", beyond, byKubectl, budget)
	}
	untilCovered(t)

	for _, w := range w {
		w.mustGet(t, front, tag(sandboxKey), forkOnWay)
		w.mustGet(t, front, nil, untouched)
		w.mustGet(t, front, tag(newKey("other")), untouched)
		// From the outside, through a proxy that keeps its connections.
		w.mustGet(t, ingress, tag(sandboxKey), forkOnWay)
		w.mustGet(t, ingress, nil, untouched)
	}
	r, err := w[0].ask(t.Context(), front, tag(sandboxKey))
	if err != nil {
		t.Fatal(err)
	}
	_, visits := told(r)
	if len(visits) != 4 || visits[2].Sandbox != "pr-42" {
		t.Errorf("the fork does not know its sandbox: %+v", visits)
		return
	}
	// Servers see who really asks: the pod in front of them, not an agent.
	ips := map[string]string{}
	for _, p := range podsOf(t, nil) {
		ips[p.Name] = p.Status.PodIP
	}
	for i := 1; i < len(visits); i++ {
		if client, _, _ := strings.Cut(visits[i].Client, ":"); client != ips[visits[i-1].Pod] {
			t.Errorf("%s was asked by %s, want %s of %s", visits[i].Pod, client, ips[visits[i-1].Pod], visits[i-1].Pod)
		}
	}
	// The fork is a pod of its own that no baseline Service selects.
	for _, p := range podsOf(t, ctrlclient.MatchingLabels{v1alpha1.SandboxLabel: "pr-42"}) {
		if p.Labels["app"] != "" {
			t.Errorf("the fork's pod has the baseline's label: %v", p.Labels)
		}
	}
}

// ownRedirect gives the fork a database of its own.
const ownRedirect = `
  redirects:
  - from: {service: postgres, port: 5432}
    to: {service: postgres-pr-42}
`

func forkHasItsOwnDatabase(t *testing.T) {
	apply(t, pr42(ownRedirect))
	w := runners(t)
	eventually(t, time.Minute, w[0].gets(front, tag(sandboxKey), ownOnWay))
	untilReady(t, "pr-42")
	for _, w := range w {
		w.mustGet(t, front, tag(sandboxKey), ownOnWay)
		w.mustGet(t, front, nil, untouched)
		// A pod that is not in the sandbox, header or not, has the usual one.
		if got := w.database(t); got != "everybody" {
			t.Errorf("%s is answered by database %q", w.name, got)
		}
	}
}

// testRunner: whoever carries the sandbox's label is in it: its flows are tagged,
// and with inject its requests as well.
func testRunner(t *testing.T) {
	apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: test-runner, namespace: shop, labels: {sidetrack.dev/sandbox: pr-42, sidetrack.dev/inject: "true"}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: runner, image: "sidetrack.test/shop:v1", imagePullPolicy: Never, args: [runner]}]
`)
	deleteAfterwards(t, "pod", "-n", shop, "test-runner")
	kubectl(t, "wait", "-n", shop, "--for=condition=Ready", "pod/test-runner", "--timeout=120s")
	w := runnerPod(t, "test-runner")
	eventually(t, time.Minute, w.gets(front, nil, ownOnWay))
	w.mustGet(t, front, nil, ownOnWay)
	if got := w.database(t); got != "pr-42" {
		t.Errorf("the test runner is answered by database %q", got)
	}
}

// database asks the shop's PostgreSQL from inside the pod.
func (w worker) database(t *testing.T) string {
	t.Helper()
	r, err := w.askDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.Body + r.Failure
}
