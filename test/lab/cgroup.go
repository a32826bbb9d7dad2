// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup2 returns where cgroup2 is mounted: /sys/fs/cgroup on most hosts,
// /sys/fs/cgroup/unified on a hybrid one.
func Cgroup2() (string, error) {
	const file = "/proc/self/mountinfo"
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return "", errors.New("cgroup2 is not mounted; try: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

func (w *World) makeCgroup() error {
	root, err := Cgroup2()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, w.Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make the world's cgroup: %w", err)
	}
	w.Cgroup = dir
	w.onClose(func() error { return removeCgroup(dir) })
	return nil
}

// Subgroup makes (or finds) a cgroup below the world's.
func (w *World) Subgroup(name string) (string, error) {
	dir := filepath.Join(w.Cgroup, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a cgroup: %w", err)
	}
	return dir, nil
}

// MoveSelf moves this process into the world's cgroup, so that programs
// attached there see its own sockets connect. Close moves it back. A process is
// in one cgroup only: two worlds cannot have it at the same time.
func (w *World) MoveSelf() error {
	dir, err := w.Subgroup("self")
	if err != nil {
		return err
	}
	home, err := ownCgroup()
	if err != nil {
		return err
	}
	if home == dir {
		return nil
	}
	if err := joinCgroup(dir); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.home == "" {
		w.home = home
	}
	return nil
}

// ownCgroup returns the path of this process's cgroup.
func ownCgroup() (string, error) {
	root, err := Cgroup2()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find this process's cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return filepath.Join(root, strings.TrimSpace(path)), nil
		}
	}
	return "", errors.New("this process is in no cgroup of cgroup2")
}

func joinCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("move this process to cgroup %s: %w", dir, err)
	}
	return nil
}

// killCgroup brings this process out of the world's cgroup and kills all others
// there.
func (w *World) killCgroup() error {
	if w.Cgroup == "" {
		return nil
	}
	w.mu.Lock()
	home := w.home
	w.home = ""
	w.mu.Unlock()
	own, err := ownCgroup()
	if err != nil {
		return err
	}
	if own == w.Cgroup || strings.HasPrefix(own, w.Cgroup+"/") {
		if home == "" {
			home = filepath.Dir(w.Cgroup)
		}
		// Without this the next step would be suicide.
		if err := joinCgroup(home); err != nil {
			return err
		}
	}
	return killAll(w.Cgroup)
}

// killAll kills every process in a cgroup and below, and waits until they have
// let go of it.
func killAll(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill what is in cgroup %s: %w", dir, err)
	}
	return eventually(10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("read the events of cgroup %s: %w", dir, err)
		}
		if strings.Contains(string(b), "populated 1") {
			return fmt.Errorf("cgroup %s still has processes", dir)
		}
		return nil
	})
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list cgroup %s: %w", dir, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		err := eventually(10*time.Second, func() error {
			err := unix.Rmdir(dirs[i])
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}

// eventually calls f until it succeeds, and returns its last error when it does
// not in time.
func eventually(limit time.Duration, f func() error) error {
	end := time.Now().Add(Patience(limit))
	for {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
