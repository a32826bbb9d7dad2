// SPDX-License-Identifier: Apache-2.0

// Tally reads test events, as "go test -json" writes them, from its standard
// input and prints what "go test" would have: a line for each package, and the
// output of what failed. Its last line counts the tests. It exits with status 1
// when something failed and with 2 when there were no events at all.
//
// With -again, a test that has failed is run once more, on its own, and counts as
// passed when it passes then: tests of traffic between real programs depend on how
// soon a shared machine gives each of them a processor. Tally says so in a line of
// its own for each, because such a test wants looking into.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	file := flag.String("append", "", "append the three counts to this `file` as a line, to be added up")
	verbose := flag.Bool("v", false, "print the output of all tests")
	again := flag.String("again", "", "shell `command` that runs the tests $TESTS (a regexp) of the package $PKG, on a kernel of the $SERIES if there is one, once more")
	flag.Parse()
	status, err := run(*file, *verbose, *again)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		status = 2
	}
	os.Exit(status)
}

func run(file string, verbose bool, again string) (status int, err error) {
	t := newTally(os.Stdout, verbose)
	if err := t.read(os.Stdin); err != nil {
		return 2, err
	}
	c := t.finish()
	if again != "" {
		c = t.runAgain(again)
	}
	fmt.Println(c)
	if file != "" {
		if err := c.appendTo(file); err != nil {
			return 2, err
		}
	}
	if c == (counts{}) {
		return 2, errors.New("no tests ran")
	}
	return c.status(), nil
}

// counts are what the last line says. A test counts with each of its subtests;
// a package that fails without a failing test counts as one.
type counts struct{ Passed, Failed, Skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

func (c counts) status() int {
	if c.Failed > 0 {
		return 1
	}
	return 0
}

func (c counts) appendTo(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("keep the counts: %w", err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, c.Passed, c.Failed, c.Skipped); err != nil {
		return fmt.Errorf("keep the counts: %w", err)
	}
	return f.Close()
}

// event is one of test2json's.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build's output
	FailedBuild string
	Test        string
	Elapsed     float64
	Output      string
}

type tally struct {
	out     io.Writer
	verbose bool
	total   counts
	other   int // failures that are not a test's, of a test without an end, or data races
	pkgs    map[string]*pkg
	builds  map[string][]string // output of builds, by import path
}

// pkg is a package whose tests run.
type pkg struct {
	counts counts
	failed map[string]int      // of each test and its subtests, by the test's name
	output map[string][]string // by test; "" is the package's own
	open   map[string]bool     // tests that have begun and not ended
	done   bool
}

func newTally(out io.Writer, verbose bool) *tally {
	return &tally{out: out, verbose: verbose, pkgs: map[string]*pkg{}, builds: map[string][]string{}}
}

func (t *tally) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if jsonErr := json.Unmarshal(line, &e); jsonErr != nil {
				// What go itself has to say is not always an event.
				fmt.Fprintf(t.out, "%s", line)
			} else {
				t.event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (t *tally) event(e event) {
	if e.Action == "build-output" {
		t.builds[e.ImportPath] = append(t.builds[e.ImportPath], e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	p := t.pkgs[e.Package]
	if p == nil {
		p = &pkg{failed: map[string]int{}, output: map[string][]string{}, open: map[string]bool{}}
		t.pkgs[e.Package] = p
	}
	switch e.Action {
	case "run":
		p.open[e.Test] = true
	case "output":
		if strings.Contains(e.Output, "WARNING: DATA RACE") {
			t.other++ // it is there, whether it shows again or not
		}
		if t.verbose {
			fmt.Fprint(t.out, e.Output)
		}
		p.output[e.Test] = append(p.output[e.Test], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(p, e)
			return
		}
		delete(p.open, e.Test)
		p.count(e.Action)
		if e.Action == "fail" {
			test, _, _ := strings.Cut(e.Test, "/")
			p.failed[test]++
			t.print(p.output[e.Test])
		}
		delete(p.output, e.Test)
	}
}

func (p *pkg) count(action string) {
	switch action {
	case "pass":
		p.counts.Passed++
	case "fail":
		p.counts.Failed++
	case "skip":
		p.counts.Skipped++
	}
}

func (t *tally) endPackage(p *pkg, e event) {
	p.done = true
	if e.Action == "fail" {
		// Tests that had no end: the process crashed or ran out of time.
		for _, name := range slices.SortedFunc(maps.Keys(p.open), cmp.Compare) {
			p.counts.Failed++
			t.other++
			t.print(p.output[name])
		}
		if p.counts.Failed == 0 {
			p.counts.Failed++
			t.other++
		}
		t.print(t.builds[e.FailedBuild])
		t.print(slices.DeleteFunc(p.output[""], func(line string) bool {
			return strings.HasPrefix(line, "FAIL") // the next line says it better
		}))
	}
	switch {
	case e.Action == "fail":
		fmt.Fprintf(t.out, "FAIL\t%s\t%.1fs\t(%s)\n", e.Package, e.Elapsed, p.counts)
	case p.counts == (counts{}):
		// A package without tests is not worth a line.
	default:
		fmt.Fprintf(t.out, "ok  \t%s\t%.1fs\t(%s)\n", e.Package, e.Elapsed, p.counts)
	}
	t.total.Passed += p.counts.Passed
	t.total.Failed += p.counts.Failed
	t.total.Skipped += p.counts.Skipped
	p.output, p.open = nil, nil
}

// print writes a test's output, unless it has been written already.
func (t *tally) print(output []string) {
	if !t.verbose {
		fmt.Fprint(t.out, strings.Join(output, ""))
	}
}

// finish counts packages that never ended and returns the total.
func (t *tally) finish() counts {
	for _, name := range slices.Sorted(maps.Keys(t.pkgs)) {
		if p := t.pkgs[name]; !p.done {
			t.endPackage(p, event{Action: "fail", Package: name})
		}
	}
	return t.total
}
