// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	ours "github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// ofASandbox are commands that look at a sandbox of this name before all else.
var ofASandbox = []string{
	"sandbox get nobody", "sandbox get nobody -w", "sandbox get nobody -o json", "sandbox delete nobody", "sandbox wait nobody", "sandbox key nobody",
	"run --sandbox nobody --image x -- y", "proxy --sandbox nobody", "diff --sandbox nobody http://a/", "trace nobody", "trace nobody --follow", "explain nobody a", "logs nobody", "status nobody",
}

// ofANamespace are commands that look at the namespace as a whole.
var ofANamespace = []string{"sandbox get", "sandbox list -o name", "sandbox list -w", "status", "status -w"}

// meets has somebody run commands, each of which has to fail with these words and to say
// what to do next.
func meets(t *testing.T, kubeconfig, namespace string, commands []string, words ...string) {
	t.Helper()
	for _, args := range commands {
		r := startAs(t.Context(), t, kubeconfig, namespace, "", strings.Fields(args)...)
		got, said := r.wait(t), r.err.String()
		want := 1
		if strings.HasPrefix(args, "run ") {
			want = 125 // it could not be run
		}
		if got != want {
			t.Errorf("%s: exit status %d, want %d", args, got, want)
		}
		for _, w := range append(words, "\nnext: ") {
			if !strings.Contains(said, w) {
				t.Errorf("%s does not say %q:\n%s%s", args, w, r.out.String(), said)
			}
		}
	}
}

func admin(t *testing.T) string {
	t.Helper()
	config, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestAWrongNameIsToldWithTheRightOnes(t *testing.T) {
	ns := namespace(t)
	meets(t, admin(t), ns, ofASandbox, "there is no sandbox nobody in namespace "+ns, "next: create it, or choose another namespace with -n")
	meets(t, admin(t), ns, []string{"trace nobody --group"}, "there is no RouteGroup nobody in namespace "+ns, "next: create it, or choose another namespace with -n")
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	create(t, &v1alpha1.RouteGroup{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "g"}, Spec: v1alpha1.RouteGroupSpec{Sandboxes: []v1alpha1.SandboxRef{{Name: "a"}}}})
	meets(t, admin(t), ns, ofASandbox, "there is no sandbox nobody in namespace "+ns, "next: there are a; -n chooses another namespace")
	meets(t, admin(t), ns, []string{"trace nobody --group"}, "next: there are g; -n chooses another namespace")
}

// TestASandboxIsNamedAsItsNameIsPrinted: by -o name, and as kubectl takes it.
func TestASandboxIsNamedAsItsNameIsPrinted(t *testing.T) {
	ns := namespace(t)
	for _, kind := range []string{"sandbox.sidetrack.dev/", "sandbox/"} {
		var commands []string
		for _, args := range ofASandbox {
			commands = append(commands, strings.ReplaceAll(args, "nobody", kind+"nobody"))
		}
		meets(t, admin(t), ns, commands, "there is no sandbox nobody in namespace "+ns)
	}
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "b"}})
	names, _ := sidetrack(t, ns, 0, "sandbox", "list", "-o", "name")
	out, _ := sidetrack(t, ns, 0, append([]string{"sandbox", "get", "-o", "name"}, strings.Fields(names)...)...)
	if out != names || len(strings.Fields(names)) != 2 {
		t.Errorf("get prints %q of %q", out, names)
	}
	sidetrack(t, ns, 0, append([]string{"sandbox", "delete"}, strings.Fields(names)...)...)
}

func TestANamespaceThatIsNotThereIsToldAsSuch(t *testing.T) {
	meets(t, admin(t), "nowhere", append(ofASandbox, "trace nobody --group"), `nowhere`, "next: create it, or choose another namespace with -n")
	objects := "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: a}\nspec: {}\n"
	meets(t, admin(t), "nowhere", []string{"sandbox create a", "sandbox apply -f " + file(t, objects)}, `namespaces "nowhere" not found`, "next: create it, or choose another namespace with -n")
	for _, args := range []string{"sandbox list", "status"} {
		_, said := sidetrack(t, "nowhere", 0, strings.Fields(args)...)
		mustSay(t, said, "No sandboxes found: there is no namespace nowhere: create it, or choose another namespace with -n")
	}
	out, _ := sidetrack(t, "nowhere", 3, "doctor")
	mustSay(t, columns(out), "MISSING namespace there is no namespace nowhere: create it, or choose another namespace with -n")
}

func TestWhoMayNothingIsToldWhatToAskForByEachCommand(t *testing.T) {
	ns := namespace(t)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(config, plane.User("joe")); err != nil {
		t.Fatal(err)
	}
	meets(t, config, ns, append(ofANamespace, append(ofASandbox, "trace nobody --group")...), `User "joe" cannot `, "next: ask for ClusterRole edit in the namespace", "or view to look only; sidetrack doctor says what else is missing")
}

func TestWithoutTheDefinitionsEachCommandSaysWhatToInstall(t *testing.T) {
	bare, err := cluster.NewControlPlane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bare.Close(); err != nil {
			t.Error(err)
		}
	})
	config, err := bare.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	objects := "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: a}\nspec: {}\n"
	all := append(ofANamespace, append(ofASandbox, "trace nobody --group", "sandbox create a", "sandbox create a --update", "sandbox apply -f "+file(t, objects))...)
	meets(t, config, "default", all, "next: Sidetrack is not installed in this cluster: kubectl apply --server-side -f deploy/install.yaml, then sidetrack doctor")
}

func TestAKubeconfigThatIsWrongIsToldAsSuch(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("this: is: no: kubeconfig"), 0o600); err != nil {
		t.Fatal(err)
	}
	commands := []string{"sandbox list", "sandbox create a", "status", "doctor", "trace a", "run --sandbox a --image b -- c"}
	const next = "next: mend it, or name another with --kubeconfig or KUBECONFIG; kubectl config get-contexts lists what --context can be"
	meets(t, broken, "default", commands, "cannot read the kubeconfig: ", broken, next)
	meets(t, "/nowhere/kubeconfig", "default", commands, "cannot read the kubeconfig: stat /nowhere/kubeconfig: no such file or directory", next)
	var elsewhere []string
	for _, c := range commands {
		elsewhere = append(elsewhere, strings.Replace(c, " -- ", " --context=nowhere -- ", 1))
		if !strings.Contains(c, " -- ") {
			elsewhere[len(elsewhere)-1] += " --context=nowhere"
		}
	}
	meets(t, admin(t), "default", elsewhere, `cannot read the kubeconfig: context "nowhere" does not exist`, next)
}

func TestStatusOfAClusterWithoutNodesSaysSo(t *testing.T) {
	ns := namespace(t)
	out, said := sidetrack(t, ns, 0, "status")
	mustSay(t, said, "No sandboxes found in namespace "+ns+".", "No node has an agent: sidetrack doctor says what is missing.")
	if out != "" {
		t.Errorf("it prints %q", out)
	}
}

// TestARunWhoseAgentsImageIsNotKnownCouldNotBeRun: nothing tells which of two DaemonSets is
// the agents'.
func TestARunWhoseAgentsImageIsNotKnownCouldNotBeRun(t *testing.T) {
	t.Setenv("SIDETRACK_AGENT_IMAGE", "")
	ns := namespace(t)
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "a"}})
	for _, in := range []string{ns, namespace(t)} {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: "sidetrack-agent", Labels: ours.AgentLabels}}
		pods := map[string]string{"a": "b"}
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: pods}
		d.Spec.Template = corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pods}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: in + ":1"}}}}
		create(t, d)
		t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(t.Context()), d) })
	}
	meets(t, admin(t), ns, []string{"run --sandbox a --image x -- y"}, "several objects say by their labels that they are Sidetrack's agent", "--agent-image")
}
