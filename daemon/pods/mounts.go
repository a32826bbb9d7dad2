// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// mount is where a cgroup hierarchy is mounted.
type mount struct {
	dir string
	// root is which part of the hierarchy is there: "/" for the one that this
	// process's cgroup namespace begins with, "/.." and so on for what is above.
	root string
	// v1 are the controllers of a version 1 hierarchy, or its name; nil for
	// version 2.
	v1 []string
}

// height orders mounts of one hierarchy: the more is below one, the higher it is.
func (m *mount) height() int {
	h := 0
	for part := range strings.SplitSeq(m.root, "/") {
		switch part {
		case "":
		case "..":
			h++
		default:
			h--
		}
	}
	return h
}

// v1Order are the version 1 hierarchies that pods are looked for in, the first
// first. Every one of them has a directory for each pod where the kubelet and the
// runtime use version 1; pids and memory are the least likely to be switched off.
var v1Order = []string{"pids", "memory", "name=systemd", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio"}

// cgroupMounts returns the mounts of cgroup hierarchies that this process sees:
// version 2 first, then version 1 in order of preference; of each hierarchy
// only the mount with the most below it.
func cgroupMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup file systems: %w", err)
	}
	defer f.Close()
	mounts, err := parseCgroupMounts(f)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup file systems: %w", err)
	}
	return mounts, nil
}

// parseCgroupMounts reads a mountinfo, see proc_pid_mountinfo(5).
func parseCgroupMounts(r io.Reader) ([]mount, error) {
	best := map[string]mount{} // by hierarchy: the device number
	var order []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		m := mount{root: unescape(fields[3]), dir: unescape(fields[4])}
		switch kind[0] {
		case "cgroup2":
		case "cgroup":
			m.v1 = slices.DeleteFunc(strings.Split(kind[2], ","), func(option string) bool {
				return option == "rw" || option == "ro" || option == "xattr" || option == "none"
			})
		default:
			continue
		}
		hierarchy := fields[2]
		old, known := best[hierarchy]
		if !known {
			order = append(order, hierarchy)
		}
		if !known || m.height() > old.height() {
			best[hierarchy] = m
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	mounts := make([]mount, 0, len(order))
	for _, h := range order {
		mounts = append(mounts, best[h])
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return cmp.Compare(a.rank(), b.rank()) })
	return mounts, nil
}

func (m *mount) rank() int {
	if m.v1 == nil {
		return -1
	}
	for i, name := range v1Order {
		if slices.Contains(m.v1, name) {
			return i
		}
	}
	return len(v1Order)
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountOf returns the mount that dir is in.
func mountOf(mounts []mount, dir string) (mount, bool) {
	var found mount
	for _, m := range mounts {
		if (dir == m.dir || strings.HasPrefix(dir, path.Clean(m.dir+"/")+"/") || m.dir == "/") && len(m.dir) >= len(found.dir) {
			found = m
		}
	}
	return found, found.dir != ""
}
