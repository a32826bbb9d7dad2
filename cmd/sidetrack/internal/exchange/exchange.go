// SPDX-License-Identifier: Apache-2.0

package exchange

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// DefaultMaxBody is how much of a body is kept where nobody says otherwise.
const DefaultMaxBody = 1 << 20

// Request is one HTTP request.
type Request struct {
	// Method is GET when it is empty.
	Method string
	// URL is absolute; http:// is put in front where there is no scheme.
	URL string
	// Header is sent as it is. Host sets the Host header.
	Header http.Header
	Body   []byte
	// Key is the routing key, and Names is what it is sent under. Empty: the request is
	// sent untagged, unless its Header has a key.
	Key   string
	Names Names
	// Timeout is 30 seconds when it is zero.
	Timeout time.Duration
	// MaxBody is how much of the answer's body is kept; DefaultMaxBody when it is zero.
	MaxBody int64
}

// Answer is what came back.
type Answer struct {
	Status int
	Proto  string
	Header http.Header
	Body   []byte
	// Truncated: there was more of the body.
	Truncated bool
	// TraceID is the trace that the request began, or was part of: 32 hexadecimal
	// digits.
	TraceID string
	Took    time.Duration
}

// Send sends a request over a connection of its own. The error is about the
// request's way there and back; an answer of any status is none.
func Send(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), r Request) (*Answer, error) {
	u, err := parseURL(r.URL)
	if err != nil {
		return nil, err
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(string(r.Body)))
	if err != nil {
		return nil, task.Usagef("the request makes no sense: %v", err)
	}
	if len(r.Body) == 0 {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	for name, values := range r.Header {
		if strings.EqualFold(name, "Host") && len(values) > 0 {
			req.Host = values[0]
			continue
		}
		req.Header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	r.Names.Tag(req.Header, r.Key)
	trace := traced(req.Header)
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true}
	defer transport.CloseIdleConnections()
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, u.Redacted(), err)
	}
	defer resp.Body.Close()
	most := r.MaxBody
	if most <= 0 {
		most = DefaultMaxBody
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", method, u.Redacted(), err)
	}
	a := &Answer{Status: resp.StatusCode, Proto: resp.Proto, Header: resp.Header, Body: body, TraceID: trace, Took: time.Since(began)}
	if int64(len(body)) > most {
		a.Body, a.Truncated = body[:most], true
	}
	return a, nil
}

func parseURL(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, task.Usagef("%q is not a URL: %v", text, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, task.Usagef("%q is not an http or https URL with a host, such as http://frontend.shop/cart", text)
	}
	return u, nil
}

// traced returns the trace of a request, and begins one where there is none (W3C Trace
// Context, section 3.2).
func traced(h http.Header) string {
	if parts := strings.Split(strings.TrimSpace(h.Get("Traceparent")), "-"); len(parts) >= 4 && len(parts[1]) == 32 {
		return strings.ToLower(parts[1])
	}
	var id [24]byte
	rand.Read(id[:]) // never fails: crypto/rand
	trace := hex.EncodeToString(id[:16])
	h.Set("Traceparent", "00-"+trace+"-"+hex.EncodeToString(id[16:])+"-01")
	return trace
}
