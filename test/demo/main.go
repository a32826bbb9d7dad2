// SPDX-License-Identifier: Apache-2.0

// Demo shows Sidetrack at work on one machine: network namespaces stand for
// pods, and real requests go between them, untagged through the baseline and
// tagged through a fork.
//
// It owns all that it starts, and takes it away when it ends, is interrupted or
// fails. It adds nothing to the host's own network, cgroup or bpffs. Its exit
// status says whether everything went where it should.
//
// The same program is the services: "demo service" and "demo store".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// dispatch tells the demo from the services that it starts.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "service":
			return runService(ctx, args[1:])
		case "store":
			return runStore(ctx, args[1:])
		}
	}
	return run(ctx, args)
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	sidetrackd := f.String("sidetrackd", "bin/sidetrackd", "the agent's `program`")
	verbose := f.Bool("v", false, "show what the agent and the services log")
	if err := f.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("namespaces and BPF programs are root's to make: run it as root")
	}
	if _, err := os.Stat(*sidetrackd); err != nil {
		return fmt.Errorf("find the agent (make build): %w", err)
	}
	// A demo that was killed could not clean up after itself.
	if _, err := lab.Sweep(prefix); err != nil {
		return err
	}
	s, err := build(ctx, *verbose)
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return err
	}
	if err := s.startAgent(ctx, *sidetrackd); err != nil {
		return err
	}
	if err := s.show(ctx, os.Stdout); err != nil {
		return err
	}
	return s.stopAgent()
}
