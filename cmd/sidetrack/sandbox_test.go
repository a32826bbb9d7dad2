// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

func TestCreateMakesTheSandboxThatTheFlagsSay(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app", "proxy")
	deployment(t, ns, "stock", "server")
	out, _ := sidetrack(t, ns, 0, "sandbox", "create", "pr-42", "--fork", "deploy/route", "--fork", "stock",
		"--image", "app=route:pr-42", "--image", "stock=stock:pr-42",
		"--env", "app/LOG_LEVEL=debug", "--env", "route/app/OLD-", "--env", "stock/URL=http://a/?b=c",
		"--ttl", "2h", "--redirect", "postgres:5432=postgres-pr-42", "--redirect", "cache=stubs/cache:6379", "--redirect", "mail:smtp=10.0.0.9:2525",
		"--unavailable", "Baseline", "--observe", "front,cart", "--propagate", "TraceID", "-l", "release=7")
	if out != "sandbox/pr-42 created\n" {
		t.Errorf("it prints %q", out)
	}
	got := sandboxOf(t, ns, "pr-42")
	var want v1alpha1.SandboxSpec
	if err := yaml.UnmarshalStrict([]byte(`
ttl: 2h
existingConnections: Idle
observe: [front, cart]
propagate: TraceID
forks:
- workload: {kind: Deployment, name: route}
  containers: [{name: app, image: "route:pr-42", env: [{name: LOG_LEVEL, value: debug}], removeEnv: [OLD]}]
- workload: {kind: Deployment, name: stock}
  containers: [{name: server, image: "stock:pr-42", env: [{name: URL, value: "http://a/?b=c"}]}]
redirects:
- {from: {service: postgres, port: 5432}, to: {service: postgres-pr-42}, unavailable: Baseline}
- {from: {service: cache}, to: {service: cache, namespace: stubs, port: 6379}, unavailable: Baseline}
- {from: {service: mail, port: smtp}, to: {address: 10.0.0.9, port: 2525}, unavailable: Baseline}
`), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got.Spec); d != "" {
		t.Errorf("the spec differs (-want +got):\n%s", d)
	}
	if got.Labels["release"] != "7" {
		t.Errorf("labels %v", got.Labels)
	}
}

func TestASandboxThatIsThereIsChangedOnlyWhenThatIsSaid(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	deployment(t, ns, "stock", "app")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--fork", "route", "--image", "route:2", "--ttl", "1h")
	_, said := sidetrack(t, ns, 1, "sandbox", "create", "a", "--fork", "stock", "--image", "stock:2")
	mustSay(t, said, "there is a sandbox a in namespace "+ns+" already", "next: change it with --update")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2")
	sb := sandboxOf(t, ns, "a")
	if f := sb.Spec.Forks; len(f) != 1 || f[0].Workload.Name != "stock" || f[0].Containers[0].Image != "stock:2" {
		t.Errorf("after --update: %+v", sb.Spec)
	}
	// What it has made itself and does not want any more is gone, too.
	if sb.Spec.TTL != nil {
		t.Errorf("the ttl that is not asked for any more is still %v", sb.Spec.TTL)
	}
	// Its key cannot be changed, and need not be repeated.
	sidetrack(t, ns, 0, "sandbox", "create", "keyed", "--routing-key", "a-key-of-mine")
	sidetrack(t, ns, 0, "sandbox", "create", "keyed", "--update", "--ttl", "1h")
	if got := sandboxOf(t, ns, "keyed").Spec; got.RoutingKey != "a-key-of-mine" || got.TTL == nil {
		t.Errorf("after --update: %+v", got)
	}
	sidetrack(t, ns, 0, "sandbox", "create", "new", "--update", "--fork", "stock", "--image", "stock:2")
}

// Without --observe what is forked is observed, by whatever the sandbox was before.
func TestWhatIsForkedIsObserved(t *testing.T) {
	ns := namespace(t)
	for _, name := range []string{"route", "stock"} {
		deployment(t, ns, name, "app")
		create(t, serviceOf(ns, name))
	}
	observes := func(want ...string) {
		t.Helper()
		if got := sandboxOf(t, ns, "a").Spec.Observe; !slices.Equal(got, want) {
			t.Errorf("it observes %q, want %q", got, want)
		}
	}
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--fork", "route", "--image", "route:2")
	observes("route")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2")
	observes("stock")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2", "--observe", "*")
	observes("*")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2")
	observes("stock")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2", "--observe", "none")
	observes()
	_, said := sidetrack(t, ns, 2, "sandbox", "create", "a", "--update", "--fork", "stock", "--image", "stock:2", "--observe", "none,stock")
	mustSay(t, said, "observe none goes with nothing else")
	// A name that is misspelt would leave its hops out, without a word.
	_, said = sidetrack(t, ns, 0, "sandbox", "create", "b", "--fork", "stock", "--image", "stock:2", "--observe", "route,rout")
	if want := "sidetrack: --observe names rout, and there is no such Service in namespace " + ns + ": nothing is seen there until there is\n"; said != want {
		t.Errorf("it says %q, want %q", said, want)
	}
}

// serviceOf is a Service of a deployment's pods.
func serviceOf(ns, name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
}

func TestADryRunStoresNothing(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	create := []string{"sandbox", "create", "a", "--fork", "route", "--image", "route:2", "--wait", "-o", "yaml"}
	for _, more := range [][]string{{"--dry-run=client"}, {"--dry-run=server"}, {"--dry-run=server", "--update"}} {
		out, _ := sidetrack(t, ns, 0, append(create, more...)...)
		var sb v1alpha1.Sandbox
		if err := yaml.Unmarshal([]byte(out), &sb); err != nil || sb.Kind != "Sandbox" || sb.Spec.Forks[0].Containers[0].Image != "route:2" {
			t.Errorf("%v prints %v\n%s", more, err, out)
		}
	}
	_, said := sidetrack(t, ns, 1, "sandbox", "get", "a")
	mustSay(t, said, "there is no sandbox a in namespace "+ns, "next: ")
	_, said = sidetrack(t, ns, 1, "sandbox", "create", "Bad_Name", "--dry-run=server")
	mustSay(t, said, "metadata.name")
}

func TestWhatIsWrongIsSaidWithTheRemedy(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app", "proxy")
	deployment(t, ns, "stock", "app")
	for _, c := range []struct {
		args   string
		status int
		says   []string
	}{
		{"sandbox create", 2, []string{"accepts 1 arg", "next: sidetrack sandbox create --help"}},
		{"sandbox frobnicate", 2, []string{`unknown command "frobnicate"`}},
		{"sandbox create a --colour=red", 2, []string{"unknown flag: --colour"}},
		{"sandbox create a --fork rout", 1, []string{"there is no Deployment/rout in namespace " + ns, "next: there are Deployment/route, Deployment/stock"}},
		{"sandbox create a --fork job/route", 2, []string{`"job" cannot be forked: use deploy, sts, ds, rs or cronjob`}},
		{"sandbox create a --fork route --image route:2", 2, []string{"may mean several containers: write CONTAINER=IMAGE", "route/app, route/proxy"}},
		{"sandbox create a --fork route --fork stock --image app=a:2", 2, []string{"may mean several containers", "stock/app"}},
		{"sandbox create a --fork route --image wrong=a:2", 2, []string{"no forked workload has such a container: there are route/app, route/proxy"}},
		{"sandbox create a --image route:2", 2, []string{"nothing is forked: add --fork"}},
		{"sandbox create a --fork stock --image a:2 --image a:3", 2, []string{"container app of Deployment/stock gets two images: a:2 and a:3"}},
		{"sandbox create a --fork stock --env A", 2, []string{"neither NAME=VALUE nor NAME- to remove one"}},
		{"sandbox create a --ttl soon", 2, []string{`the ttl "soon" is not a duration: write one such as 90s, 30m or 2h`}},
		{"sandbox create a --redirect postgres", 2, []string{"is not SERVICE[:PORT]=TARGET[:PORT]"}},
		// What the API server says is not said a second time here.
		{"sandbox create a --ttl 99999h", 1, []string{"spec.ttl", "is longer than a year"}},
		{"sandbox create a --redirect Postgres=a", 1, []string{"spec.redirects[0].from.service", "is not the name of a Service"}},
		{"sandbox create a --routing-key short", 1, []string{"spec.routingKey", "is not a routing key"}},
		{"sandbox create a --dry-run=perhaps", 2, []string{"--dry-run=perhaps is unknown"}},
		{"sandbox create a -o csv --dry-run=client", 2, []string{"csv"}},
		{"sandbox wait nobody", 1, []string{"there is no sandbox nobody in namespace " + ns}},
		{"sandbox wait nobody --for=ever", 2, []string{"--for=ever is unknown: use ready or deleted"}},
		{"sandbox delete nobody", 1, []string{"there is no sandbox nobody"}},
		{"sandbox get a -A", 2, []string{"use -n"}},
		{"sandbox apply", 2, []string{"-f is missing"}},
		{"sandbox apply -f /nowhere.yaml", 1, []string{"/nowhere.yaml"}},
		{"--context=nowhere sandbox list", 1, []string{"nowhere"}},
		{"--server=https://127.0.0.1:1 sandbox list", 1, []string{"127.0.0.1:1", "next: see whether the API server can be reached"}},
	} {
		_, said := sidetrack(t, ns, c.status, strings.Fields(c.args)...)
		mustSay(t, said, c.says...)
	}
	if all, _ := sidetrack(t, ns, 0, "sandbox", "list", "-o", "name"); all != "" {
		t.Errorf("something has been made: %s", all)
	}
}

func TestWhoMayNotIsToldWhatToAskFor(t *testing.T) {
	ns := namespace(t)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(config, plane.User("jane")); err != nil {
		t.Fatal(err)
	}
	r := startAs(t.Context(), t, config, ns, "", "sandbox", "create", "a", "--ttl", "1h")
	if got := r.wait(t); got != 1 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, r.err.String(), `User "jane" cannot create resource "sandboxes"`, "next: ask for ClusterRole edit")
}

func TestGetPrintsWhatTheAPIServerSays(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	_, said := sidetrack(t, ns, 0, "sandbox", "list")
	mustSay(t, said, "No sandboxes found in namespace "+ns)
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--fork", "route", "--image", "route:2", "-l", "x=1")
	sidetrack(t, ns, 0, "sandbox", "create", "b", "--fork", "route", "--image", "route:3")
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.RoutingKey = "key-of-sandbox-a"
		sb.Status.Conditions = []metav1.Condition{condition("Ready", false, "ForksNotReady", "wait"), condition("Programmed", true, "Programmed", "")}
	})
	lines := func(args ...string) []string {
		out, _ := sidetrack(t, ns, 0, append([]string{"sandbox"}, args...)...)
		return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	}
	if l := lines("list"); len(l) != 3 || !strings.HasPrefix(l[0], "NAME") || !strings.Contains(l[1], "ForksNotReady") || strings.Contains(l[0], "PROGRAMMED") {
		t.Errorf("list: %q", l)
	}
	if l := lines("list", "-o", "wide", "-l", "x=1"); len(l) != 2 || !strings.Contains(l[0], "PROGRAMMED") {
		t.Errorf("list -o wide -l x=1: %q", l)
	}
	if l := lines("get", "a", "b"); len(l) != 3 || !strings.HasPrefix(l[2], "b ") {
		t.Errorf("get a b: %q", l)
	}
	if l := lines("get", "-A"); !strings.HasPrefix(l[0], "NAMESPACE") {
		t.Errorf("get -A: %q", l)
	}
	if l := lines("get", "-o", "name"); strings.Join(l, " ") != "sandbox.sidetrack.dev/a sandbox.sidetrack.dev/b" {
		t.Errorf("get -o name: %q", l)
	}
	if l := lines("get", "a", "-o", "jsonpath={.spec.forks[0].containers[0].image}"); l[0] != "route:2" {
		t.Errorf("get a -o jsonpath: %q", l)
	}
	if l := lines("key", "a"); l[0] != "key-of-sandbox-a" {
		t.Errorf("key a: %q", l)
	}
	if l := lines("key", "a", "--header"); l[0] != "baggage: sidetrack=key-of-sandbox-a" {
		t.Errorf("key a --header: %q", l)
	}
	// What the nodes say counts, which whoever may read the sandbox reads there.
	names := func(n *v1alpha1.CommonKeyNames) {
		says(t, ns, "a", func(sb *v1alpha1.Sandbox) { sb.Status.KeyNames = n })
	}
	names(&v1alpha1.CommonKeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"})
	if l := lines("key", "a", "--header"); l[0] != "baggage: acme=key-of-sandbox-a" {
		t.Errorf("key a --header: %q", l)
	}
	names(&v1alpha1.CommonKeyNames{Split: true, Message: "--baggage-member is a on node n1 and b on node n2"})
	_, said = sidetrack(t, ns, 3, "sandbox", "key", "a", "--header")
	mustSay(t, said, "no name tags a request for all nodes: --baggage-member is a on node n1 and b on node n2", "sidetrack doctor")
	_, said = sidetrack(t, ns, 3, "sandbox", "key", "b")
	mustSay(t, said, "next: sidetrack sandbox wait b")
	var list struct {
		Items []v1alpha1.Sandbox `json:"items"`
	}
	out, _ := sidetrack(t, ns, 0, "sandbox", "get", "a", "b", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 2 {
		t.Errorf("get a b -o json: %v\n%s", err, out)
	}
	out, said = sidetrack(t, ns, 1, "sandbox", "get", "a", "nobody")
	mustSay(t, out, "ForksNotReady")
	mustSay(t, said, "there is no sandbox nobody", "there are a, b")
}

func TestWatchPrintsChangesUntilItIsInterrupted(t *testing.T) {
	ns := namespace(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	r := start(ctx, t, ns, "", "sandbox", "list", "-w")
	printed := func(words ...string) {
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
	printed("NAME", "a ")
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.Conditions = []metav1.Condition{condition("Ready", true, "Ready", "all is well")}
	})
	printed("True")
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "bee"}})
	printed("bee ")
	interrupt()
	if got := r.wait(t); got != 0 {
		t.Errorf("exit status %d: %s", got, r.err.String())
	}
	if n := strings.Count(r.out.String(), "NAME"); n != 1 {
		t.Errorf("the head is there %d times:\n%s", n, r.out.String())
	}
}

func TestWaitSaysHowFarItIsUntilTheSandboxIsReady(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	r := start(t.Context(), t, ns, "", "sandbox", "create", "a", "--fork", "route", "--image", "route:2", "--wait", "-o", "jsonpath={.status.routingKey}")
	heard := func(words ...string) {
		t.Helper()
		eventually(t, func() error {
			for _, w := range words {
				if !strings.Contains(r.err.String(), w) {
					return fmt.Errorf("it has not said %q:\n%s", w, r.err.String())
				}
			}
			return nil
		})
	}
	heard("sandbox/a created", "waits for the controller")
	fork := v1alpha1.ForkStatus{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Name: "route-a-x", Replicas: 1, Message: "pod x: container app is being created"}
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status = v1alpha1.SandboxStatus{RoutingKey: "key-of-sandbox-a", Forks: []v1alpha1.ForkStatus{fork}, Nodes: &v1alpha1.NodeCount{Programmed: 1, Total: 2}, Conditions: []metav1.Condition{
			condition("Accepted", true, "Accepted", ""), condition("ForksReady", false, "Starting", "0 of 1"),
			condition("Programmed", false, "WaitingForNodes", "1 of 2 nodes have it in force, waiting for n2"), condition("Ready", false, "ForksNotReady", "wait"),
		}}
	})
	heard("ok  sandbox: accepted", "fork Deployment/route: pod x: container app is being created", "nodes: 1 of 2 nodes have it in force, waiting for n2")
	fork.Ready, fork.Message = 1, ""
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.Forks = []v1alpha1.ForkStatus{fork}
		sb.Status.Conditions = []metav1.Condition{
			condition("Accepted", true, "Accepted", ""), condition("ForksReady", true, "ForksReady", ""),
			condition("Programmed", true, "Programmed", "in force on 2 of 2 nodes"), condition("Ready", true, "Ready", "tagged traffic goes where the redirects say"),
		}
	})
	if got := r.wait(t); got != 0 {
		t.Fatalf("exit status %d: %s", got, r.err.String())
	}
	heard("ok  fork Deployment/route: 1 of 1 pods ready", "ok  nodes: in force on 2 of 2 nodes", "ok  sandbox: ready")
	if out := r.out.String(); out != "key-of-sandbox-a" {
		t.Errorf("it prints %q", out)
	}
	// One that is ready is not waited for.
	out, _ := sidetrack(t, ns, 0, "sandbox", "wait", "a")
	if out != "sandbox/a ready\n" {
		t.Errorf("wait prints %q", out)
	}
}

func TestAConditionOfAnotherGenerationIsNotBelieved(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--fork", "route", "--image", "route:2")
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.Conditions = []metav1.Condition{condition("Accepted", true, "Accepted", ""), condition("Ready", true, "Ready", "")}
	})
	_, said := sidetrack(t, ns, 3, "sandbox", "create", "a", "--update", "--fork", "route", "--image", "route:3", "--wait", "--timeout=500ms")
	mustSay(t, said, "it is not ready after 500ms", "the controller has not looked at it yet")
}

func TestAForkThatFailsIsSaidInItsContainersOwnWords(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	r := start(t.Context(), t, ns, "", "sandbox", "create", "a", "--fork", "route", "--image", "route:2", "--wait", "--fail-after=100ms")
	const own = `failed to pull image "route:2": not found`
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "route-a-x-1", Labels: map[string]string{v1alpha1.SandboxLabel: "a", v1alpha1.ForkLabel: "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "route:2"}}},
	}
	create(t, p)
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "app", Image: "route:2", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: own}},
	}}}
	if err := api.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.Conditions = []metav1.Condition{
			condition("Accepted", true, "Accepted", ""), condition("ForksReady", false, "ImageNotPulled", "fork of Deployment/route: no image"), condition("Ready", false, "ForksNotReady", "no image"),
		}
	})
	if got := r.wait(t); got != 3 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, r.err.String(), "sandbox a is not ready: fork of Deployment/route: no image",
		"pod route-a-x-1, container app: ImagePullBackOff: "+own, "next: sidetrack logs a -n "+ns)
}

func TestWhatToDoNextFitsWhyASandboxIsNotReady(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	for reason, next := range map[string]string{
		"KeyInUse":  "next: a sandbox's key does not change: delete it, and create it anew with another key or with none",
		"NoService": "next: mend it with sidetrack sandbox create --update", // it has no forks, and so no logs
	} {
		says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
			sb.Status.Conditions = []metav1.Condition{condition("Accepted", false, reason, "so it is"), condition("Ready", false, "NotAccepted", "so it is")}
		})
		_, said := sidetrack(t, ns, 3, "sandbox", "wait", "a", "--fail-after=100ms")
		mustSay(t, said, "sandbox a is not ready: so it is", next)
	}
	_, said := sidetrack(t, ns, 3, "sandbox", "wait", "a", "--for=deleted", "--timeout=500ms")
	mustSay(t, said, "sandbox a is still there after 500ms, and nobody has deleted it", "next: delete it first")
}

func TestASandboxThatIsDeletedMeanwhileIsNotWaitedFor(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	r := start(t.Context(), t, ns, "", "sandbox", "wait", "a")
	eventually(t, func() error {
		if !strings.Contains(r.err.String(), "waits for the controller") {
			return fmt.Errorf("it does not wait: %s", r.err.String())
		}
		return nil
	})
	gone := start(t.Context(), t, ns, "", "sandbox", "wait", "a", "--for=deleted")
	out, _ := sidetrack(t, ns, 0, "sandbox", "delete", "a")
	if out != "sandbox/a deleted\n" {
		t.Errorf("delete prints %q", out)
	}
	if got := r.wait(t); got != 1 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, r.err.String(), "there is no sandbox a in namespace "+ns)
	if got := gone.wait(t); got != 0 {
		t.Errorf("wait --for=deleted: exit status %d: %s", got, gone.err.String())
	}
	sidetrack(t, ns, 0, "sandbox", "delete", "a", "--ignore-not-found")
}

func TestApplyTakesOurObjectsAndNoOthers(t *testing.T) {
	ns := namespace(t)
	const group = "---\napiVersion: sidetrack.dev/v1alpha1\nkind: RouteGroup\nmetadata: {name: g}\nspec: {sandboxes: [{name: a}]}\n"
	objects := func(more string) string {
		return "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: a}\nspec: {ttl: 1h" + more + "}\n"
	}
	out, _ := sidetrack(t, ns, 0, "sandbox", "apply", "-f", file(t, objects("")+group))
	if out != "sandbox/a applied\nroutegroup/g applied\n" {
		t.Errorf("it prints %q", out)
	}
	r := start(t.Context(), t, ns, objects(", existingConnections: All"), "sandbox", "apply", "-f", "-")
	if got := r.wait(t); got != 0 {
		t.Errorf("exit status %d: %s", got, r.err.String())
	}
	if got := sandboxOf(t, ns, "a").Spec.ExistingConnections; got != v1alpha1.ExistingAll {
		t.Errorf("existingConnections is %s", got)
	}
	_, said := sidetrack(t, ns, 1, "sandbox", "apply", "-f", file(t, objects(", colour: red")))
	mustSay(t, said, "colour")
	_, said = sidetrack(t, ns, 2, "sandbox", "apply", "-f", file(t, objects(", existingConnections: Leave")+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"))
	mustSay(t, said, "ConfigMap c is not one of Sidetrack's objects", "next: kubectl apply")
	if got := sandboxOf(t, ns, "a").Spec.ExistingConnections; got != v1alpha1.ExistingAll {
		t.Errorf("a part of what was refused has been applied: %s", got)
	}
	// Somebody else's fields.
	if _, err := plane.KubectlInput(t.Context(), strings.NewReader(strings.Replace(objects(""), "1h", "3h", 1)), "apply", "-n", ns, "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	_, said = sidetrack(t, ns, 1, "sandbox", "apply", "-f", file(t, objects("")))
	mustSay(t, said, "spec.ttl", "--force-conflicts")
	sidetrack(t, ns, 0, "sandbox", "apply", "-f", file(t, objects("")), "--force-conflicts")
}

func TestNamesAreCompleted(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	for _, name := range []string{"pr-1", "pr-2", "other"} {
		create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	for args, want := range map[string]string{
		"sandbox get pr":               "pr-1\npr-2\n",
		"sandbox delete pr-1 pr":       "pr-2\n",
		"sandbox wait ":                "other\npr-1\npr-2\n",
		"sandbox create x --fork ":     "deploy/route\n",
		"sandbox get -n " + ns[:5]:     ns + "\n",
		"sandbox wait a --for ":        "ready\ndeleted\n",
		"sandbox create a --dry-run s": "server\n",
	} {
		words := strings.Split(args, " ")
		r := start(t.Context(), t, ns, "", append([]string{}, completing(ns, words)...)...)
		if got := r.wait(t); got != 0 {
			t.Errorf("%q: exit status %d", args, got)
		}
		if out := r.out.String(); !strings.Contains(out, want) {
			t.Errorf("%q is completed with %q, want %q", args, out, want)
		}
	}
}

// completing are the arguments with which a shell asks for completions.
func completing(ns string, words []string) []string {
	return append([]string{"__complete", "-n", ns}, words...)
}
