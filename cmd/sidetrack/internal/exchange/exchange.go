// SPDX-License-Identifier: Apache-2.0

package exchange

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

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
	// Timeout is DefaultTimeout when it is zero.
	Timeout time.Duration
	// MaxBody is how much of the answer's body is kept; DefaultMaxBody when it is zero.
	MaxBody int64
	// Whole: what is beyond MaxBody is read, too, for Answer.Size and Answer.Digest.
	Whole bool
}

// DefaultTimeout is how long an answer may take, to its last byte, where nobody says
// otherwise.
const DefaultTimeout = 30 * time.Second

// Answer is what came back.
type Answer struct {
	Status int
	Proto  string
	Header http.Header
	Body   []byte
	// Truncated: there was more of the body.
	Truncated bool
	// Size and Digest, the SHA-256, are those of the whole body where Request.Whole asks
	// for them.
	Size   int64
	Digest [sha256.Size]byte
	// TraceID is the trace that the request began, or was part of: 32 hexadecimal
	// digits.
	TraceID string
	Took    time.Duration
}

// Unanswered is why a request that was sent, or was about to be, has no answer.
type Unanswered struct {
	// TraceID is the request's trace: what came of it until then may be on record.
	TraceID string
	Err     error
}

// Error says why.
func (e *Unanswered) Error() string { return e.Err.Error() }

// Unwrap returns why.
func (e *Unanswered) Unwrap() error { return e.Err }

// Send sends a request over a connection of its own. The error is about the
// request's way there and back, and an *Unanswered where the request made sense; an
// answer of any status is none.
func Send(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), r Request) (*Answer, error) {
	u, err := parseURL(r.URL)
	if err != nil {
		return nil, err
	}
	timeout := r.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	late := &TimeoutError{After: timeout}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, late)
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
		if err := valid(name, values); err != nil {
			return nil, err
		}
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
		if context.Cause(ctx) == error(late) {
			err = late
		}
		return nil, &Unanswered{trace, fmt.Errorf("%s %s: %w", method, u.Redacted(), err)}
	}
	defer resp.Body.Close()
	most := r.MaxBody
	if most <= 0 {
		most = DefaultMaxBody
	}
	a := &Answer{Status: resp.StatusCode, Proto: resp.Proto, Header: resp.Header, TraceID: trace}
	if err := a.read(resp.Body, most, r.Whole); err != nil {
		if context.Cause(ctx) == error(late) {
			late.Status = resp.StatusCode
			err = late
		}
		return nil, &Unanswered{trace, fmt.Errorf("%s %s: read the answer: %w", method, u.Redacted(), err)}
	}
	a.Took = time.Since(began)
	return a, nil
}

// read reads a body, of which it keeps the first bytes.
func (a *Answer) read(body io.Reader, most int64, whole bool) error {
	kept, err := io.ReadAll(io.LimitReader(body, most+1))
	if err != nil {
		return err
	}
	a.Body = kept
	if int64(len(kept)) > most {
		a.Body, a.Truncated = kept[:most], true
	}
	if whole {
		sum := sha256.New()
		sum.Write(kept) // never fails: hash.Hash
		more, err := io.Copy(sum, body)
		if err != nil {
			return err
		}
		a.Size, a.Digest = int64(len(kept))+more, [sha256.Size]byte(sum.Sum(nil))
	}
	return nil
}

// valid looks at a header, which net/http would complain of as of a failure on the way.
func valid(name string, values []string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return task.Usagef("%q is not the name of a header", name)
	}
	for _, v := range values {
		if !httpguts.ValidHeaderFieldValue(v) {
			return task.Usagef("header %s cannot have the value %q: no control characters", name, v)
		}
	}
	return nil
}

// TimeoutError says that an answer has taken too long. It is a
// context.DeadlineExceeded.
type TimeoutError struct {
	After time.Duration
	// Status is that of an answer that has begun, and zero where none has.
	Status int
}

func (e *TimeoutError) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("the answer (%d) has not ended within %s", e.Status, e.After)
	}
	return fmt.Sprintf("no answer within %s", e.After)
}

// Is has it pass for the error of a context.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Check reports, as wrong usage, a URL that nothing can be sent to.
func (r *Request) Check() error {
	_, err := parseURL(r.URL)
	return err
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
