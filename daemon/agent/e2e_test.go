// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/daemon/agent"
	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// Service addresses. Without a service proxy a ClusterIP is an address of the
// pod behind it.
const (
	routeIP = "10.96.0.7"
	key     = "k-52f7c1e09b6d4e3f"
)

// childEnv has the test's program run an agent instead of tests: it names the
// manifests, the cgroup and the bpffs.
const childEnv = "SIDETRACK_TEST_AGENT"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		a := strings.Split(args, "|")
		ctx, stop := context.WithCancel(context.Background())
		defer stop()
		run, err := assemble(a[0], a[1], a[2], os.Stderr)
		if err == nil {
			go announce(run.agent)
			err = run.run(ctx)
		}
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// announce says on standard output when the agent is ready.
func announce(a *agent.Agent) {
	for a.State().NotReady != "" {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready")
}

// assembly is a whole agent.
type assembly struct {
	agent   *agent.Agent
	closers []io.Closer
}

func assemble(manifests, cgroup, bpffs string, log io.Writer) (_ *assembly, err error) {
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := &assembly{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	m, err := source.OpenManifests(manifests, logger)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, m)
	cfg := loader.DefaultConfig()
	cfg.Cgroup, cfg.BPFFS, cfg.Logger = cgroup, bpffs, logger
	k, err := loader.Open(cfg)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, k)
	r, err := router.New(router.Config{Loops: 1, Mark: cfg.Mark, KeyNames: routing.DefaultKeyNames(), V6OnlyDest: k.V6OnlyDest, Logger: logger})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, r)
	resolver := pods.NewResolver(logger)
	s.closers = append(s.closers, resolver)
	s.agent, err = agent.New(agent.Config{
		Source: m, Pods: resolver, Kernel: k, Router: r, Mark: cfg.Mark, Cgroup: cgroup,
		Lease: time.Minute, DrainTimeout: 5 * time.Second, Logger: logger,
	})
	return s, err
}

func (s *assembly) run(ctx context.Context) error {
	return errors.Join(s.agent.Run(ctx), s.close())
}

func (s *assembly) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// shop is a world with a Service route, its baseline, a fork, a client that is
// nobody's, and a runner of the sandbox pr-42.
type shop struct {
	*lab.World
	t                              *testing.T
	dir                            string
	client, runner, baseline, fork *lab.Pod
}

func newShop(t *testing.T) *shop {
	t.Helper()
	lab.NoLeaks(t, "")
	s := &shop{World: lab.New(t), t: t, dir: t.TempDir()}
	s.MustMoveSelf()
	s.client, s.runner = s.MustPod("client"), s.MustPod("runner")
	s.baseline, s.fork = s.MustPod("baseline", routeIP), s.MustPod("fork")
	for name, pod := range map[string]*lab.Pod{"baseline": s.baseline, "fork": s.fork} {
		pod.MustServeHTTP(name, "0.0.0.0:80")
		pod.MustServeTCP(name, "0.0.0.0:81")
	}
	// Of each address by itself, so that answers come from the one that was asked.
	s.baseline.MustServeUDP("baseline", routeIP+":82", lab.HostPort(s.baseline.IPv4, 82))
	s.fork.MustServeUDP("fork", lab.HostPort(s.fork.IPv4, 82))
	s.put("pods.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, annotations: {sidetrack.dev/netns: %s}}
---
apiVersion: v1
kind: Pod
metadata: {name: runner, namespace: shop, labels: {sidetrack.dev/sandbox: pr-42}, annotations: {sidetrack.dev/netns: %s}}
`, s.client.Netns, s.runner.Path))
	s.put("services.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: route, namespace: shop}
spec:
  clusterIP: %s
  ports: [{name: http, port: 80}, {name: raw, port: 81}, {name: udp, port: 82, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: route-1, namespace: shop, labels: {kubernetes.io/service-name: route}}
addressType: IPv4
ports: [{name: http, port: 80}, {name: raw, port: 81}, {name: udp, port: 82, protocol: UDP}]
endpoints: [{addresses: [%s]}]
`, routeIP, s.baseline.IPv4))
	return s
}

func (s *shop) put(name, text string) {
	s.t.Helper()
	// As an editor does it.
	tmp := filepath.Join(s.dir, "."+name)
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shop) sandboxOn() {
	s.t.Helper()
	s.put("sandbox.yaml", fmt.Sprintf(`
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-42, namespace: shop}
spec:
  routingKey: %s
  redirects:
  - {from: {service: route}, to: {address: %s}}
`, key, s.fork.IPv4))
}

func (s *shop) sandboxOff() {
	s.t.Helper()
	if err := os.Remove(filepath.Join(s.dir, "sandbox.yaml")); err != nil {
		s.t.Fatal(err)
	}
}

// running is an agent in this process.
type running struct {
	t     *testing.T
	agent *agent.Agent
	stop  func()
	log   *transcript.Log
}

func (s *shop) start() *running {
	s.t.Helper()
	r := &running{t: s.t, log: &transcript.Log{}}
	a, err := assemble(s.dir, s.Cgroup, s.BPFFS, r.log)
	if err != nil {
		s.t.Fatal(err)
	}
	r.agent = a.agent
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		if s.t.Failed() {
			s.t.Logf("the agent's log:\n%s", r.log)
		}
	})
	s.t.Cleanup(r.stop)
	r.until("the agent to be ready", func(st metrics.State) bool { return st.NotReady == "" })
	return r
}

func (r *running) until(what string, ok func(metrics.State) bool) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok(r.agent.State()) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited for %s; state %+v\n%s", what, r.agent.State(), r.log)
		}
		time.Sleep(time.Millisecond)
	}
}

// after makes a change and waits until it is in force.
func (r *running) after(change func()) {
	r.t.Helper()
	was := r.agent.State().Table.Generation()
	change()
	r.until("the next generation", func(s metrics.State) bool { return s.Table.Generation() > was })
}

// reach asserts where every kind of flow from a pod goes.
func (s *shop) reach(from *lab.Pod, want string) {
	s.t.Helper()
	for _, host := range []string{routeIP, s.baseline.IPv4.String()} {
		from.MustReach("tcp", net.JoinHostPort(host, "81"), want)
		from.MustReach("udp", net.JoinHostPort(host, "82"), want)
		if got := from.MustGet("http://" + host + "/"); got.Server != want {
			s.t.Errorf("a request from %s to %s reached %s, want %s", from.Name, host, got.Server, want)
		}
	}
}

func (s *shop) tagged(want string) {
	s.t.Helper()
	got := s.client.MustGet("http://"+routeIP+"/", "baggage: a=b, sidetrack="+key)
	if got.Server != want {
		s.t.Errorf("a tagged request reached %s, want %s", got.Server, want)
	}
	if host, _, _ := net.SplitHostPort(got.Remote); host != s.client.IPv4.String() {
		s.t.Errorf("the server saw %s, the client is %s", host, s.client.IPv4)
	}
}

func TestASandboxIsSwitchedOnAndOff(t *testing.T) {
	s := newShop(t)
	a := s.start()
	s.reach(s.runner, "baseline")
	s.tagged("baseline")
	for range 3 {
		a.after(s.sandboxOn)
		s.reach(s.runner, "fork")
		s.reach(s.client, "baseline")
		s.tagged("fork")
		a.after(s.sandboxOff)
		s.reach(s.runner, "baseline")
		s.reach(s.client, "baseline")
		s.tagged("baseline")
	}
	a.until("no listener", func(st metrics.State) bool { return st.Listeners == 0 })
}

func TestABrokenManifestChangesNothing(t *testing.T) {
	s := newShop(t)
	s.sandboxOn()
	a := s.start()
	s.reach(s.runner, "fork")
	a.after(func() {
		s.put("sandbox.yaml", "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: pr-42, namespace: shop}\nspec: {redirects: [{from: {service: route}}]}\n")
	})
	if n := a.agent.State().Problems["manifest"]; n != 1 {
		t.Errorf("%d problems with manifests, want 1", n)
	}
	const want = "sandbox.yaml: document 1: Sandbox shop/pr-42: spec.redirects[0].to: set exactly one of service or address"
	// The state is there first, and then the log.
	a.until("the log to say "+want, func(metrics.State) bool { return strings.Contains(a.log.String(), want) })
	s.reach(s.runner, "fork")
	s.tagged("fork")
	if strings.Contains(a.log.String(), key) {
		t.Error("the routing key is in the log")
	}
}

func TestAPoolOfIdleConnectionsMovesOverWithoutAFailedRequest(t *testing.T) {
	s := newShop(t)
	a := s.start()
	const size = 20
	client := s.client.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = size
	ask := func(header string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+routeIP+"/", http.NoBody)
		if err != nil {
			return "", err
		}
		if header != "" {
			req.Header.Set("baggage", header)
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		seen, err := lab.ReadSeen(resp)
		return seen.Server, err
	}
	all := func(header, want string) {
		t.Helper()
		var wg sync.WaitGroup
		for range size {
			wg.Go(func() {
				if got, err := ask(header); err != nil || got != want {
					t.Errorf("a request reached %q (%v), want %s", got, err, want)
				}
			})
		}
		wg.Wait()
	}
	defer client.CloseIdleConnections()
	all("", "baseline")
	time.Sleep(200 * time.Millisecond)
	a.after(s.sandboxOn)
	// The sweep begins after the table is in force.
	time.Sleep(300 * time.Millisecond)
	a.until("no connection to be left uncovered", func(st metrics.State) bool { return len(st.UncoveredConnections) == 0 })
	for range 5 {
		all("sidetrack="+key, "fork")
		all("", "baseline")
	}
}

func TestFlowsGoOnWithoutTheAgentAndANewOneTakesUp(t *testing.T) {
	s := newShop(t)
	s.sandboxOn()
	a := s.start()
	s.reach(s.runner, "fork")
	a.stop()
	s.reach(s.runner, "fork")
	s.tagged("baseline")

	// What changed meanwhile holds at once.
	s.sandboxOff()
	s.start()
	s.reach(s.runner, "baseline")
}

func TestAKilledAgentLeavesTheBaselineAndNothingBehind(t *testing.T) {
	s := newShop(t)
	s.sandboxOn()
	before := s.child()
	s.tagged("fork")
	pins := s.pins()
	s.kill(before)
	for range 5 {
		s.reach(s.runner, "fork")
		s.reachSoon(s.client, "baseline")
		c := s.child()
		s.reach(s.runner, "fork")
		s.tagged("fork")
		s.kill(c)
	}
	if diff := cmp.Diff(pins, s.pins()); diff != "" {
		t.Errorf("pins (-before +after):\n%s", diff)
	}
}

func (s *shop) pins() []string {
	s.t.Helper()
	var out []string
	err := filepath.WalkDir(s.BPFFS, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// reachSoon is reach for flows that the kernel may still steer to an agent that
// was killed a moment ago.
func (s *shop) reachSoon(from *lab.Pod, want string) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		got, err := from.Ask("tcp", routeIP+":81")
		if err == nil && got == want {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s reaches %q (%v), want %s", from.Name, got, err, want)
		}
	}
}

// child starts an agent in a process of its own, in this one's cgroup.
func (s *shop) child() *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{s.dir, s.Cgroup, s.BPFFS}, "|"))
	log := &transcript.Log{}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.kill(cmd) })
	ready := make([]byte, 6)
	if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
		s.t.Fatalf("the agent did not start: %q %v\n%s", ready, err, log)
	}
	return cmd
}

func (s *shop) kill(cmd *exec.Cmd) {
	if cmd.ProcessState != nil {
		return
	}
	_ = cmd.Process.Kill() // it may have ended by itself
	_ = cmd.Wait()
}
