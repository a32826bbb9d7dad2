// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// sandboxIn reads what a command has printed.
func sandboxIn(t *testing.T, text string) *v1alpha1.Sandbox {
	t.Helper()
	var sb v1alpha1.Sandbox
	if err := yaml.UnmarshalStrict([]byte(text), &sb); err != nil || sb.Kind != "Sandbox" || sb.APIVersion != v1alpha1.APIVersion {
		t.Errorf("this is no sandbox (%v):\n%s", err, text)
	}
	return &sb
}

func TestWhatChangesASandboxPrintsItInEachFormat(t *testing.T) {
	ns := namespace(t)
	const name = "sandbox.sidetrack.dev/a\n"
	prints := func(want string, args ...string) {
		t.Helper()
		if out, _ := sidetrack(t, ns, 0, append([]string{"sandbox"}, args...)...); out != want {
			t.Errorf("%q prints %q, want %q", args, out, want)
		}
	}
	ready := func() {
		says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
			sb.Status.RoutingKey = "key-of-sandbox-a"
			sb.Status.Conditions = []metav1.Condition{condition("Accepted", true, "Accepted", ""), condition("Ready", true, "Ready", "")}
		})
	}
	for _, dry := range []string{"--dry-run=client", "--dry-run=server"} {
		prints(name, "create", "a", dry, "-o", "name")
		out, _ := sidetrack(t, ns, 0, "sandbox", "create", "a", "--ttl", "1h", dry, "-o", "json")
		if sb := sandboxIn(t, out); sb.Name != "a" || sb.Spec.TTL == nil {
			t.Errorf("%s: %+v", dry, sb)
		}
	}
	prints("1h0m0s", "create", "a", "--ttl", "1h", "-o", "jsonpath={.spec.ttl}")
	prints(name, "create", "a", "--update", "--ttl", "2h", "-o", "name")
	objects := "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: a}\nspec: {ttl: 3h}\n"
	group := "---\napiVersion: sidetrack.dev/v1alpha1\nkind: RouteGroup\nmetadata: {name: g}\nspec: {sandboxes: [{name: a}]}\n"
	prints(name+"routegroup.sidetrack.dev/g\n", "apply", "--force-conflicts", "-f", file(t, objects+group), "-o", "name")
	out, _ := sidetrack(t, ns, 0, "sandbox", "apply", "-f", file(t, objects), "-o", "yaml")
	if sb := sandboxIn(t, out); sb.Spec.TTL == nil || sb.Spec.TTL.Duration.String() != "3h0m0s" {
		t.Errorf("apply: %+v", sb)
	}
	var list struct {
		Items []metav1.PartialObjectMetadata
	}
	out, _ = sidetrack(t, ns, 0, "sandbox", "apply", "-f", file(t, objects+group), "--dry-run=server", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 2 || list.Items[1].Kind != "RouteGroup" {
		t.Errorf("apply of two: %v\n%s", err, out)
	}
	// What is there is printed although the next one is not.
	out, said := sidetrack(t, ns, 1, "sandbox", "apply", "-f", file(t, objects+group+"colour: red\n"), "-o", "name")
	if mustSay(t, said, "colour"); out != name {
		t.Errorf("of what was applied it prints %q", out)
	}
	ready()
	out, _ = sidetrack(t, ns, 0, "sandbox", "wait", "a", "-o", "yaml")
	if sb := sandboxIn(t, out); sb.Status.RoutingKey != "key-of-sandbox-a" {
		t.Errorf("wait: %+v", sb)
	}
	prints(name, "wait", "a", "-o", "name")
	out, _ = sidetrack(t, ns, 0, "sandbox", "apply", "-f", file(t, objects), "--wait", "-o", "json")
	if sb := sandboxIn(t, out); sb.Status.RoutingKey != "key-of-sandbox-a" || !strings.Contains(out, `"status": "True"`) {
		t.Errorf("apply --wait: %+v", sb)
	}
	prints(name, "delete", "a", "-o", "name")
	prints(name, "wait", "a", "--for=deleted", "-o", "name")
	prints("", "delete", "a", "--ignore-not-found", "-o", "name")
}

func TestWhatIsThereIsPrintedThoughAnotherIsNot(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	for format, want := range map[string]string{"name": "sandbox.sidetrack.dev/a\n", "jsonpath={.metadata.name}": "a"} {
		out, said := sidetrack(t, ns, 1, "sandbox", "get", "a", "nobody", "-o", format)
		if mustSay(t, said, "there is no sandbox nobody"); out != want {
			t.Errorf("-o %s: %q", format, out)
		}
	}
	for _, args := range []string{"sandbox list --no-headers", "sandbox get a --no-headers -o wide", "sandbox list -A --no-headers"} {
		out, _ := sidetrack(t, ns, 0, strings.Fields(args)...)
		if strings.Contains(out, "NAME") || !strings.Contains(out, "a ") {
			t.Errorf("%s: %q", args, out)
		}
	}
}

// prints waits until a program has printed something.
func (r *run) prints(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, func() error {
		for _, w := range words {
			if !strings.Contains(r.out.String(), w) {
				return fmt.Errorf("it has not printed %q:\n%s\n%s", w, r.out.String(), r.err.String())
			}
		}
		return nil
	})
}

func TestAWatchPrintsEachChangeInEachFormat(t *testing.T) {
	ns := namespace(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	watching := func(args string) *run { return start(ctx, t, ns, "", strings.Fields(args)...) }
	// There is nothing yet: the head comes with the first row.
	table := watching("sandbox list -w")
	events := watching("sandbox list -w --output-watch-events")
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	table.prints(t, "NAME", "a ")
	events.prints(t, "EVENT", "ADDED")
	names, objects := watching("sandbox list -w -o name"), watching("sandbox get a -w -o json --output-watch-events")
	yamls, headless := watching("sandbox get -w -o yaml"), watching("sandbox get a -w --no-headers")
	for _, r := range []*run{names, objects, yamls, headless} {
		r.prints(t, "a")
	}
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.RoutingKey = "key-of-sandbox-a"
		sb.Status.Conditions = []metav1.Condition{condition("Ready", true, "Ready", "all is well")}
	})
	table.prints(t, "True")
	events.prints(t, "MODIFIED")
	objects.prints(t, `"MODIFIED"`)
	yamls.prints(t, "---", "key-of-sandbox-a")
	if err := api.Delete(t.Context(), &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	events.prints(t, "DELETED")
	objects.prints(t, `"DELETED"`)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "bee"}})
	names.prints(t, "sandbox.sidetrack.dev/a\nsandbox.sidetrack.dev/a\nsandbox.sidetrack.dev/a\nsandbox.sidetrack.dev/bee\n")
	table.prints(t, "bee ")
	interrupt()
	for _, r := range []*run{table, events, names, objects, yamls, headless} {
		if got := r.wait(t); got != 0 {
			t.Errorf("exit status %d: %s", got, r.err.String())
		}
	}
	if n := strings.Count(table.out.String(), "NAME"); n != 1 || strings.Contains(headless.out.String(), "NAME") {
		t.Errorf("the head is there %d times:\n%s\n%s", n, table.out.String(), headless.out.String())
	}
	var kinds []string
	for d := json.NewDecoder(strings.NewReader(objects.out.String())); ; {
		var e struct {
			Type   string
			Object v1alpha1.Sandbox
		}
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil || e.Object.Name != "a" {
			t.Fatalf("%v: %+v\n%s", err, e, objects.out.String())
		}
		kinds = append(kinds, e.Type)
	}
	if got := strings.Join(kinds, " "); got != "ADDED MODIFIED DELETED" {
		t.Errorf("the events are %s", got)
	}
	for document := range strings.SplitSeq(yamls.out.String(), "---\n") {
		sandboxIn(t, document)
	}
}

func TestStatusIsPrintedInEachFormatAndWatched(t *testing.T) {
	ns, other := namespace(t), namespace(t)
	now := metav1.NowMicro()
	nodeState(t, "status-1", v1alpha1.NodeStateStatus{AgentVersion: "1.0", HeartbeatTime: &now, Applied: &v1alpha1.AppliedVersions{Sandboxes: "1"},
		Problems: []v1alpha1.NodeProblem{{Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "a problem"}}})
	for _, in := range []string{ns, other} {
		create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: "in-" + in}})
	}
	out, _ := sidetrack(t, ns, 0, "status", "-o", "wide")
	mustSay(t, columns(out), "NODE AGENT HEARD PODS STATE TAKING OVER PROBLEMS", "covered "+ns+"/in-"+ns+" Pod shop/web-0: a problem", "GENERATION FORKS REDIRECTS MESSAGE", "the controller has not looked at it yet")
	out, _ = sidetrack(t, ns, 0, "status", "-o", "name")
	if !strings.Contains(out, "node/status-1\n") || !strings.HasSuffix(out, "\nsandbox.sidetrack.dev/in-"+ns+"\n") {
		t.Errorf("-o name prints %q", out)
	}
	out, _ = sidetrack(t, ns, 0, "status", "-o", "jsonpath={.sandboxes[*].name}")
	if out != "in-"+ns {
		t.Errorf("-o jsonpath prints %q", out)
	}
	out, _ = sidetrack(t, ns, 0, "status", "-A")
	mustSay(t, columns(out), "NAMESPACE SANDBOX READY", ns+" in-"+ns+" false", other+" in-"+other+" false")
	out, _ = sidetrack(t, ns, 0, "status", "-A", "--no-headers")
	if strings.Contains(out, "SANDBOX") || strings.Contains(out, "AGENT") {
		t.Errorf("--no-headers: %s", out)
	}

	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	table, names := start(ctx, t, ns, "", "status", "-w"), start(ctx, t, ns, "", "status", "-w", "-o", "name")
	one := start(ctx, t, ns, "", "status", "in-"+ns, "-w", "-o", "json")
	for _, r := range []*run{table, names, one} {
		r.prints(t, "in-"+ns)
	}
	says(t, ns, "in-"+ns, func(sb *v1alpha1.Sandbox) {
		sb.Status.Revision = 42
		sb.Status.Conditions = []metav1.Condition{condition("Ready", true, "Ready", "all is well")}
	})
	eventually(t, func() error {
		if text := columns(table.out.String()); !strings.Contains(text, "in-"+ns+" true Ready 42") {
			return fmt.Errorf("it prints %s", text)
		}
		return nil
	})
	one.prints(t, `"revision": 42`)
	names.prints(t, "sandbox.sidetrack.dev/in-"+ns+"\nsandbox.sidetrack.dev/in-"+ns+"\n")
	// An agent's word of nothing but that it is there is no change.
	var s v1alpha1.NodeState
	if err := api.Get(t.Context(), client.ObjectKey{Name: "status-1"}, &s); err != nil {
		t.Fatal(err)
	}
	later := metav1.NowMicro()
	s.Status.HeartbeatTime = &later
	if err := api.Status().Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	s.Status.Problems = nil
	if err := api.Status().Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n := strings.Count(names.out.String(), "node/status-1\n"); n != 2 {
			return fmt.Errorf("the node is named %d times: %s", n, names.out.String())
		}
		return nil
	})
	// One that is gone cannot be watched.
	if err := api.Delete(t.Context(), sandboxOf(t, ns, "in-"+ns)); err != nil {
		t.Fatal(err)
	}
	if got := one.wait(t); got != 1 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, one.err.String(), "there is no sandbox in-"+ns)
	// What is gone has changed, too.
	eventually(t, func() error {
		if n := strings.Count(names.out.String(), "sandbox.sidetrack.dev/in-"+ns+"\n"); n != 3 {
			return fmt.Errorf("the sandbox is named %d times: %s", n, names.out.String())
		}
		return nil
	})
	interrupt()
	for _, r := range []*run{table, names} {
		if got := r.wait(t); got != 0 {
			t.Errorf("exit status %d: %s", got, r.err.String())
		}
	}
}

func TestWhatIsInterruptedSaysSoInItsExitStatus(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	ctx, interrupt := context.WithCancel(t.Context())
	r := start(ctx, t, ns, "", "sandbox", "wait", "a")
	eventually(t, func() error {
		if !strings.Contains(r.err.String(), "waits for the controller") {
			return fmt.Errorf("it does not wait: %s", r.err.String())
		}
		return nil
	})
	interrupt()
	if got := r.wait(t); got != 130 {
		t.Errorf("exit status %d: %s", got, r.err.String())
	}
	mustSay(t, r.err.String(), "interrupted: could not wait for sandbox a")
}

// TestWhatIsInterruptedRemovesItsPod: what cleans up is sent when all else has ended.
func TestWhatIsInterruptedRemovesItsPod(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	ready(t, ns, "a")
	pods := func() []corev1.Pod {
		var list corev1.PodList
		if err := api.List(t.Context(), &list, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	for _, args := range []string{"run --sandbox a --image x -- y", "proxy --sandbox a", "diff --sandbox a http://route/"} {
		ctx, interrupt := context.WithCancel(t.Context())
		r := start(ctx, t, ns, "", strings.Fields(args)...)
		eventually(t, func() error {
			if len(pods()) != 1 || !strings.Contains(r.err.String(), "pod ") {
				return fmt.Errorf("%s: there is no pod: %s", args, r.err.String())
			}
			return nil
		})
		interrupt()
		if got := r.wait(t); got != 130 {
			t.Errorf("%s: exit status %d: %s", args, got, r.err.String())
		}
		if all := pods(); len(all) != 0 {
			t.Errorf("%s leaves pod %s", args, all[0].Name)
		}
	}
}

// TestWhoseOutputNobodyReadsEndsAndCleansUp: as with "| head -1". A process that SIGPIPE
// ends at once would leave its pods.
func TestWhoseOutputNobodyReadsEndsAndCleansUp(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	program, config := builtProgram(t), admin(t)
	for _, args := range []string{"sandbox list", "sandbox list -o yaml", "sandbox list -w", "version"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		var errOut strings.Builder
		cmd := exec.CommandContext(t.Context(), program, append([]string{"--kubeconfig=" + config, "--cache-dir=" + t.TempDir(), "-n", ns}, strings.Fields(args)...)...)
		cmd.Stdout, cmd.Stderr = w, &errOut
		err = cmd.Run()
		w.Close()
		if cmd.ProcessState.ExitCode() != 141 || errOut.Len() != 0 {
			t.Errorf("%s: %v, and it says %q: want exit status 141 and not a word", args, err, errOut.String())
		}
	}
}
