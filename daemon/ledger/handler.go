// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Reader is where records come from: one node's Ledger, or all nodes'.
type Reader interface {
	// Records returns what there is now.
	Records(ctx context.Context, o Owner, want ledgerv1alpha1.Options) (*ledgerv1alpha1.RecordList, error)
	// Follow calls begin once it has room for the stream, and then send with what there
	// is now, and again with what comes, until ctx is over or one of them fails. Its
	// error is ctx's cause then, or says why it has ended the stream itself.
	Follow(ctx context.Context, o Owner, want ledgerv1alpha1.Options, begin func() error, send func(*ledgerv1alpha1.RecordList) error) error
}

// TooMuch is the error of a Reader that has no room for what it is asked for. Whoever
// asks is told so, and may ask again, or for less.
type TooMuch struct {
	Reason string
	// Again is how long to wait before.
	Again time.Duration
}

func (e TooMuch) Error() string { return e.Reason }

// Forbidden is the error of a Reader whose user may not read any more: why not.
type Forbidden string

func (e Forbidden) Error() string { return string(e) }

// Records returns what this node's ledger has of an owner.
func (l *Ledger) Records(_ context.Context, o Owner, want ledgerv1alpha1.Options) (*ledgerv1alpha1.RecordList, error) {
	q := QueryOf(want)
	var state *ledgerv1alpha1.TraceAnswer
	if q.Trace != (TraceID{}) {
		_, answer := l.Settle(o, q.Trace, nil)
		state = &answer
	}
	list, _ := l.List(o, q)
	Settled(&list, state)
	return &list, nil
}

// followPause is how long a stream lets records gather.
const followPause = 50 * time.Millisecond

// Follow sends what this node's ledger has of an owner, and then what is added.
func (l *Ledger) Follow(ctx context.Context, o Owner, want ledgerv1alpha1.Options, begin func() error, send func(*ledgerv1alpha1.RecordList) error) error {
	if err := begin(); err != nil {
		return err
	}
	q := QueryOf(want)
	dropped := int64(-1)
	for {
		list, next := l.List(o, q)
		if n := list.Nodes[0].Dropped; len(list.Items) > 0 || n != dropped {
			dropped = n
			if err := send(&list); err != nil {
				return err
			}
		}
		q.After, q.Limit = next, 0
		if err := l.Wait(ctx, next); err != nil {
			return err
		}
		select {
		case <-time.After(followPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Resource is what a path asks for the records of.
type Resource struct {
	Owner Owner
	// Watch says that the path has the prefix for requests that last.
	Watch bool
}

// ParsePath reads the path of a request for records, as Options.Path writes it.
func ParsePath(path string) (Resource, bool) {
	rest, ok := strings.CutPrefix(path, "/apis/"+ledgerv1alpha1.APIVersion+"/")
	if !ok {
		return Resource{}, false
	}
	parts := strings.Split(rest, "/")
	var r Resource
	if parts[0] == "watch" {
		r.Watch, parts = true, parts[1:]
	}
	if len(parts) != 5 || parts[0] != "namespaces" || parts[4] != "records" || slices.Contains(parts, "") {
		return Resource{}, false
	}
	r.Owner = Owner{Name: routing.Name{Namespace: parts[1], Name: parts[3]}, Group: parts[2] == "routegroups"}
	return r, r.Owner.Group || parts[2] == "sandboxes"
}

// Patience is how long a client may take none of its answer before it is given up.
const Patience = 30 * time.Second

// leastRate is how many bytes a second a client takes at least of a list, or of a part
// of a stream, besides its patience: it is in memory for as long.
const leastRate = 64 << 10

// Handler serves records as package api/ledger/v1alpha1 says. Who may read them has
// been decided by whoever calls it. It gives a client up that takes nothing of its
// answer for as long as patience, or that takes it a trickle at a time.
func Handler(from Reader, patience time.Duration) http.Handler {
	return handler(from, patience, leastRate)
}

func handler(from Reader, patience time.Duration, rate int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resource, ok := ParsePath(r.URL.Path)
		if !ok {
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "there is nothing at this path: ask for /apis/"+ledgerv1alpha1.APIVersion+"/namespaces/NAMESPACE/sandboxes/NAME/records")
			return
		}
		if r.Method != http.MethodGet {
			fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "records can be read and nothing else: use GET")
			return
		}
		want, err := ledgerv1alpha1.ParseOptions(r.URL.Query(), time.Now())
		if err == nil && want.Follow && !resource.Watch {
			err = errors.New("follow: a request that lasts has /watch before /namespaces in its path, else the API server would end it after a minute")
		}
		if err != nil {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		out := &patientWriter{w: w, rc: http.NewResponseController(w), patience: patience, rate: rate}
		defer func() { _ = out.flush() }()
		if want.Follow || resource.Watch {
			stream(out, r, from, resource.Owner, want)
			return
		}
		list, err := from.Records(r.Context(), resource.Owner, want)
		if err != nil {
			unread(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// That the client has gone is no business of anybody's.
		_ = json.NewEncoder(out).Encode(list)
	})
}

// unread says why there is no answer.
func unread(w http.ResponseWriter, err error) {
	s := statusOf(err)
	if s.Details != nil {
		// RFC 9110, section 10.2.3; client-go obeys by itself.
		w.Header().Set("Retry-After", strconv.Itoa(int(s.Details.RetryAfterSeconds)))
	}
	write(w, s)
}

// statusOf says what is wrong as an API server does.
func statusOf(err error) *metav1.Status {
	if much, ok := errors.AsType[TooMuch](err); ok {
		s := status(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests, err.Error())
		s.Details = &metav1.StatusDetails{RetryAfterSeconds: int32(math.Ceil(much.Again.Seconds()))}
		return s
	}
	if _, ok := errors.AsType[Forbidden](err); ok {
		return status(http.StatusForbidden, metav1.StatusReasonForbidden, err.Error())
	}
	return status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
}

// patientWriter writes as long as the client takes some of it now and then, and what is
// written at once fast enough.
type patientWriter struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
	rate     int       // bytes a second
	until    time.Time // when what was written last has to be on its way
}

// patientChunk is what has to be taken at a time.
const patientChunk = 32 << 10

func (p *patientWriter) Write(b []byte) (n int, err error) {
	p.until = time.Now().Add(p.patience + time.Duration(len(b))*time.Second/time.Duration(p.rate))
	for len(b) > 0 && err == nil {
		var wrote int
		p.wait()
		wrote, err = p.w.Write(b[:min(len(b), patientChunk)])
		n, b = n+wrote, b[wrote:]
	}
	return n, err
}

// wait sets how long the next bytes may take.
func (p *patientWriter) wait() {
	at := time.Now().Add(p.patience)
	if !p.until.IsZero() && p.until.Before(at) {
		at = p.until
	}
	// Where there are no deadlines there is no connection either.
	_ = p.rc.SetWriteDeadline(at)
}

// flush returns when all is on its way. Nothing waits for the client then, so it has
// all the time there is: net/http resets a stream of HTTP/2 when its deadline passes,
// whether or not anybody writes. The connection may serve the next request as well.
func (p *patientWriter) flush() error {
	p.wait()
	if err := p.rc.Flush(); err != nil {
		return err
	}
	p.until = time.Time{}
	_ = p.rc.SetWriteDeadline(time.Time{})
	return nil
}

// stream begins to answer once it is known that there is room for it.
func stream(w *patientWriter, r *http.Request, from Reader, o Owner, want ledgerv1alpha1.Options) {
	out := json.NewEncoder(w)
	begun := false
	gone := false
	begin := func() error {
		begun = true
		w.w.Header().Set("Content-Type", "application/json")
		w.w.WriteHeader(http.StatusOK)
		err := w.flush()
		gone = err != nil
		return err
	}
	send := func(list *ledgerv1alpha1.RecordList) error {
		err := out.Encode(list)
		if err == nil {
			err = w.flush()
		}
		gone = gone || err != nil
		return err
	}
	err := from.Follow(r.Context(), o, want, begin, send)
	switch {
	case !begun:
		unread(w.w, err)
	case gone || errors.Is(err, context.Canceled):
		// Nobody listens, or the server ends: another goes on.
	default:
		_ = send(&ledgerv1alpha1.RecordList{
			TypeMeta: metav1.TypeMeta{APIVersion: ledgerv1alpha1.APIVersion, Kind: ledgerv1alpha1.RecordListKind},
			Items:    []ledgerv1alpha1.Record{}, Ended: statusOf(err),
		})
	}
}

// fail answers as an API server does.
func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	write(w, status(code, reason, message))
}

func write(w http.ResponseWriter, s *metav1.Status) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(s.Code))
	_ = json.NewEncoder(w).Encode(s)
}

func status(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Message: message, Reason: reason, Code: int32(code),
	}
}
