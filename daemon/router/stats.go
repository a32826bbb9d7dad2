// SPDX-License-Identifier: Apache-2.0

package router

import (
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Stats are the router's counters since it was made.
type Stats struct {
	// Open is how many connections of clients there are now.
	Open int
	// Streams is how many HTTP/2 streams there are now.
	Streams int
	// Accepted counts clients' connections.
	Accepted uint64
	// Held counts the attempts to connect that had to wait for the upstream, which
	// are all those that come to a listener whose SYNs are held.
	Held uint64
	// Received and Given count those that came from another agent's router, and
	// went to one, when agents took turns.
	Received, Given uint64
	// Requests counts requests by what became of them. Once it has very many
	// entries, new ones are counted under the Sandbox and Service Overflow.
	Requests map[RequestKey]uint64
	// Opaque counts connections that are not HTTP by where they have gone, like
	// Requests.
	Opaque map[RequestKey]uint64
	// FromClients and ToClients count bytes.
	FromClients, ToClients uint64
	// Tunnels counts connections that have become tunnels (Upgrade, CONNECT).
	Tunnels uint64
	// Retries counts requests that were sent again because a kept-alive upstream
	// had closed before it answered.
	Retries uint64
	// Errors counts what went another way than the plain one, by reason; every
	// reason is present.
	Errors map[string]uint64
}

// RequestKey is what requests are counted by. It never holds a routing key.
type RequestKey struct {
	Sandbox routing.Name // the zero Name: untagged
	Service routing.Name
	Verdict routing.Verdict
	Reason  routing.Reason
}

// Overflow stands for the Sandboxes and Services that came too late to be
// counted one by one.
var Overflow = routing.Name{Name: "(other)"}

// maxSeries bounds Stats.Requests and Stats.Opaque for each loop.
const maxSeries = 8192

// errorReason is why something went another way than the plain one.
type errorReason uint8

const (
	acceptFailed errorReason = iota
	unknownDestination
	dialRefused
	dialTimedOut
	dialFailedOther
	clientReset
	upstreamReset
	notHTTP
	serverFirst
	ambiguousPassed
	ambiguousRefused
	headTooLarge
	ambiguousAnswer
	doubtfulAnswer
	keyInOpaque
	notHeld
	synLost
	synAbandoned
	synOverLimit
	http2Errors
	errorReasons = http2Errors + errorReason(http2.Reasons)
)

var errorNames = [errorReasons]string{
	acceptFailed:       "accept_failed",
	unknownDestination: "unknown_destination",
	dialRefused:        "dial_refused",
	dialTimedOut:       "dial_timeout",
	dialFailedOther:    "dial_failed",
	clientReset:        "client_reset",
	upstreamReset:      "upstream_reset",
	notHTTP:            "not_http",
	serverFirst:        "server_first",
	ambiguousPassed:    "ambiguous_passed",
	ambiguousRefused:   "ambiguous_refused",
	headTooLarge:       "head_too_large",
	ambiguousAnswer:    "ambiguous_answer",
	doubtfulAnswer:     "reset_after_ambiguous_answer",
	keyInOpaque:        "reset_key_in_opaque",
	notHeld:            "not_held",
	synLost:            "syn_lost",
	synAbandoned:       "syn_abandoned",
	synOverLimit:       "syn_over_limit",

	http2Errors + errorReason(http2.ClientError):    "http2_client_error",
	http2Errors + errorReason(http2.ServerError):    "http2_server_error",
	http2Errors + errorReason(http2.Untraceable):    "http2_untraceable",
	http2Errors + errorReason(http2.HeadersTooLong): "http2_headers_too_large",
	http2Errors + errorReason(http2.TooManyStreams): "http2_too_many_streams",
	http2Errors + errorReason(http2.TooManyFrames):  "http2_flood",
	http2Errors + errorReason(http2.TableLowered):   "http2_table_lowered",
	http2Errors + errorReason(http2.TooManyLinks):   "http2_too_many_links",
}

// counters belong to one loop, so that counting needs no atomics. Whoever wants
// to read them asks the loop.
type counters struct {
	accepted, held         uint64
	received, given        uint64
	fromClients, toClients uint64
	tunnels, retries       uint64
	errors                 [errorReasons]uint64
	series, opaque         map[RequestKey]*uint64

	// recent finds the series of the decisions that are made all the time without
	// hashing their names.
	recent [64]struct {
		key   RequestKey
		count *uint64
	}
}

func (s *counters) init() {
	s.series, s.opaque = map[RequestKey]*uint64{}, map[RequestKey]*uint64{}
}

// connection counts one connection that is not HTTP.
func (s *counters) connection(d *routing.Decision) {
	key := RequestKey{Service: d.Service, Verdict: d.Verdict, Reason: d.Reason}
	if d.Sandbox != nil {
		key.Sandbox = d.Sandbox.Label()
	}
	*find(s.opaque, key)++
}

// request counts one request.
func (s *counters) request(d *routing.Decision) {
	key := RequestKey{Service: d.Service, Verdict: d.Verdict, Reason: d.Reason}
	place := uint(d.Verdict)<<3 | uint(d.Reason)
	if d.Sandbox != nil {
		key.Sandbox = d.Sandbox.Label()
		place += uint(d.Sandbox.ID) * 5
	}
	r := &s.recent[place%uint(len(s.recent))]
	if r.count == nil || r.key != key {
		r.key, r.count = key, find(s.series, key)
	}
	*r.count++
}

func find(series map[RequestKey]*uint64, key RequestKey) *uint64 {
	n := series[key]
	if n == nil {
		if len(series) >= maxSeries {
			key.Sandbox, key.Service = Overflow, Overflow
			if n := series[key]; n != nil {
				return n
			}
		}
		n = new(uint64)
		series[key] = n
	}
	return n
}

func (s *counters) dialFailed(e unix.Errno) {
	switch e {
	case unix.ECONNREFUSED:
		s.errors[dialRefused]++
	case unix.ETIMEDOUT:
		s.errors[dialTimedOut]++
	default:
		s.errors[dialFailedOther]++
	}
}

// addTo adds the counters to what is told outside.
func (s *counters) addTo(t *Stats) {
	t.Accepted += s.accepted
	t.Held += s.held
	t.Received += s.received
	t.Given += s.given
	t.FromClients += s.fromClients
	t.ToClients += s.toClients
	t.Tunnels += s.tunnels
	t.Retries += s.retries
	for reason, n := range s.errors {
		t.Errors[errorNames[reason]] += n
	}
	for key, n := range s.series {
		t.Requests[key] += *n
	}
	for key, n := range s.opaque {
		t.Opaque[key] += *n
	}
}
