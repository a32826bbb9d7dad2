// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// CheckLine is one thing that finding a cluster's pods needs of the host and of
// the agent's own pod.
type CheckLine struct {
	Name   string
	OK     bool
	Detail string // what was found
	Remedy string // what to do about it; empty when OK
}

// Check says, line by line, whether this node's pods can be found. Flag is as for
// FindCgroup. It changes nothing.
func Check(flag string) []CheckLine {
	line := func(name, remedy, detail string, err error) CheckLine {
		if err != nil {
			return CheckLine{Name: name, Detail: err.Error(), Remedy: remedy}
		}
		return CheckLine{Name: name, OK: true, Detail: detail}
	}
	mounts, err := cgroupMounts()
	if err == nil && len(mounts) == 0 {
		err = errors.New("no cgroup file system is mounted")
	}
	lines := []CheckLine{line("cgroup layout", "mount the host's /sys/fs/cgroup into the agent's container", describeMounts(mounts), err)}
	if err != nil {
		return lines
	}
	c, err := FindCgroup(flag)
	remedy := "say where the kubelet has its pods with --pods-cgroup"
	if errors.Is(err, errNoPodsCgroup) {
		remedy += ", unless this node has never run a pod: the agent waits for the first"
	}
	detail := c.Dir
	if err == nil {
		detail = fmt.Sprintf("%s (%d pods)", c.Dir, len(podDirs(c.Dir)))
		if !c.V2 {
			detail += "; of version 1, so pods on the host's network are not covered"
		}
	}
	lines = append(lines, line("pods' cgroup", remedy, detail, err))
	if err != nil {
		return lines
	}
	seen, err := checkProcesses(c.Dir)
	return append(lines, line("pods' processes", checkRemedy(err), seen, err))
}

func describeMounts(mounts []mount) string {
	if len(mounts) == 0 {
		return ""
	}
	kind := "version 2"
	switch {
	case mounts[0].v1 != nil:
		kind = "version 1"
	case len(mounts) > 1:
		kind = "hybrid"
	}
	return kind + ", " + mounts[0].dir
}

// podDirs returns the directories of all pods.
func podDirs(root string) (dirs []string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			return nil
		}
		if filepath.Dir(path) == root && isQoSClass(d.Name()) {
			return nil
		}
		if _, ok := podUID(d.Name()); ok {
			dirs = append(dirs, path)
		}
		return fs.SkipDir
	})
	return dirs
}

// checkProcesses asks for the namespaces of the pods' processes.
func checkProcesses(root string) (string, error) {
	namespaces, processes := map[fileID]bool{}, 0
	for _, pod := range podDirs(root) {
		for _, c := range containersOf(pod) {
			pids, _ := readProcesses(c.dir) // it may have vanished
			for _, pid := range pids[:min(len(pids), mostProcesses)] {
				if pid == "0" {
					return "", errInvisible
				}
				id, err := identify(netnsOf(pid))
				if errors.Is(err, os.ErrNotExist) {
					continue // so may this
				}
				if err != nil {
					return "", &os.PathError{Op: "look at", Path: netnsOf(pid), Err: err}
				}
				processes++
				namespaces[id] = true
			}
		}
	}
	if processes == 0 {
		return "none runs yet", nil
	}
	return fmt.Sprintf("seen, in %d network namespaces", len(namespaces)), nil
}

func checkRemedy(err error) string {
	if errors.Is(err, os.ErrPermission) {
		return "add CAP_SYS_PTRACE, and where there is AppArmor, run the agent's container unconfined"
	}
	return "set hostPID in the agent's pod"
}
