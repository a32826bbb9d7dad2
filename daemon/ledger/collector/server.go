// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/page"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// askAgain is how often a stream asks whether its reader may still read.
const askAgain = time.Minute

// service is the aggregated API.
type service struct {
	hub    *hub
	access access
	// who says who asks: whom the API server's front proxy names.
	who authenticator.Request
	// patience is with readers that take nothing of their answers.
	patience time.Duration
	// page is the same for everybody.
	page http.Handler
}

// ServeHTTP answers the API server.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply, ok, err := s.who.AuthenticateRequest(r)
	if err != nil || !ok {
		// Not why: whoever it is has no business here.
		fail(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "ask the Kubernetes API server, which asks here")
		return
	}
	const group = "/apis/" + ledgerv1alpha1.APIVersion
	if path := strings.TrimSuffix(r.URL.Path, "/"); path == group {
		discover(w)
		return
	}
	// Whether whoever asks may get it, the API server has asked its own authorisers.
	if strings.HasPrefix(r.URL.Path, group+"/"+page.Resource+"/") {
		s.page.ServeHTTP(w, r)
		return
	}
	if node, sub, ok := parseNode(r.URL.Path); ok {
		s.node(w, r, reply.User, node, sub)
		return
	}
	resource, ok := ledger.ParsePath(r.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "there is nothing at this path: ask for "+group+"/namespaces/NAMESPACE/sandboxes/NAME/records")
		return
	}
	if !s.permit(w, r, func() (string, error) { return s.access.mayRead(r.Context(), reply.User, resource.Owner) }) {
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if resource.Watch {
		go s.askAgain(ctx, cancel, reply.User, resource.Owner)
	}
	ledger.Handler(reader{s.hub, sharer(reply.User.GetName())}, s.patience).ServeHTTP(w, r.WithContext(ctx))
}

// askAgain ends a stream whose reader may not read any more. While the API server
// cannot be asked it goes on.
func (s *service) askAgain(ctx context.Context, cancel context.CancelCauseFunc, u user.Info, o ledger.Owner) {
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if why, err := s.access.mayRead(ctx, u, o); err == nil && why != "" {
				cancel(ledger.Forbidden(why))
				return
			}
		}
	}
}

// permit answers for the caller when may says no.
func (s *service) permit(w http.ResponseWriter, r *http.Request, may func() (string, error)) bool {
	switch why, err := may(); {
	case err != nil:
		fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
		return false
	case why != "":
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, why)
		return false
	}
	return true
}

// parseNode reads a path of package wire.
func parseNode(path string) (node, sub string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/apis/"+ledgerv1alpha1.APIVersion+"/")
	if !ok {
		return "", "", false
	}
	rest, watch := strings.CutPrefix(rest, "watch/")
	parts := strings.Split(rest, "/")
	if len(parts) != 3 || parts[0] != wire.Nodes || parts[1] == "" || watch != (parts[2] == wire.Questions) {
		return "", "", false
	}
	return parts[1], parts[2], parts[2] == wire.Questions || parts[2] == wire.Answers || parts[2] == wire.Traces
}

// node serves an agent.
func (s *service) node(w http.ResponseWriter, r *http.Request, u user.Info, node, sub string) {
	verb, method := "create", http.MethodPost
	if sub == wire.Questions {
		verb, method = "watch", http.MethodGet
	}
	if r.Method != method {
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "use "+method)
		return
	}
	if !s.permit(w, r, func() (string, error) { return s.access.mayAnswer(r.Context(), u, node, verb, sub) }) {
		return
	}
	if sub == wire.Questions {
		s.questions(w, r, sessionKey{node, r.URL.Query().Get("instance")})
		return
	}
	if sub == wire.Traces {
		var traces []wire.Trace
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, wire.MaxTraceBytes)).Decode(&traces)
		if err == nil && len(traces) > wire.MaxTraces {
			err = fmt.Errorf("%d traces at once, at most %d", len(traces), wire.MaxTraces)
		}
		if err != nil {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "the traces are not understood: "+err.Error())
			return
		}
		s.hub.spread(r.Context(), node, traces)
		done(w)
		return
	}
	var a wire.Answer
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, wire.MaxAnswer)).Decode(&a); err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "the answer is not understood: "+err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), holdLimit)
	defer cancel()
	switch taken := s.hub.answered(ctx, node, a); {
	case taken:
	case ctx.Err() != nil:
		fail(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "whoever has asked does not listen at the moment: send it again")
		return
	default:
		fail(w, http.StatusGone, metav1.StatusReasonGone, "nobody awaits an answer to this question any more")
		return
	}
	done(w)
}

// holdLimit is how long an answer waits for its reader. For so long it takes one of the
// requests that the API server has under way at a time, which others need.
const holdLimit = time.Second

func done(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{}\n")
}

// questions sends an agent its questions until it is gone.
func (s *service) questions(w http.ResponseWriter, r *http.Request, k sessionKey) {
	session, disconnect := s.hub.connect(k)
	defer disconnect()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	out := json.NewEncoder(w)
	beat := time.NewTicker(wire.Heartbeat)
	defer beat.Stop()
	_, err := io.WriteString(w, "\n")
	flush := func() { err = errors.Join(err, rc.Flush()) }
	for flush(); err == nil; flush() {
		select {
		case q := <-session.questions:
			err = errors.Join(out.Encode(&q.Question), rc.Flush())
			if q.written != nil {
				q.written <- struct{}{} // it has room for all
			}
		case <-beat.C:
			_, err = io.WriteString(w, "\n")
		case <-session.gone:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// discover says what there is.
func discover(w http.ResponseWriter) {
	resource := func(name, kind string, namespaced bool, verbs ...string) metav1.APIResource {
		return metav1.APIResource{Name: name, Namespaced: namespaced, Kind: kind, Verbs: verbs}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"},
		GroupVersion: ledgerv1alpha1.APIVersion,
		APIResources: []metav1.APIResource{
			resource("sandboxes/records", ledgerv1alpha1.RecordListKind, true, "get", "watch"),
			resource("routegroups/records", ledgerv1alpha1.RecordListKind, true, "get", "watch"),
			resource(wire.Nodes+"/"+wire.Questions, "Question", false, "watch"),
			resource(wire.Nodes+"/"+wire.Answers, "Answer", false, "create"),
			resource(wire.Nodes+"/"+wire.Traces, "Trace", false, "create"),
		},
	})
}

// fail answers as an API server does.
func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Message: fmt.Sprint(message), Reason: reason, Code: int32(code),
	})
}
