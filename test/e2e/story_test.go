// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSidetrackOnACluster is the story. Its chapters are in the files of the
// same names.
func TestSidetrackOnACluster(t *testing.T) {
	for _, chapter := range []struct {
		name string
		run  func(*testing.T)
		// vital: nothing that follows makes sense without it.
		vital bool
	}{
		{"it installs from one file", install, true},
		{"four services on both nodes answer as if it were not there", openShop, true},
		{"a sandbox's fork two hops deep gets the tagged requests", forkTwoHopsDeep, false},
		{"only the fork's flows to PostgreSQL go to its own", forkHasItsOwnDatabase, false},
		{"a flow's record says which pod answered and what it carried", flowsAreOnRecord, false},
		{"a pod that carries the sandbox's label needs no header", testRunner, false},
		{"a person needs no more than the command line", commandLine, false},
		{"the ledger says where tagged requests went, and who lost the key", ledgerOfAllNodes, false},
		{"an agent closes its own loop by MCP", scriptedAgent, false},
		{"a browser shows all that to who may see it", pageInABrowser, false},
		{"the tutorial is true", tutorial, false},
		{"README's loop is true", readme, false},
		{"a route group has the forks of two sandboxes under one key", routeGroup, false},
		{"deleting a sandbox leaves nothing", deletionLeavesNothing, false},
		{"a sandbox ends when its TTL runs out", ttl, false},
		{"a fork that crashes says why and nobody else answers for it", crash, false},
		{"another namespace is reached while a grant is there", grant, false},
		{"a rolling update of the agents fails and misroutes no request", rollingUpdate, false},
		{"an outage of the API server changes nothing that is in force", outage, false},
		{"an agent that is killed comes back and covers its node again", killedAgent, false},
		{"no sandbox is ready before a node that is late has its agent", lateNode, false},
		{"routing keys get another name in two upgrades", otherNames, false},
		{"uninstalling leaves nothing in the kernels", uninstall, false},
	} {
		ok := t.Run(chapter.name, func(t *testing.T) {
			// Before the chapter's own cleaning up.
			defer explain(t)
			chapter.run(t)
		})
		if !ok && chapter.vital {
			t.Fatal("the rest of the story needs this")
		}
	}
}

// kubectl runs kubectl and ends the test when it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := kube.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func apply(t *testing.T, yaml string) {
	t.Helper()
	if err := kube.ApplyYAML(t.Context(), yaml); err != nil {
		t.Fatal(err)
	}
}

// deleteAfterwards deletes objects when the chapter ends.
func deleteAfterwards(t *testing.T, args ...string) {
	t.Cleanup(func() {
		// The test's own context is at its end.
		out, err := kube.Kubectl(context.WithoutCancel(t.Context()), append([]string{"delete", "--ignore-not-found", "--wait", "--timeout=120s"}, args...)...)
		if err != nil {
			t.Errorf("delete %q: %v\n%s", args, err, out)
		}
	})
}

// eventually calls f until it returns nil, and ends the test with its last error
// when it does not in time. Machines that run this are slow at times: the limit
// is for what never happens.
func eventually(t *testing.T, limit time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		// What the end of the time itself does to f tells nothing.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("not within %s: %v", limit, last)
		}
	}
}

// explain writes down, when a chapter has failed, what a person would look at.
func explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "sandboxes,routegroups,nodestates", "-A", "-o", "yaml"},
		{"get", "events", "-n", shop, "--sort-by=.lastTimestamp"},
		{"logs", "-n", system, "-l", "app.kubernetes.io/name=sidetrack", "--prefix", "--tail=25"},
	} {
		out, err := kube.Kubectl(ctx, args...)
		if err != nil {
			out += err.Error()
		}
		if len(out) > 20000 {
			out = out[:10000] + "\n…\n" + out[len(out)-10000:]
		}
		t.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
}

const system = "sidetrack-system"

func install(t *testing.T) {
	began := time.Now()
	if err := kube.Apply(t.Context(), filepath.Join(root, "deploy", "install.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"daemonset/sidetrack-agent", "deployment/sidetrack-controller", "deployment/sidetrack-ledger"} {
		kubectl(t, "rollout", "status", "-n", system, what, "--timeout=180s")
	}
	figure("kubectl apply of install.yaml until all of it is ready", "%.1f s", time.Since(began).Seconds())

	for _, n := range kube.Nodes {
		eventually(t, time.Minute, func(ctx context.Context) error {
			out, err := kube.Kubectl(ctx, "get", "nodestate", n.Name, "-o", "jsonpath={.status.applied.sandboxes}/{.status.bootID}")
			if err != nil {
				return err
			}
			if applied, boot, _ := strings.Cut(out, "/"); applied == "" || boot == "" {
				return fmt.Errorf("the NodeState of %s says %q", n.Name, out)
			}
			return nil
		})
	}
	// What the agent may do is what the installation gives it, and no more.
	for what, want := range map[string]bool{
		"list pods --all-namespaces": true, "watch sandboxes.sidetrack.dev --all-namespaces": true,
		"get secrets --all-namespaces": false, "update sandboxes.sidetrack.dev --subresource=status --all-namespaces": false,
		"create pods --all-namespaces": false, "list configmaps --all-namespaces": false,
	} {
		args := append([]string{"auth", "can-i", "--as=system:serviceaccount:" + system + ":sidetrack-agent", "--as-group=system:serviceaccounts"}, strings.Fields(what)...)
		out, err := kube.Kubectl(t.Context(), args...)
		if got := strings.TrimSpace(out) == "yes"; got != want {
			t.Errorf("may the agent %s? %q (%v), want %t", what, out, err, want)
		}
	}
}

// gatewayCRD is the file with the CRD of ReferenceGrants.
func gatewayCRD(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatalf("find the module of the gateway API: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "config", "crd", "standard", "gateway.networking.k8s.io_referencegrants.yaml")
}
