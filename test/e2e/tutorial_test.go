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

// tutorial runs the commands as a reader would type them, and compares what they
// print with what it says: … stands for anything.
func tutorial(t *testing.T) {
	program := sidetrackProgram(t)
	config, err := kube.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	// The reader's own: the first command changes it.
	own := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(own, text, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl, err := kube.KubectlCommand(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deleteAfterwards(t, "-n", shop, "sandbox/pr-7")
	for _, s := range readTutorial(t) {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-eu", "-c", s.commands)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+own, "PATH="+filepath.Dir(program)+":"+filepath.Dir(kubectl.Path)+":"+os.Getenv("PATH"))
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		cancel()
		var exit *exec.ExitError
		if got := cmd.ProcessState.ExitCode(); got != s.exit || err != nil && !errors.As(err, &exit) {
			t.Fatalf("%sexit status %d (%v), want %d\n%s\n%s", s.commands, got, err, s.exit, out.String(), errs.String())
		}
		for _, line := range s.prints {
			parts := strings.Split(line, "…")
			for i := range parts {
				parts[i] = regexp.QuoteMeta(parts[i])
			}
			if !regexp.MustCompile("(?m)^" + strings.Join(parts, ".*") + "$").MatchString(out.String()) {
				t.Errorf("%sit does not print %q:\n%s\n%s", s.commands, line, out.String(), errs.String())
			}
		}
	}
	noPodLeft(t)
}
