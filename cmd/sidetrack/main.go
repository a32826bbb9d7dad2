// SPDX-License-Identifier: Apache-2.0

// Command sidetrack is what users and their coding agents drive Sidetrack with; as
// kubectl-sidetrack it is kubectl's plugin. Only wiring is here.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/cli-runtime/pkg/genericiooptions"

	ours "github.com/sidetrack-dev/sidetrack/cmd/internal/program"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cli"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() {
	ends := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	// That the terminal is closed ends it as well, unless nohup says otherwise.
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// Who reads what is printed may end before, as head(1) does. That is an error of the
	// write then, after which pods are removed, and not the end of the process.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	os.Exit(cli.Main(ctx, os.Args, streams, ours.Version(version)))
}
