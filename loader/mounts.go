// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup2Root returns where the root of cgroup2 is mounted: /sys/fs/cgroup on
// most hosts, /sys/fs/cgroup/unified on hybrid ones.
func cgroup2Root() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	dir, err := parseCgroup2Root(f)
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	if dir == "" {
		return "", errors.New("find cgroup2: it is not mounted; mount it (mount -t cgroup2 none /sys/fs/cgroup) or say where with --cgroup")
	}
	return dir, nil
}

// parseCgroup2Root reads a mountinfo, see proc_pid_mountinfo(5). A mount of the
// hierarchy's root goes before mounts of parts of it.
func parseCgroup2Root(r io.Reader) (string, error) {
	var part string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		root, dir := fields[3], unescape(fields[4])
		if root == "/" {
			return dir, nil
		}
		if part == "" {
			part = dir
		}
	}
	return part, lines.Err()
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupID returns the kernel's id of a cgroup v2 directory: its inode number,
// on every 64-bit kernel.
func cgroupID(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("cgroup %s: it is not in a cgroup2 file system", dir)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	return st.Ino, nil
}

// onBPFFS reports whether dir is in a BPF file system.
func onBPFFS(dir string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return fs.Type == unix.BPF_FS_MAGIC, nil
}

// mountBPFFS makes sure that dir is in a BPF file system.
func mountBPFFS(dir string, never bool) error {
	if never {
		if ok, err := onBPFFS(dir); err != nil || !ok {
			return errors.Join(fmt.Errorf("there is no BPF file system at %s: mount one on the host, as systemd does (mount -t bpf bpf /sys/fs/bpf)", dir), err)
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the mount point of bpffs: %w", err)
	}
	switch ok, err := onBPFFS(dir); {
	case err != nil:
		return fmt.Errorf("look for bpffs: %w", err)
	case ok:
		return nil
	}
	// Mounting over somebody's files would hide them.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for bpffs: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("mount bpffs: %s is not a BPF file system and not empty; say another place with --bpffs", dir)
	}
	if err := unix.Mount("bpffs", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return nil
}
