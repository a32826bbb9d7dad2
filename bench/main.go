// SPDX-License-Identifier: Apache-2.0

// Command bench measures what Sidetrack costs, next to a direct connection and
// next to HAProxy, in one interleaved run between network namespaces, and writes
// a report. README.md says how the figures are made and what they mean.
//
// It owns the namespaces, servers, proxies and load generators that it starts,
// and takes them away again. It never fails because something was slow: only
// because an answer came from the wrong server or not at all.
//
// The same program is its own server and load generator, as "bench serve" and
// "bench load"; "bench fill" fills the kernel's maps, and "bench place" is how it
// starts others on a core. A run must be the only one on its machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch tells the benchmark from the processes that it starts.
func dispatch(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "place":
			return runPlace(args[1:])
		case "serve":
			debug.SetGCPercent(-1)
			return runServe(args[1:])
		case "load":
			debug.SetGCPercent(-1)
			return runLoad(args[1:])
		case "fill":
			return runFill(args[1:], os.Stdin, os.Stdout)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, args, os.Stdout)
}

const reportFile = "bench/REPORT.md"

type options struct {
	settings
	quick, sizes bool
	report       string
	only         *regexp.Regexp
	sidetrackd   string
	agentFlags   string
}

func parse(args []string) (options, error) {
	o := options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 8, "how often each case is measured")
	f.DurationVar(&o.duration, "duration", time.Second, "how long a case is measured in a round")
	f.DurationVar(&o.warmup, "warmup", 250*time.Millisecond, "how long a case runs before it is measured")
	f.IntVar(&o.connections, "connections", 32, "connections of the load generator, except where one request at a time is measured")
	f.IntVar(&o.rate, "rate", 2000, "requests a second, of all paths together, where one request at a time is measured")
	f.Float64Var(&o.quiet, "quiet", 0.05, "repeat a measurement during which others used more than this share of all cores' time")
	f.Uint64Var(&o.seed, "seed", 0, "of the random order of cases; 0 takes the time")
	f.StringVar(&o.report, "report", "", "write the report to this file, \"-\" for the standard output; when empty it is "+reportFile+" for a whole run and the standard output else")
	only := f.String("only", "", "measure only cases whose name matches this regular expression, such as \"^paced: (direct|router)\"")
	f.StringVar(&o.sidetrackd, "sidetrackd", "", "use this program instead of building one")
	f.StringVar(&o.agentFlags, "agent-flags", "", "more flags for sidetrackd, separated by spaces")
	f.BoolVar(&o.quick, "quick", false, "short rounds: to see that it works, not to believe the figures")
	f.BoolVar(&o.sizes, "sizes", false, "measure large tables instead of traffic")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	var err error
	if o.only, err = regexp.Compile("(?i)" + *only); err != nil {
		return o, fmt.Errorf("only: %w", err)
	}
	if o.quick {
		o.rounds, o.duration, o.warmup, o.quiet = 2, 300*time.Millisecond, 100*time.Millisecond, 1
	}
	if o.report == "" && !o.quick && *only == "" && !o.sizes {
		o.report = reportFile
	}
	if o.rounds < 1 || o.duration <= 0 || o.connections < 1 || o.rate < 1 {
		return o, errors.New("rounds, duration, connections and rate must be positive")
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := preflight(o); err != nil {
		return err
	}
	if o.sizes {
		return runSizes(ctx, o, out)
	}
	what := o.selected()
	if len(what) == 0 {
		return fmt.Errorf("no case's name matches %q", o.only)
	}
	s, err := build()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startOthers(ctx, what); err != nil {
		return err
	}
	if slices.ContainsFunc(what, measurement.needsHAProxy) {
		if err := s.startHAProxy(); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(what, measurement.needsAgent) {
		if err := s.startAgent(ctx, o.sidetrackd, strings.Fields(o.agentFlags)...); err != nil {
			return err
		}
	}
	began := time.Now()
	res, err := s.measureAll(ctx, o.settings, what, os.Stderr)
	if err != nil {
		return err
	}
	rep := &report{machine: thisMachine(), args: args, began: began, took: time.Since(began), set: o.settings, results: res}
	if err := writeReport(o.report, out, rep.text()); err != nil {
		return err
	}
	return res.verdict()
}

func (o options) selected() []measurement {
	return slices.DeleteFunc(measurements(), func(m measurement) bool { return !o.only.MatchString(m.String()) })
}

// preflight reports what is missing, all in one line.
func preflight(o options) error {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "run it as root, for it makes network namespaces")
	}
	if runtime.NumCPU() < 2 {
		missing = append(missing, "two cores are needed, so that the proxy can have one")
	}
	if slices.ContainsFunc(o.selected(), measurement.needsHAProxy) && !o.sizes {
		if _, err := exec.LookPath("haproxy"); err != nil {
			missing = append(missing, "haproxy is missing: apt-get install haproxy")
		}
	}
	for name, pkg := range map[string]string{"h2load": "nghttp2-client", "nginx": "nginx"} {
		if slices.ContainsFunc(o.selected(), func(m measurement) bool { return m.way == http2Load }) && !o.sizes {
			if _, err := exec.LookPath(name); err != nil {
				missing = append(missing, name+" is missing: apt-get install "+pkg)
			}
		}
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}
