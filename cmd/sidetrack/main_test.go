// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cli"
	ours "github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// These tests run the program against a real API server with our CRDs. There is
// no controller and no node: what these would say the tests say themselves.

var (
	plane *cluster.ControlPlane
	api   client.WithWatch
)

type withCRDs struct{ *testing.M }

func (m withCRDs) Run() int {
	err := plane.Apply(context.Background(), "../../deploy/charts/sidetrack-crds/templates")
	if err == nil {
		var c *ours.Cluster
		if c, err = ours.Connect(plane.Admin(), "default", nil); err == nil {
			api = c.Objects
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "set the API server up:", err)
		return 1
	}
	return m.M.Run()
}

// buildDir is where tests put what they build.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "sidetrack-test-"); err != nil {
		fmt.Fprintln(os.Stderr, "make a folder:", err)
		os.Exit(1)
	}
	status := cluster.WithControlPlane(withCRDs{m}, &plane)
	os.RemoveAll(buildDir)
	os.Exit(status)
}

// run is one run of the program.
type run struct {
	out, err transcript.Log
	done     chan int
}

// start starts the program as an administrator in a namespace.
func start(ctx context.Context, t *testing.T, namespace, stdin string, args ...string) *run {
	t.Helper()
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	return startAs(ctx, t, config, namespace, stdin, args...)
}

func startAs(ctx context.Context, t *testing.T, kubeconfig, namespace, stdin string, args ...string) *run {
	t.Helper()
	r := &run{done: make(chan int, 1)}
	args = append([]string{"sidetrack", "--kubeconfig=" + kubeconfig, "--cache-dir=" + t.TempDir(), "-n", namespace}, args...)
	go func() {
		r.done <- cli.Main(ctx, args, genericiooptions.IOStreams{In: strings.NewReader(stdin), Out: &r.out, ErrOut: &r.err}, "test")
	}()
	return r
}

// wait returns the exit status.
func (r *run) wait(t *testing.T) int {
	t.Helper()
	select {
	case status := <-r.done:
		return status
	case <-time.After(time.Minute):
		t.Fatalf("it does not end\n%s\n%s", r.out.String(), r.err.String())
		return -1
	}
}

// sidetrack runs the program and wants an exit status.
func sidetrack(t *testing.T, namespace string, want int, args ...string) (out, errOut string) {
	t.Helper()
	r := start(t.Context(), t, namespace, "", args...)
	if got := r.wait(t); got != want {
		t.Fatalf("sidetrack %s: exit status %d, want %d\n%s\n%s", strings.Join(args, " "), got, want, r.out.String(), r.err.String())
	}
	return r.out.String(), r.err.String()
}

func mustSay(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

var namespaces atomic.Int64

func namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", namespaces.Add(1))
	create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	return name
}

func create(t *testing.T, o client.Object) {
	t.Helper()
	if err := api.Create(t.Context(), o); err != nil {
		t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
}

// deployment makes one with these containers; each has the image NAME:1.
func deployment(t *testing.T, ns, name string, containers ...string) {
	t.Helper()
	app := map[string]string{"app": name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}},
		},
	}
	for _, c := range containers {
		d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, corev1.Container{Name: c, Image: c + ":1"})
	}
	create(t, d)
}

func sandboxOf(t *testing.T, ns, name string) *v1alpha1.Sandbox {
	t.Helper()
	var sb v1alpha1.Sandbox
	if err := api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &sb); err != nil {
		t.Fatal(err)
	}
	return &sb
}

// says has the controller say something of a sandbox, as soon as there is one.
func says(t *testing.T, ns, name string, status func(*v1alpha1.Sandbox)) {
	t.Helper()
	eventually(t, func() error {
		var sb v1alpha1.Sandbox
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &sb); err != nil {
			return err
		}
		status(&sb)
		for i := range sb.Status.Conditions {
			sb.Status.Conditions[i].ObservedGeneration = sb.Generation
			sb.Status.Conditions[i].LastTransitionTime = metav1.Now()
		}
		return api.Status().Update(t.Context(), &sb)
	})
}

func condition(kind string, ok bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// file writes a file for the program to read.
func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
