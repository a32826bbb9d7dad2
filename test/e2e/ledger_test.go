// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// newTrace is a trace id that nobody has.
func newTrace() string {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		panic(err) // it never fails
	}
	return hex.EncodeToString(id[:])
}

// traced is a tagged request's header with a trace; lose names a service that drops
// the key.
func traced(trace, lose string) map[string]string {
	h := tag(sandboxKey)
	h["Traceparent"] = "00-" + trace + "-00f067aa0ba902b7-01"
	if lose != "" {
		h["X-Lose"] = lose
	}
	return h
}

// recordsAs reads the ledger of a sandbox as a user.
func recordsAs(ctx context.Context, user, trace string) (*ledgerv1alpha1.RecordList, error) {
	o := ledgerv1alpha1.Options{Trace: trace}
	out, err := kube.Kubectl(ctx, "get", "--raw", o.Path("sandboxes", shop, "pr-42"), "--as="+user, "--as-group=system:authenticated")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var list ledgerv1alpha1.RecordList
	return &list, json.Unmarshal([]byte(out), &list)
}

// way is what the records of a trace tell, in order: who called whom, and where that
// went.
func way(list *ledgerv1alpha1.RecordList) []string {
	var out []string
	for i := range list.Items {
		r := &list.Items[i]
		service := "?"
		if r.Service != nil {
			service = r.Service.Name
		}
		s := strings.TrimSpace(r.Source.Workload+" -> "+service) + " " + string(r.Decision)
		if r.LostKey {
			s += " lost by " + r.LostBy
		}
		if r.Healed {
			s += " healed"
		}
		out = append(out, s)
	}
	return out
}

// hasWay is a check for eventually: the records of a trace tell this.
func hasWay(trace string, want ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		list, err := recordsAs(ctx, "joe", trace)
		if err != nil {
			return err
		}
		for _, n := range list.Nodes {
			if !n.Answered {
				return fmt.Errorf("%s has not answered: %s", n.Node, n.Message)
			}
		}
		if len(list.Nodes) != 2 {
			return fmt.Errorf("nodes %+v were asked", list.Nodes)
		}
		if got := way(list); !slices.Equal(got, want) {
			return fmt.Errorf("the records tell %q, want %q", got, want)
		}
		return nil
	}
}

// flowsAreOnRecord: of the fork's connections to PostgreSQL it is known which pod has
// answered, also behind the Service's own address, and what they have carried.
func flowsAreOnRecord(t *testing.T) {
	w := runners(t)[0]
	shows := func(line string) func(context.Context) error {
		match := regexp.MustCompile(line)
		return func(ctx context.Context) error {
			cmd := sidetrackCommand(ctx, t, "trace", "pr-42", "--since", "10m")
			out, err := cmd.Output()
			if err != nil {
				return err
			}
			if !match.Match(out) {
				return fmt.Errorf("no line is like %q:\n%s", line, out)
			}
			return nil
		}
	}
	w.mustGet(t, front, tag(sandboxKey), ownOnWay)
	eventually(t, time.Minute, shows(`of pr-42 -> postgres\.shop:5432 tcp => FORK postgres-pr-42-[a-z0-9-]+ [0-9.mµs]+ sent \d+ B, received \d+ B`))
	// Where another sandbox redirects it, and this one does not, the flow goes to the
	// Service's own address.
	t.Cleanup(func() {
		if err := kube.ApplyYAML(context.WithoutCancel(t.Context()), pr42(ownRedirect)); err != nil {
			t.Error(err)
		}
	})
	apply(t, pr42("")+`
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-44, namespace: shop}
spec:
  redirects:
  - from: {service: postgres, port: 5432}
    to: {service: postgres-pr-42}
---
apiVersion: v1
kind: Pod
metadata: {name: flow-runner, namespace: shop, labels: {sidetrack.dev/sandbox: pr-42}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: runner, image: "sidetrack.test/shop:v1", imagePullPolicy: Never, args: [runner]}]
`)
	deleteAfterwards(t, "-n", shop, "pod/flow-runner", "sandbox/pr-44")
	kubectl(t, "wait", "-n", shop, "--for=condition=Ready", "pod/flow-runner", "--timeout=120s")
	untilReady(t, "pr-42")
	r := runnerPod(t, "flow-runner")
	eventually(t, time.Minute, func(ctx context.Context) error {
		if answer, err := r.askDatabase(ctx); err != nil || answer.Body != "everybody" {
			return fmt.Errorf("database %q answers: %v", answer.Body, err)
		}
		return shows(`flow-runner of pr-42 -> postgres\.shop:5432 tcp => BASELINE postgres-[a-z0-9-]+ \(no_redirect\) [0-9.mµs]+ sent \d+ B, received \d+ B`)(ctx)
	})
}

func ledgerOfAllNodes(t *testing.T) {
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: joe, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: joe}]
`)
	deleteAfterwards(t, "rolebinding", "-n", shop, "joe")
	// Afterwards everything is as the other chapters know it.
	t.Cleanup(func() {
		if err := kube.ApplyYAML(context.WithoutCancel(t.Context()), pr42(ownRedirect)); err != nil {
			t.Error(err)
		}
	})
	apply(t, pr42(`
  observe: [front, cart]
`))
	untilReady(t, "pr-42")
	w := runners(t)
	nodes := map[string]bool{}
	for i := range 8 {
		trace := newTrace()
		eventually(t, time.Minute, w[i%2].gets(front, traced(trace, ""), forkOnWay))
		eventually(t, time.Minute, hasWay(trace, "-> front baseline", "Deployment/front -> cart baseline", "Deployment/cart -> route fork"))
		list, err := recordsAs(t.Context(), "joe", trace)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.Items {
			nodes[r.Node] = true
			if r.Status != 200 || r.Request == nil || r.TraceID != trace || r.Protocol != ledgerv1alpha1.ProtocolHTTP1 {
				t.Errorf("a record: %+v", r)
			}
		}
		// Each hop names the pod that was chosen behind a cluster IP: by nftables on one
		// node, by iptables on the other. It is the one that calls on.
		for j, pod := range []string{"front-", "cart-", "route-pr-42-"} {
			r := list.Items[j]
			if r.Answer == nil || !strings.HasPrefix(r.Answer.Pod, pod) || j < 2 && (r.Answer.Pod != list.Items[j+1].Source.Pod || r.Answer.Address == r.Dialled) {
				t.Errorf("hop %d on %s, dialled %s, was answered by %+v, want a pod %s…; the next call is of %+v", j, r.Node, r.Dialled, r.Answer, pod, list.Items[min(j+1, 2)].Source)
			}
		}
	}
	if len(nodes) != 2 {
		t.Errorf("only %v has records", nodes)
	}
	// Untagged requests leave none, and who may not read the sandbox reads nothing.
	trace := newTrace()
	w[0].mustGet(t, front, map[string]string{"Traceparent": "00-" + trace + "-00f067aa0ba902b7-01"}, untouched)
	if list, err := recordsAs(t.Context(), "joe", trace); err != nil || len(list.Items) != 0 {
		t.Errorf("records of untagged requests: %+v, %v", list, err)
	}
	if list, err := recordsAs(t.Context(), "eve", trace); err == nil || !strings.Contains(err.Error(), "may not get Sandbox pr-42") {
		t.Errorf("somebody without rights reads %+v, %v", list, err)
	}

	// front forgets the key: it is named, whichever node its pod is on.
	for i := range 8 {
		trace := newTrace()
		eventually(t, time.Minute, w[i%2].gets(front, traced(trace, "front"), untouched))
		eventually(t, time.Minute, hasWay(trace, "-> front baseline", "Deployment/front -> cart baseline lost by Deployment/front"))
	}
	// And it is mended where the sandbox asks for that.
	apply(t, pr42(`
  observe: [front, cart]
  propagate: TraceID
`))
	untilReady(t, "pr-42")
	for i := range 8 {
		trace := newTrace()
		if err := w[i%2].gets(front, traced(trace, "front"), forkOnWay)(t.Context()); err != nil {
			t.Error(err)
			continue
		}
		eventually(t, time.Minute, hasWay(trace, "-> front baseline", "Deployment/front -> cart baseline lost by Deployment/front healed", "Deployment/cart -> route fork"))
	}
	for _, w := range w {
		w.mustGet(t, front, nil, untouched)
		w.mustGet(t, front, map[string]string{"Traceparent": "00-" + newTrace() + "-00f067aa0ba902b7-01"}, untouched)
	}

	// A node that says nothing is named.
	n := kube.Nodes[1]
	pid := strconv.Itoa(agentPID(t, n.Name))
	if _, err := n.Run(t.Context(), "kill", "-STOP", pid); err != nil {
		t.Fatal(err)
	}
	list, err := recordsAs(t.Context(), "joe", "")
	if _, e := n.Run(context.WithoutCancel(t.Context()), "kill", "-CONT", pid); e != nil {
		t.Fatal(e)
	}
	if err != nil || len(list.Nodes) != 2 || !list.Nodes[0].Answered || list.Nodes[1].Node != n.Name || list.Nodes[1].Answered || list.Nodes[1].Message == "" {
		t.Errorf("with a node that is silent: %+v, %v", list, err)
	}
	eventually(t, time.Minute, hasWay(trace))
}
