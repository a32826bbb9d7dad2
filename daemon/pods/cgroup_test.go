// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestCgroupMountsAreFoundInTheMountTable(t *testing.T) {
	for _, test := range []struct {
		name, table string
		want        []mount
	}{
		{"version 2", `
			30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate`,
			[]mount{{dir: "/sys/fs/cgroup", root: "/"}}},
		{"version 1, with a space in a path", `
			32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
			35 31 0:32 / /sys/fs/my\040cgroup/memory rw - cgroup cgroup rw,memory
			39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
			40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd`,
			[]mount{
				{dir: "/sys/fs/cgroup/pids", root: "/", v1: []string{"pids"}},
				{dir: "/sys/fs/my cgroup/memory", root: "/", v1: []string{"memory"}},
				{dir: "/sys/fs/cgroup/systemd", root: "/", v1: []string{"name=systemd"}},
				{dir: "/sys/fs/cgroup/cpu,cpuacct", root: "/", v1: []string{"cpu", "cpuacct"}},
			}},
		{"hybrid", `
			31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
			39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
			41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`,
			[]mount{
				{dir: "/sys/fs/cgroup/unified", root: "/"},
				{dir: "/sys/fs/cgroup/pids", root: "/", v1: []string{"pids"}},
			}},
		{"the host's beside a container's own, which is in a cgroup namespace", `
			900 880 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate
			910 880 0:26 /../../../.. /host/cgroup ro - cgroup2 cgroup2 rw,nsdelegate`,
			[]mount{{dir: "/host/cgroup", root: "/../../../.."}}},
		{"the host's beside a part of it", `
			900 880 0:26 /kubepods/pod1/c /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate
			910 880 0:26 / /host/cgroup ro - cgroup2 cgroup2 rw,nsdelegate`,
			[]mount{{dir: "/host/cgroup", root: "/"}}},
		{"none", `23 1 0:22 / /sys rw - sysfs sysfs rw`, []mount{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var lines []string
			for line := range strings.Lines(test.table) {
				lines = append(lines, strings.TrimSpace(line))
			}
			got, err := parseCgroupMounts(strings.NewReader(strings.Join(lines, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(mount{})); diff != "" {
				t.Errorf("mounts (-want +got):\n%s", diff)
			}
		})
	}
}

// place makes a directory as it would be in a cgroup file system, with processes.
func place(t *testing.T, root, dir string, processes ...int) {
	t.Helper()
	dir = filepath.Join(root, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, p := range processes {
		text.WriteString(strconv.Itoa(p) + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestThePodsCgroupIsFound(t *testing.T) {
	// No process has this number: it is above every limit.
	const somebody = 1 << 30
	self := os.Getpid()
	for _, test := range []struct {
		name  string
		v2    map[string][]int // nil: not mounted
		v1    map[string][]int
		flag  string
		want  string // "v2 path" or "v1 path"; empty: not there yet
		wrong bool   // another error
	}{
		{name: "cgroupfs driver", v2: map[string][]int{"system": {1}, "kubepods/burstable": nil}, want: "v2 kubepods"},
		{name: "systemd driver", v2: map[string][]int{"system.slice": {1}, "kubepods.slice": nil}, want: "v2 kubepods.slice"},
		{name: "kind", v2: map[string][]int{"kubelet.slice/kubelet-kubepods.slice": nil}, want: "v2 kubelet.slice/kubelet-kubepods.slice"},
		{name: "no pod yet", v2: map[string][]int{"system": {1}}},
		{name: "a node that is a pod", v2: map[string][]int{"kubepods/pod1/c/kubelet/kubepods/pod2/d": {somebody}}, want: "v2 kubepods"},
		{name: "this process in a node that is a pod", v2: map[string][]int{"kubepods/pod1/c/kubelet/kubepods/pod2/d": {self}},
			want: "v2 kubepods/pod1/c/kubelet/kubepods"},
		{name: "two nodes, this process on the second", v2: map[string][]int{"kubepods/pod1/c": {somebody}, "n2/kubepods/pod2/d": {self}},
			want: "v2 n2/kubepods"},
		{name: "two nodes, this process on neither", v2: map[string][]int{"kubepods/pod1/c": {somebody}, "n2/kubepods/pod2/d": {somebody}},
			want: "v2 kubepods"},
		{name: "two nodes, one is told", v2: map[string][]int{"kubepods/pod1/c": {somebody}, "n2/kubepods/pod2/d": {somebody}},
			flag: "n2/kubepods", want: "v2 n2/kubepods"},
		{name: "both drivers, one in use", v2: map[string][]int{"kubepods/burstable": nil, "kubepods.slice/pod2/d": {somebody}},
			want: "v2 kubepods.slice"},
		{name: "version 1", v1: map[string][]int{"kubepods/burstable": nil}, want: "v1 kubepods"},
		{name: "version 1, told", v1: map[string][]int{"n2/kubepods/burstable": nil, "kubepods": nil}, flag: "/n2/kubepods", want: "v1 n2/kubepods"},
		{name: "hybrid, processes in both", v2: map[string][]int{"kubepods/pod1/c": {somebody}}, v1: map[string][]int{"kubepods/pod1/c": {somebody}},
			want: "v2 kubepods"},
		{name: "hybrid, processes in version 1 alone", v2: map[string][]int{"system": nil}, v1: map[string][]int{"kubepods/pod1/c": {somebody}},
			want: "v1 kubepods"},
		{name: "hybrid, processes in version 1, directories in both", v2: map[string][]int{"kubepods/pod1": nil}, v1: map[string][]int{"kubepods/pod1/c": {somebody}},
			want: "v1 kubepods"},
		{name: "hybrid, no process yet", v2: map[string][]int{"system": nil}, v1: map[string][]int{"kubepods/burstable": nil}},
		{name: "told, not there yet", v2: map[string][]int{"kubepods": nil}, flag: "n2/kubepods"},
		{name: "told a place that is no cgroup", v2: map[string][]int{"kubepods": nil}, flag: "/etc", wrong: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			var mounts []mount
			for name, tree := range map[string]map[string][]int{"v2": test.v2, "v1": test.v1} {
				if tree == nil {
					continue
				}
				m := mount{dir: filepath.Join(dir, name), root: "/"}
				if name == "v1" {
					m.v1 = []string{"pids"}
					mounts = append(mounts, m)
				} else {
					mounts = append([]mount{m}, mounts...)
				}
				for path, processes := range tree {
					place(t, m.dir, path, processes...)
				}
			}
			var c Cgroup
			var err error
			if test.flag != "" {
				c, err = namedCgroup(mounts, test.flag)
			} else {
				c, err = searchCgroup(mounts)
			}
			switch missing := errors.Is(err, errNoPodsCgroup); {
			case test.wrong:
				if err == nil || missing {
					t.Fatalf("got %+v, %v; want an error for good", c, err)
				}
				return
			case test.want == "":
				if !missing {
					t.Fatalf("got %+v, %v; want that it is not there yet", c, err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			kind, path, _ := strings.Cut(test.want, " ")
			if want := (Cgroup{filepath.Join(dir, kind, path), kind == "v2"}); c != want {
				t.Errorf("got %+v, want %+v", c, want)
			}
		})
	}
}

func TestTheFirstPodIsWaitedFor(t *testing.T) {
	mounts, err := cgroupMounts()
	if err != nil || len(mounts) == 0 {
		t.Skipf("no cgroup file system: %v", err)
	}
	w := lab.New(t)
	dir := filepath.Join(w.Cgroup, "kubelet", "kubepods")
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if c, err := AwaitCgroup(ctx, dir, log); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody has come: %+v, %v", c, err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = os.MkdirAll(dir, 0o755)
	}()
	ctx, cancel = context.WithTimeout(t.Context(), lab.Patience(10*time.Second))
	defer cancel()
	if c, err := AwaitCgroup(ctx, dir, log); err != nil || c.Dir != dir || !c.V2 || c.AttachDir() != dir {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestWithoutNotificationsPodsAreFoundAllTheSame(t *testing.T) {
	w := lab.New(t)
	const uid = "0b1f7d0c-3c5e-4f53-9c57-6a4d0a8f1e11"
	root := filepath.Join(w.Cgroup, "kubepods")
	changed := make(chan struct{}, 100)
	tree, err := newTree(root, nil, func() { changed <- struct{}{} }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.close()
	tree.want([]Pod{{UID: uid}})
	a := w.MustPod("a")
	for range 2 {
		dir := filepath.Join(root, "besteffort", "pod"+uid, "sandbox")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := a.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		await := func(what string, known bool) {
			t.Helper()
			for end := time.Now().Add(lab.Patience(10 * time.Second)); time.Now().Before(end); {
				s, ok := tree.see(uid)
				if known == (ok && s.ns != fileID{}) {
					return
				}
				select {
				case <-changed:
				case <-time.After(10 * time.Millisecond):
				}
			}
			t.Fatalf("%s is not seen", what)
		}
		await("the pod", true)
		t.Logf("known after %s", time.Since(began))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		await("its end", false)
	}
}

func TestDirectoriesOfPodsAreToldByTheirNames(t *testing.T) {
	const uid = "0b1f7d0c-3c5e-4f53-9c57-6a4d0a8f1e11"
	for name, want := range map[string]string{
		"pod" + uid: uid,
		"kubepods-burstable-pod0b1f7d0c_3c5e_4f53_9c57_6a4d0a8f1e11.slice":          uid,
		"kubepods-pod0b1f7d0c_3c5e_4f53_9c57_6a4d0a8f1e11.slice":                    uid,
		"kubelet-kubepods-besteffort-pod0b1f7d0c_3c5e_4f53_9c57_6a4d0a8f1e11.slice": uid,
		// A static pod's is a hash.
		"podd4e1b1fcf7a5bb4e0cb4a5e1ad5f6c0f":                "d4e1b1fcf7a5bb4e0cb4a5e1ad5f6c0f",
		"kubepods-podd4e1b1fcf7a5bb4e0cb4a5e1ad5f6c0f.slice": "d4e1b1fcf7a5bb4e0cb4a5e1ad5f6c0f",
		"burstable": "", "pod": "", "kubepods-burstable.slice": "", "system.slice": "", "init.scope": "",
	} {
		if got, ok := podUID(name); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, want)
		}
	}
}
