// SPDX-License-Identifier: Apache-2.0

// Vminit is the first process of the virtual machine in which test/kernels runs
// tests: it mounts what tests expect, loads modules, runs each test binary, and
// switches the machine off. It writes to the second serial line: the tests'
// output, and lines of its own that begin with "##vm".
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	line, err := setUp()
	if err != nil {
		fmt.Fprintln(line, "##vm error", err)
	} else if err := runTests(line); err != nil {
		fmt.Fprintln(line, "##vm error", err)
	} else {
		fmt.Fprintln(line, "##vm done")
	}
	unix.Sync()
	// Returning would be the kernel's panic, which ends the machine as well.
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "power off:", err)
}

// setUp makes an ordinary small machine. The file it returns is never nil.
func setUp() (*os.File, error) {
	for _, m := range []struct{ what, where string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
		{"cgroup2", "/sys/fs/cgroup"}, {"bpf", "/sys/fs/bpf"}, {"tracefs", "/sys/kernel/tracing"},
	} {
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return os.Stderr, fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	line, err := openLine("/dev/ttyS1")
	if err != nil {
		return os.Stderr, err
	}
	modules, err := filepath.Glob("/vm/modules/*")
	if err != nil {
		return line, err
	}
	for _, m := range modules {
		if err := insert(m); err != nil {
			return line, fmt.Errorf("load module %s: %w", m, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return line, fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return line, fmt.Errorf("set lo up: %w", err)
	}
	return line, nil
}

// openLine opens a serial line and keeps the kernel from changing what goes
// through it.
func openLine(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the settings of %s: %w", path, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func runTests(line *os.File) error {
	flags, err := os.ReadFile("/vm/flags")
	if err != nil {
		return err
	}
	tests, err := os.ReadFile("/vm/tests")
	if err != nil {
		return err
	}
	for test := range strings.Lines(string(tests)) {
		f := strings.Split(strings.TrimSpace(test), "\t")
		if len(f) < 3 {
			return fmt.Errorf("cannot read the line %q", test)
		}
		pkg, dir, binary := f[0], f[1], f[2]
		fmt.Fprintln(line, "##vm begin", pkg)
		status, err := runOne(line, dir, binary, append(strings.Fields(string(flags)), f[3:]...))
		if err != nil {
			return err
		}
		// The tests' last line may lack its end.
		fmt.Fprintf(line, "\n##vm end %d\n", status)
	}
	return nil
}

// runOne runs a program and, as the first process must, waits for everybody
// who has lost his parent.
func runOne(line *os.File, dir, binary string, args []string) (status int, err error) {
	p, err := os.StartProcess(binary, append([]string{binary}, args...), &os.ProcAttr{
		Dir:   dir,
		Files: []*os.File{os.Stdin, line, line},
		Env: []string{
			"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "SIDETRACK_VM=1", "SIDETRACKD=/bin/sidetrackd",
		},
		// A session of its own, so that nothing here is its terminal.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s in %s: %w", binary, dir, err)
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s in %s: %w", binary, dir, err)
		case pid == p.Pid && ws.Exited():
			return ws.ExitStatus(), nil
		case pid == p.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}
