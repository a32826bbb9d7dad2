// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
)

// Kind says what kind of failure it is, for those who act on it without reading.
type Kind int

// The kinds of failures.
const (
	// Failed is any failure that no other kind means.
	Failed Kind = iota
	// Usage: what was asked for makes no sense, whatever the cluster is like.
	Usage
	// NotReady: what was waited for has not come about, or will not.
	NotReady
	// Different: what was compared differs.
	Different
	// Unverified: nothing differs, and it is not known that a fork was compared.
	Unverified
)

// Failure is an error that says what to do next.
type Failure struct {
	Kind Kind
	// Message says what has not worked, in a sentence without a full stop.
	Message string
	// Details are what there is to know beyond that, such as the last lines of a
	// container's log. Each may have several lines.
	Details []string
	// Remedy says what to do next. It may be empty where the message says it.
	Remedy string
	// Err is what has caused it, when that is an error. Message says it in words.
	Err error
}

// Error returns the message and the remedy.
func (f *Failure) Error() string {
	if f.Remedy == "" {
		return f.Message
	}
	return f.Message + ": " + f.Remedy
}

// Unwrap returns what has caused it.
func (f *Failure) Unwrap() error { return f.Err }

// Usagef returns a failure of the kind Usage.
func Usagef(format string, args ...any) error {
	return &Failure{Kind: Usage, Message: fmt.Sprintf(format, args...)}
}

// KindOf returns what kind of failure an error is: Failed for an error that does
// not say.
func KindOf(err error) Kind {
	var f *Failure
	if errors.As(err, &f) {
		return f.Kind
	}
	return Failed
}
