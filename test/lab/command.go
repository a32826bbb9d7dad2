// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// enter is the name (argument zero) by which a program that imports this
// package is told to enter a namespace and become another program.
const enter = "sidetrack-lab-enter"

func init() {
	if os.Args[0] != enter {
		return
	}
	if len(os.Args) < 4 {
		fmt.Fprintf(os.Stderr, "%s: want: namespace file, program, arguments from the zeroth on\n", enter)
		os.Exit(127)
	}
	// Initialisation runs on the main thread, and what executes a program keeps
	// its namespaces.
	err := become(os.Args[1], os.Args[2], os.Args[3:])
	fmt.Fprintf(os.Stderr, "%s: %v\n", enter, err)
	os.Exit(127)
}

func become(ns, path string, argv []string) error {
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", ns, err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	return nil
}

// Command is exec.Command for a program that runs in the pod's network
// namespace and in a cgroup of the pod's below World.Cgroup. Everything about
// the result may be changed before it is started, except Path, the first
// arguments and the cgroup.
//
// The command starts as this very program, whose initialisation finds the name
// in argument zero, enters the namespace and executes what was asked for. So any
// thread may start it and no nsenter is needed.
func (p *Pod) Command(name string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe",
		Args: append([]string{enter, p.Path, path, name}, args...),
		Err:  err,
	}
	fd, err := p.cgroupFD()
	if err != nil && cmd.Err == nil {
		cmd.Err = err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	return cmd
}

// cgroup is where the pod's commands run.
func (p *Pod) cgroup() string { return filepath.Join(p.world.Cgroup, "pod-"+p.Name) }

// cgroupFD returns a descriptor of the pod's cgroup; the pod keeps it.
func (p *Pod) cgroupFD() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cgroupDir != nil {
		return int(p.cgroupDir.Fd()), nil
	}
	dir, err := p.world.Subgroup(filepath.Base(p.cgroup()))
	if err != nil {
		return -1, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return -1, fmt.Errorf("open the pod's cgroup: %w", err)
	}
	p.cgroupDir = f
	p.undo = append(p.undo, f.Close)
	return int(f.Fd()), nil
}
