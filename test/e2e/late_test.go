// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// lateNode has a node that works and has no agent yet, as one that has just
// joined or booted: no sandbox is ready before it has one, and then they are.
func lateNode(t *testing.T) {
	n := kube.Nodes[1]
	// only lets agents run on one node; null: on each.
	only := func(node string) {
		t.Helper()
		// Also when the chapter's context is at its end.
		out, err := kube.Kubectl(context.WithoutCancel(t.Context()), "patch", "-n", system, "daemonset/sidetrack-agent", "--type=merge",
			"--patch", `{"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": `+node+`}}}}}`)
		if err != nil {
			t.Fatalf("let agents run on %s: %v\n%s", node, err, out)
		}
	}
	only(`"` + kube.Nodes[0].Name + `"`)
	// The chapters after this one need both agents, whatever happens here.
	t.Cleanup(func() {
		if t.Failed() {
			only("null")
		}
	})
	eventually(t, 2*time.Minute, says("pr-42", v1alpha1.ConditionProgrammed, metav1.ConditionFalse, n.Name))
	eventually(t, time.Minute, says("pr-42", v1alpha1.ConditionReady, metav1.ConditionFalse))
	w := runners(t)[1]
	w.mustGet(t, front, nil, untouched)

	only("null")
	began := time.Now()
	untilReady(t, "pr-42")
	figure("a node's first agent allowed until sandboxes are Ready", "%.1f s", time.Since(began).Seconds())
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := kube.Kubectl(ctx, "get", "pods", "-n", system, "-l", "app.kubernetes.io/component=agent", "--field-selector=spec.nodeName="+n.Name, "-o", "name")
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) == "" {
			return fmt.Errorf("sandboxes are ready, and %s has no agent", n.Name)
		}
		return nil
	})
	w.mustGet(t, front, tag(sandboxKey), ownOnWay)
	w.mustGet(t, front, nil, untouched)
	kubectl(t, "rollout", "status", "-n", system, "daemonset/sidetrack-agent", "--timeout=180s")
}
