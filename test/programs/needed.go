// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Agent returns the path of the agent under test: the one that SIDETRACKD names, or one
// that it builds into a folder.
func Agent(dir string) (string, error) {
	if path := os.Getenv("SIDETRACKD"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(dir, "sidetrackd")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/sidetrack-dev/sidetrack/cmd/sidetrackd").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sidetrackd: %w\n%s", err, out)
	}
	return path, nil
}

// Need skips the test when one of other people's programs is not here; see Missing.
func Need(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, fmt.Errorf("the test wants %s: %w", name, err))
		}
	}
}

// Missing ends the test for want of what err names: it is skipped, or fails where
// SIDETRACK_REQUIRE_CLIENTS=1 says that all is meant to be here.
func Missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("SIDETRACK_REQUIRE_CLIENTS") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}
