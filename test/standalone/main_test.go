// SPDX-License-Identifier: Apache-2.0

// Package standalone tests the built sidetrackd as its users run it without
// Kubernetes: manifests in a folder, pods that are network namespaces, clients
// and servers that know nothing of it.
//
// It owns the programs that it starts and what they serve; each test builds its
// own world of namespaces and takes it away again. It never looks inside
// sidetrackd: what is not visible to a client, to a server, in the log, in
// /metrics or in the kernel is not asserted. Much of the traffic is sent twice,
// without the agent as well, so that the tests themselves are shown to be right
// and "as if Sidetrack were not there" has something to be compared with.
//
// This process moves into the cgroup of the world that it has built, because
// its own sockets are pods' sockets too. So there is one world at a time, and no
// test here may call t.Parallel.
//
// The environment: SIDETRACKD names a binary to test instead of building one;
// with SIDETRACK_REQUIRE_CLIENTS=1 a client program that is missing is a failure.
package standalone

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "sidetrack-standalone-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Programs of other users (PostgreSQL's) read files of the tests.
	if err := os.Chmod(buildDir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(buildDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// build returns the path of the binary under test.
var build = sync.OnceValues(func() (string, error) { return programs.Agent(buildDir) })

func binary(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// systemPython is where a distribution puts the Python that its packages are for.
const systemPython = "/usr/bin/python3"

// requirePython returns a Python that has these modules.
func requirePython(t *testing.T, modules ...string) string {
	t.Helper()
	var errs []error
	for _, python := range []string{systemPython, "python3"} {
		out, err := exec.Command(python, "-c", "import sys, "+strings.Join(append([]string{"socket"}, modules...), ", ")).CombinedOutput()
		if err == nil {
			return python
		}
		errs = append(errs, fmt.Errorf("%s: %w: %s", python, err, out))
	}
	programs.Missing(t, fmt.Errorf("the test wants Python with %s: %w", modules, errors.Join(errs...)))
	return ""
}

// heavy keeps a test out of short runs.
func heavy(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long; left out with -short")
	}
}
