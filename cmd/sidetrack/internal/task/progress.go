// SPDX-License-Identifier: Apache-2.0

package task

// Event is how far one part of a task is.
type Event struct {
	// Subject is which part: "fork Deployment/route", "nodes", "pod runner-x7".
	Subject string
	// State is how far it is, in words that need no more than the subject.
	State string
	// Done of Total parts are done. Both are zero where nothing is counted.
	Done, Total int
	// OK is set when this part is done.
	OK bool
}

// Progress is told how far a task is. A task reports each change once, in order,
// from one goroutine at a time. Report must not block for long.
type Progress interface {
	Report(e Event)
}

// ProgressFunc makes a Progress of a function.
type ProgressFunc func(Event)

// Report calls f.
func (f ProgressFunc) Report(e Event) { f(e) }

// Silent is a Progress that nobody hears.
var Silent Progress = ProgressFunc(func(Event) {})

// Changes passes on the events that say something new of their subject.
type Changes struct {
	to   Progress
	last map[string]Event
}

// NewChanges returns a Changes that reports to a Progress.
func NewChanges(to Progress) *Changes {
	if to == nil {
		to = Silent
	}
	return &Changes{to: to, last: map[string]Event{}}
}

// Report passes an event on unless it is what was last said of its subject.
func (c *Changes) Report(e Event) {
	if c.last[e.Subject] == e {
		return
	}
	c.last[e.Subject] = e
	c.to.Report(e)
}
