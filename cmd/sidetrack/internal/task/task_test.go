// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
)

func TestAFailuresKindIsFoundBelowOtherErrors(t *testing.T) {
	cause := &Failure{Kind: NotReady, Message: "it is not ready", Remedy: "wait", Err: io.ErrUnexpectedEOF}
	for _, c := range []struct {
		err  error
		kind Kind
		text string
	}{
		{cause, NotReady, "it is not ready: wait"},
		{fmt.Errorf("while trying: %w", cause), NotReady, "while trying: it is not ready: wait"},
		{Usagef("%d is too many", 7), Usage, "7 is too many"},
		{&Failure{Kind: Usage, Message: "outer", Err: cause}, Usage, "outer"},
		{errors.New("anything"), Failed, "anything"},
	} {
		if got := KindOf(c.err); got != c.kind || c.err.Error() != c.text {
			t.Errorf("%v: kind %d, want %d and %q", c.err, got, c.kind, c.text)
		}
	}
	if KindOf(nil) != Failed || !errors.Is(cause, io.ErrUnexpectedEOF) {
		t.Error("what has caused a failure is lost")
	}
}

func TestOnlyChangesAreReported(t *testing.T) {
	var got []Event
	c := NewChanges(ProgressFunc(func(e Event) { got = append(got, e) }))
	a, b := Event{Subject: "a", State: "begins"}, Event{Subject: "b", State: "begins"}
	done := Event{Subject: "a", State: "done", OK: true}
	for _, e := range []Event{a, a, b, a, done, b, done, a} {
		c.Report(e)
	}
	if want := []Event{a, b, done, a}; !slices.Equal(got, want) {
		t.Errorf("reported are %+v, want %+v", got, want)
	}
	NewChanges(nil).Report(a) // there may be nobody to tell
}
