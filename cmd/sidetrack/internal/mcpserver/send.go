// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// How much of a body a reply has.
const (
	usualBody = 4 << 10
	mostBody  = 1 << 20
)

// requestInput is one HTTP request.
type requestInput struct {
	URL            string            `json:"url" jsonschema:"where to send it, as the cluster's own pods would: http://SERVICE.NAMESPACE/path; list_workloads has the URLs. Send it to where requests enter, not only to the fork"`
	Method         string            `json:"method,omitempty" jsonschema:"GET when left out, or POST with a body"`
	Headers        map[string]string `json:"headers,omitempty" jsonschema:"further headers; the routing key is added by itself"`
	Body           string            `json:"body,omitempty"  jsonschema:"body as text"`
	TimeoutSeconds *int              `json:"timeout_seconds,omitempty" jsonschema:"how long to wait for the answer"`
}

func (in requestInput) request() exchange.Request {
	r := exchange.Request{Method: strings.ToUpper(in.Method), URL: in.URL, Header: http.Header{}, Body: []byte(in.Body), Timeout: seconds(in.TimeoutSeconds)}
	if r.Method == "" && in.Body != "" {
		r.Method = http.MethodPost
	}
	for name, value := range in.Headers {
		r.Header.Set(name, value)
	}
	return r
}

func tuneRequest(p properties) {
	between(p["timeout_seconds"], 1, 300, 30)
	p["url"].Pattern = `\S`
}

type sendInput struct {
	Sandbox string `json:"sandbox" jsonschema:"name, or namespace/name"`
	requestInput
	MaxBodyBytes int    `json:"max_body_bytes,omitempty" jsonschema:"how much of the answer's body to tell"`
	Detail       detail `json:"detail,omitempty" jsonschema:"full adds the answer's headers"`
}

// Beside the answer, a sandbox that is not ready and a pod to send from are waited
// for.
func (in sendInput) wait() time.Duration { return seconds(in.TimeoutSeconds) + 2*time.Minute }

type sendReply struct {
	Sandbox       string              `json:"sandbox"`
	Verified      bool                `json:"verified" jsonschema:"the ledger shows that pods of the forks answered what they were to answer, at forks_reached; it says nothing of forks_not_asked. False does not mean that they did not: not_verified says what is not known, or went elsewhere"`
	NotVerified   []string            `json:"not_verified,omitempty" jsonschema:"why it is not verified"`
	Next          string              `json:"next,omitempty" jsonschema:"what to do about that, or about forks_not_asked"`
	Status        int                 `json:"status" jsonschema:"HTTP status of the answer"`
	Body          string              `json:"body"`
	BodyEncoding  string              `json:"body_encoding,omitempty" jsonschema:"base64 where the body is no text"`
	BodyCut       string              `json:"body_cut,omitempty" jsonschema:"says that there is more of the body, and how to get it"`
	ContentType   string              `json:"content_type,omitempty"`
	Headers       map[string][]string `json:"headers,omitempty"`
	Milliseconds  int64               `json:"milliseconds" jsonschema:"until the answer was there, with the way into the cluster"`
	TraceID       string              `json:"trace_id" jsonschema:"handle of this request's hops: explain_routing takes it, also in a later session"`
	Hops          []hopReply          `json:"hops" jsonschema:"the calls that came of the request, as far as the cluster's nodes have seen them: calls to Services that are neither forked nor observed are not among them"`
	OtherHops     []hopReply          `json:"other_hops,omitempty" jsonschema:"tagged calls since the request began that have no trace id, or one that a service has begun; they may be of this request or of another"`
	ForksReached  []string            `json:"forks_reached,omitempty" jsonschema:"redirected Services at which a fork answered"`
	ForksNotAsked []string            `json:"forks_not_asked,omitempty" jsonschema:"redirected Services that no known call of this request went to: nothing is proved of a change there"`
}

func sendRequest() tool {
	return define("send_request", "Send a request through a sandbox", "answer and hops, verified",
		`Send an HTTP/1.1 request into the cluster as the sandbox's traffic, and get the answer together with its hops: which pod answered each call, from the nodes' own records. "verified: true" means that the forks really answered; otherwise the reply says what is not known or who lost the routing key, so that a good answer from what everybody shares is not mistaken for one of yours. The request is real: it reaches real services.`,
		acts, func(p properties) {
			tuneDetail(p)
			tuneRequest(p)
			between(p["max_body_bytes"], 0, mostBody, usualBody)
		}, func(ctx context.Context, c call, in sendInput) (*sendReply, error) {
			r := in.request()
			if r.Header.Get("Traceparent") != "" {
				// Hops of another request of that trace would prove this one.
				return nil, task.Usagef("the headers have a traceparent: leave it out, each request gets a trace of its own, by which its hops are told from others'")
			}
			sb, names, err := readySandbox(ctx, c, in.Sandbox, r.Header)
			if err != nil {
				return nil, err
			}
			if sb, err = proof.Covered(ctx, c.Cluster, sb, c.progress); err != nil {
				return nil, err
			}
			c.hide(sb) // it may be another one
			r.Key, r.Names = sb.Status.RoutingKey, names
			r.MaxBody = int64(max(in.MaxBodyBytes, 1))
			var a *exchange.Answer
			var sent proof.Sent
			err = c.server.tunnels.with(ctx, c, sb, true, func(dial dialFunc) error {
				sent.Began = time.Now()
				a, err = exchange.Send(ctx, dial, r)
				return err
			})
			if err != nil {
				return nil, c.notAnswered(ctx, err, sb, sent.Began)
			}
			sent.Trace = a.TraceID
			e, err := proof.Gather(ctx, c.Cluster, sb, sent)
			if err != nil {
				return nil, err
			}
			out := c.answerOf(a, in)
			out.Sandbox = handle(sb.Namespace, sb.Name)
			return out, out.prove(ctx, c, e)
		})
}

// readySandbox waits until a sandbox is ready, not for long, and returns the names under
// which a request is tagged for it. It refuses headers that have a key already.
func readySandbox(ctx context.Context, c call, text string, h http.Header) (*v1alpha1.Sandbox, exchange.Names, error) {
	sb, err := c.sandbox(ctx, text)
	if err != nil {
		return nil, exchange.Names{}, err
	}
	// What will not do after the wait either is said before it.
	if names, err := untagged(sb, h); err != nil {
		return nil, names, err
	}
	o := sandbox.DefaultWait()
	o.Timeout = usualWait * time.Second
	sb, err = sandbox.Wait(ctx, c.Cluster, sb.Namespace, sb.Name, o, c.progress)
	c.hide(sb)
	var f *task.Failure
	if errors.As(err, &f) && f.Kind == task.NotReady {
		f.Remedy = "call create_sandbox with update: true to mend it, or sandbox_status with wait_seconds to wait longer"
	}
	if err != nil {
		return nil, exchange.Names{}, err
	}
	names, err := untagged(sb, h)
	return sb, names, err
}

func untagged(sb *v1alpha1.Sandbox, h http.Header) (exchange.Names, error) {
	names, err := exchange.NamesOf(sb)
	if err == nil && names.In(h) {
		err = task.Usagef("the headers have a routing key: leave it out, the sandbox's is added where it belongs")
	}
	return names, err
}

// notAnswered says why there is no answer, and how far the request has come.
func (c call) notAnswered(ctx context.Context, err error, sb *v1alpha1.Sandbox, began time.Time) error {
	var f *task.Failure
	if errors.As(err, &f) {
		return err
	}
	f = &task.Failure{Message: "no answer: " + err.Error(), Err: err}
	var dial *tunnel.DialError
	if errors.As(err, &dial) {
		f.Remedy = "see whether the Service has pods and listens on that port: list_workloads has the URLs, sandbox_logs what a fork says"
		if dial.Word == "unresolved" {
			f.Remedy = "correct the URL's host: it is SERVICE." + sb.Namespace + "; list_workloads has the URLs"
		}
		return f
	}
	var sent *exchange.Unanswered
	if !errors.As(err, &sent) {
		f.Remedy = "see sandbox_logs and explain_routing"
		return f
	}
	// Its forks are gone with it, and there are no logs to read.
	var gone *task.Failure
	if errors.As(sandbox.Gone(ctx, c.Cluster, sb), &gone) {
		f.Message, f.Remedy = f.Message+"; "+gone.Message, gone.Remedy
		return f
	}
	// What cannot be read is left out: that there is no answer is the news.
	if e, err := proof.Gather(ctx, c.Cluster, sb, proof.Sent{Trace: sent.TraceID, Began: began}); err == nil {
		f.Details = progressed(e)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		f.Remedy = "raise timeout_seconds, or see sandbox_logs for what a fork does meanwhile"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		f.Remedy = "send it to a port without TLS, or call run_tests with a client that trusts that certificate; requests inside TLS cannot be verified"
	case strings.Contains(err.Error(), "malformed HTTP response"):
		f.Remedy = "something else than HTTP/1.1 is spoken there: for gRPC, or another protocol, call run_tests with an image that has a client of it, whose calls are tagged by themselves"
	case len(f.Details) > 1:
		f.Remedy = "the hops tell how far it came: see sandbox_logs where the last one is a fork's, else whether that Service speaks HTTP on this port"
	default:
		f.Remedy = "see whether that port speaks HTTP, and sandbox_logs; explain_routing takes the trace_id"
	}
	return f
}

// progressed tells how far a request has come that has no answer.
func progressed(e *proof.Evidence) []string {
	all := []string{"trace_id: " + e.Sent.Trace}
	if len(e.Records) > 0 {
		all = append(all, "Hops:")
	}
	for _, h := range hopsOf(e.Records) {
		all = append(all, h.line())
	}
	for _, n := range e.Nodes {
		if n.Trace != nil && n.Trace.Open > 0 {
			all = append(all, fmt.Sprintf("%d calls of it are still under way by way of node %s", n.Trace.Open, n.Node))
		}
	}
	return all
}

func (c call) answerOf(a *exchange.Answer, in sendInput) *sendReply {
	r := &sendReply{Status: a.Status, ContentType: a.Header.Get("Content-Type"), Milliseconds: a.Took.Milliseconds(), TraceID: a.TraceID, Hops: []hopReply{}}
	if in.Detail == full {
		r.Headers = a.Header
	}
	body := []byte(c.redact(string(a.Body)))
	if a.Truncated {
		body = []byte(c.redactCut(string(a.Body)))
	}
	if whole := body; a.Truncated || len(body) > in.MaxBodyBytes {
		body = body[:min(len(body), in.MaxBodyBytes)]
		// A character that is cut in two does not make it binary.
		for n := 0; n < utf8.UTFMax && len(body) > 0 && !utf8.Valid(body); n++ {
			body = body[:len(body)-1]
		}
		if !utf8.Valid(body) {
			body = whole[:min(len(whole), in.MaxBodyBytes)]
		}
		r.BodyCut = fmt.Sprintf("the first %d bytes", len(body))
		if in.MaxBodyBytes < mostBody {
			r.BodyCut += fmt.Sprintf(": send the request again with a larger max_body_bytes (at most %d) for more", mostBody)
		}
	}
	r.Body = string(body)
	if !utf8.Valid(body) {
		r.Body, r.BodyEncoding = base64.StdEncoding.EncodeToString(body), "base64"
	}
	return r
}

// prove says what the ledger knows of the request.
func (r *sendReply) prove(ctx context.Context, c call, e *proof.Evidence) error {
	v := e.Judge()
	r.Verified, r.Hops, r.ForksReached, r.ForksNotAsked = v.Verified, hopsOf(e.Records), v.Reached, v.Missed
	for _, why := range v.Doubts {
		r.NotVerified = append(r.NotVerified, asTools(why))
	}
	// Who passes no trace on hides calls, of which a fork may have answered some.
	if len(v.Missed) > 0 && (r.Verified || len(v.Reached) == 0) && e.Unread == "" {
		var err error
		if r.OtherHops, err = others(ctx, c, e); err != nil {
			return err
		}
	}
	r.Next = r.next(e, v)
	return nil
}

// next is what to do about what is not known.
func (r *sendReply) next(e *proof.Evidence, v proof.Verdict) string {
	missed := strings.Join(v.Missed, ", ")
	hinted := func(service string) bool {
		return slices.ContainsFunc(r.OtherHops, func(h hopReply) bool {
			return h.Went == string(ledger.DecisionFork) && strings.HasPrefix(h.Service, service+"."+e.Sandbox.Namespace)
		})
	}
	switch {
	case v.Verified && len(v.Missed) == 0:
		return ""
	case v.Verified && !slices.ContainsFunc(v.Missed, func(service string) bool { return !hinted(service) }):
		return "forks have answered calls to " + missed + " as well, which do not have this request's trace id: whether they came of it is not known"
	case v.Verified:
		return "this says nothing of your change to " + missed + ". A fork that calls it reaches the fork there, by connections that are on record as no request's; whoever else calls it and passes" +
			" neither the baggage nor the traceparent header on is answered by what everybody shares. Look at the body, or send a request to " + missed + " itself"
	case e.Unread != "":
		return "mend what keeps the ledger from being read: " + asTools(e.Unread)
	case len(e.Sandbox.Status.Redirects) == 0:
		return "fork a workload that list_workloads has a URL for, or call create_sandbox with update: true and redirects"
	case slices.ContainsFunc(e.Records, func(rec ledger.Record) bool { return rec.LostKey && !rec.Healed }):
		return "have that workload pass the baggage header on, or call create_sandbox with update: true and heal: true"
	case len(v.Reached) == 0 && len(r.OtherHops) > 0:
		return "have the services pass the traceparent header on, which tells the hops of one request from another's; other_hops are what came since it began"
	case len(v.Reached) == 0 && !v.Unseen && slices.Contains(e.Sandbox.Spec.Observe, v1alpha1.ObserveAll):
		return "all Services are observed, and the hops are all that is known: either the request does not come to " + missed +
			", or the one that the last hop went to passes neither the baggage nor the traceparent header on: have it do so, or send a request to " + missed + " itself"
	case len(v.Reached) == 0:
		return "call explain_routing with trace_id; to see every hop, call create_sandbox with update: true and observe: [\"*\"], and send it again"
	case v.Unseen:
		return "call create_sandbox with update: true and observe: the Services on the way, the URL's first (or [\"*\"]), and send it again"
	}
	return "send it again; if it stays so, call explain_routing with trace_id"
}

// others are calls that may have come of the request and do not say so.
func others(ctx context.Context, c call, e *proof.Evidence) ([]hopReply, error) {
	records, err := e.Others(ctx, c.Cluster)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, nil // It could be read a moment ago; what it adds is a hint.
	}
	return hopsOf(records), nil
}

func (r *sendReply) text() string {
	var b strings.Builder
	if r.Verified {
		where := strings.Join(r.ForksReached, ", ")
		if len(r.ForksNotAsked) > 0 {
			where += " (no call on record to " + strings.Join(r.ForksNotAsked, ", ") + ")"
		}
		fmt.Fprintf(&b, "VERIFIED: forks answered at %s. Status %d, %d ms.\n", where, r.Status, r.Milliseconds)
	} else {
		fmt.Fprintf(&b, "NOT VERIFIED that a fork answered. Status %d, %d ms.\n", r.Status, r.Milliseconds)
		for _, d := range r.NotVerified {
			fmt.Fprintf(&b, "- %s\n", d)
		}
		if len(r.ForksNotAsked) > 0 {
			fmt.Fprintf(&b, "No call on record to: %s\n", strings.Join(r.ForksNotAsked, ", "))
		}
	}
	if r.Next != "" {
		fmt.Fprintf(&b, "next: %s\n", r.Next)
	}
	writeHops(&b, "Hops", r.Hops)
	writeHops(&b, "Other tagged calls since then", r.OtherHops)
	fmt.Fprintf(&b, "trace_id: %s\n", r.TraceID)
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(r.Headers[name], ", "))
	}
	what := "Body"
	if r.BodyEncoding != "" {
		what += " (" + r.BodyEncoding + ")"
	}
	if r.BodyCut != "" {
		what += ", " + r.BodyCut
	}
	fmt.Fprintf(&b, "%s:\n%s", what, r.Body)
	return b.String()
}

func writeHops(b *strings.Builder, title string, list []hopReply) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", title)
	for i := range list {
		b.WriteString(list[i].line() + "\n")
	}
}
