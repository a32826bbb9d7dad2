// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"
)

// Sweep takes away what worlds with this prefix have left behind whose process
// was killed, and returns what it has removed. Worlds of processes that are
// alive stay.
func Sweep(prefix string) (removed []string, err error) {
	of := regexp.MustCompile(`^` + regexp.QuoteMeta(prefix) + `-([0-9]+)-[0-9]+(-|$)`)
	orphan := func(name string) bool {
		m := of.FindStringSubmatch(name)
		if m == nil {
			return false
		}
		pid, err := strconv.Atoi(m[1])
		return err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	root, err := Cgroup2()
	if err != nil {
		return nil, err
	}
	var errs []error
	// Processes first: they hold namespaces and sockets.
	for _, place := range []struct {
		dir    string
		remove func(string) error
	}{
		{root, func(path string) error { return errors.Join(killAll(path), removeCgroup(path)) }},
		{NetnsDir, removeNetns},
		{os.TempDir(), removeDir},
	} {
		entries, err := os.ReadDir(place.dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("list %s: %w", place.dir, err))
		}
		for _, e := range entries {
			if !orphan(e.Name()) {
				continue
			}
			path := filepath.Join(place.dir, e.Name())
			if err := place.remove(path); err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, path)
		}
	}
	return removed, errors.Join(errs...)
}

// removeDir removes a world's folder, in which its bpffs may be mounted.
func removeDir(dir string) error {
	if err := unmount(filepath.Join(dir, bpffsName)); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove a world's folder: %w", err)
	}
	return nil
}
