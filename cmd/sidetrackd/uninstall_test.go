// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUninstallRemovesTheAgentsFolderAndNothingElse(t *testing.T) {
	run := t.TempDir()
	if err := removeRunFolder(run); err != nil {
		t.Errorf("where there is none: %v", err)
	}
	ours, theirs := filepath.Join(run, "sidetrack"), filepath.Join(run, "theirs")
	for _, dir := range []string{ours, theirs} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(filepath.Join(dir, "agent.sock"), unix.S_IFSOCK|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeRunFolder(run); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(run + "/*/*"); err != nil || len(left) != 1 {
		t.Errorf("there are %v, want theirs alone (%v)", left, err)
	}

	// A folder in it is not ours, so it stays, and so does what is around it.
	foreign := filepath.Join(ours, "foreign")
	if err := os.MkdirAll(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := removeRunFolder(run); err == nil {
		t.Error("nobody is told that something is left")
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}
