// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/agent"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// These make the test's program a node's agent (manifests, the pods' cgroup, bpffs,
// and "v1" where no cgroup2 is to be mounted) and a client (address, baggage): each has to be in a cgroup and a namespace of its own.
const (
	hostAgentEnv  = "SIDETRACK_TEST_HOST_AGENT"
	hostClientEnv = "SIDETRACK_TEST_HOST_CLIENT"
)

func init() {
	if args := os.Getenv(hostAgentEnv); args != "" {
		a := strings.Split(args, "|")
		fmt.Fprintln(os.Stderr, "child:", runHostAgent(a[0], a[1], a[2], a[3] == "v1"))
		os.Exit(1)
	}
	if args := os.Getenv(hostClientEnv); args != "" {
		address, baggage, _ := strings.Cut(args, "|")
		said, err := clientGet(address, baggage)
		if err != nil {
			said = "error: " + err.Error()
		}
		fmt.Println(said)
		os.Exit(0)
	}
}

func clientGet(address, baggage string) (string, error) {
	req, err := http.NewRequest("GET", "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	if baggage != "" {
		req.Header.Set("baggage", baggage)
	}
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	seen, err := lab.ReadSeen(resp)
	return strings.TrimSpace(seen.Server + " " + seen.Header.Get("baggage")), err
}

// podUID is the UID that the test gives a pod.
func podUID(name string) string { return "uid-of-" + name }

// clustered makes of manifests what a cluster's source says: pods have UIDs.
type clustered struct{ out chan source.Snapshot }

func (c clustered) Snapshots() <-chan source.Snapshot { return c.out }

func (c clustered) follow(m *source.Manifests) {
	for s := range m.Snapshots() {
		for i := range s.Pods {
			s.Pods[i].UID, s.Pods[i].Running = podUID(s.Pods[i].Name.Name), true
		}
		c.out <- s
	}
}

func runHostAgent(manifests, podsCgroup, bpffs string, v1 bool) error {
	for v1 {
		// In a mount namespace of its own.
		root, err := lab.Cgroup2()
		if err != nil {
			break
		}
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	m, err := source.OpenManifests(manifests, logger)
	if err != nil {
		return err
	}
	c := clustered{make(chan source.Snapshot)}
	go c.follow(m)
	where, err := pods.AwaitCgroup(context.Background(), podsCgroup, logger)
	if err != nil {
		return err
	}
	resolver, err := pods.NewClusterResolver(where, logger)
	if err != nil {
		return err
	}
	cfg := loader.DefaultConfig()
	cfg.Cgroup, cfg.BPFFS, cfg.HostPods, cfg.Logger = where.AttachDir(), bpffs, where.V2, logger
	k, err := loader.Open(cfg)
	if err != nil {
		return err
	}
	r, err := router.New(router.Config{Loops: 1, Mark: cfg.Mark, KeyNames: routing.DefaultKeyNames(), V6OnlyDest: k.V6OnlyDest, Logger: logger})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		Source: c, Pods: resolver, Kernel: k, Router: r, Mark: cfg.Mark, Cgroup: cfg.Cgroup,
		Lease: time.Minute, DrainTimeout: time.Second, Logger: logger,
	})
	if err != nil {
		return err
	}
	go announce(a)
	return a.Run(context.Background())
}

// inCgroup prepares this very program to run in a pod's namespace and a cgroup.
func (s *shop) inCgroup(p *lab.Pod, cgroup, env string) *exec.Cmd {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	dir, err := s.Subgroup(cgroup)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	cmd := p.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), env), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd()), Pdeathsig: syscall.SIGKILL}
	return cmd
}

// startChild starts an agent and waits until it is ready.
func (s *shop) startChild(child *exec.Cmd) {
	s.t.Helper()
	out, err := child.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
		if err := loader.Uninstall(s.BPFFS, slog.New(slog.DiscardHandler)); err != nil {
			s.t.Error(err)
		}
	})
	ready := make([]byte, len("ready"))
	if _, err := io.ReadFull(out, ready); err != nil {
		s.t.Fatal(err)
	}
}

func TestPodsOnTheHostsNetworkHaveTheirOwnIdentity(t *testing.T) {
	s := newShop(t)
	host := s.MustPod("host")
	s.put("pods.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: runner, namespace: shop, labels: {sidetrack.dev/sandbox: pr-42}}
spec: {hostNetwork: true}
---
apiVersion: v1
kind: Pod
metadata: {name: injected, namespace: shop, labels: {sidetrack.dev/sandbox: pr-42, sidetrack.dev/inject: "true"}}
spec: {hostNetwork: true}
`)
	s.sandboxOn()
	podCgroup := func(name string) string { return "kubepods/burstable/pod" + podUID(name) + "/c" }
	for _, name := range []string{"plain", "runner", "injected"} {
		if _, err := s.Subgroup(podCgroup(name)); err != nil {
			t.Fatal(err)
		}
	}
	// The agent is a pod on the host's network itself.
	child := s.inCgroup(host, podCgroup("agent"), fmt.Sprintf("%s=%s|%s|%s|v2", hostAgentEnv, s.dir, filepath.Join(s.Cgroup, "kubepods"), s.BPFFS))
	s.startChild(child)

	ask := func(cgroup, baggage string) string {
		t.Helper()
		cmd := s.inCgroup(host, cgroup, hostClientEnv+"="+routeIP+":80|"+baggage)
		answer, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(answer))
	}
	tag := "sidetrack=" + key
	for _, c := range []struct{ what, cgroup, baggage, want string }{
		{"an untagged request", podCgroup("plain"), "", "baseline"},
		{"a tagged request", podCgroup("plain"), tag, "fork " + tag},
		{"a flow of the sandbox", podCgroup("runner"), "", "fork"},
		{"a request of the sandbox with inject", podCgroup("injected"), "", "fork " + tag},
		{"a request of the sandbox with inject and baggage", podCgroup("injected"), "a=b", "fork a=b," + tag},
		// The host's own daemons are in no pod's cgroup.
		{"a tagged request of the host's own", "system/daemon", tag, "baseline " + tag},
	} {
		if got := ask(c.cgroup, c.baggage); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestAHostWithCgroupVersion1AloneIsCovered(t *testing.T) {
	s := newShop(t)
	v1 := filepath.Join(s.Dir(), "v1")
	if err := os.Mkdir(v1, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", v1, "cgroup", 0, "none,name="+s.Name); err != nil {
		t.Skipf("this kernel has no cgroup version 1: %v", err)
	}
	// Directories first, and then the mount, or the hierarchy stays.
	var dirs []string
	t.Cleanup(func() {
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Unmount(v1, 0); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []*lab.Pod{s.client, s.runner} {
		dir := v1
		for _, name := range []string{"kubepods", "burstable", "pod" + podUID(p.Name), "c"} {
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err == nil {
				dirs = append(dirs, dir)
			}
		}
		cmd := p.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	s.sandboxOn()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%s|v1", hostAgentEnv, s.dir, filepath.Join(v1, "kubepods"), s.BPFFS))
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	s.startChild(child)
	s.reach(s.runner, "fork")
	s.reach(s.client, "baseline")
	s.tagged("fork")
}
