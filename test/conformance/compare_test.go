// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// results are what the cases of a suite gave, by their names: passed, or what
// was wrong in the suite's own words. What comes before a colon is the verdict,
// and verdicts are compared: what was seen last of a connection that both ends
// have given up is not the same twice.
type results map[string]string

func verdict(s string) string {
	s, _, _ = strings.Cut(s, ":")
	return s
}

const passed = "passed"

// absent stands for a case that one run has and the other has not.
const absent = "(no result)"

// difference is a case that gave one thing directly and another on a way.
type difference struct {
	name, direct, way string
}

// compare returns the cases that differ, sorted by name.
func compare(direct, way results) []difference {
	names := maps.Clone(direct)
	maps.Copy(names, way)
	var out []difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d := difference{name: name, direct: absent, way: absent}
		if s, ok := direct[name]; ok {
			d.direct = s
		}
		if s, ok := way[name]; ok {
			d.way = s
		}
		if verdict(d.direct) != verdict(d.way) {
			out = append(out, d)
		}
	}
	return out
}

// table shows differences, the first of many.
func table(way string, all []difference) string {
	const most = 40
	var b strings.Builder
	fmt.Fprintf(&b, "%d cases differ %s:\n", len(all), way)
	for i, d := range all {
		if i == most {
			fmt.Fprintf(&b, "  … and %d more\n", len(all)-most)
			break
		}
		fmt.Fprintf(&b, "  %s\n      directly: %s\n      %s: %s\n", d.name, oneLine(d.direct), way, oneLine(d.way))
	}
	return b.String()
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return s
}

func names(ds []difference) []string {
	var out []string
	for _, d := range ds {
		out = append(out, d.name)
	}
	return out
}

// run is a suite over one way; only, when not empty, names the cases to run.
type run func(t *testing.T, w way, only []string) results

// comparison runs a suite over the direct way and over others.
type comparison struct {
	run run
	// cases is how many the suite must have at least: a suite that did not run is
	// no success.
	cases int
	// failing are the cases that fail directly, too, when it is known that they do.
	// Nil: any may.
	failing []string
	// plain are more ways that Sidetrack has no part in. What a case gives there it
	// may give everywhere; they are asked when something differs.
	plain []way
	// rounds is how often at most doubtful cases are run again; zero: againMost.
	rounds int
}

// Cases that differ are run once more, on all ways, at least and at most so often.
// Suites have timeouts of a second, and a machine that others use may be late; and
// in some cases a suite and a server race, and it takes a while until each has won.
const againLeast, againMost = 2, 8

// over runs the suite and fails with a table of what differs.
func (c comparison) over(t *testing.T, all ...way) {
	t.Helper()
	for i, differ := range c.differences(t, all...) {
		if len(differ) > 0 {
			t.Error(table(all[i].String(), differ))
		}
	}
}

// differences runs the suite, over all ways at the same time, and returns for each
// what differs from a direct connection.
func (c comparison) differences(t *testing.T, all ...way) [][]difference {
	t.Helper()
	ways := append([]way{direct}, all...)
	got := make([]results, len(ways))
	var wg sync.WaitGroup
	for i, w := range ways {
		wg.Go(func() { got[i] = c.run(t, w, nil) })
	}
	wg.Wait()
	if t.Failed() {
		return nil
	}
	if len(got[0]) < c.cases {
		t.Fatalf("the suite has run %d cases directly, want at least %d: %v", len(got[0]), c.cases, slices.Sorted(maps.Keys(got[0])))
	}
	var bad []string
	for name, result := range got[0] {
		if result != passed && c.failing != nil && !slices.Contains(c.failing, name) {
			bad = append(bad, name+": "+result)
		}
	}
	if len(bad) > 0 {
		slices.Sort(bad)
		t.Errorf("the suite itself fails, without Sidetrack:\n%s", strings.Join(bad, "\n"))
	}
	differ := make([][]difference, len(all))
	var doubtful []string
	for i, w := range all {
		differ[i] = compare(got[0], got[i+1])
		if n := len(differ[i]); n > 0 {
			t.Logf("%s: %d cases differ the first time: %s", w, n, oneLine(strings.Join(names(differ[i]), " ")))
			doubtful = append(doubtful, names(differ[i])...)
		}
	}
	// A suite that fails as a whole fails again.
	if slices.Sort(doubtful); len(doubtful) > 0 && len(doubtful) <= 100 {
		c.insist(t, got[0], all, differ, slices.Compact(doubtful))
	}
	for i, w := range all {
		fine := 0
		for _, result := range got[i+1] {
			if result == passed {
				fine++
			}
		}
		t.Logf("%s: %d cases, %d passed, %d differ from a direct connection", w, len(got[i+1]), fine, len(differ[i]))
	}
	return differ
}

// insist runs the doubtful cases again and leaves in differ those that differ
// indeed: on a way they have given what they never gave without Sidetrack. The
// first run on the way is forgiven, no other one.
func (c comparison) insist(t *testing.T, first results, all []way, differ [][]difference, doubtful []string) {
	rounds := cmp.Or(c.rounds, againMost)
	directs, ways := []results{first}, make([][]results, len(all))
	for n := 1; n <= rounds; n++ {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, w := range append([]way{direct}, c.plain...) {
			wg.Go(func() {
				r := c.run(t, w, doubtful)
				mu.Lock()
				defer mu.Unlock()
				directs = append(directs, r)
			})
		}
		for i, w := range all {
			wg.Go(func() {
				r := c.run(t, w, doubtful)
				mu.Lock()
				defer mu.Unlock()
				ways[i] = append(ways[i], r)
			})
		}
		wg.Wait()
		var left []string
		still := make([][]difference, len(all))
		for i := range all {
			still[i] = stillDiffer(differ[i], directs, ways[i])
			left = append(left, names(still[i])...)
		}
		if n >= againLeast && len(left) == 0 || n == rounds {
			copy(differ, still)
			return
		}
	}
}

func stillDiffer(differ []difference, directs, ways []results) []difference {
	var out []difference
	for _, d := range differ {
		known := map[string]bool{}
		for _, r := range directs {
			known[verdict(r[d.name])] = true
		}
		for _, r := range ways {
			if !known[verdict(r[d.name])] {
				out = append(out, difference{d.name, directs[0][d.name], cmp.Or(r[d.name], absent)})
				break
			}
		}
	}
	return out
}

func TestCompareFindsEveryDifference(t *testing.T) {
	a := results{"same": passed, "same failure": "failed: x", "worse": passed, "better": "failed: y", "other words": "failed: 1", "skips": "skipped", "gone": passed}
	b := results{"same": passed, "same failure": "failed: x", "worse": "failed: z", "better": passed, "other words": "failed: 2", "skips": "failed: 3", "new": passed}
	want := []difference{
		{"better", "failed: y", passed},
		{"gone", passed, absent},
		{"new", absent, passed},
		{"skips", "skipped", "failed: 3"},
		{"worse", passed, "failed: z"},
	}
	if got := compare(a, b); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := compare(a, a); len(got) > 0 {
		t.Errorf("the same results differ: %v", got)
	}
	if text := table("through it", compare(a, b)); !strings.Contains(text, "5 cases differ through it") || !strings.Contains(text, "failed: z") {
		t.Errorf("the table is %q", text)
	}
}

func TestADifferenceThatComesBackIsOne(t *testing.T) {
	differ := []difference{{name: "late once"}, {name: "wrong at times"}, {name: "always wrong"}, {name: "as racy as directly"}}
	directs := []results{
		{"late once": passed, "wrong at times": passed, "always wrong": passed, "as racy as directly": passed},
		{"late once": passed, "wrong at times": passed, "always wrong": passed, "as racy as directly": "failed: x"},
	}
	ways := []results{
		{"late once": passed, "wrong at times": passed, "always wrong": "failed: y", "as racy as directly": "failed: x"},
		{"late once": passed, "wrong at times": "failed: y", "always wrong": "failed: y", "as racy as directly": "failed: x"},
	}
	if got := names(stillDiffer(differ, directs, ways)); !slices.Equal(got, []string{"wrong at times", "always wrong"}) {
		t.Errorf("%q differ, want those that are wrong", got)
	}
}
