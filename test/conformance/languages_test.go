// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// systemPython is where a distribution puts the Python that its packages are for.
const systemPython = "/usr/bin/python3"

// TestPythonAndNodeChooseByCall: grpcio and @grpc/grpc-js call servers of grpc-go
// on one channel each, with the keys of three sandboxes and none.
func TestPythonAndNodeChooseByCall(t *testing.T) {
	w := newWorld(t)
	port := w.port()
	w.serveCalls(t, port)
	address := fmt.Sprintf("%s:%d", serviceIP, port)
	for _, lang := range []struct {
		name    string
		command func(t *testing.T, p *lab.Pod, args ...string) *exec.Cmd
	}{
		{"grpcio", func(t *testing.T, p *lab.Pod, args ...string) *exec.Cmd {
			if out, err := exec.Command(systemPython, "-c", "import grpc").CombinedOutput(); err != nil {
				programs.Missing(t, fmt.Errorf("the test wants Python with grpcio: %w: %s", err, out))
			}
			return p.Command(systemPython, append([]string{absolute(t, "testdata/calls.py")}, args...)...)
		}},
		{"grpc-js", func(t *testing.T, p *lab.Pod, args ...string) *exec.Cmd {
			cmd := p.Command("node", append([]string{absolute(t, "testdata/calls.cjs")}, args...)...)
			cmd.Env = append(os.Environ(), "NODE_PATH="+nodeModules(t))
			return cmd
		}},
	} {
		t.Run(lang.name, func(t *testing.T) {
			for _, from := range []struct {
				name string
				pod  *lab.Pod
				keys string
			}{
				{"directly", w.stranger, "=baseline"},
				{"through the router", w.client, mixed()},
			} {
				t.Run(from.name, func(t *testing.T) {
					got := caseResults(t, lang.command(t, from.pod, address, from.keys, "2000"))
					if len(got) != 6 {
						t.Errorf("%d cases have run, want 6", len(got))
					}
					for name, result := range got {
						if result != passed {
							t.Errorf("%s %s", name, result)
						}
					}
				})
			}
		})
	}
}

// nodeModules installs what programs/node pins, once, and returns its folder.
func nodeModules(t *testing.T) string {
	t.Helper()
	programs.Need(t, "node", "npm")
	source := absolute(t, "programs/node")
	sum, err := programs.Module{Dir: source}.Sum()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := programs.Cache("conformance")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "node-"+sum)
	modules := filepath.Join(dir, "node_modules")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	unlock, err := programs.Lock(ctx, filepath.Join(cache, ".node.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := os.Stat(modules); err == nil {
		return modules
	}
	// In another folder first, so that what is there is whole.
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(unfinished, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = unfinished
	if _, err := programs.Output(ctx, cmd); err != nil {
		t.Fatalf("install what programs/node pins: %v", err)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		t.Fatal(err)
	}
	return modules
}
