// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func TestTheProgramIsCalledAsTheUserHasCalledIt(t *testing.T) {
	for _, c := range []struct {
		args []string
		name string
		want []string
	}{
		{[]string{"/usr/bin/sidetrack", "version"}, "sidetrack", []string{"version"}},
		{[]string{"kubectl-sidetrack", "sandbox", "list"}, "kubectl sidetrack", []string{"sandbox", "list"}},
		{[]string{`kubectl-sidetrack.exe`}, "kubectl sidetrack", []string{}},
		{[]string{"/bin/kubectl_complete-sidetrack", "sandbox", ""}, "kubectl sidetrack", []string{"__complete", "sandbox", ""}},
		{nil, "sidetrack", nil},
	} {
		name, args := calledAs(c.args)
		if name != c.name || !slices.Equal(args, c.want) {
			t.Errorf("%q: %s %q, want %s %q", c.args, name, args, c.name, c.want)
		}
	}
}

func TestCommandsAreNamedAsTheUserCallsThem(t *testing.T) {
	const text = "see sidetrack sandbox wait pr-42; kubectl sidetrack doctor; header baggage: sidetrack=key; sidetrack runs here; mysidetrack run"
	if got := asCalled("sidetrack", text); got != strings.ReplaceAll(text, "kubectl sidetrack", "sidetrack") {
		t.Errorf("%q", got)
	}
	if got := asCalled("kubectl sidetrack", text); got != strings.Replace(text, "see sidetrack", "see kubectl sidetrack", 1) {
		t.Errorf("%q", got)
	}
	// Each command is known.
	for _, cmd := range newProgram(t.Context(), "sidetrack", "test", genericiooptions.NewTestIOStreamsDiscard()).command().Commands() {
		if got := asCalled("x", "sidetrack "+cmd.Name()); got != "x "+cmd.Name() {
			t.Errorf("%q", got)
		}
	}
}

// runProgram runs it without a cluster.
func runProgram(t *testing.T, args ...string) (status int, out, errOut string) {
	t.Helper()
	t.Setenv("KUBECONFIG", "/nowhere/kubeconfig")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var stdout, stderr bytes.Buffer
	status = Main(t.Context(), args, genericiooptions.IOStreams{In: strings.NewReader(""), Out: &stdout, ErrOut: &stderr}, "v1.2.3")
	return status, stdout.String(), stderr.String()
}

func TestAsAPluginItsHelpSaysKubectl(t *testing.T) {
	status, out, _ := runProgram(t, "kubectl-sidetrack", "sandbox", "create", "--help")
	if status != 0 || !strings.Contains(out, "kubectl sidetrack sandbox create NAME [flags]") || !strings.Contains(out, "  kubectl sidetrack sandbox create pr-42 --fork") {
		t.Errorf("exit status %d:\n%s", status, out)
	}
	_, _, said := runProgram(t, "kubectl-sidetrack", "sandbox", "create")
	if !strings.Contains(said, "next: kubectl sidetrack sandbox create --help") {
		t.Errorf("it says %q", said)
	}
}

func TestWithoutAClusterItSaysSo(t *testing.T) {
	for _, args := range []string{"sandbox list", "status", "doctor", "sandbox get a -o yaml", "run --sandbox a --image b -- c"} {
		want := exitFailed
		if strings.HasPrefix(args, "run ") {
			want = exitNotRun
		}
		status, _, said := runProgram(t, append([]string{"sidetrack"}, strings.Fields(args)...)...)
		if status != want || !strings.Contains(said, "no cluster is configured\nnext: say which one with --kubeconfig") {
			t.Errorf("%s: exit status %d: %s", args, status, said)
		}
	}
	if status, out, _ := runProgram(t, "sidetrack", "version"); status != 0 || !strings.HasPrefix(out, "sidetrack v1.2.3 (go") {
		t.Errorf("version: %d %q", status, out)
	}
}

func TestWrongUsageIsToldBeforeAnythingIsAsked(t *testing.T) {
	for args, want := range map[string]string{
		"run --image a -- b":                         "--sandbox is missing",
		"run --sandbox a -- b":                       "--image is missing",
		"run --sandbox a --image b --patch /nowhere": "/nowhere",
		"proxy":                               "--sandbox is missing",
		"diff http://a/":                      "--sandbox is missing",
		"diff --sandbox a":                    "give one URL, or a file",
		"diff --sandbox a -f x http://a/":     "give one URL, or a file",
		"diff --sandbox a --samples 1 http:a": "--samples is 2 at least",
		"diff --sandbox a -H nothing http:a":  `header "nothing" is not NAME: VALUE`,
		"trace":                               "accepts 1 arg",
		"trace a --trace xyz":                 "is not a trace id",
		"trace a --limit 99999999":            "--limit is from 1 to",
		"trace a -o csv":                      "-o csv: sidetrack trace has no such format\nnext: use json, yaml, kyaml, jsonpath, jsonpath-as-json, jsonpath-file, wide or name, or leave -o out",
		"explain":                             "accepts between 1 and 2 arg",
		"explain a b --trace 0":               "is not a trace id",
		"logs":                                "accepts 1 arg",
		"status a b":                          "accepts at most 1 arg",
		"doctor a":                            `unknown command "a"`,
		"nonsense":                            `unknown command "nonsense"`,
	} {
		status, _, said := runProgram(t, append([]string{"sidetrack"}, strings.Fields(args)...)...)
		if status != exitUsage || !strings.Contains(said, want) {
			t.Errorf("%s: exit status %d: %q, want %q", args, status, said, want)
		}
	}
}

func TestAFailureIsToldWithItsDetailsAndTheRemedy(t *testing.T) {
	var b bytes.Buffer
	err := fmt.Errorf("while trying: %w", &task.Failure{Kind: task.NotReady, Message: "it is not ready", Details: []string{"a line\nanother"}, Remedy: "wait"})
	complain(&b, "sidetrack", err)
	if want := "sidetrack: while trying: it is not ready\n  a line\n  another\nnext: wait\n"; b.String() != want {
		t.Errorf("it says %q, want %q", b.String(), want)
	}
	for err, want := range map[error]int{
		nil: exitOK, errors.New("x"): exitFailed, err: exitNotReady, task.Usagef("x"): exitUsage,
		&task.Failure{Kind: task.Different}: exitDifferent, &task.Failure{Kind: task.Unverified}: exitUnverified, exitStatus(42): 42, errors.Join(exitStatus(7), nil): 7, context.Canceled: exitFailed,
	} {
		if got := status(err); got != want {
			t.Errorf("%v: exit status %d, want %d", err, got, want)
		}
	}
	b.Reset()
	if complain(&b, "sidetrack", exitStatus(3)); b.Len() != 0 {
		t.Errorf("an exit status is told as %q", b.String())
	}
}

// mute is an API server that accepts connections, and that is all. The channel tells of the
// first.
func mute(t *testing.T) (addr string, accepted <-chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first, done := make(chan struct{}), make(chan struct{})
	tell := sync.OnceFunc(func() { close(first) })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			tell()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String(), first
}

func TestWhatIsInterruptedEndsThoughTheAPIServerSaysNothing(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nowhere/kubeconfig")
	for _, args := range []string{
		"sandbox get", "sandbox get x", "sandbox get x -w", "sandbox list -o json", "sandbox list -w", "sandbox wait x", "sandbox wait x --for=deleted", "sandbox key x", "sandbox delete x",
		"sandbox create x --fork deploy/a", "sandbox apply -f -", "status", "status x -w", "trace x", "trace x -f", "explain x a", "logs x", "doctor",
		"run --sandbox x --image y -- z", "proxy --sandbox x", "diff --sandbox x http://a/", "ui",
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(args+" "+scheme, func(t *testing.T) {
				server, accepted := mute(t)
				ctx, interrupt := context.WithCancel(t.Context())
				defer interrupt()
				var said bytes.Buffer
				done := make(chan int, 1)
				words := append([]string{"sidetrack", "--server=" + scheme + "://" + server, "--request-timeout=1h", "--cache-dir=" + t.TempDir(), "-n", "shop"}, strings.Fields(args)...)
				go func() {
					in := strings.NewReader("{apiVersion: sidetrack.dev/v1alpha1, kind: Sandbox, metadata: {name: x}}")
					done <- Main(ctx, words, genericiooptions.IOStreams{In: in, Out: io.Discard, ErrOut: &said}, "test")
				}()
				select {
				case <-accepted:
				case <-time.After(time.Minute):
					t.Fatal("the API server is not asked")
				}
				interrupt()
				select {
				case status := <-done:
					if status != exitInterrupted || !strings.Contains(said.String(), "interrupted: could not ") {
						t.Errorf("exit status %d, want %d: %s", status, exitInterrupted, said.String())
					}
				case <-time.After(time.Minute):
					t.Fatal("it does not end")
				}
			})
		}
	}
}
