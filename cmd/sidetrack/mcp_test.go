// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cli"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// agent is a coding agent's end of "sidetrack mcp".
type agent struct {
	*mcp.ClientSession

	mu       sync.Mutex
	progress []string
}

func (a *agent) heard() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.progress, "\n")
}

func (a *agent) options() *mcp.ClientOptions {
	return &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.progress = append(a.progress, r.Params.Message)
	}}
}

// newAgent runs "sidetrack mcp" in this process and connects to it by its
// standard input and output.
func newAgent(t *testing.T, ns string, flags ...string) *agent {
	t.Helper()
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	theirIn, ourOut := io.Pipe()
	ourIn, theirOut := io.Pipe()
	done := make(chan int, 1)
	var said transcript.Log
	go func() {
		args := append([]string{"sidetrack", "mcp", "--kubeconfig=" + config, "--cache-dir=" + t.TempDir(), "-n", ns}, flags...)
		done <- cli.Main(t.Context(), args, genericiooptions.IOStreams{In: theirIn, Out: theirOut, ErrOut: &said}, "test")
	}()
	a := &agent{}
	a.ClientSession, err = mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, a.options()).
		Connect(t.Context(), &mcp.IOTransport{Reader: ourIn, Writer: ourOut}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Close()
		ourOut.Close()
		select {
		case status := <-done:
			if status != 0 || said.String() != "" {
				t.Errorf("exit status %d, standard error %q", status, said.String())
			}
		case <-time.After(time.Minute):
			t.Error("it does not end with its input")
		}
	})
	return a
}

type object = map[string]any

// call calls a tool, and wants it to fail or not.
func (a *agent) call(t *testing.T, failing bool, tool string, arguments object) (text string, content object) {
	t.Helper()
	r, err := a.CallTool(t.Context(), calling(tool, arguments))
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	text = r.Content[0].(*mcp.TextContent).Text
	if r.IsError != failing {
		t.Fatalf("%s: isError is %t: %s", tool, r.IsError, text)
	}
	content, _ = r.StructuredContent.(object)
	if content == nil && !failing {
		t.Errorf("%s: the structured content is %v", tool, r.StructuredContent)
	}
	return text, content
}

func calling(tool string, arguments object) *mcp.CallToolParams {
	p := &mcp.CallToolParams{Name: tool, Arguments: arguments}
	p.SetProgressToken(tool)
	return p
}

// service selects the pods of a workload of the same name.
func service(t *testing.T, ns, name string) {
	t.Helper()
	create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Name: "http", Port: 8080}, {Name: "sql", Port: 5432}}},
	})
}

// ready has the controller say that a sandbox is ready.
func ready(t *testing.T, ns, name string) {
	t.Helper()
	says(t, ns, name, func(sb *v1alpha1.Sandbox) {
		sb.Status.RoutingKey = "key-of-sandbox-" + name
		sb.Status.Forks = []v1alpha1.ForkStatus{{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Name: "route-x", Replicas: 1, Ready: 1}}
		sb.Status.Redirects = []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "route-x"}, Fork: "Deployment/route", Endpoints: 1}}
		sb.Status.Nodes = &v1alpha1.NodeCount{Programmed: 2, Total: 2}
		sb.Status.Conditions = []metav1.Condition{
			condition("Accepted", true, "Accepted", ""), condition("ForksReady", true, "ForksReady", ""),
			condition("Programmed", true, "Programmed", "in force on 2 of 2 nodes"), condition("Ready", true, "Ready", "all is well"),
		}
	})
}

func TestAnAgentSeesWhatCanBeForkedAndWhereItIsReached(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	deployment(t, ns, "stock", "app", "proxy")
	service(t, ns, "route")
	a := newAgent(t, ns)
	text, got := a.call(t, false, "list_workloads", object{})
	mustSay(t, text, "- Deployment/route: app (app:1); http://route."+ns+":8080, route."+ns+":5432", "- Deployment/stock: app (app:1), proxy (proxy:1)")
	want := object{"namespace": ns, "workloads": []any{
		object{"workload": "Deployment/route", "containers": []any{object{"name": "app", "image": "app:1"}}, "urls": []any{"http://route." + ns + ":8080", "route." + ns + ":5432"}},
		object{"workload": "Deployment/stock", "containers": []any{object{"name": "app", "image": "app:1"}, object{"name": "proxy", "image": "proxy:1"}}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("structured content (-want +got):\n%s", diff)
	}
	_, got = a.call(t, false, "list_workloads", object{"contains": "sto"})
	if n := len(got["workloads"].([]any)); n != 1 {
		t.Errorf("%d workloads contain sto", n)
	}
	text, _ = a.call(t, false, "list_workloads", object{"namespace": "default"})
	mustSay(t, text, "Nothing that can be forked in namespace default. Other namespaces: ", ns)
}

func TestLongListsAreCutAndSayHowToGetTheRest(t *testing.T) {
	ns := namespace(t)
	for i := range 42 {
		deployment(t, ns, fmt.Sprintf("d-%02d", i), "app")
		create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("s-%02d", i)}})
	}
	a := newAgent(t, ns)
	for tool, list := range map[string]string{"list_workloads": "workloads", "list_sandboxes": "sandboxes"} {
		text, got := a.call(t, false, tool, nil)
		if n := len(got[list].([]any)); n != 40 || got["omitted"] != 2.0 {
			t.Errorf("%s: %d, and %v omitted", tool, n, got["omitted"])
		}
		mustSay(t, text, "and 2 more:", "detail: full")
		if _, got = a.call(t, false, tool, object{"detail": "full"}); len(got[list].([]any)) != 42 {
			t.Errorf("%s: in full there are %d", tool, len(got[list].([]any)))
		}
	}
}

func TestAnAgentCreatesChangesAndDeletesASandbox(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	create(t, serviceOf(ns, "route"))
	deployment(t, ns, "stock", "app", "proxy")
	a := newAgent(t, ns)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ready(t, ns, "pr-1")
	}()
	text, got := a.call(t, false, "create_sandbox", object{"sandbox": "pr-1", "forks": []any{
		object{"workload": "route", "image": "route:2", "env": object{"LEVEL": "debug", "URL": "http://a/b=c"}},
		object{"workload": "deploy/stock", "container": "proxy", "remove_env": []any{"OLD"}},
	}, "redirects": []any{object{"from": "postgres:5432", "to": "mine/postgres:5433"}}})
	<-done
	mustSay(t, text, "Sandbox "+ns+"/pr-1 is ready", "fork of Deployment/route: 1 of 1 pods ready", "Service route goes to fork of Deployment/route (1 endpoints)", "in force on 2 of 2 nodes")
	if got["sandbox"] != ns+"/pr-1" || got["ready"] != true {
		t.Errorf("structured content: %v", got)
	}
	// The client tells of notifications beside the results. That it waits for the
	// controller it says only where that is slower than its first look.
	for _, w := range []string{"nodes: in force on 2 of 2 nodes", "sandbox: ready: all is well"} {
		eventually(t, func() error {
			if !strings.Contains(a.heard(), w) {
				return fmt.Errorf("it has not heard %q: %s", w, a.heard())
			}
			return nil
		})
	}
	spec := sandboxOf(t, ns, "pr-1").Spec
	want := []v1alpha1.Fork{
		{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Containers: []v1alpha1.ContainerOverride{{Name: "app", Image: "route:2", Env: []corev1.EnvVar{{Name: "LEVEL", Value: "debug"}, {Name: "URL", Value: "http://a/b=c"}}}}},
		{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "stock"}, Containers: []v1alpha1.ContainerOverride{{Name: "proxy", RemoveEnv: []string{"OLD"}}}},
	}
	if diff := cmp.Diff(want, spec.Forks); diff != "" {
		t.Errorf("forks (-want +got):\n%s", diff)
	}
	if spec.TTL == nil || spec.TTL.Duration != 2*time.Hour {
		t.Errorf("its ttl is %v", spec.TTL)
	}
	if !slices.Equal(spec.Observe, []string{"route"}) {
		t.Errorf("it observes %q", spec.Observe)
	}
	if r := spec.Redirects; len(r) != 1 || r[0].To.Namespace != "mine" || r[0].From.Service != "postgres" {
		t.Errorf("redirects: %v", r)
	}

	text, _ = a.call(t, true, "create_sandbox", object{"sandbox": "pr-1", "forks": []any{object{"workload": "route", "image": "route:3"}}})
	mustSay(t, text, "there is a sandbox pr-1 in namespace "+ns+" already", "next: call create_sandbox with update: true")
	_, got = a.call(t, false, "create_sandbox", object{"sandbox": ns + "/pr-1", "update": true, "ttl": "never", "wait_seconds": 0, "forks": []any{object{"workload": "route", "image": "route:3"}}})
	if got["ready"] != false || got["why"] != "the controller has not looked at it yet" {
		t.Errorf("a status of the generation before is believed: %v", got)
	}
	spec = sandboxOf(t, ns, "pr-1").Spec
	if len(spec.Forks) != 1 || spec.Forks[0].Containers[0].Image != "route:3" || spec.TTL != nil || len(spec.Redirects) != 0 {
		t.Errorf("changed, its spec is %+v", spec)
	}

	text, _ = a.call(t, false, "delete_sandbox", object{"sandbox": "pr-1"})
	mustSay(t, text, "Sandbox "+ns+"/pr-1 is deleted")
	text, got = a.call(t, false, "delete_sandbox", object{"sandbox": "pr-1"})
	mustSay(t, text, "there is no sandbox pr-1")
	if got["deleted"] != false {
		t.Errorf("it was deleted a second time: %v", got)
	}
}

func TestTheRoutingKeyIsToldToWhoeverAsksForItOnly(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	a := newAgent(t, ns)
	a.call(t, false, "create_sandbox", object{"sandbox": "pr-1", "wait_seconds": 0, "forks": []any{object{"workload": "route", "image": "route:2", "env": object{"PASSWORD": "secret-value"}}}})
	text, _ := a.call(t, true, "sandbox_status", object{"sandbox": "pr-1", "show_routing_key": true})
	mustSay(t, text, "has no routing key yet", "next: call sandbox_status with wait_seconds")
	ready(t, ns, "pr-1")
	const key = "key-of-sandbox-pr-1"
	for tool, arguments := range map[string]object{
		"sandbox_status": {"sandbox": "pr-1", "detail": "full"}, "list_sandboxes": {"detail": "full"}, "list_workloads": {"detail": "full"},
	} {
		text, got := a.call(t, false, tool, arguments)
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{key, "secret-value"} {
			if strings.Contains(text+string(b), secret) {
				t.Errorf("%s tells %s: %s\n%s", tool, secret, text, b)
			}
		}
	}
	if strings.Contains(a.heard(), key) {
		t.Errorf("the progress tells it: %s", a.heard())
	}
	text, got := a.call(t, false, "sandbox_status", object{"sandbox": "pr-1", "show_routing_key": true})
	mustSay(t, text, "baggage: sidetrack="+key)
	if got["routing_key"] != key || got["header"] != "baggage: sidetrack="+key {
		t.Errorf("structured content: %v", got)
	}
	says(t, ns, "pr-1", func(sb *v1alpha1.Sandbox) {
		sb.Status.KeyNames = &v1alpha1.CommonKeyNames{Members: []string{"acme"}, Header: "x-acme"}
	})
	if _, got := a.call(t, false, "sandbox_status", object{"sandbox": "pr-1", "show_routing_key": true}); got["header"] != "baggage: acme="+key {
		t.Errorf("structured content: %v", got)
	}
	text, _ = a.call(t, true, "send_request", object{"sandbox": "pr-1", "url": "http://route." + ns, "headers": object{"X-Acme": "key-of-somebody"}})
	mustSay(t, text, "the headers have a routing key: leave it out")
	says(t, ns, "pr-1", func(sb *v1alpha1.Sandbox) {
		sb.Status.KeyNames = &v1alpha1.CommonKeyNames{Split: true, Message: "--baggage-member is a on node n1 and b on node n2"}
		sb.Status.Conditions = []metav1.Condition{condition("Accepted", true, "Accepted", "all is there"), condition("Ready", false, "KeyNamesDiffer", "nodes look for routing keys under different names: so and so")}
	})
	text, _ = a.call(t, true, "compare_responses", object{"sandbox": "pr-1", "url": "http://route." + ns})
	mustSay(t, text, "no name tags a request for all nodes: --baggage-member is a on node n1 and b on node n2", "next: ask whoever runs the cluster")
	text, _ = a.call(t, true, "run_tests", object{"sandbox": "pr-1", "image": "a"})
	mustSay(t, text, "is not ready: nodes look for routing keys under different names: so and so", "next: ")
}

func TestAHandleOutlivesTheConnection(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	_, got := newAgent(t, ns).call(t, false, "create_sandbox", object{"sandbox": "pr-1", "wait_seconds": 0, "forks": []any{object{"workload": "route", "image": "route:2"}}})
	ready(t, ns, "pr-1")
	// Another session, and another namespace that it starts in.
	again := newAgent(t, "default")
	text, _ := again.call(t, false, "sandbox_status", object{"sandbox": got["sandbox"], "wait_seconds": 30, "detail": "full"})
	mustSay(t, text, "is ready", "app runs route:2", "Programmed is True")
	again.call(t, false, "delete_sandbox", object{"sandbox": got["sandbox"]})
}

func TestFailuresSayWhatToDoNextInWordsOfTools(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app", "proxy")
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "there"}})
	a := newAgent(t, ns)
	fork := func(f object) object { return object{"sandbox": "a", "forks": []any{f}} }
	for _, c := range []struct {
		tool      string
		arguments object
		says      []string
	}{
		{"create_sandbox", fork(object{"workload": "rout", "image": "a:2"}), []string{"there is no Deployment/rout in namespace " + ns, "next: there are Deployment/route"}},
		{"create_sandbox", fork(object{"workload": "rout"}), []string{"there is no Deployment/rout", "Deployment/route; one in another namespace is named namespace/name"}},
		{"create_sandbox", fork(object{"workload": "job/route"}), []string{`"job" cannot be forked`}},
		{"create_sandbox", fork(object{"workload": "route", "image": "a:2"}), []string{"Deployment/route has several containers: app, proxy", "next: say which one with container"}},
		{"create_sandbox", fork(object{"workload": "route", "container": "nobody", "image": "a:2"}), []string{"no forked workload has such a container", "route/app, route/proxy"}},
		{"create_sandbox", fork(object{"workload": "route", "container": "app", "env": object{"A/B": "c"}}), []string{`env "A/B" is not the name of a variable`}},
		{"create_sandbox", fork(object{"workload": "route", "container": "app", "image": "a=b"}), []string{`image "a=b" is not the name of an image`}},
		{"create_sandbox", object{"sandbox": "a"}, []string{"neither forks nor redirects", "next: mend the arguments"}},
		{"create_sandbox", object{"sandbox": "a/b/c", "forks": []any{object{"workload": "route"}}}, []string{"does not name a sandbox"}},
		{"create_sandbox", object{"sandbox": "A_B", "forks": []any{object{"workload": "route"}}}, []string{"A_B"}},
		{"create_sandbox", object{"sandbox": "a", "ttl": "soon", "forks": []any{object{"workload": "route"}}}, []string{`the ttl "soon" is not a duration`}},
		{"create_sandbox", object{"sandbox": "nowhere/a", "forks": []any{object{"workload": "route", "image": "b"}}}, []string{"there is no Deployment/route in namespace nowhere"}},
		{"send_request", object{"sandbox": "there", "url": "http://route." + ns, "headers": object{"baggage": "sidetrack=key-of-somebody"}}, []string{"the headers have a routing key: leave it out"}},
		{"send_request", object{"sandbox": "nobody", "url": "http://route." + ns}, []string{"there is no sandbox nobody"}},
		{"compare_responses", object{"sandbox": "there", "url": "http://a", "headers": object{"x-sidetrack-key": "key-of-somebody"}}, []string{"the headers have a routing key"}},
		{"run_tests", object{"sandbox": "nobody", "image": "a"}, []string{"there is no sandbox nobody"}},
		{"run_tests", object{"sandbox": "there", "image": "a", "env": object{"A=B": "c"}}, []string{`env "A=B" is not the name of a variable`}},
		{"explain_routing", object{"sandbox": "there", "trace_id": "xyz"}, []string{`trace_id "xyz" is none: send_request replies with one`}},
		{"sandbox_logs", object{"sandbox": "there"}, []string{"has run yet", "next: sandbox_status says why"}},
		{"sandbox_logs", object{"sandbox": "there", "workload": "route"}, []string{"sandbox there has no fork of Deployment/route"}},
		{"sandbox_status", object{"sandbox": "nobody"}, []string{"there is no sandbox nobody", "there are there"}},
		{"sandbox_status", object{"sandbox": "default/nobody"}, []string{"there is no sandbox nobody in namespace default", "call list_sandboxes"}},
	} {
		text, _ := a.call(t, true, c.tool, c.arguments)
		mustSay(t, text, append(c.says, c.tool+" failed: ")...)
		// What only the command line has is no use.
		for _, w := range []string{" -n ", " -n)", "(-n", "--", "sidetrack sandbox"} {
			if strings.Contains(text, w) {
				t.Errorf("%s %v: it says %q: %s", c.tool, c.arguments, w, text)
			}
		}
	}
}

func TestAnExplanationIsInWordsOfTools(t *testing.T) {
	ns := namespace(t)
	service(t, ns, "route")
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	a := newAgent(t, ns)
	text, got := a.call(t, false, "explain_routing", object{"sandbox": "a", "target": "route"})
	if got["reaches"] != false || len(got["steps"].([]any)) == 0 {
		t.Errorf("structured content: %v", got)
	}
	mustSay(t, text, "tagged requests to route do not reach the fork", "- NO key: the sandbox has no routing key yet; next: sandbox_status of a with wait_seconds", "- unknown ledger")
	more, _ := a.call(t, false, "explain_routing", object{"sandbox": "a", "target": "route", "detail": "full"})
	mustSay(t, more, "- ok capture: ")
	if strings.Contains(text, "- ok ") {
		t.Errorf("in short it says what holds:\n%s", text)
	}
}

func TestWaitingEndsInTimeAndSaysHowToGoOn(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	a := newAgent(t, ns)
	text, _ := a.call(t, true, "create_sandbox", object{"sandbox": "a", "wait_seconds": 1, "forks": []any{object{"workload": "route", "image": "route:2"}}})
	mustSay(t, text, "sandbox a is not ready: it is not ready after 1s", "next: call create_sandbox with update: true to mend it; if it only needs more time, call sandbox_status with wait_seconds")
	sandboxOf(t, ns, "a")
}

func TestACancelledCallEndsItsWait(t *testing.T) {
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	a := newAgent(t, ns)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := a.CallTool(ctx, calling("sandbox_status", object{"sandbox": "a", "wait_seconds": 600}))
		ended <- err
	}()
	eventually(t, func() error {
		if !strings.Contains(a.heard(), "waits for the controller") {
			return fmt.Errorf("it does not wait: %q", a.heard())
		}
		return nil
	})
	cancel()
	if err := <-ended; err == nil {
		t.Error("the call was not cancelled")
	}
	// The session goes on; that the server's end of the call is over shows in that it
	// ends with its input, at the end of the test.
	a.call(t, false, "sandbox_status", object{"sandbox": "a"})
}

func TestTestsAreToldOfAndLeaveNothingWhenTheirCallIsCancelled(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	a := newAgent(t, ns, "--agent-image=sidetrackd:test")
	a.call(t, false, "create_sandbox", object{"sandbox": "a", "wait_seconds": 0, "forks": []any{object{"workload": "route", "image": "route:2"}}})
	ready(t, ns, "a")
	pods := func() []corev1.Pod {
		var list corev1.PodList
		if err := api.List(t.Context(), &list, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := a.CallTool(ctx, calling("run_tests", object{"sandbox": "a", "image": "tests:1"}))
		ended <- err
	}()
	eventually(t, func() error {
		if all := pods(); len(all) != 1 || !strings.Contains(a.heard(), "pod "+all[0].Name+": created") {
			return fmt.Errorf("%d pods, and it has heard %q", len(all), a.heard())
		}
		return nil
	})
	cancel()
	if err := <-ended; err == nil {
		t.Error("the call was not cancelled")
	}
	eventually(t, func() error {
		if n := len(pods()); n != 0 {
			return fmt.Errorf("%d pods are left", n)
		}
		return nil
	})
}

func TestTheProgramServesOverItsStandardInputAndOutput(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	var said transcript.Log
	cmd := exec.Command(builtProgram(t), "mcp", "--kubeconfig="+config, "--cache-dir="+t.TempDir(), "-n", ns)
	cmd.Stderr = &said
	cs, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &mcp.CommandTransport{Command: cmd, TerminateDuration: 30 * time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{ClientSession: cs}
	text, _ := a.call(t, false, "list_workloads", object{})
	mustSay(t, text, "Deployment/route")
	if err := a.Close(); err != nil {
		t.Errorf("the program's end: %v", err)
	}
	if s := said.String(); s != "" {
		t.Errorf("on standard error it says %q", s)
	}
}

var built struct {
	once sync.Once
	file string
	err  error
}

// builtProgram builds the program.
func builtProgram(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		built.file = filepath.Join(buildDir, "sidetrack")
		out, err := exec.Command("go", "build", "-o", built.file, ".").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build the program: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.file
}
