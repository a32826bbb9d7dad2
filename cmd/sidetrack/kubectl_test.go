// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// plugin is a folder for the PATH in which the program is kubectl's plugin, as make
// build leaves it, beside the real kubectl.
func plugin(t *testing.T) string {
	t.Helper()
	kubectl, err := plane.KubectlCommand(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, file := range map[string]string{"kubectl": kubectl.Path, "kubectl-sidetrack": builtProgram(t), "kubectl_complete-sidetrack": builtProgram(t)} {
		if err := os.Symlink(file, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// contexts writes a kubeconfig in which the current context has the namespace default,
// and the context other another one.
func contexts(t *testing.T, other string) string {
	t.Helper()
	file, err := plane.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	current := config.Contexts[config.CurrentContext]
	config.Contexts["other"] = &clientcmdapi.Context{Cluster: current.Cluster, AuthInfo: current.AuthInfo, Namespace: other}
	own := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, own); err != nil {
		t.Fatal(err)
	}
	return own
}

// kubectl runs the real one with the plugin.
func kubectl(t *testing.T, folder, kubeconfig string, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(folder, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "KUBECONFIG="+kubeconfig, "HOME="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if got := cmd.ProcessState.ExitCode(); err != nil && !errors.As(err, &exit) || got != want {
		t.Fatalf("kubectl %s: %v, exit status %d, want %d\n%s\n%s", strings.Join(args, " "), err, got, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func TestTheProgramIsAPluginOfARealKubectl(t *testing.T) {
	ns, folder := namespace(t), plugin(t)
	config := contexts(t, ns)
	deployment(t, ns, "route", "app")
	if out, _ := kubectl(t, folder, config, 0, "plugin", "list"); !strings.Contains(out, "kubectl-sidetrack") {
		t.Errorf("kubectl plugin list: %s", out)
	}
	out, _ := kubectl(t, folder, config, 0, "sidetrack", "-n", ns, "sandbox", "create", "pr-42", "--fork", "route", "--image", "route:2")
	if out != "sandbox/pr-42 created\n" {
		t.Errorf("create prints %q", out)
	}
	for _, args := range [][]string{
		{"sidetrack", "-n", ns, "sandbox", "get"},
		{"sidetrack", "sandbox", "get", "pr-42", "--namespace=" + ns},
		{"sidetrack", "--context", "other", "sandbox", "get"},
		{"sidetrack", "sandbox", "list", "--context=other", "--kubeconfig", config, "--request-timeout=30s"},
	} {
		out, _ := kubectl(t, folder, config, 0, args...)
		mustSay(t, out, "NAME", "pr-42")
	}
	// kubectl knows what it prints.
	name, _ := kubectl(t, folder, config, 0, "sidetrack", "--context=other", "sandbox", "get", "-o", "name")
	out, _ = kubectl(t, folder, config, 0, "get", "-n", ns, strings.TrimSpace(name), "-o", "jsonpath={.spec.forks[0].workload.name}")
	if out != "route" {
		t.Errorf("kubectl get %s prints %q", name, out)
	}

	out, _ = kubectl(t, folder, config, 0, "sidetrack", "sandbox", "create", "--help")
	mustSay(t, out, "kubectl sidetrack sandbox create NAME [flags]", "kubectl sidetrack sandbox create pr-42 --fork")
	out, _ = kubectl(t, folder, config, 0, "sidetrack")
	mustSay(t, out, "kubectl sidetrack [command]", "kubectl sidetrack run --sandbox pr-42")
	// The exit status is the plugin's, and so are the words.
	_, said := kubectl(t, folder, config, 2, "sidetrack", "sandbox", "create")
	mustSay(t, said, "kubectl sidetrack: accepts 1 arg", "next: kubectl sidetrack sandbox create --help")
	_, said = kubectl(t, folder, config, 3, "sidetrack", "-n", ns, "sandbox", "wait", "pr-42", "--timeout=100ms")
	mustSay(t, said, "kubectl sidetrack: sandbox pr-42 is not ready", ": kubectl sidetrack doctor says whether there is one", "next: kubectl sidetrack logs pr-42 -n "+ns, "mend it with kubectl sidetrack sandbox create --update")
	out, _ = kubectl(t, folder, config, 3, "sidetrack", "-n", ns, "explain", "pr-42")
	mustSay(t, out, "kubectl sidetrack sandbox wait pr-42")
	if strings.Contains(strings.ReplaceAll(out, "kubectl sidetrack", ""), "sidetrack sandbox") {
		t.Errorf("it names a program that the user may not have:\n%s", out)
	}
}

func TestKubectlCompletesThePlugin(t *testing.T) {
	ns, folder := namespace(t), plugin(t)
	config := contexts(t, ns)
	deployment(t, ns, "route", "app")
	for _, name := range []string{"pr-42", "pr-43"} {
		kubectl(t, folder, config, 0, "sidetrack", "-n", ns, "sandbox", "create", name, "--fork", "route", "--image", "route:2")
	}
	out, _ := kubectl(t, folder, config, 0, "__complete", "sidetrack", "-n", ns, "sandbox", "get", "")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); !slices.Equal(lines, []string{"pr-42", "pr-43", ":4"}) {
		t.Errorf("kubectl __complete prints %q", lines)
	}
	eachShell(t, func(t *testing.T, shell string) {
		for _, c := range []completionCase{
			{"kubectl sidetr", []string{"sidetrack"}, false},
			{"kubectl sidetrack sandbox cr", []string{"create"}, false},
			{"kubectl sidetrack -n " + ns + " sandbox get ", []string{"pr-42", "pr-43"}, false},
			{"kubectl sidetrack --context other trace pr-42 -o w", []string{"wide"}, false},
			{"kubectl sidetrack trace --con", []string{"--context"}, false},
		} {
			c.check(t, completed(t, shell, folder, config, c.line))
		}
	})
}
