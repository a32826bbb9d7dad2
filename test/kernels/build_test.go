// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestTheKernelsTestsNeedNoAPIServer: the machine has neither its programs nor the time
// for it. One import of test/lab in a package whose tests start an API server would have
// all of them run there.
func TestTheKernelsTestsNeedNoAPIServer(t *testing.T) {
	const module = "github.com/sidetrack-dev/sidetrack"
	pkgs, err := kernelPackages(t.Context(), []string{module + "/..."})
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 10 {
		t.Errorf("only %d packages are tested on other kernels", len(pkgs))
	}
	for _, pkg := range pkgs {
		if tests, all := part(pkg.ImportPath); !all && len(tests) == 0 {
			continue
		}
		out, err := exec.CommandContext(t.Context(), "go", "list", "-test", "-deps", pkg.ImportPath).Output()
		if err != nil {
			t.Fatalf("list what %s uses: %v", pkg.ImportPath, err)
		}
		for dep := range strings.Lines(string(out)) {
			if dep = strings.TrimSpace(dep); dep == module+"/test/cluster" {
				t.Errorf("%s uses one of %q, so that its tests are run on other kernels, and %s as well, which is not there: take what needs no kernel out of the first", pkg.ImportPath, touching, dep)
			}
		}
	}
}
