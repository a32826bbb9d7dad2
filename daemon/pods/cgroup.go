// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// awaitInterval is how often a node without pods is looked at. A pod's sandbox
	// takes longer to its first connection than that.
	awaitInterval = 50 * time.Millisecond
	// searchDepth is how far below a mount the pods' cgroup is looked for: kind puts
	// it in kubelet.slice, and a node that is a container itself below that one's.
	searchDepth = 5
)

// errNoPodsCgroup says that no pod has ever been started here, or that it is not
// where it is looked for.
var errNoPodsCgroup = errors.New("no cgroup of the kubelet's (kubepods, kubepods.slice) is there yet")

// Cgroup is where the kubelet has this node's pods.
type Cgroup struct {
	// Dir is the directory below which each pod has its own.
	Dir string
	// V2 says that Dir is in cgroup version 2. Then it is where the kernel's
	// programs are attached, and pods on the host's network are known by their
	// cgroups. Otherwise pods are in no cgroup that programs could be attached to,
	// but the root.
	V2 bool
}

// AttachDir is the cgroup (v2) directory to attach programs to; empty: the root.
func (c Cgroup) AttachDir() string {
	if c.V2 {
		return c.Dir
	}
	return ""
}

// AwaitCgroup finds the cgroup of this node's pods, and waits for it where no pod
// has been started yet. Flag is what the user says: a directory, or a path below
// a cgroup mount; empty to look for it.
func AwaitCgroup(ctx context.Context, flag string, log *slog.Logger) (Cgroup, error) {
	said := false
	for {
		c, err := FindCgroup(flag)
		if !errors.Is(err, errNoPodsCgroup) {
			return c, err
		}
		if !said {
			log.Info("waiting for this node's first pod", "why", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return Cgroup{}, fmt.Errorf("wait for the pods' cgroup: %w", context.Cause(ctx))
		case <-time.After(awaitInterval):
		}
	}
}

// FindCgroup is AwaitCgroup without waiting.
func FindCgroup(flag string) (Cgroup, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return Cgroup{}, err
	}
	if len(mounts) == 0 {
		return Cgroup{}, errors.New("find the pods' cgroup: no cgroup file system is mounted; mount the host's /sys/fs/cgroup into the agent's container")
	}
	if flag != "" {
		return namedCgroup(mounts, flag)
	}
	return searchCgroup(mounts)
}

// namedCgroup takes the user's word.
func namedCgroup(mounts []mount, flag string) (Cgroup, error) {
	if filepath.IsAbs(flag) {
		dir := filepath.Clean(flag)
		m, ok := mountOf(mounts, dir)
		if !ok {
			// A symbolic link, perhaps.
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real
				m, ok = mountOf(mounts, dir)
			}
		}
		if ok {
			if !isDir(dir) {
				return Cgroup{}, fmt.Errorf("%w: there is no %s", errNoPodsCgroup, dir)
			}
			return Cgroup{Dir: dir, V2: m.v1 == nil}, nil
		}
		if isDir(dir) {
			return Cgroup{}, fmt.Errorf("--pods-cgroup: %s is in no cgroup file system", dir)
		}
		// As /proc/PID/cgroup writes it: from the hierarchy's root.
	}
	var found []Cgroup
	for _, m := range mounts {
		if dir := filepath.Join(m.dir, flag); isDir(dir) {
			found = append(found, Cgroup{Dir: dir, V2: m.v1 == nil})
		}
	}
	return chooseCgroup(mounts, found, flag)
}

// searchCgroup looks for it.
func searchCgroup(mounts []mount) (Cgroup, error) {
	var found []Cgroup
	for _, m := range mounts {
		if dir := rootIn(m.dir); dir != "" {
			found = append(found, Cgroup{Dir: dir, V2: m.v1 == nil})
		}
	}
	return chooseCgroup(mounts, found, "kubepods")
}

// chooseCgroup takes one of those that were found in several hierarchies.
//
// Where version 2 is mounted beside version 1, the kubelet uses version 1, and it is
// the runtime that decides whether pods' processes are told apart in version 2 as
// well. So it takes a process to know, and until there is one it does no harm not
// to.
func chooseCgroup(mounts []mount, found []Cgroup, name string) (Cgroup, error) {
	var v1, v2 *Cgroup
	for i := range found {
		switch c := &found[i]; {
		case c.V2 && v2 == nil:
			v2 = c
		case !c.V2 && v1 == nil:
			v1 = c
		}
	}
	mixed := mounts[0].v1 == nil && len(mounts) > 1
	switch {
	case v2 != nil && (v1 == nil || hasProcesses(v2.Dir)):
		return *v2, nil
	case v1 != nil && (!mixed || hasProcesses(v1.Dir)):
		// It may have come just now: the runtime goes through the hierarchies one by
		// one.
		if v2 != nil {
			time.Sleep(awaitInterval)
			if hasProcesses(v2.Dir) {
				return *v2, nil
			}
		} else if mixed && inVersion2(v1.Dir) {
			break
		}
		return *v1, nil
	case v2 != nil:
		return *v2, nil
	}
	return Cgroup{}, fmt.Errorf("%w: looked for %s below %s", errNoPodsCgroup, name, mounts[0].dir)
}

// rootIn returns the pods' cgroup below a mount, or nothing. Where there are
// several, this machine has several nodes, or nodes that are pods themselves: ours
// is the innermost that this very process is in or, when it is no pod, the
// outermost that has pods.
func rootIn(mount string) string {
	roots := rootsBelow(mount)
	if len(roots) == 1 && len(rootsBelow(roots[0])) == 0 {
		return roots[0]
	}
	if own := ownRoot(roots); own != "" {
		return own
	}
	for _, dir := range roots {
		if hasProcesses(dir) {
			return dir
		}
	}
	if len(roots) > 0 {
		return roots[0]
	}
	return ""
}

func ownRoot(roots []string) string {
	self := strconv.Itoa(os.Getpid())
	for _, dir := range roots {
		if findProcess(dir, func(pid string) bool { return pid == self }) == "" {
			continue
		}
		if inner := ownRoot(rootsBelow(dir)); inner != "" {
			return inner
		}
		return dir
	}
	return ""
}

// rootsBelow returns all cgroups of pods below dir, but not those below others, the
// outermost first.
func rootsBelow(dir string) (roots []string) {
	level := []string{dir}
	for range searchDepth {
		var next []string
		for _, dir := range level {
			entries, err := os.ReadDir(dir)
			if err != nil {
				continue // it has vanished
			}
			for _, e := range entries {
				path := filepath.Join(dir, e.Name())
				switch {
				case !e.IsDir():
				case isPodsRoot(e.Name()):
					roots = append(roots, path)
				default:
					next = append(next, path)
				}
			}
		}
		level = next
	}
	return roots
}

// hasProcesses reports whether any process is in dir or below.
func hasProcesses(dir string) bool {
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.events")); err == nil {
		return strings.Contains(string(b), "populated 1")
	}
	return findProcess(dir, anyProcess) != ""
}

func anyProcess(string) bool { return true }

// findProcess returns a process in dir or below that is wanted.
func findProcess(dir string, wanted func(pid string) bool) (found string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it has vanished
		}
		pids, err := readProcesses(path)
		if err != nil {
			return nil
		}
		if i := slices.IndexFunc(pids, wanted); i >= 0 {
			found = pids[i]
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// inVersion2 reports whether a process that is in a version 1 cgroup has a place in
// version 2 as well that is a pod's.
func inVersion2(dir string) bool {
	b, err := os.ReadFile(filepath.Join("/proc", findProcess(dir, anyProcess), "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.Contains(path, "kubepods")
		}
	}
	return false
}

// readProcesses returns the processes directly in a cgroup. One that this process
// cannot see is "0".
func readProcesses(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

func isDir(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}
