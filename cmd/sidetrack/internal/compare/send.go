// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"context"
	"crypto/rand"
	"net"
	"strings"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
)

// Through returns a Sender that sends over connections of a dialer, with the key under
// its name. Requests to the
// baseline carry a key of the same length that nobody has, another one each time: so
// services that repeat what they are sent, or write it down, have no reason to answer in
// another way, and what they repeat is noise.
func Through(dial func(ctx context.Context, network, address string) (net.Conn, error), names exchange.Names, key string) Sender {
	return func(ctx context.Context, r exchange.Request, tagged bool) (*exchange.Answer, error) {
		// Each has a trace of its own: one that both share could stand for the key
		// (propagate: TraceID) and lead the baseline's calls to the fork.
		r.Header = r.Header.Clone()
		r.Header.Del("Traceparent")
		// A difference behind what is kept is one, too.
		r.Key, r.Names, r.Whole = key, names, true
		if !tagged {
			r.Key = nobodys(len(key))
		}
		return exchange.Send(ctx, dial, r)
	}
}

// nobodys returns a random key.
func nobodys(length int) string {
	var b strings.Builder
	for b.Len() < max(length, 26) {
		b.WriteString(strings.ToLower(rand.Text()))
	}
	return b.String()[:max(length, 26)]
}
