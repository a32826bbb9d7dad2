// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Sender sends a request, tagged for the sandbox or not.
type Sender func(ctx context.Context, r exchange.Request, tagged bool) (*exchange.Answer, error)

// Options say how to compare.
type Options struct {
	// Samples is how many answers of the baseline are compared with one another, at
	// most, before a difference is believed; two at least. DefaultSamples when it is zero.
	Samples int
	// Ignore are places that do not count, as Difference.Where has them; * is any text,
	// so that "$[*].id" is the id of every element.
	Ignore []string
	// Canonical makes one of all values that mean the same, as NamesOfPods does. It may
	// be nil.
	Canonical func(string) string
	// Names are those under which nodes look for a routing key: no request may have one.
	Names exchange.Names
	// Timeout is how long each answer may take; exchange.DefaultTimeout when it is zero.
	Timeout time.Duration
}

// DefaultSamples finds noise that has two values with a probability of 99.9 percent.
const DefaultSamples = 8

// Result is what came of one request.
type Result struct {
	Request string `json:"request"`
	// Differences are what every answer of the sandbox has in another way than every
	// answer of the baseline, which agree.
	Differences []Difference `json:"differences,omitempty"`
	// Noise are places where answers of the baseline, or of the sandbox, do not agree
	// among themselves.
	Noise []string `json:"noise,omitempty"`
	// BaselineAnswers and SandboxAnswers are how many were compared.
	BaselineAnswers int `json:"baselineAnswers"`
	SandboxAnswers  int `json:"sandboxAnswers"`
	// BaselineStatus and SandboxStatus are those of the last answers; zero where there
	// was none.
	BaselineStatus int `json:"baselineStatus,omitempty"`
	SandboxStatus  int `json:"sandboxStatus,omitempty"`
	// BaselineError and SandboxError say why there was none.
	BaselineError string `json:"baselineError,omitempty"`
	SandboxError  string `json:"sandboxError,omitempty"`
	// TimedOut: the last answer of one of them took too long.
	TimedOut bool `json:"timedOut,omitempty"`
	// Reached are the redirected Services at which forks have answered in each request to
	// the sandbox, and Missed the others: Verified says nothing of these.
	Reached []string `json:"reached,omitempty"`
	Missed  []string `json:"missed,omitempty"`
	// TraceID is the trace of the last request to the sandbox, or of the first that
	// is not verified.
	TraceID string `json:"traceID,omitempty"`
	// Verified: forks have answered each request to the sandbox, as Verify has found.
	// Otherwise that nothing differs may mean that the baseline has answered both.
	Verified bool `json:"verified"`
	// NotVerified are the reasons why it is not.
	NotVerified []string `json:"notVerified,omitempty"`

	asked []asked
}

// maxLate is after how many answers of the sandbox that take too long no more are asked
// for: each takes as long again, and nothing comes of the next one.
const maxLate = 2

// Difference is one place in which the answers differ.
type Difference struct {
	// Where is "status", "error", "body", "line N", "header NAME", or a path in JSON.
	Where string `json:"where"`
	// Baseline and Sandbox are what is there; absent where nothing is.
	Baseline string `json:"baseline"`
	Sandbox  string `json:"sandbox"`
}

// absent stands for what an answer does not have.
const absent = "(absent)"

// Compare sends a request to the baseline and the sandbox by turns, so that each
// answer of the sandbox lies between two of the baseline: what changes with time
// is noise then. It goes on until nothing is different any more, or there are enough
// samples to believe that it is.
func Compare(ctx context.Context, send Sender, r exchange.Request, o Options) (Result, error) {
	samples := o.Samples
	if samples == 0 {
		samples = DefaultSamples
	}
	samples = max(samples, 2)
	if o.Names.In(r.Header) {
		return Result{}, task.Usagef("the headers of %s have a routing key, which both sides would get: leave it out", r.URL)
	}
	ignored, err := patterns(o.Ignore)
	if err != nil {
		return Result{}, err
	}
	method := cmp.Or(r.Method, "GET")
	res := Result{Request: method + " " + r.URL}
	if r.Timeout == 0 {
		r.Timeout = o.Timeout
	}
	var baseline, sandbox []facts
	timedOut, late := map[bool]bool{}, 0
	ask := func(tagged bool) error {
		began := time.Now()
		a, err := send(ctx, r, tagged)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if task.KindOf(err) == task.Usage {
			return err
		}
		f := read(a, err)
		if o.Canonical != nil {
			for where, value := range f {
				f[where] = o.Canonical(value)
			}
		}
		maps.DeleteFunc(f, func(where, _ string) bool { return ignored(where) })
		status, text := 0, ""
		if err != nil {
			text = err.Error()
		} else {
			status = a.Status
		}
		timedOut[tagged] = errors.Is(err, context.DeadlineExceeded)
		if tagged {
			if timedOut[tagged] {
				late++
			}
			sandbox = append(sandbox, f)
			res.SandboxStatus, res.SandboxError = status, text
			request := asked{began: began}
			if err == nil {
				res.TraceID, request.trace = a.TraceID, a.TraceID
			}
			res.asked = append(res.asked, request)
			return nil
		}
		baseline = append(baseline, f)
		res.BaselineStatus, res.BaselineError = status, text
		return nil
	}
	if err := ask(false); err != nil {
		return res, err
	}
	for len(baseline) < samples {
		if err := ask(true); err != nil {
			return res, err
		}
		if err := ask(false); err != nil {
			return res, err
		}
		res.Differences, res.Noise = differences(baseline, sandbox)
		if len(res.Differences) == 0 || late >= maxLate {
			break
		}
	}
	res.BaselineAnswers, res.SandboxAnswers = len(baseline), len(sandbox)
	res.TimedOut = timedOut[false] || timedOut[true]
	return res, nil
}

// differences finds the places at which the answers of each side agree, and the
// two sides do not.
func differences(baseline, sandbox []facts) (different []Difference, noise []string) {
	places := map[string]bool{}
	for _, f := range slices.Concat(baseline, sandbox) {
		for where := range f {
			places[where] = true
		}
	}
	for where := range places {
		b, same := agreed(baseline, where)
		s, sameToo := agreed(sandbox, where)
		switch {
		case !same || !sameToo && slices.ContainsFunc(sandbox, func(f facts) bool { return at(f, where) == b }):
			noise = append(noise, where)
		case !sameToo:
			different = append(different, Difference{where, b, "(varies) " + s})
		case b != s:
			different = append(different, Difference{where, b, s})
		}
	}
	slices.SortFunc(different, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(rank(a.Where), rank(b.Where)), natural(a.Where, b.Where))
	})
	slices.SortFunc(noise, natural)
	return different, noise
}

func at(f facts, where string) string {
	if v, ok := f[where]; ok {
		return v
	}
	return absent
}

// agreed returns what the first answer has at a place, and whether all have it.
func agreed(all []facts, where string) (string, bool) {
	first := at(all[0], where)
	for _, f := range all[1:] {
		if at(f, where) != first {
			return first, false
		}
	}
	return first, true
}

// rank sorts what says most first.
func rank(where string) int {
	switch {
	case where == "error":
		return 0
	case where == "status":
		return 1
	case strings.HasPrefix(where, "header "):
		return 3
	}
	return 2
}

var digits = regexp.MustCompile(`\d+`)

// natural sorts $[10] after $[9].
func natural(a, b string) int {
	wide := func(s string) string {
		return digits.ReplaceAllStringFunc(s, func(n string) string { return fmt.Sprintf("%012s", n) })
	}
	return cmp.Compare(wide(a), wide(b))
}

// patterns makes one function of patterns with * in them.
func patterns(all []string) (func(string) bool, error) {
	var re []*regexp.Regexp
	for _, p := range all {
		if p == "" {
			return nil, task.Usagef("a place to ignore is empty: write one as a difference is printed, such as $.id or header Server")
		}
		parts := strings.Split(p, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		// What is below a place goes with it.
		re = append(re, regexp.MustCompile("^"+strings.Join(parts, ".*")+`($|\.|\[)`))
	}
	return func(where string) bool {
		return slices.ContainsFunc(re, func(r *regexp.Regexp) bool { return r.MatchString(where) })
	}, nil
}
