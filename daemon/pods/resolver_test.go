// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func newResolver(t *testing.T) *pods.Resolver {
	t.Helper()
	r := pods.NewResolver(slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func name(n string) routing.Name { return routing.Name{Namespace: "shop", Name: n} }

// problems formats problems without what differs from run to run.
func problems(r pods.Resolved) []string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, p.String())
	}
	return out
}

func awaitChange(t *testing.T, r *pods.Resolver) {
	t.Helper()
	select {
	case <-r.Changes():
	case <-time.After(10 * time.Second):
		t.Fatal("no change was noticed")
	}
}

func TestNamespacesAreFoundByNameAndByPath(t *testing.T) {
	w := lab.New(t)
	a, b := w.MustPod("a"), w.MustPod("b")
	r := newResolver(t)
	r.Set([]pods.Pod{
		{Name: name("b"), Netns: b.Path, Sandbox: "pr-42", Inject: true},
		{Name: name("a"), Netns: a.Netns},
	})
	got := r.Resolve()
	ca, err := a.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	cb, err := b.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	want := []routing.Pod{
		{Name: name("a"), Netns: routing.Cookie(ca)},
		{Name: name("b"), Netns: routing.Cookie(cb), Sandbox: "pr-42", Inject: true},
	}
	if diff := cmp.Diff(want, got.Pods); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	if len(got.Problems) != 0 || got.Uncovered != 0 {
		t.Errorf("problems %q, uncovered %d", problems(got), got.Uncovered)
	}
	for _, ns := range got.Namespaces {
		var st, file unix.Stat_t
		if err := unix.Fstat(ns.FD, &st); err != nil {
			t.Errorf("descriptor of %s: %v", ns.Name, err)
		}
		if err := unix.Stat(ns.Name, &file); err != nil || file.Ino != st.Ino {
			t.Errorf("descriptor of %s is of inode %d, the file of %d (%v)", ns.Name, st.Ino, file.Ino, err)
		}
	}
}

func TestAHostNetworkPodHasTheAgentsNamespaceAndNoIdentity(t *testing.T) {
	lab.New(t) // asks for root
	r := newResolver(t)
	r.Set([]pods.Pod{{Name: name("h"), HostNetwork: true, Sandbox: "pr-42", Inject: true}})
	got := r.Resolve()
	if len(got.Pods) != 1 || got.Pods[0].Netns == 0 || got.Pods[0].Sandbox != "" || got.Pods[0].Inject {
		t.Errorf("pods: %+v", got.Pods)
	}
	want := []string{"Pod shop/h: metadata.labels[sidetrack.dev/sandbox]: does not hold for a pod with hostNetwork: it would tag every flow of the node; tag its requests with the routing key instead"}
	if diff := cmp.Diff(want, problems(got)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestPodsThatShareANamespaceMustAgree(t *testing.T) {
	w := lab.New(t)
	a := w.MustPod("a")
	r := newResolver(t)
	r.Set([]pods.Pod{
		{Name: name("one"), Netns: a.Netns, Sandbox: "pr-42"},
		{Name: name("two"), Netns: a.Path, Sandbox: "pr-42"},
		{Name: name("zwei"), Netns: a.Netns},
	})
	got := r.Resolve()
	if len(got.Pods) != 2 || len(got.Namespaces) != 1 {
		t.Errorf("pods %+v, namespaces %+v", got.Pods, got.Namespaces)
	}
	want := []string{"Pod shop/zwei: metadata.annotations[sidetrack.dev/netns]: is the network namespace of pod shop/one as well, whose sandbox labels differ and hold: give each its own namespace or the same labels"}
	if diff := cmp.Diff(want, problems(got)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestWhatIsNoNamespaceIsAProblemWithARemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := newResolver(t)
	r.Set([]pods.Pod{
		{Name: name("a"), Netns: "/nonexistent/netns"},
		{Name: name("b"), Netns: file},
		{Name: name("c")},
		{Name: name("d"), Netns: "../d"},
		{Name: name("e"), Netns: "/proc/self/ns/mnt"},
	})
	got := r.Resolve()
	at := ": metadata.annotations[sidetrack.dev/netns]: "
	want := []string{
		"Pod shop/a" + at + "there is no /nonexistent/netns: make the namespace or correct the annotation; until then the pod is not covered",
		"Pod shop/b" + at + file + " is not a network namespace: make one there or correct the annotation; until then the pod is not covered",
		"Pod shop/c" + at + "is missing: name the pod's network namespace, by its name below /var/run/netns or by its path; until then the pod is not covered",
		"Pod shop/d" + at + `"../d" is neither a name below /var/run/netns nor an absolute path; until then the pod is not covered`,
		"Pod shop/e" + at + "/proc/self/ns/mnt is not a network namespace: make one there or correct the annotation; until then the pod is not covered",
	}
	if diff := cmp.Diff(want, problems(got)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if got.Uncovered != 5 || len(got.Pods) != 0 {
		t.Errorf("uncovered %d, pods %+v", got.Uncovered, got.Pods)
	}
}

func TestANamespaceThatIsMadeLaterAndMadeAnewIsNoticed(t *testing.T) {
	w := lab.New(t)
	r := newResolver(t)
	r.Set([]pods.Pod{{Name: name("a"), Netns: w.Name + "-late"}})
	if got := r.Resolve(); got.Uncovered != 1 {
		t.Fatalf("resolved before there is a namespace: %+v", got)
	}

	late := w.MustPod("late")
	awaitChange(t, r)
	got := r.Resolve()
	if len(got.Pods) != 1 {
		t.Fatalf("not resolved: %q", problems(got))
	}
	was := got.Pods[0].Netns

	if err := late.Remove(); err != nil {
		t.Fatal(err)
	}
	awaitChange(t, r)
	if got := r.Resolve(); len(got.Pods) != 0 || got.Uncovered != 1 {
		t.Fatalf("a namespace that is gone is resolved: %+v", got)
	}

	w.MustPod("late")
	awaitChange(t, r)
	if got := r.Resolve(); len(got.Pods) != 1 || got.Pods[0].Netns == was {
		t.Fatalf("the new namespace is not told from the old: %+v", got)
	}
}

func TestAVanishedNamespaceIsNotKeptAlive(t *testing.T) {
	w := lab.New(t)
	pod := w.MustPod("a")
	r := newResolver(t)
	r.Set([]pods.Pod{{Name: name("a"), Netns: pod.Netns}})
	r.Resolve()
	if n := holders(t, pod); n != 1 {
		t.Fatalf("the namespace is held open %d times, want 1", n)
	}
	r.Set(nil)
	r.Resolve()
	if n := holders(t, pod); n != 0 {
		t.Errorf("the namespace is held open %d times, want none", n)
	}
}

// holders counts this process's descriptors on a pod's namespace, other than
// the lab's own.
func holders(t *testing.T, pod *lab.Pod) int {
	t.Helper()
	want, err := os.Stat(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	for _, e := range entries {
		if st, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil && os.SameFile(st, want) {
			n++
		}
	}
	return n
}

func TestDoRunsInTheNamespaceAndComesHome(t *testing.T) {
	w := lab.New(t)
	pod := w.MustPod("a")
	fd, err := unix.Open(pod.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	here := func() string {
		to, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		return to
	}
	home := here()
	var there string
	failure := fmt.Errorf("what f returns")
	if err := pods.Do(fd, func() error { there = here(); return failure }); err != failure {
		t.Errorf("error %v, want f's own", err)
	}
	if there == home {
		t.Error("f ran at home")
	}
	for range 50 {
		done := make(chan string)
		go func() { done <- here() }()
		if got := <-done; got != home {
			t.Fatalf("a goroutine runs in %s, home is %s", got, home)
		}
	}
}
