// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errTests says that a kernel ran everything, and that tests have failed on it.
var errTests = errors.New("see their tests")

// trouble is what a kernel writes to its console when it is not well.
var trouble = regexp.MustCompile(`(?m)^.*(Kernel panic|Oops|BUG:|WARNING: CPU|INFO: task|Call Trace:|unable to handle).*$`)

// boot runs the tests on one kernel and writes their events to standard output.
func boot(ctx context.Context, work, initrd string, k *kernel, o options, p *payload) error {
	// What is left when the tests have used up their own limit is a machine that
	// hangs.
	ctx, cancel := context.WithTimeout(ctx, o.timeout+5*time.Minute)
	defer cancel()
	console := filepath.Join(work, "console-"+k.release)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(o.memory),
		"-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot",
		// The kernel's messages and the tests' output have a line each.
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", k.image, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 loglevel=5")
	cmd.Stderr = os.Stderr
	// It does not outlive this process when that is killed. The signal is sent when
	// the thread ends that has started it, which is the main one; see main.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start the machine: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the machine (Debian's package qemu-system-x86): %w", err)
	}
	failed, readErr := events(ctx, out, k, p)
	waitErr := cmd.Wait()
	log, err := os.ReadFile(console)
	if err != nil {
		return errors.Join(readErr, waitErr, fmt.Errorf("read the console's output: %w", err))
	}
	if ctx.Err() != nil {
		waitErr = fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	var sick error
	if line := trouble.Find(log); line != nil {
		sick = fmt.Errorf("the kernel wrote: %s", bytes.TrimSpace(line))
	}
	if err := errors.Join(readErr, waitErr, sick); err != nil {
		return fmt.Errorf("%w\nthe console's last lines:\n%s", err, tail(log, 60))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d packages failed: %w", failed, len(p.tests), errTests)
	}
	return nil
}

// events turns what vminit writes into test events, package by package, and
// counts the packages that failed.
func events(ctx context.Context, r io.Reader, k *kernel, p *payload) (failed int, err error) {
	version, _, _ := strings.Cut(k.release, "-cloud")
	lines := bufio.NewReader(r)
	var convert *exec.Cmd
	var in io.WriteCloser
	begin := func(pkg string) error {
		// -t makes it add the time, from which durations are made.
		convert = exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", pkg+"@"+version)
		convert.Stdout, convert.Stderr = os.Stdout, os.Stderr
		var err error
		if in, err = convert.StdinPipe(); err != nil {
			return fmt.Errorf("start test2json: %w", err)
		}
		if err := convert.Start(); err != nil {
			return fmt.Errorf("start test2json: %w", err)
		}
		return nil
	}
	end := func(status string) error {
		if convert == nil {
			return nil
		}
		var err error
		if status != "0" {
			// A test binary that crashes does not say FAIL itself.
			_, err = fmt.Fprintf(in, "exit status %s\nFAIL\n", status)
		}
		err = errors.Join(err, in.Close(), convert.Wait())
		convert = nil
		if err != nil {
			return fmt.Errorf("test2json: %w", err)
		}
		return nil
	}
	ran, done := 0, false
	for {
		line, err := lines.ReadString('\n')
		word, rest, isMark := cutMark(line)
		switch {
		case isMark && word == "begin":
			if err := begin(rest); err != nil {
				return 0, err
			}
		case isMark && word == "end":
			if err := end(rest); err != nil {
				return 0, err
			}
			ran++
			if rest != "0" {
				failed++
			}
		case isMark && word == "done":
			done = true
		case isMark && word == "error":
			return 0, fmt.Errorf("in the machine: %s", rest)
		case convert != nil:
			if _, err := io.WriteString(in, line); err != nil {
				return 0, fmt.Errorf("write to test2json: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read from the machine: %w", err)
		}
	}
	if !done {
		return 0, errors.Join(end("unknown: the machine stopped"), errors.New("the machine stopped before the tests were over"))
	}
	if ran != len(p.tests) {
		return 0, fmt.Errorf("%d of %d test binaries ran", ran, len(p.tests))
	}
	return failed, nil
}

// cutMark recognises a line that vminit itself has written.
func cutMark(line string) (word, rest string, ok bool) {
	s, ok := strings.CutPrefix(strings.TrimSpace(line), "##vm ")
	if !ok {
		return "", "", false
	}
	word, rest, _ = strings.Cut(s, " ")
	return word, rest, true
}

func tail(log []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
