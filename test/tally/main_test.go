// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCountsAndOutput(t *testing.T) {
	for name, test := range map[string]struct {
		events []string
		counts counts
		output []string // in this order
		silent string   // not in the output
	}{
		"a package that passes is one line": {
			events: []string{
				`{"Action":"start","Package":"p"}`,
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}`,
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"skip","Package":"p","Test":"TestB"}`,
				`{"Action":"pass","Package":"p","Elapsed":1.25}`,
			},
			counts: counts{Passed: 1, Skipped: 1},
			output: []string{"ok  \tp\t1.2s\t(1 passed, 0 failed, 1 skipped)\n"},
			silent: "chatter",
		},
		"a failing test's output is printed": {
			events: []string{
				`{"Action":"run","Package":"p","Test":"TestA"}`,
				`{"Action":"output","Package":"p","Test":"TestA","Output":"want 1\n"}`,
				`{"Action":"fail","Package":"p","Test":"TestA"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			counts: counts{Failed: 1},
			output: []string{"want 1\n", "FAIL\tp\t"},
		},
		"a crash fails the tests that were running": {
			events: []string{
				`{"Action":"pass","Package":"p","Test":"TestA"}`,
				`{"Action":"run","Package":"p","Test":"TestB"}`,
				`{"Action":"output","Package":"p","Test":"TestB","Output":"panic: oh\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			counts: counts{Passed: 1, Failed: 1},
			output: []string{"panic: oh\n", "FAIL\tp\t"},
		},
		"events that stop fail the package": {
			events: []string{`{"Action":"run","Package":"p","Test":"TestA"}`},
			counts: counts{Failed: 1},
			output: []string{"FAIL\tp\t"},
		},
		"a build that fails counts and shows why": {
			events: []string{
				`{"Action":"build-output","ImportPath":"p [p.test]","Output":"undefined: x\n"}`,
				`{"Action":"build-fail","ImportPath":"p [p.test]"}`,
				`{"Action":"start","Package":"p"}`,
				`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
			},
			counts: counts{Failed: 1},
			output: []string{"undefined: x\n", "FAIL\tp\t"},
		},
		"what is no event is passed on": {
			events: []string{`go: downloading something`, `{"Action":"pass","Package":"p","Test":"TestA"}`, `{"Action":"pass","Package":"p"}`},
			counts: counts{Passed: 1},
			output: []string{"go: downloading something\n"},
		},
		"a package without tests is silent": {
			events: []string{`{"Action":"start","Package":"quiet"}`, `{"Action":"skip","Package":"quiet"}`},
			silent: "quiet",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			tally := newTally(&out, false)
			if err := tally.read(strings.NewReader(strings.Join(test.events, "\n"))); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.counts, tally.finish()); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			rest := out.String()
			for _, want := range test.output {
				_, after, found := strings.Cut(rest, want)
				if !found {
					t.Fatalf("want %q in:\n%s", want, out.String())
				}
				rest = after
			}
			if test.silent != "" && strings.Contains(out.String(), test.silent) {
				t.Errorf("%q is in:\n%s", test.silent, out.String())
			}
		})
	}
}

func TestCountsOfSeveralRunsAreLinesOfOneFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "counts")
	for _, c := range []counts{{Passed: 3, Skipped: 1}, {Passed: 2, Failed: 1}} {
		if err := c.appendTo(file); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("3 0 1\n2 1 0\n", string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatFailsOnceIsRunAgain(t *testing.T) {
	events := `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p"}
{"Action":"fail","Package":"q@6.1.0-1-amd64","Test":"TestC"}
{"Action":"fail","Package":"q@6.1.0-1-amd64"}
`
	for command, want := range map[string]counts{
		"true":                             {Passed: 4},
		"false":                            {Passed: 1, Failed: 3},
		`test "$PKG" = p`:                  {Passed: 3, Failed: 1},
		`test "$SERIES" = 6.1`:             {Passed: 2, Failed: 2},
		`test "$PKG $TESTS" = "q ^TestC$"`: {Passed: 2, Failed: 2},
	} {
		tl := newTally(io.Discard, false)
		if err := tl.read(strings.NewReader(events)); err != nil {
			t.Fatal(err)
		}
		tl.finish()
		if got := tl.runAgain(command); got != want {
			t.Errorf("again with %s: %s, want %s", command, got, want)
		}
	}
	// A package that does not build has no test to run.
	tl := newTally(io.Discard, false)
	if err := tl.read(strings.NewReader(events + `{"Action":"fail","Package":"r"}`)); err != nil {
		t.Fatal(err)
	}
	tl.finish()
	if got := tl.runAgain("true"); got.Failed != 4 {
		t.Errorf("with a package that does not build: %s, want 4 failed", got)
	}
	// A race that was seen once is there.
	tl = newTally(io.Discard, false)
	race := `{"Action":"output","Package":"p","Test":"TestA","Output":"WARNING: DATA RACE\n"}` + "\n"
	if err := tl.read(strings.NewReader(race + events)); err != nil {
		t.Fatal(err)
	}
	before := tl.finish()
	if got := tl.runAgain("true"); got != before {
		t.Errorf("with a race: %s, want %s", got, before)
	}
}
