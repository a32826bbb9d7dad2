// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Why a pod that has processes has no namespace.
var (
	errNoProcess  = errors.New("it has no process")
	errInvisible  = errors.New("its processes cannot be seen: run the agent with hostPID")
	errNotEntered = errors.New("its processes are in the agent's own network namespace")
)

// mostProcesses bounds how many processes of one cgroup are looked at: a container's
// first are in the pod's namespace, if any is.
const mostProcesses = 4

// lookEagerly begins to look for a pod's namespace.
func (t *tree) lookEagerly(p *podCgroup) {
	if p.ns != nil {
		t.verifyPod(p)
		return
	}
	now := time.Now()
	p.since, p.next = now, now
	t.looking[p] = true
}

// untilLook returns how long nothing has to be looked at.
func (t *tree) untilLook() time.Duration {
	wait := scanInterval
	now := time.Now()
	for p := range t.looking {
		wait = min(wait, p.next.Sub(now))
	}
	return max(wait, 0)
}

// lookAt looks at those pods whose time it is.
func (t *tree) lookAt(now time.Time) {
	for p := range t.looking {
		if p.next.After(now) {
			continue
		}
		containers := t.look(p)
		waited := now.Sub(p.since)
		if p.ns != nil || !containers || waited > lookFor {
			delete(t.looking, p)
			continue
		}
		p.next = now.Add(min(max(waited/8, firstLook), lastLook))
	}
}

// verify looks whether the processes are still there that pods are known by.
func (t *tree) verify() {
	for _, p := range t.pods {
		if p.ns != nil {
			t.verifyPod(p)
		}
	}
}

func (t *tree) verifyPod(p *podCgroup) {
	// As long as the namespace is held open, no other has its number. So whoever
	// has the process's number now, the namespace is in use.
	if id, err := identify(netnsOf(p.pid)); err == nil && id == p.ns.id {
		return
	}
	t.look(p)
	if p.ns == nil {
		t.lookEagerly(p)
	}
}

func netnsOf(pid string) string { return "/proc/" + pid + "/ns/net" }

// look looks for a process of the pod and its namespace. It reports whether the pod
// has any container at all.
func (t *tree) look(p *podCgroup) (containers bool) {
	t.mu.Lock()
	w := t.wanted[p.uid]
	t.mu.Unlock()
	if w != nil && w.HostNetwork {
		return false // it is known by its cgroup
	}
	found, pid, why, containers := t.find(p.dir)
	p.pid = pid
	t.mu.Lock()
	old := p.ns
	changed := (old == nil) != (found == nil) || found != nil && old.id != found.id || (p.why == nil) != (why == nil)
	if old != nil && found != nil && old.id == found.id {
		old, found = found, old // the same again
	}
	p.ns, p.why = found, why
	t.mu.Unlock()
	if old != nil {
		unix.Close(old.fd)
	}
	if changed {
		t.tell(p)
	}
	return containers
}

// find returns the namespace of a pod's processes and one of these. Without one it
// says why, if there are processes.
func (t *tree) find(pod string) (ns *namespace, pid string, why error, containers bool) {
	for _, c := range containersOf(pod) {
		containers = true
		if ns, pid, err := t.findIn(c); ns != nil {
			return ns, pid, nil, true
		} else if err != nil {
			why = err
		}
	}
	return nil, "", why, containers
}

// container is a container's directory.
type container struct {
	dir    string
	ino    uint64
	parent bool // it has others in it
}

// containersOf returns the cgroups of a pod's containers, the oldest first: that is
// the sandbox, which every other joins. (Their numbers are given out in order.)
func containersOf(pod string) (all []container) {
	entries, err := os.ReadDir(pod)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if !e.IsDir() || !isContainer(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil {
			st := info.Sys().(*syscall.Stat_t)
			all = append(all, container{filepath.Join(pod, e.Name()), st.Ino, st.Nlink > 2})
		}
	}
	slices.SortFunc(all, func(a, b container) int { return cmp.Compare(a.ino, b.ino) })
	return all
}

// findIn looks at a container's processes. Those of cgroups that the container has
// made itself are looked at only where there are no others.
func (t *tree) findIn(c container) (ns *namespace, pid string, why error) {
	look := func(dir string) (any bool) {
		pids, err := readProcesses(dir)
		if err != nil {
			return false
		}
		for _, pid = range pids[:min(len(pids), mostProcesses)] {
			if ns, err = t.namespaceOf(pid, dir); err == nil {
				return true
			}
			if !errors.Is(err, errNoProcess) {
				why = err
			}
		}
		return len(pids) > 0
	}
	if look(c.dir) || !c.parent {
		return ns, pid, why
	}
	_ = filepath.WalkDir(c.dir, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && look(dir) {
			return fs.SkipAll
		}
		return nil // what cannot be read has vanished
	})
	return ns, pid, why
}

// namespaceOf opens the namespace of a process in a cgroup, unless it is the agent's
// own.
func (t *tree) namespaceOf(pid, cgroup string) (_ *namespace, err error) {
	if pid == "0" {
		return nil, errInvisible
	}
	// From here on it is the same process, whoever gets its number.
	process, err := unix.Open("/proc/"+pid, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errNoProcess
	}
	defer unix.Close(process)
	fd, err := unix.Openat(process, "ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, errNoProcess
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: netnsOf(pid), Err: err}
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if id == t.home {
		return nil, errNotEntered
	}
	// Was it really the process in the cgroup? It is if that still has the number
	// and the process lives, because then nobody else can have had it.
	pids, err := readProcesses(cgroup)
	if err != nil || !slices.Contains(pids, pid) {
		return nil, errNoProcess
	}
	if err := unix.Fstatat(process, "ns/net", &st, 0); err != nil {
		return nil, errNoProcess
	}
	c, err := cookie(fd)
	if err != nil {
		return nil, err
	}
	return &namespace{fd, id, c}, nil
}
