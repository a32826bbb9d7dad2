// SPDX-License-Identifier: Apache-2.0

// Kernels runs every test that touches the kernel on other kernels than the
// running one: it boots Debian's in QEMU, without KVM and without installing
// anything, and runs the tests there as root of an otherwise empty machine.
//
// Its standard output is the tests' events, as "go test -json" writes them, with
// the kernel's version behind the package's path; test/tally makes them
// readable. All else goes to standard error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	kernels  string
	packages string
	run      string
	timeout  time.Duration
	memory   int
	short    bool
	list     bool
	keep     bool
}

// partly are the packages of which not all is run, and what is: their tests want other
// people's clients and servers, which the machine has not, and one as fast as theirs are
// patient; emulation is fifty times slower. Those that are run ask with sockets of their
// own for what is the kernel's to decide.
var partly = map[string][]string{
	"/test/standalone":  {"TestCapturedSocketsOfAllKinds", "TestTCPFlowsGoByTheirSource", "TestUDPFlowsGoByTheirSource", "TestSystemCallsThatConnectOtherwise"},
	"/test/conformance": nil,
}

// part returns which tests of a package are run. It reports whether these are all.
func part(pkg string) (tests []string, all bool) {
	for suffix, tests := range partly {
		if strings.HasSuffix(pkg, suffix) {
			return tests, false
		}
	}
	return nil, true
}

// The main goroutine stays on the main thread, which lives as long as the
// process.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	flag.StringVar(&o.kernels, "kernels", "6.1,6.12", "comma-separated `series` of Debian's cloud kernels")
	flag.StringVar(&o.packages, "packages", "./...", "comma-separated package `patterns`; of these, packages whose tests touch the kernel are run")
	flag.StringVar(&o.run, "run", "", "only tests that match this `regexp`")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "limit for all tests on one kernel")
	flag.IntVar(&o.memory, "memory", 2048, "the machine's memory in `MiB`")
	flag.BoolVar(&o.short, "short", true, "pass -test.short: emulation is slow")
	flag.BoolVar(&o.list, "list", false, "print the packages whose tests touch the kernel and stop")
	flag.BoolVar(&o.keep, "keep", false, "keep the initramfs and the console's output, and say where")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(status(err))
	}
}

// status is 3 when tests have failed and nothing else, which the events on
// standard output tell as well.
func status(err error) int {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	if slices.ContainsFunc(all, func(err error) bool { return !errors.Is(err, errTests) }) {
		return 1
	}
	return 3
}

func run(ctx context.Context, o options) (err error) {
	pkgs, err := kernelPackages(ctx, strings.Split(o.packages, ","))
	if err != nil {
		return err
	}
	if o.list {
		for _, p := range pkgs {
			fmt.Println(p.ImportPath)
		}
		return nil
	}
	pkgs = slices.DeleteFunc(pkgs, func(p goPackage) bool {
		tests, all := part(p.ImportPath)
		return !all && len(tests) == 0
	})
	if len(pkgs) == 0 {
		return fmt.Errorf("no package of %s touches the kernel in its tests", o.packages)
	}
	work, err := os.MkdirTemp("", "sidetrack-kernels-")
	if err != nil {
		return fmt.Errorf("make a work folder: %w", err)
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "kernels: everything is in", work)
	} else {
		defer os.RemoveAll(work)
	}
	began := time.Now()
	payload, err := build(ctx, work, pkgs, o)
	if err != nil {
		return err
	}
	note("built %d test binaries in %.0f s", len(payload.tests), time.Since(began).Seconds())

	var errs []error
	for series := range strings.SplitSeq(o.kernels, ",") {
		k, err := fetch(ctx, series)
		if err != nil {
			errs = append(errs, fmt.Errorf("kernel %s: %w", series, err))
			continue
		}
		began := time.Now()
		initrd := filepath.Join(work, "initrd-"+series)
		if err := pack(initrd, k, payload, o); err != nil {
			return err
		}
		note("kernel %s (%s): starting", series, k.release)
		if err := boot(ctx, work, initrd, k, o, payload); err != nil {
			errs = append(errs, fmt.Errorf("kernel %s (%s): %w", series, k.release, err))
		}
		note("kernel %s (%s): %.0f s", series, k.release, time.Since(began).Seconds())
		if !o.keep {
			os.Remove(initrd)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "kernels: "+format+"\n", args...)
}
