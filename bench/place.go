// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// runPlace is how a program is started on one core and in a cgroup of choice:
// this program, in its own process, becomes the other one there. It returns only
// when it fails.
func runPlace(args []string) error {
	if len(args) < 3 {
		return errors.New("place: want: core, cgroup, program, arguments")
	}
	cpu, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("place: core: %w", err)
	}
	if args[1] != "" {
		if err := enterCgroup(args[1]); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(args[2])
	if err != nil {
		return fmt.Errorf("place: %w", err)
	}
	// What executes a program keeps its cores, the other threads end.
	runtime.LockOSThread()
	if err := pin(0, cpu); err != nil {
		return err
	}
	if err := syscall.Exec(path, args[2:], os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", path, err)
	}
	return nil
}

// enterCgroup moves this process.
func enterCgroup(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup %s: %w", dir, err)
	}
	return nil
}

// pin binds a thread to a core; thread 0 is the caller's.
func pin(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("bind thread %d to core %d: %w", tid, cpu, err)
	}
	return nil
}

// pinProcess binds all threads of a process to a core. Threads that it makes
// later inherit that.
func pinProcess(pid, cpu int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return fmt.Errorf("list threads: %w", err)
		}
		if err := pin(tid, cpu); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
