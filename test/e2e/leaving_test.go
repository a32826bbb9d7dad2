// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// deletionLeavesNothing deletes a sandbox and compares everything that it could
// have left with what was there before it.
func deletionLeavesNothing(t *testing.T) {
	// What earlier chapters have deleted must not be on the list.
	before := inventory(t)
	eventually(t, 2*time.Minute, func(context.Context) error {
		time.Sleep(3 * time.Second)
		last := before
		if before = inventory(t); !slices.Equal(before, last) {
			return fmt.Errorf("it still changes: %q, %q", difference(before, last), difference(last, before))
		}
		return nil
	})
	key := newKey("short")
	manifest := strings.Replace(strings.Replace(pr42(`
  redirects:
  - from: {service: postgres}
    to: {service: postgres-pr-42}
`), "name: pr-42,", "name: short,", 1), sandboxKey, key, 1)
	// A Service that no other sandbox redirects.
	manifest = strings.Replace(manifest, "  redirects:", "  - workload: {name: stock}\n  redirects:", 1)
	apply(t, manifest)
	untilReady(t, "short")
	w := runners(t)
	for _, w := range w {
		w.mustGet(t, front, tag(key), ownOnWay)
		w.mustGet(t, stock, tag(key), "stock v1")
	}
	during := inventory(t)
	for _, sign := range []string{"pod/", "deployment.apps/", "service/", " sd_identities ", " sd_dests ", " sd_routes ", " sd_backends ", " listens "} {
		if !slices.ContainsFunc(difference(during, before), func(s string) bool { return strings.Contains(s, sign) }) {
			t.Errorf("the inventory does not see that a sandbox makes %q: %q", sign, difference(during, before))
		}
	}
	began := time.Now()
	kubectl(t, "delete", "-n", shop, "sandbox/short", "--wait")
	figure("kubectl delete of a Sandbox returns after", "%.1f s", time.Since(began).Seconds())
	eventually(t, time.Minute, w[0].gets(front, tag(key), untouched))
	var left []string
	defer func() {
		if t.Failed() {
			t.Logf("left: %q", left)
		}
	}()
	eventually(t, 2*time.Minute, func(context.Context) error {
		if left = difference(inventory(t), before); len(left) > 0 {
			return fmt.Errorf("something is left: %q", left)
		}
		return nil
	})
	figure("  until no object, map entry, rule or socket of it is left", "%.1f s", time.Since(began).Seconds())
	for _, w := range w {
		w.mustGet(t, front, tag(key), untouched)
		w.mustGet(t, front, tag(sandboxKey), ownOnWay)
	}
}

func difference(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// inventory lists what a sandbox may leave: objects of its namespace, entries of
// the agents' maps, kube-proxy's rules for its Services, listening sockets in
// pods' and nodes' network namespaces, and pins.
func inventory(t *testing.T) []string {
	t.Helper()
	var all []string
	kinds := strings.Fields(kubectl(t, "api-resources", "--verbs=list", "--namespaced", "-o", "name"))
	// Events tell of what was; endpoints are a second face of slices.
	kinds = slices.DeleteFunc(kinds, func(k string) bool {
		return strings.HasPrefix(k, "events") || strings.HasPrefix(k, "endpoints") && !strings.HasPrefix(k, "endpointslices")
	})
	all = append(all, strings.Fields(kubectl(t, "get", strings.Join(kinds, ","), "-n", shop, "-o", "name", "--ignore-not-found"))...)
	for _, n := range kube.Nodes {
		all = append(all, nodeInventory(t, n.Name)...)
	}
	slices.Sort(all)
	return all
}

// proxyChain is a chain of kube-proxy's for a Service or an endpoint, in either
// mode.
var proxyChain = regexp.MustCompile(`chain (service|endpoint)-\S*|KUBE-(SVC|SEP)-\w+`)

var socketOwner = regexp.MustCompile(`pid=(\d+),`)

func nodeInventory(t *testing.T, name string) []string {
	t.Helper()
	i := slices.IndexFunc(kube.Nodes, func(n *cluster.Node) bool { return n.Name == name })
	n := kube.Nodes[i]
	run := func(command string, args ...string) string {
		out, err := n.Run(t.Context(), command, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var all []string
	for pin := range strings.Lines(run("find", "/sys/fs/bpf", "-type", "f", "-not", "-name", "*.debug")) {
		pin = strings.TrimSpace(pin)
		all = append(all, name+" pin "+pin)
		base := filepath.Base(pin)
		// The other maps hold connections, or counters that grow.
		if slices.Contains([]string{"sd_identities", "sd_dests", "sd_routes", "sd_backends"}, base) {
			entries := strings.Count(run("bpftool", "-j", "map", "dump", "pinned", pin), `"key"`)
			for i := range entries {
				all = append(all, fmt.Sprintf("%s %s entry %d", name, base, i+1))
			}
		}
	}
	for _, m := range proxyChain.FindAllString(run("nft", "list", "ruleset")+run("iptables-save"), -1) {
		all = append(all, name+" rule "+m)
	}
	// The agent's listeners are in its pods' network namespaces; other programs of
	// this machine may share the first node's.
	pids := podProcesses(t, i)
	seen := map[string]bool{}
	for _, pid := range pids {
		inode, err := os.Readlink("/proc/" + pid + "/ns/net")
		if err != nil || seen[inode] {
			continue // it has ended meanwhile
		}
		out, err := n.Run(t.Context(), "nsenter", "--net=/proc/"+pid+"/ns/net", "ss", "-Hltnp")
		if err != nil {
			continue
		}
		seen[inode] = true
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			owner := socketOwner.FindStringSubmatch(line)
			if len(f) > 3 && owner != nil && slices.Contains(pids, owner[1]) {
				all = append(all, name+" "+inode+" listens "+f[3])
			}
		}
	}
	if len(seen) == 0 {
		t.Fatalf("no network namespace of a pod was found on %s", name)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// podProcesses returns the processes in pods of a node.
func podProcesses(t *testing.T, node int) []string {
	t.Helper()
	top := kube.Nodes[node].PodsCgroup
	var pids []string
	err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // it has ended meanwhile
		}
		b, err := os.ReadFile(path)
		if err == nil {
			pids = append(pids, strings.Fields(string(b))...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pids) == 0 {
		t.Fatalf("no process was found below %q", top)
	}
	return pids
}

// agentPID finds the agent of a node among the processes of its pods.
func agentPID(t *testing.T, name string) int {
	t.Helper()
	i := slices.IndexFunc(kube.Nodes, func(n *cluster.Node) bool { return n.Name == name })
	for _, pid := range podProcesses(t, i) {
		line, err := os.ReadFile("/proc/" + pid + "/cmdline")
		args := bytes.Split(line, []byte{0})
		if err == nil && len(args) > 1 && filepath.Base(string(args[0])) == "sidetrackd" && string(args[1]) == "run" {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no agent runs on %s", name)
	return 0
}

func ttl(t *testing.T) {
	key := newKey("brief")
	apply(t, strings.Replace(strings.Replace(pr42("  ttl: 12s\n"), "name: pr-42,", "name: brief,", 1), sandboxKey, key, 1))
	began := time.Now()
	w := runners(t)[0]
	eventually(t, time.Minute, w.gets(front, tag(key), forkOnWay))
	s, err := getSandbox(t.Context(), "brief")
	if err != nil {
		t.Fatal(err)
	}
	if s.Status.ExpiresAt == nil || !s.Status.ExpiresAt.Time.Equal(s.CreationTimestamp.Add(12*time.Second)) {
		t.Errorf("a sandbox of %s with a TTL of 12 s says that it expires at %v", s.CreationTimestamp, s.Status.ExpiresAt)
	}
	eventually(t, time.Minute, func(ctx context.Context) error {
		if _, err := getSandbox(ctx, "brief"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the sandbox is still there: %w", err)
		}
		return nil
	})
	figure("a TTL of 12 s has deleted the sandbox after", "%.1f s", time.Since(began).Seconds())
	eventually(t, time.Minute, w.gets(front, tag(key), untouched))
	eventually(t, time.Minute, func(context.Context) error {
		if pods := podsOf(t, map[string]string{v1alpha1.SandboxLabel: "brief"}); len(pods) > 0 {
			return fmt.Errorf("%d pods of its fork are still there", len(pods))
		}
		return nil
	})
}

// uninstall is what docs/install.md says.
func uninstall(t *testing.T) {
	kubectl(t, "delete", "sandboxes,routegroups", "--all", "-n", shop, "--wait")
	if err := kube.Apply(t.Context(), filepath.Join(root, "deploy", "uninstall.yaml")); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "rollout", "status", "-n", system, "daemonset/sidetrack-agent", "--timeout=180s")
	kubectl(t, "delete", "-f", filepath.Join(root, "deploy", "install.yaml"), "--ignore-not-found", "--wait")
	for _, w := range runners(t) {
		w.mustGet(t, front, tag(sandboxKey), untouched)
		w.mustGet(t, front, nil, untouched)
		w.mustGet(t, ingress, nil, untouched)
	}
	for i, n := range kube.Nodes {
		eventually(t, time.Minute, func(ctx context.Context) error {
			pins, err := n.Run(ctx, "find", "/sys/fs/bpf", "-type", "f", "-not", "-name", "*.debug")
			if err != nil {
				return err
			}
			attached, err := n.Run(ctx, "bpftool", "cgroup", "tree", n.PodsCgroup)
			if err != nil {
				return err
			}
			run, err := n.Run(ctx, "find", "/run", "-name", "*sidetrack*", "-not", "-path", "/run/netns/*", "-not", "-path", "/run/containerd/*")
			if err != nil {
				return err
			}
			if left := strings.TrimSpace(pins + run); left != "" || strings.Contains(attached, "sd_") {
				return fmt.Errorf("%s has still %s and, attached, %s", n.Name, left, attached)
			}
			return nil
		})
		for _, line := range nodeInventory(t, n.Name) {
			if strings.Contains(line, " listens 127.") || strings.Contains(line, "%lo:") {
				t.Errorf("a listener is left on node %d: %s", i+1, line)
			}
		}
	}
	for _, kind := range []string{"crd", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "namespaces"} {
		if out := kubectl(t, "get", kind, "-o", "name"); strings.Contains(out, "sidetrack") {
			t.Errorf("something is left:\n%s", out)
		}
	}
	if out := kubectl(t, "get", "pods,deployments,services,jobs", "-n", shop, "-l", "app.kubernetes.io/managed-by=sidetrack", "-o", "name"); out != "" {
		t.Errorf("forks are left: %s", out)
	}
}

// changeP99 reads the agent's histogram of how long changes took from being seen
// to being in force.
func changeP99(t *testing.T, n *cluster.Node) string {
	t.Helper()
	text, err := metrics(t.Context(), n)
	if err != nil {
		t.Error(err)
		return "unknown"
	}
	type bucket struct {
		below string
		count float64
	}
	var buckets []bucket
	for _, m := range regexp.MustCompile(`(?m)^sidetrack_change_seconds_bucket\{.*le="([^"]+)".*\} (\S+)$`).FindAllStringSubmatch(text, -1) {
		count, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		buckets = append(buckets, bucket{m[1], count})
	}
	if len(buckets) == 0 {
		t.Error("the agent has no histogram sidetrack_change_seconds")
		return "unknown"
	}
	total := buckets[len(buckets)-1].count
	i := slices.IndexFunc(buckets, func(b bucket) bool { return b.count >= 0.99*total })
	return fmt.Sprintf("%s s (of %.0f changes)", buckets[i].below, total)
}
