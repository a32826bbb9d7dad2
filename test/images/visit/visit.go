// SPDX-License-Identifier: Apache-2.0

// Package visit holds what the end-to-end test and the program in its pods tell
// each other. It does nothing but encode and decode it.
package visit

import (
	"encoding/json"
	"fmt"
	"time"
)

// Visit is one service that a request has come through.
type Visit struct {
	Service  string
	Version  string
	Pod      string
	Sandbox  string `json:",omitempty"` // $SIDETRACK_SANDBOX
	Client   string // who has asked, as the service sees it
	Baggage  string `json:",omitempty"`
	Database string `json:",omitempty"` // which one has answered it
}

// Parse reads a service's answer.
func Parse(body []byte) ([]Visit, error) {
	var visits []Visit
	if err := json.Unmarshal(body, &visits); err != nil {
		return nil, fmt.Errorf("read a service's answer: %w", err)
	}
	return visits, nil
}

// Request is what a runner shall ask, over a new connection.
type Request struct {
	URL    string
	Header map[string]string
	// Database is asked instead of URL when it is set.
	Database string `json:",omitempty"`
	// Timeout is 10 s when it is zero.
	Timeout time.Duration `json:",omitempty"`
}

// Response is what came of a Request.
type Response struct {
	Status int
	Header map[string][]string
	Body   string
	// Failure is set when there was no answer.
	Failure string `json:",omitempty"`
}

// Load is steady load that a runner shall make: each connection belongs to one
// kind of request, and is kept alive.
type Load struct {
	URL string
	// Key tags every other connection's requests, whose answers must come from
	// TaggedVersion; the others' must come from Version.
	Key           string
	Version       string
	TaggedVersion string
	Connections   int
	// Rate is how many requests are sent in a second on all connections together.
	Rate     float64
	Duration time.Duration
}

// Result is what came of a Load.
type Result struct {
	Done        bool
	Open        int // connections that are open now
	Requests    int
	Tagged      int
	Failed      int // no answer, or not a 200
	Misrouted   int // answered by the wrong version
	Redialled   int // connections that were closed between two requests
	Late        int // requests that were sent more than a second after their time
	P50, P99    time.Duration
	Max         time.Duration
	Complaints  []string // the first few failures
	LastFailure time.Time
}
