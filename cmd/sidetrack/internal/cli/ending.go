// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"net/http"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// ending is a transport whose requests and answers end with the program's context, too:
// discovery and cli-runtime make them without one.
type ending struct {
	p    *program
	next http.RoundTripper
}

var _ utilnet.RoundTripperWrapper = (*ending)(nil)

func (e *ending) WrappedRoundTripper() http.RoundTripper { return e.next }

func (e *ending) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	until := e.p.until
	// The cause is what the transport's error is then: one that is known as an end.
	stop := context.AfterFunc(until, func() { cancel(until.Err()) })
	over := func() {
		stop()
		cancel(nil)
	}
	resp, err := e.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		over()
		return nil, err
	}
	resp.Body = &endingBody{resp.Body, over}
	return resp, nil
}

// endingBody is an answer's body.
type endingBody struct {
	io.ReadCloser
	over func()
}

func (b *endingBody) Close() error {
	defer b.over()
	return b.ReadCloser.Close()
}
