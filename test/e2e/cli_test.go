// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// cli is the user's program, built once.
var cli struct {
	once sync.Once
	file string
	err  error
}

// sidetrackProgram builds the program, which reaches the cluster by its API server
// alone: it runs in no pod, and on no node of its own.
func sidetrackProgram(t *testing.T) string {
	t.Helper()
	cli.once.Do(func() {
		var dir string
		if dir, cli.err = filepath.Abs(filepath.Join(root, "bin")); cli.err != nil {
			return
		}
		cli.file = filepath.Join(dir, "sidetrack")
		cmd := exec.Command("go", "build", "-o", cli.file, "./cmd/sidetrack")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			cli.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if cli.err != nil {
		t.Fatalf("build sidetrack: %v", cli.err)
	}
	return cli.file
}

func sidetrackCommand(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	config, err := kube.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, sidetrackProgram(t), append([]string{"--kubeconfig=" + config, "-n", shop}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// sidetrack runs the program and wants an exit status.
func sidetrack(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := sidetrackCommand(ctx, t, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	got := cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || got != want {
		t.Fatalf("sidetrack %s: %v, exit status %d, want %d\n%s\n%s", strings.Join(args, " "), err, got, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func mustSay(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

// noPodLeft waits until no pod of the program's is there.
func noPodLeft(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		var pods corev1.PodList
		if err := client.List(ctx, &pods, ctrlclient.InNamespace(shop), ctrlclient.MatchingLabels{"app.kubernetes.io/managed-by": "sidetrack"}); err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.Labels[v1alpha1.ForkLabel] == "" {
				return fmt.Errorf("pod %s is still there", p.Name)
			}
		}
		return nil
	})
}

// commandLine is the loop as a person or an agent goes through it, with no more
// than the program and the API server.
func commandLine(t *testing.T) {
	out, _ := sidetrack(t, 0, "doctor")
	mustSay(t, out, "agents", "on 2 of 2 nodes", "CRDs", "permissions")
	if strings.Contains(out, "MISSING") {
		t.Errorf("something is missing:\n%s", out)
	}

	began := time.Now()
	// What diff sends comes in at front; who loses the key behind it is to be known.
	out, said := sidetrack(t, 0, "sandbox", "create", "cli", "--fork", "deploy/route", "--image", "sidetrack.test/shop:pr-42", "--observe", "front,cart", "--ttl", "1h", "--wait")
	deleteAfterwards(t, "-n", shop, "sandbox/cli")
	figure("sidetrack sandbox create --wait", "%.1f s", time.Since(began).Seconds())
	mustSay(t, out, "sandbox/cli ready")
	mustSay(t, said, "fork Deployment/route: 1 of 1 pods ready", "in force on 2 of 2 nodes")
	untilCovered(t)

	out, _ = sidetrack(t, 0, "status", "cli")
	mustSay(t, out, "node-1", "node-2", "covered", "2 of 2", "redirect route -> ", "(fork of Deployment/route), 1 endpoints")

	t.Run("run", func(t *testing.T) { runInSandbox(t) })
	t.Run("proxy", func(t *testing.T) { throughProxy(t) })
	t.Run("diff", func(t *testing.T) { plantedDifference(t) })
	t.Run("explain", func(t *testing.T) {
		out, _ := sidetrack(t, 0, "explain", "cli", "http://route.shop/", "--from", "deploy/cart")
		mustSay(t, out, "redirect route -> ", "1 ready endpoints answer", "nothing is known that keeps tagged requests to route from deploy/cart from the fork")
		out, _ = sidetrack(t, 3, "explain", "cli", "stock")
		mustSay(t, out, "the sandbox does not redirect Service stock")
	})
	t.Run("logs", func(t *testing.T) {
		out, _ := sidetrack(t, 0, "logs", "cli")
		if out != "" && !strings.HasPrefix(out, "[route/route ") {
			t.Errorf("the logs are %q", out)
		}
	})
	t.Run("a broken image", func(t *testing.T) { brokenOnCommandLine(t) })

	// The next attempt replaces the fork.
	sidetrack(t, 0, "sandbox", "create", "cli", "--update", "--fork", "deploy/stock", "--image", "sidetrack.test/shop:pr-42", "--ttl", "1h", "--wait")
	untilCovered(t)
	out, _ = sidetrack(t, 0, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", front)
	mustSay(t, out, `"Service":"route","Version":"v1"`, `"Service":"stock","Version":"pr-42"`)
	sidetrack(t, 0, "sandbox", "delete", "cli")
	noPodLeft(t)
}

func runInSandbox(t *testing.T) {
	began := time.Now()
	out, said := sidetrack(t, 0, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--env", "GREETING=hello", "--", "/shop", "check", "-want", `"Service":"route","Version":"pr-42"`, front)
	figure("sidetrack run, one request through the fork", "%.1f s", time.Since(began).Seconds())
	mustSay(t, out, `200 OK [{"Service":"front","Version":"v1"`, `"Service":"route","Version":"pr-42"`)
	mustSay(t, said, "runs on node ", "forks answered while it ran, at: route")
	// A green in which no fork had a part is said to be one.
	_, said = sidetrack(t, 0, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", stock)
	mustSay(t, said, "NOT VERIFIED", "no call to a fork is on record while it ran", "next: sidetrack trace cli -n shop --since 2m")
	// Its first request, right after its start, is tagged: it never sees the baseline.
	for range 5 {
		sidetrack(t, 0, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", "-want", `"Service":"route","Version":"pr-42"`, front)
	}
	sidetrack(t, 42, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", "-want", "what nobody says", "-exit", "42", front)
	_, said = sidetrack(t, 124, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--timeout", "1s", "--", "/shop", "check", "-sleep", "10m", front)
	mustSay(t, said, "the command has not ended within 1s")
	_, said = sidetrack(t, 125, "run", "--sandbox", "cli", "--image", "sidetrack.test/nobody-has-built-it:1", "--image-pull-policy", "Never", "--", "/shop")
	mustSay(t, said, "the command has not been started", "nobody-has-built-it")
	_, said = sidetrack(t, 125, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/no-such-program")
	mustSay(t, said, "the command has not been started", "no-such-program")

	// Whoever interrupts it leaves nothing.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := sidetrackCommand(ctx, t, "run", "--sandbox", "cli", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", "-sleep", "10m", front)
	var errs transcript.Log
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func(context.Context) error {
		if !strings.Contains(errs.String(), "runs on node") {
			return fmt.Errorf("the command does not run: %s", errs.String())
		}
		return nil
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 {
		t.Errorf("interrupted, its exit status is %d: %s", got, errs.String())
	}
	noPodLeft(t)
}

func throughProxy(t *testing.T) {
	const tagged, database = `"Service":"route","Version":"pr-42"`, `"Database":"everybody"`
	began := time.Now()
	out, _ := sidetrack(t, 0, "proxy", "--sandbox", "cli", "--", "curl", "-sS", "--fail", "http://front.shop/")
	figure("sidetrack proxy, one request through the fork", "%.1f s", time.Since(began).Seconds())
	mustSay(t, out, tagged, database)
	// The same inside tunnels: by SOCKS5 and by CONNECT.
	script := `curl -sS --fail --proxy "$all_proxy" http://front.shop/ && curl -sS --fail --proxytunnel --proxy "$http_proxy" http://front.shop.svc/ &&
		curl -sS --fail -d @- -o /dev/null -w '%{http_code} ' http://front.shop/ <"$0" && curl -sS -o /dev/null -w '%{http_code} ' http://nobody.shop/; curl -sS http://route.shop:81/; exit 3`
	out, _ = sidetrack(t, 3, "proxy", "--sandbox", "cli", "--", "bash", "-c", script, sidetrackProgram(t)+"-no-such-file")
	if n := strings.Count(out, tagged); n != 2 {
		t.Errorf("%d of 2 answers are the fork's:\n%s", n, out)
	}
	noPodLeft(t)
}

// plantedDifference has the fork of route answer as another version, and nothing else
// differ, although pods, ports and what services repeat of their requests do.
func plantedDifference(t *testing.T) {
	began := time.Now()
	out, _ := sidetrack(t, 4, "diff", "--sandbox", "cli", "http://front.shop/", "-o", "json")
	figure("sidetrack diff of one request that differs", "%.1f s", time.Since(began).Seconds())
	var results []struct {
		Differences   []struct{ Where, Baseline, Sandbox string }
		SandboxStatus int
		Verified      bool
	}
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	for _, d := range results[0].Differences {
		got = append(got, d.Where+" "+d.Baseline+" "+d.Sandbox)
	}
	want := []string{`$[2].Sandbox (absent) "cli"`, `$[2].Version "v1" "pr-42"`}
	if diff := cmp.Diff(want, got); diff != "" || results[0].SandboxStatus != 200 || !results[0].Verified {
		t.Errorf("differences (-want +got):\n%s\n%s", diff, out)
	}
	requests := filepath.Join(t.TempDir(), "requests.yaml")
	if err := os.WriteFile(requests, []byte("- http://stock.shop/\n- {method: post, url: http://cart.shop/, body: {item: 7}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = sidetrack(t, 4, "diff", "--sandbox", "cli", "-f", requests)
	mustSay(t, out, "GET http://stock.shop/: no difference (200)", "POST http://cart.shop/: 2 differences", "$[1].Version\n    - \"v1\"\n    + \"pr-42\"")
	// No fork is asked: that nothing differs says nothing.
	out, said := sidetrack(t, 5, "diff", "--sandbox", "cli", "http://stock.shop/")
	mustSay(t, out, "no difference (200)", "NOT VERIFIED", "no call of this request is known to have been answered by a fork")
	mustSay(t, said, "not verified that a fork answered 1 of 1 requests", "next: ")
	sidetrack(t, 0, "diff", "--sandbox", "cli", "http://front.shop/", "--ignore", "$[2].Sandbox", "--ignore", "$[*].Version")
	_, said = sidetrack(t, 1, "diff", "--sandbox", "cli", "http://nobody.shop/")
	mustSay(t, said, "were answered by nobody", "next: ")
	noPodLeft(t)
}

func brokenOnCommandLine(t *testing.T) {
	deleteAfterwards(t, "-n", shop, "sandbox/broken-cli")
	_, said := sidetrack(t, 3, "sandbox", "create", "broken-cli", "--fork", "stock", "--image", "sidetrack.test/shop:nobody-has-built-it", "--wait")
	mustSay(t, said, "sandbox broken-cli is not ready", "nobody-has-built-it", "container stock", "next: ")
	broken := strings.NewReplacer("NAME", "broken-cli").Replace(`
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: NAME, namespace: shop}
spec:
  forks:
  - workload: {name: stock}
    patch: {spec: {containers: [{name: stock, args: [crash]}]}}
`)
	file := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	_, said = sidetrack(t, 3, "sandbox", "apply", "-f", file, "--wait", "--force-conflicts")
	mustSay(t, said, "the shelves have fallen over", "exit code 1")
	out, _ := sidetrack(t, 0, "logs", "broken-cli", "--fork", "stock")
	mustSay(t, out, "[stock/stock ", "the shelves have fallen over")
}
