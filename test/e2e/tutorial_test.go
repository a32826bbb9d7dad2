// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// step is a block of commands of the tutorial and what it says they print.
type step struct {
	commands string
	exit     int
	prints   []string
}

var block = regexp.MustCompile("(?ms)^```(sh|text)( exit=(\\d+))?\n(.*?)^```\n")

// readTutorial takes the tutorial apart.
func readTutorial(t *testing.T) []step {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "tutorial.md"))
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	for _, b := range block.FindAllStringSubmatch(string(text), -1) {
		if b[1] == "text" {
			last := &steps[len(steps)-1]
			last.prints = strings.Split(strings.TrimSuffix(b[4], "\n"), "\n")
			continue
		}
		s := step{commands: b[4]}
		if b[3] != "" {
			if s.exit, err = strconv.Atoi(b[3]); err != nil {
				t.Fatal(err)
			}
		}
		steps = append(steps, s)
	}
	if len(steps) < 8 {
		t.Fatalf("the tutorial has %d blocks of commands", len(steps))
	}
	return steps
}

// reader is somebody who types commands as the documentation has them.
type reader struct{ env []string }

// newReader gives a reader the programs, and a kubeconfig that commands may change.
func newReader(t *testing.T) *reader {
	t.Helper()
	program := sidetrackProgram(t)
	config, err := kube.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(own, text, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl, err := kube.KubectlCommand(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &reader{append(os.Environ(), "KUBECONFIG="+own, "PATH="+filepath.Dir(program)+":"+filepath.Dir(kubectl.Path)+":"+os.Getenv("PATH"))}
}

// types runs commands, compares what they print with lines in which … stands for
// anything, and wants an exit status.
func (r *reader) types(t *testing.T, commands string, exit int, prints []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-c", commands)
	cmd.Env = r.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err := cmd.Run()
	t.Logf("%5.1f s: %s", time.Since(began).Seconds(), strings.TrimSpace(commands))
	var failed *exec.ExitError
	if got := cmd.ProcessState.ExitCode(); got != exit || err != nil && !errors.As(err, &failed) {
		t.Fatalf("%sexit status %d (%v), want %d\n%s\n%s", commands, got, err, exit, out.String(), errs.String())
	}
	for _, line := range prints {
		parts := strings.Split(line, "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		if !regexp.MustCompile("(?m)^" + strings.Join(parts, ".*") + "$").MatchString(out.String()) {
			t.Errorf("%sit does not print %q:\n%s\n%s", commands, line, out.String(), errs.String())
		}
	}
}

// tutorial runs the commands as a reader would type them, and compares what they
// print with what it says.
func tutorial(t *testing.T) {
	r := newReader(t)
	deleteAfterwards(t, "-n", shop, "sandbox/pr-7")
	for _, s := range readTutorial(t) {
		r.types(t, s.commands, s.exit, s.prints)
	}
	noPodLeft(t)
}

// loopOfReadme is the block of commands in README.md that begins with this.
var loopOfReadme = regexp.MustCompile("(?ms)^```\n(sidetrack sandbox create .*?)^```\n")

// readme runs README's loop, line by line. What is of another shop there is this one's
// instead; the sandbox has another name, since the story has one of that name.
func readme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := loopOfReadme.FindStringSubmatch(string(text))
	if block == nil {
		t.Fatal("README.md has no block that begins with sidetrack sandbox create")
	}
	commands := block[1]
	for _, other := range []struct{ theirs, ours string }{
		{" pr-42", " pr-8"}, // first: an image's tag is no sandbox
		{"registry/route:pr-42-2", "sidetrack.test/shop:pr-42"},
		{"registry/route:pr-42", "sidetrack.test/shop:pr-42"},
		{"registry/tests:pr-42 -- npm test", "sidetrack.test/shop:v1 -- /shop check -want pr-42 http://front.shop/"},
		{"frontend.shop", "front.shop"},
		{"https://shop.example/", ingress},
	} {
		if !strings.Contains(commands, other.theirs) {
			t.Fatalf("README's loop does not say %q:\n%s", other.theirs, commands)
		}
		commands = strings.ReplaceAll(commands, other.theirs, other.ours)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(commands, "\n"), "\n")
	// What each line of it comes to.
	const fork = `…"Service":"route","Version":"pr-42"…`
	want := []struct {
		begins string
		exit   int
		prints string
	}{
		{"sidetrack sandbox create", 0, "sandbox/pr-8 ready"},
		{"sidetrack proxy", 0, fork},
		{"sidetrack run", 0, "200 OK " + fork},
		{"sidetrack diff", 4, "  $[2].Version"},
		{"sidetrack trace", 0, "… Deployment/cart -> route.shop:80 GET / => FORK …"},
		{"sidetrack explain", 0, "nothing is known that keeps tagged requests to route from deploy/cart from the fork"},
		{"sidetrack sandbox create pr-8 --update", 0, "sandbox/pr-8 ready"},
		{"curl ", 0, fork},
		{"sidetrack sandbox delete", 0, "sandbox/pr-8 deleted"},
	}
	if len(lines) != len(want) {
		t.Fatalf("README's loop has %d lines, and this test knows %d:\n%s", len(lines), len(want), commands)
	}
	r := newReader(t)
	r.types(t, "kubectl config set-context --current --namespace "+shop, 0, nil)
	deleteAfterwards(t, "-n", shop, "sandbox/pr-8")
	for i, w := range want {
		if !strings.HasPrefix(lines[i], w.begins) {
			t.Fatalf("line %d of README's loop does not begin with %q: %s", i+1, w.begins, lines[i])
		}
		r.types(t, lines[i], w.exit, []string{w.prints})
	}
	noPodLeft(t)
}
