// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// asDemo makes the test binary the demo.
const asDemo = "SIDETRACK_TEST_AS_DEMO"

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// demo returns a command that is the demo.
func demo(t *testing.T) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the demo must run as root")
		}
		t.Skip("the demo makes network namespaces: run its tests as root")
	}
	agent := os.Getenv("SIDETRACKD")
	if agent == "" {
		agent = filepath.Join(t.TempDir(), "sidetrackd")
		if out, err := exec.Command("go", "build", "-o", agent, "../../cmd/sidetrackd").CombinedOutput(); err != nil {
			t.Fatalf("build sidetrackd: %v\n%s", err, out)
		}
	}
	cmd := exec.Command("/proc/self/exe", "-sidetrackd", agent)
	cmd.Env = append(os.Environ(), asDemo+"=1")
	return cmd
}

// left lists what a demo with this process id has left behind.
func left(t *testing.T, pid int) []string {
	t.Helper()
	name := fmt.Sprintf("%s-%d-", prefix, pid)
	inv, err := lab.Take("", name)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range inv {
		if strings.Contains(line, name) {
			lines = append(lines, line)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(lines, dirs...)
}

func TestTheDemoShowsEveryWayAndLeavesNothingBehind(t *testing.T) {
	cmd := demo(t)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"client ──> frontend ──> middle ──> last\n",
		"client ──> frontend ──> middle ─┐   last\n",
		"└> last of pr-42\n",
		"client ──> store\n",
		"runner ─┐   store\n",
		"└> store of pr-42\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
	if l := left(t, cmd.Process.Pid); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestAnInterruptedDemoLeavesNothingBehind(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		for _, after := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond} {
			cmd := demo(t)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Until it has made something.
			for end := time.Now().Add(20 * time.Second); len(left(t, cmd.Process.Pid)) == 0 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(after)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			// It has failed or, when it was quick, succeeded.
			err := cmd.Wait()
			if cmd.ProcessState.ExitCode() < 0 {
				t.Errorf("%v after %v: it died: %v\n%s", sig, after, err, out.String())
			}
			if l := left(t, cmd.Process.Pid); len(l) > 0 {
				t.Errorf("%v after %v: left behind: %v\n%s", sig, after, l, out.String())
			}
		}
	}
}

func TestADemoThatFailsSaysSoAndLeavesNothingBehind(t *testing.T) {
	cmd := demo(t)
	cmd.Args[2] = "/bin/true"
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the agent has ended") {
		t.Errorf("error %v:\n%s", err, out)
	}
	if l := left(t, cmd.Process.Pid); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestDrawings(t *testing.T) {
	for want, hops := range map[string][]hop{
		"   client ──> frontend ──> last\n": {frontend, last},
		"   client ──> frontend ─┐   last\n" +
			"                        └> last of pr-42\n": {frontend, lastFork},
	} {
		if diff := cmp.Diff(want, draw("client", hops)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
