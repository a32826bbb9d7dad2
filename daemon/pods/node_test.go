// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const someUID = "0b1f7d0c-3c5e-4f53-9c57-6a4d0a8f1e11"

// layout is how a kubelet and a runtime name cgroups.
type layout struct {
	name string
	root string
	pod  func(uid string) string // below root
	box  func(id string) string  // below the pod's
}

func dashed(uid string) string { return strings.ReplaceAll(uid, "-", "_") }

var layouts = []layout{
	{"cgroupfs driver and containerd", "kubepods",
		func(uid string) string { return "burstable/pod" + uid },
		func(id string) string { return id }},
	{"cgroupfs driver, guaranteed", "kubepods",
		func(uid string) string { return "pod" + uid },
		func(id string) string { return id }},
	{"systemd driver and containerd", "kubepods.slice",
		func(uid string) string {
			return "kubepods-besteffort.slice/kubepods-besteffort-pod" + dashed(uid) + ".slice"
		},
		func(id string) string { return "cri-containerd-" + id + ".scope" }},
	{"systemd driver and CRI-O, guaranteed", "kubepods.slice",
		func(uid string) string { return "kubepods-pod" + dashed(uid) + ".slice" },
		func(id string) string { return "crio-" + id + ".scope" }},
	{"systemd driver in kind", "kubelet.slice/kubelet-kubepods.slice",
		func(uid string) string {
			return "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + dashed(uid) + ".slice"
		},
		func(id string) string { return "cri-containerd-" + id + ".scope" }},
}

// node is a node's cgroups, made by the test as kubelet and runtime make them.
type node struct {
	*testing.T
	w      *lab.World
	layout layout
	root   string // the pods'
	v1     bool
}

// newNode makes a node below a directory of a cgroup file system.
func newNode(t *testing.T, w *lab.World, l layout, below string, v1 bool) *node {
	t.Helper()
	n := &node{T: t, w: w, layout: l, root: filepath.Join(below, l.root), v1: v1}
	n.mkdir(n.root)
	return n
}

func (n *node) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *node) mkdir(dir string) {
	n.Helper()
	n.must(os.MkdirAll(dir, 0o755))
}

// podDir makes a pod's cgroup, as the kubelet does.
func (n *node) podDir(uid string) string {
	n.Helper()
	dir := filepath.Join(n.root, n.layout.pod(uid))
	n.mkdir(dir)
	return dir
}

// box is a container with one process.
type box struct {
	dir     string
	cmd     *exec.Cmd
	started time.Time
}

// start makes a container's cgroup and starts a process in it that enters the
// pod's namespace after it is there, as a runtime's does.
func (n *node) start(uid, id string, ns *lab.Pod) *box {
	n.Helper()
	return n.startIn(filepath.Join(n.podDir(uid), n.layout.box(id)), ns.Command("sleep", "1000"))
}

func (n *node) startIn(dir string, cmd *exec.Cmd) *box {
	n.Helper()
	n.mkdir(dir)
	b := &box{dir: dir, cmd: cmd}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !n.v1 {
		f, err := os.Open(dir)
		n.must(err)
		defer f.Close()
		b.cmd.SysProcAttr.UseCgroupFD, b.cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	b.started = time.Now()
	n.must(b.cmd.Start())
	n.Cleanup(func() { b.stop() })
	if n.v1 {
		n.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(b.cmd.Process.Pid)), 0))
	}
	return b
}

// entered waits until the process has entered its namespace, which it does right
// before it becomes "sleep", and returns when that was.
func (b *box) entered(t *testing.T) time.Time {
	t.Helper()
	end := time.Now().Add(lab.Patience(10 * time.Second))
	for time.Now().Before(end) {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", b.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(comm), "sleep") || strings.HasPrefix(string(comm), "busybox") {
			return time.Now()
		}
		time.Sleep(100 * time.Microsecond)
	}
	t.Fatal("the container's process has not started")
	return time.Time{}
}

// stop ends the process and removes the container's cgroup.
func (b *box) stop() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	for range 200 {
		if err := unix.Rmdir(b.dir); err == nil || err == unix.ENOENT {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) resolver() *pods.Resolver {
	n.Helper()
	r, err := pods.NewClusterResolver(pods.Cgroup{Dir: n.root, V2: !n.v1}, slog.New(slog.DiscardHandler))
	n.must(err)
	n.Cleanup(func() {
		if err := r.Close(); err != nil {
			n.Error(err)
		}
	})
	return r
}

// await resolves until done says so, whenever there is a change.
func await(t *testing.T, r *pods.Resolver, what string, done func(pods.Resolved) bool) (got pods.Resolved, took time.Duration) {
	t.Helper()
	began := time.Now()
	end := time.After(lab.Patience(10 * time.Second))
	for {
		if got = r.Resolve(); done(got) {
			return got, time.Since(began)
		}
		select {
		case <-r.Changes():
		case <-end:
			t.Fatalf("%s: not after %s; last: %+v", what, time.Since(began), got)
		}
	}
}

func cookieOf(t *testing.T, p *lab.Pod) routing.Cookie {
	t.Helper()
	c, err := p.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	return routing.Cookie(c)
}

func in(c routing.Cookie) func(pods.Resolved) bool {
	return func(r pods.Resolved) bool { return len(r.Pods) == 1 && r.Pods[0].Netns == c }
}

func none(r pods.Resolved) bool { return len(r.Pods) == 0 }

// mountV1 mounts a version 1 hierarchy of the test's own.
func mountV1(t *testing.T, w *lab.World) string {
	t.Helper()
	dir := filepath.Join(w.Dir(), "v1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "cgroup", 0, "none,name="+w.Name); err != nil {
		t.Skipf("this kernel has no cgroup version 1: %v", err)
	}
	t.Cleanup(func() {
		// Without directories left the hierarchy ends with its mount.
		for _, d := range dirsOf(dir) {
			_ = unix.Rmdir(d)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// dirsOf returns the directories below dir, the innermost first.
func dirsOf(dir string) (dirs []string) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != dir {
			dirs = append([]string{path}, dirs...)
		}
		return nil
	})
	return dirs
}
