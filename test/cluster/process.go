// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one of the cluster's programs. It is described so completely that
// another process, which has read the description from a file, can stop it and
// start it again.
type Process struct {
	Name string
	Path string
	Args []string
	// Log is the file that gets what it writes, in all its lives.
	Log string
	// Netns and Mountns are files of namespaces, when they are not the caller's.
	Netns   string `json:",omitempty"`
	Mountns string `json:",omitempty"`
	// Env is added to the caller's environment.
	Env []string `json:",omitempty"`
	// Cgroup is a folder of cgroup2 that it starts in.
	Cgroup string `json:",omitempty"`
	// PID and Began say which process it is; a number alone could be somebody
	// else's by now.
	PID   int    `json:",omitempty"`
	Began uint64 `json:",omitempty"`

	// dieWithUs has the kernel kill it when the calling process ends, however it
	// ends.
	dieWithUs bool
	mu        sync.Mutex
	ended     chan struct{} // closed when a child of ours has ended
}

// start starts the program. It does not wait for it to be ready.
func (p *Process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.Name, err)
	}
	defer log.Close()
	path, args := p.Path, p.Args
	if p.Netns != "" {
		// Unlike "ip netns exec" it leaves /sys as it is, with the cgroups.
		path, args = "nsenter", append([]string{"--net=" + p.Netns, "--mount=" + p.Mountns, "--", p.Path}, p.Args...)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// An own session: a terminal's Ctrl-C is for the test, which then stops it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.dieWithUs {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if p.Cgroup != "" {
		dir, err := os.Open(p.Cgroup)
		if err != nil {
			return fmt.Errorf("open the cgroup of %s: %w", p.Name, err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		// The signal of a parent's death comes when the parent's *thread* dies, so
		// this thread lives as long as the child.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.PID, p.ended = cmd.Process.Pid, ended
	// A child that is gone at once has no time of birth; whoever waits for it to be
	// ready finds out.
	p.Began, _ = birth(p.PID)
	return nil
}

// birth returns when a process started, in the kernel's ticks.
func birth(pid int) (uint64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The second field is in parentheses and may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" {
		return 0, os.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// running reports whether it is there; a zombie is not.
func (p *Process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive()
}

func (p *Process) alive() bool {
	if p.PID == 0 {
		return false
	}
	began, err := birth(p.PID)
	return err == nil && began == p.Began
}

// stop ends the process, first politely and after patience by force, and waits
// until it is gone.
func (p *Process) stop(patience time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, patience}, {unix.SIGKILL, 10 * time.Second}} {
		if !p.alive() {
			break
		}
		if step.wait == 0 {
			continue
		}
		if err := unix.Kill(p.PID, step.signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop %s: %w", p.Name, err)
		}
		for end := time.Now().Add(step.wait); p.alive() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if p.alive() {
		return fmt.Errorf("stop %s: process %d does not end", p.Name, p.PID)
	}
	if p.ended != nil {
		<-p.ended
	}
	p.PID, p.Began, p.ended = 0, 0, nil
	return nil
}

// waitFor calls ready until it succeeds. It fails at once when the process ends.
func (p *Process) waitFor(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if !p.running() {
			return fmt.Errorf("%s has ended:\n%s", p.Name, tail(p.Log, 30))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log ends:\n%s", p.Name, err, tail(p.Log, 30))
		}
	}
}

// tail returns a file's last lines.
func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
