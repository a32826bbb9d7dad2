// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestAPodIsFoundByItsUIDInEveryLayout(t *testing.T) {
	for _, l := range layouts {
		for _, v1 := range []bool{false, true} {
			title := l.name + ", version 2"
			if v1 {
				title = l.name + ", version 1"
			}
			t.Run(title, func(t *testing.T) {
				w := lab.New(t)
				below := w.Cgroup
				if v1 {
					below = mountV1(t, w)
				}
				a := w.MustPod("a")
				n := newNode(t, w, l, below, v1)
				r := n.resolver()
				r.Set([]pods.Pod{{Name: name("a"), UID: someUID, Sandbox: "pr-42", Inject: true}})
				if got := r.Resolve(); len(got.Pods) != 0 || got.Uncovered != 0 || len(got.Problems) != 0 {
					t.Fatalf("before it starts: %+v", got)
				}
				b := n.start(someUID, "0123456789abcdef", a)
				got, _ := await(t, r, "a pod that has started", in(cookieOf(t, a)))
				took := time.Since(b.started)
				if p := got.Pods[0]; p.Sandbox != "pr-42" || !p.Inject || p.Name != name("a") {
					t.Errorf("pod %+v", p)
				}
				if len(got.Namespaces) != 1 || got.Namespaces[0].Cgroup != "" {
					t.Errorf("namespaces %+v", got.Namespaces)
				}
				t.Logf("known %s after the process was started", took)

				b.stop()
				await(t, r, "a pod whose process has ended", none)
			})
		}
	}
}

func TestAPodThatRunsAlreadyIsKnownAtOnce(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	n.start(someUID, "sandbox", a)
	// Until the process has entered its namespace nobody can know.
	first := n.resolver()
	first.Set([]pods.Pod{{Name: name("a"), UID: someUID}})
	await(t, first, "a pod", in(cookieOf(t, a)))

	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID}})
	if got := r.Resolve(); !in(cookieOf(t, a))(got) {
		t.Errorf("at once: %+v", got)
	}
}

func TestAPodsObjectMayComeAfterItsProcess(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	n.start(someUID, "sandbox", a)
	time.Sleep(lab.Patience(300 * time.Millisecond))
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID}})
	if got := r.Resolve(); !in(cookieOf(t, a))(got) {
		t.Errorf("when the object comes: %+v", got)
	}
}

func TestAPodThatComesBackInAnotherNamespaceIsFollowed(t *testing.T) {
	w := lab.New(t)
	one, two := w.MustPod("one"), w.MustPod("two")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID}})
	sandbox := n.start(someUID, "sandbox", one)
	app := n.start(someUID, "app", one)
	app.entered(t)
	await(t, r, "the first namespace", in(cookieOf(t, one)))

	// Another process of the same pod keeps it known.
	sandbox.stop()
	for range 20 {
		if got := r.Resolve(); !in(cookieOf(t, one))(got) {
			t.Fatalf("without the sandbox's process: %+v", got)
		}
		time.Sleep(10 * time.Millisecond)
	}
	app.stop()
	await(t, r, "no namespace", none)
	n.start(someUID, "sandbox2", two)
	await(t, r, "the second namespace", in(cookieOf(t, two)))
}

func TestACgroupThatIsMadeAnewIsFollowed(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID}})
	for range 3 {
		b := n.start(someUID, "sandbox", a)
		await(t, r, "the pod", in(cookieOf(t, a)))
		b.stop()
		await(t, r, "no pod", none)
		// All of it, up to and with the pods' own.
		for _, d := range append(dirsOf(n.root), n.root) {
			n.must(unix.Rmdir(d))
		}
	}
}

func TestAProcessThatHasNotEnteredItsNamespaceYetIsNotBelieved(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID, Running: true}})
	// As runc's first process: it is in the cgroup, and still in the host's namespace.
	late := exec.Command("sh", "-c", "read go; exec sleep 1000")
	gate, err := late.StdinPipe()
	n.must(err)
	n.startIn(filepath.Join(n.podDir(someUID), "sandbox"), late)
	for range 20 {
		if got := r.Resolve(); len(got.Pods) != 0 {
			t.Fatalf("it is in no namespace of its own: %+v", got.Pods)
		}
		time.Sleep(5 * time.Millisecond)
	}
	gate.Close()
	n.start(someUID, "app", a)
	await(t, r, "the pod", in(cookieOf(t, a)))
}

func TestWhoHasAnotherUIDDoesNotCount(t *testing.T) {
	w := lab.New(t)
	a, b := w.MustPod("a"), w.MustPod("b")
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	other := newNode(t, w, layouts[0], filepath.Join(w.Cgroup, "n2"), false)
	const uid2 = "5d0cbf55-8f0b-4b6e-9a39-9d1f2b9f3c22"
	n.start(someUID, "sandbox", a)
	other.start(uid2, "sandbox", b)
	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID}, {Name: name("b"), UID: uid2}, {Name: name("c")}})
	await(t, r, "the pod of this node", in(cookieOf(t, a)))
	time.Sleep(50 * time.Millisecond)
	if got := r.Resolve(); !in(cookieOf(t, a))(got) {
		t.Errorf("%+v", got)
	}
}

func TestOnlyTheHostsOwnWayIsUsedInACluster(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	r := newNode(t, w, layouts[0], w.Cgroup, false).resolver()
	// Whoever may write a Pod must not choose whose namespace it means.
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID, Netns: a.Path}})
	if got := r.Resolve(); len(got.Pods) != 0 {
		t.Errorf("%+v", got.Pods)
	}
}

func TestAPodThatRunsAndIsNotFoundBecomesAGap(t *testing.T) {
	w := lab.New(t)
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	r.Set([]pods.Pod{{Name: name("a"), UID: someUID, Running: true}, {Name: name("b"), UID: "not-yet"}})
	if got := r.Resolve(); got.Uncovered != 0 || len(got.Problems) != 0 {
		t.Fatalf("objects may be ahead of processes for a moment: %+v", got)
	}
	got, _ := await(t, r, "a gap", func(r pods.Resolved) bool { return r.Uncovered > 0 })
	want := "Pod shop/a: runs, but has no process below " + n.root + ": see that this is where this node's pods are, or say where with --pods-cgroup; until then the pod is not covered"
	if got.Uncovered != 1 || !slices.Equal(problems(got), []string{want}) {
		t.Errorf("uncovered %d, problems %q", got.Uncovered, problems(got))
	}
	a := w.MustPod("a")
	n.start(someUID, "sandbox", a)
	if got, _ := await(t, r, "the pod", in(cookieOf(t, a))); got.Uncovered != 0 {
		t.Errorf("uncovered %d", got.Uncovered)
	}
}

func TestAHostNetworkPodIsKnownByItsCgroup(t *testing.T) {
	w := lab.New(t)
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	r := n.resolver()
	dir := n.podDir(someUID)
	n.startIn(filepath.Join(dir, "sandbox"), exec.Command("sleep", "1000"))
	r.Set([]pods.Pod{{Name: name("h"), UID: someUID, HostNetwork: true, Sandbox: "pr-42", Inject: true}})
	var st unix.Stat_t
	n.must(unix.Stat(dir, &st))
	got, _ := await(t, r, "the pod", in(routing.HostPod(st.Ino)))
	if p := got.Pods[0]; p.Sandbox != "pr-42" || !p.Inject || !p.Netns.IsHostPod() {
		t.Errorf("pod %+v", p)
	}
	if ns := got.Namespaces; len(ns) != 1 || ns[0].Cgroup != dir || ns[0].Cookie != got.Pods[0].Netns {
		t.Errorf("namespaces %+v", ns)
	}
	if len(got.Problems) != 0 {
		t.Errorf("problems %q", problems(got))
	}
}

func TestAHostNetworkPodInVersion1IsAGapForItsSandbox(t *testing.T) {
	w := lab.New(t)
	n := newNode(t, w, layouts[0], mountV1(t, w), true)
	r := n.resolver()
	for sandbox, gaps := range map[string]int{"": 0, "pr-42": 1} {
		r.Set([]pods.Pod{{Name: name("h"), UID: someUID, HostNetwork: true, Sandbox: sandbox}})
		if got := r.Resolve(); got.Uncovered != gaps || len(got.Pods) != 0 || !strings.Contains(problems(got)[0], "version 2") {
			t.Errorf("sandbox %q: %+v, want %d uncovered", sandbox, got, gaps)
		}
	}
}

// TestPodsAreFoundSoonAfterTheirFirstProcess starts pods among many and prints how
// soon each is known.
func TestPodsAreFoundSoonAfterTheirFirstProcess(t *testing.T) {
	w := lab.New(t)
	n := newNode(t, w, layouts[0], w.Cgroup, false)
	crowd := 300
	if testing.Short() {
		crowd = 20
	}
	shared := w.MustPod("crowd")
	var all []pods.Pod
	for i := range crowd {
		uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
		dir := filepath.Join(n.podDir(uid), "sandbox")
		n.must(shared.Do(func() error { n.startIn(dir, exec.Command("sleep", "1000")); return nil }))
		all = append(all, pods.Pod{Name: name("crowd-" + strconv.Itoa(i)), UID: uid})
	}
	r := n.resolver()
	var took []time.Duration
	for i := range 20 {
		uid := fmt.Sprintf("11111111-0000-4000-8000-%012d", i)
		all = append(all, pods.Pod{Name: name("new-" + strconv.Itoa(i)), UID: uid})
		r.Set(all)
		want := len(r.Resolve().Pods) + 1
		b := n.start(uid, "sandbox", shared)
		known := make(chan time.Time, 1)
		go func() {
			for range r.Changes() {
				if len(r.Resolve().Pods) == want {
					known <- time.Now()
					return
				}
			}
		}()
		entered := b.entered(t)
		select {
		case at := <-known:
			took = append(took, at.Sub(entered))
		case <-time.After(lab.Patience(10 * time.Second)):
			t.Fatal("a new pod is not known")
		}
	}
	slices.Sort(took)
	t.Logf("known after the process has entered its namespace: median %s, slowest %s", took[len(took)/2], took[len(took)-1])

	var before, after unix.Rusage
	n.must(unix.Getrusage(unix.RUSAGE_SELF, &before))
	time.Sleep(2 * time.Second)
	n.must(unix.Getrusage(unix.RUSAGE_SELF, &after))
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("%d pods at rest take %s of a processor's second", len(all), cpu/2)
}
