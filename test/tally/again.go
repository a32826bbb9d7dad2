// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// maxAgain is how many tests are run once more. When more than that fail, it is
// not for want of a processor.
const maxAgain = 6

var series = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// runAgain runs the tests that have failed once more and returns the total with
// those counted as passed that pass. It runs none when something has failed that
// is no test, such as a build.
func (t *tally) runAgain(command string) counts {
	tests := 0
	for _, p := range t.pkgs {
		tests += len(p.failed)
	}
	if t.other > 0 || tests == 0 || tests > maxAgain {
		return t.total
	}
	for _, name := range slices.Sorted(maps.Keys(t.pkgs)) {
		// Tests of one package on several kernels are named package@release.
		path, release, _ := strings.Cut(name, "@")
		for _, test := range slices.Sorted(maps.Keys(t.pkgs[name].failed)) {
			fmt.Fprintf(t.out, "again\t%s %s\n", name, test)
			cmd := exec.Command("sh", "-c", command)
			cmd.Env = append(os.Environ(), "PKG="+path, "SERIES="+series.FindString(release), "TESTS=^"+test+"$")
			out, err := cmd.CombinedOutput()
			if err != nil {
				fmt.Fprintf(t.out, "%s\nFAIL\t%s %s: failed twice: %v\n", out, name, test, err)
				continue
			}
			n := t.pkgs[name].failed[test]
			t.total.Failed -= n
			t.total.Passed += n
			fmt.Fprintf(t.out, "FLAKY\t%s %s: passed when it ran on its own\n", name, test)
		}
	}
	return t.total
}
