// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestANameBelowALaterMountIsRemoved: and those beside it stay.
func TestANameBelowALaterMountIsRemoved(t *testing.T) {
	dir := t.TempDir()
	hidden, beside := filepath.Join(dir, "hidden"), filepath.Join(dir, "beside")
	mounts := func() int {
		t.Helper()
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), " "+dir)
	}
	t.Cleanup(func() {
		for range 5 {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		_ = unix.Unmount(hidden, unix.MNT_DETACH)
		_ = unix.Unmount(beside, unix.MNT_DETACH)
		if n := mounts(); n > 0 {
			t.Errorf("%d mounts are left", n)
		}
	})
	for _, path := range []string{hidden, beside} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(hidden); err == nil {
		t.Fatal("the name is no mount point: this test is of no use")
	}
	before := mounts()
	if err := removeNetns(hidden); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(hidden); !os.IsNotExist(err) {
		t.Errorf("the name is still there: %v", err)
	}
	if _, err := os.Stat(beside); err != nil || mounts() != before-1 {
		t.Errorf("the name beside it: %v; %d mounts are left of %d", err, mounts(), before)
	}
}
