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

// errNoCgroup2 says that cgroup2 is mounted nowhere.
var errNoCgroup2 = errors.New("find cgroup2: it is not mounted")

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
		return "", errNoCgroup2
	}
	return dir, nil
}

// parseCgroup2Root reads a mountinfo, see proc_pid_mountinfo(5). A mount of the
// hierarchy's root goes before mounts of parts of it; in a container with a cgroup
// namespace of its own, what is above that goes before it.
func parseCgroup2Root(r io.Reader) (string, error) {
	var best string
	height := 0
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		h := -1 // a part
		if root := fields[3]; root == "/" || strings.HasPrefix(root, "/..") {
			h = strings.Count(root, "..")
		}
		if best == "" || h > height {
			best, height = unescape(fields[4]), h
		}
	}
	return best, lines.Err()
}

// rootCgroupID is the id of the root of cgroup2, on every kernel.
const rootCgroupID = 1

// openCgroup2 opens the root of cgroup2 where it is mounted nowhere, as on a host
// that has only hierarchies of version 1: the kernel has it all the same, with every
// process in it. The mount is nobody else's and goes with the file.
func openCgroup2() (*os.File, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount cgroup2: %w", err)
	}
	root := os.NewFile(uintptr(fd), "cgroup2")
	id, err := cgroupID(pathOf(root))
	if err == nil && id != rootCgroupID {
		err = errors.New("mount cgroup2: this process is in a cgroup namespace of its own, which has a part of it alone; say with --cgroup where the host's is")
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// pathOf is a path to an open file.
func pathOf(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

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
