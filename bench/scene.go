// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// The two cores: the load generator's and the one whose turn it is to be the
// bottleneck.
const (
	loadCore  = 0
	otherCore = 1
)

const (
	port       = uint16(80)
	routingKey = "b3nch.0123456789abcdef"
)

var (
	serviceIP   = netip.MustParseAddr("10.96.0.1") // stands on the baseline's pod
	forkIP      = netip.MustParseAddr("10.96.0.2") // stands on the fork's pod
	elsewhereIP = netip.MustParseAddr("10.96.9.9") // the fork's as well; in no Service
)

// scene is the world that is measured: a client's pod, a pod of the sandbox's
// (runner), and the two servers'. Nothing but covered connects under the
// agent's eyes.
type scene struct {
	world            *lab.World
	client, runner   *lab.Pod
	base, forked     *lab.Pod
	covered, outside string // cgroups
	servers          map[string]*process
	otherServers     map[string]map[string]*process // by way, of those that others has
	calls            string                         // the gRPC program

	haproxy *process // nil when not measured
	agent   *process // nil when not measured
}

// build makes the world and starts its servers.
func build() (_ *scene, err error) {
	s := &scene{servers: map[string]*process{}, otherServers: map[string]map[string]*process{}}
	const prefix = "sdbench"
	if _, err := lab.Sweep(prefix); err != nil {
		return nil, fmt.Errorf("clean up after an earlier run: %w", err)
	}
	if s.world, err = lab.NewWorld(prefix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for _, p := range []struct {
		to    **lab.Pod
		name  string
		extra []netip.Addr
	}{
		{&s.client, "client", nil},
		{&s.runner, "runner", nil},
		{&s.base, baseline, []netip.Addr{serviceIP}},
		{&s.forked, fork, []netip.Addr{forkIP, elsewhereIP}},
	} {
		if *p.to, err = s.world.AddPod(p.name, p.extra...); err != nil {
			return nil, err
		}
		if err := (*p.to).Do(roomy); err != nil {
			return nil, err
		}
	}
	if s.covered, err = s.world.Subgroup("covered"); err != nil {
		return nil, err
	}
	if s.outside, err = s.world.Subgroup("outside"); err != nil {
		return nil, err
	}
	for _, p := range []*lab.Pod{s.base, s.forked} {
		srv, err := s.start(p, loadCore, s.outside, "", "serve", p.Name, strconv.Itoa(int(port)))
		if err != nil {
			return nil, err
		}
		s.servers[p.Name] = srv
		if err := s.await(p, netip.AddrPortFrom(p.IPv4, port), srv); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *scene) close() error {
	all := []*process{s.agent, s.haproxy}
	for _, servers := range s.otherServers {
		all = slices.AppendSeq(all, maps.Values(servers))
	}
	for _, p := range all {
		if p != nil {
			p.stop()
		}
	}
	return s.world.Close()
}

// roomy gives a pod enough ports, and a congestion control without timers:
// BBR, which some hosts have, paces. (Reno is what any namespace may choose.)
func roomy() error {
	for file, value := range map[string]string{
		"ipv4/tcp_congestion_control": "reno",
		"ipv4/ip_local_port_range":    "10000 65000",
		"core/somaxconn":              "4096",
	} {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return nil
}

// process is a program that runs beside the measurements.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, and insists.
func (p *process) stop() {
	// An error means that it has ended, which is what is wanted.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// ended reports why a process has ended that should not have, nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s\n%s", p.name, p.cmd.ProcessState, p.out)
	default:
		return nil
	}
}

// start starts a program on a core and in a cgroup; in a pod, or in the host's
// namespace when pod is nil. An empty path means this program.
func (s *scene) start(pod *lab.Pod, cpu int, cgroup, path string, args ...string) (*process, error) {
	cmd, err := s.command(pod, cpu, cgroup, path, args...)
	if err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(path), cmd: cmd, out: &tail{}, done: make(chan struct{})}
	if path == "" {
		p.name = strings.Join(args[:2], " ")
	}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		// How it ended is in the command's state.
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (s *scene) command(pod *lab.Pod, cpu int, cgroup, path string, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the benchmark's own program: %w", err)
	}
	env := os.Environ()
	if path == "" {
		path = self
		env = append(env, "GODEBUG=asyncpreemptoff=1")
	}
	args = append([]string{"place", strconv.Itoa(cpu), cgroup, path}, args...)
	var cmd *exec.Cmd
	if pod != nil {
		cmd = pod.Command(self, args...)
	} else {
		cmd = exec.Command(self, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// An interrupt from the terminal is for the benchmark, which ends the others
	// in order.
	cmd.SysProcAttr.Setpgid = true
	cmd.Env = env
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// await dials until somebody listens.
func (s *scene) await(from *lab.Pod, to netip.AddrPort, p *process) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := from.Dial("tcp", to.String())
		if err == nil {
			c.Close()
			return nil
		}
		if err := p.ended(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not listen on %s: %w\n%s", p.name, to, err, p.out)
		}
	}
}

// run runs the load generator once.
func (s *scene) run(ctx context.Context, l Load) ([]Measured, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("tell the load generator: %w", err)
	}
	limit := l.Warmup + 2*l.For + 30*time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd, err := s.command(nil, loadCore, s.outside, "", "load", string(b))
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the load generator: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		// An error means that it has just ended.
		_ = cmd.Process.Kill()
	})()
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("load generator: no end within %s: %w", limit, ctx.Err())
		}
		return nil, fmt.Errorf("load generator: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var got said
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	if got.WrongAnswer != "" {
		return nil, wrongAnswer{got.WrongAnswer}
	}
	if len(got.Measured) != len(l.Paths) {
		return nil, fmt.Errorf("load generator: %d results for %d paths", len(got.Measured), len(l.Paths))
	}
	return got.Measured, nil
}

// tail keeps the end of what a process says, for messages.
type tail struct {
	mu sync.Mutex
	b  []byte
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - 4096; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
