// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// The exit statuses. A command that "run" has run to its end gives its own.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotReady    = 3
	exitDifferent   = 4
	exitUnverified  = 5
	exitInterrupted = 130
	// exitUnread is what a shell says of a program that SIGPIPE has ended.
	exitUnread = 141
)

// exitStatus is an error that has been told already, or needs no words.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// kubectl calls a plugin's completions by a program of this name.
const completer = "kubectl_complete-"

// silence has libraries not log what they also return.
var silence = sync.OnceFunc(func() {
	klog.SetLogger(logr.Discard())
	log.SetLogger(logr.Discard())
})

// Main runs the program with its arguments, of which the first is its own name,
// and returns the exit status. Cancelling the context ends it, cleaning up.
func Main(ctx context.Context, args []string, streams genericiooptions.IOStreams, version string) int {
	silence()
	name, arguments := calledAs(args)
	ctx, end := context.WithCancel(ctx)
	defer end()
	reader := &readBy{Writer: streams.Out, end: end}
	p := newProgram(ctx, name, version, genericiooptions.IOStreams{In: streams.In, Out: reader, ErrOut: streams.ErrOut})
	p.stdout, p.unread = streams.Out, reader.gone.Load
	root := p.command()
	root.SetArgs(arguments)
	err := root.ExecuteContext(ctx)
	if reader.gone.Load() {
		return exitUnread
	}
	if err != nil {
		complain(streams.ErrOut, name, err)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return exitInterrupted
	}
	return status(err)
}

// calledAs returns what the program is called in its usage, and its arguments.
func calledAs(args []string) (name string, arguments []string) {
	if len(args) == 0 {
		return "sidetrack", nil
	}
	base := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	if plugin, ok := strings.CutPrefix(base, completer); ok {
		return "kubectl " + plugin, append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	if plugin, ok := strings.CutPrefix(base, "kubectl-"); ok {
		return "kubectl " + strings.ReplaceAll(plugin, "_", "-"), args[1:]
	}
	return "sidetrack", args[1:]
}

func status(err error) int {
	var code exitStatus
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	}
	switch task.KindOf(err) {
	case task.Usage:
		return exitUsage
	case task.NotReady:
		return exitNotReady
	case task.Different:
		return exitDifferent
	case task.Unverified:
		return exitUnverified
	}
	return exitFailed
}

// complain says what is wrong, what is known about it, and what to do next, in
// that order.
func complain(w io.Writer, name string, err error) {
	var code exitStatus
	if errors.As(err, &code) {
		return
	}
	var f *task.Failure
	if !errors.As(err, &f) {
		f = &task.Failure{Message: err.Error()}
	}
	message := f.Message
	// Whoever has wrapped it has something to say, too.
	if before, ok := strings.CutSuffix(err.Error(), f.Error()); ok {
		message = before + message
	}
	fmt.Fprintf(w, "%s: %s\n", name, asCalled(name, message))
	for _, d := range f.Details {
		fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(strings.TrimRight(d, "\n"), "\n", "\n  "))
	}
	if f.Remedy != "" {
		fmt.Fprintf(w, "next: %s\n", asCalled(name, f.Remedy))
	}
}

// ownCommand is a command of this program, as the packages beside this one name it.
var ownCommand = regexp.MustCompile(`(kubectl )?\bsidetrack ((?:diff|doctor|explain|logs|mcp|proxy|run|sandbox|status|trace|ui|version)\b)`)

// asCalled has what is said of this program's commands name them as the user calls it:
// as a plugin it may be there under no other name.
func asCalled(name, text string) string {
	return ownCommand.ReplaceAllString(text, name+" $2")
}
