// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// shortWatches is the API server, but for that it ends each watch after a second, in the
// way in which it ends all after half an hour or more.
type shortWatches struct {
	url string

	mu     sync.Mutex
	begun  int
	held   int
	answer *metav1.Status // to watches; nil: a watch
	change *sync.Cond
	hold   bool
}

func serveShortWatches(t *testing.T) *shortWatches {
	t.Helper()
	s := &shortWatches{}
	s.change = sync.NewCond(&s.mu)
	to, err := url.Parse(plane.Admin().Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(plane.Admin())
	if err != nil {
		t.Fatal(err)
	}
	real := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("watch") != "true" {
			real.ServeHTTP(rw, r)
			return
		}
		s.mu.Lock()
		s.begun++
		s.held++
		for s.hold {
			s.change.Wait()
		}
		s.held--
		status := s.answer
		s.mu.Unlock()
		switch {
		case status == nil:
			q.Set("timeoutSeconds", "1")
			r.URL.RawQuery = q.Encode()
			real.ServeHTTP(rw, r)
		case status.Code == http.StatusGone: // It says so in the watch.
			rw.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(rw).Encode(map[string]any{"type": "ERROR", "object": status})
		default:
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(int(status.Code))
			_ = json.NewEncoder(rw).Encode(status)
		}
	}))
	t.Cleanup(func() {
		s.set(false, 0, "")
		server.CloseClientConnections()
		server.Close()
	})
	s.url = server.URL
	return s
}

// set has watches wait, or be answered with an error from now on; 0 is none.
func (s *shortWatches) set(hold bool, code int32, reason metav1.StatusReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold, s.answer = hold, nil
	if code != 0 {
		s.answer = &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "a test says " + string(reason)}
	}
	s.change.Broadcast()
}

// await waits until so many watches have begun since then, or are held.
func (s *shortWatches) await(t *testing.T, begun, held int) {
	t.Helper()
	s.mu.Lock()
	from := s.begun
	s.mu.Unlock()
	eventually(t, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.begun-from < begun || s.held < held {
			return fmt.Errorf("%d watches have begun, and %d are held", s.begun-from, s.held)
		}
		return nil
	})
}

func TestAWatchGoesOnWhenTheAPIServerEndsIt(t *testing.T) {
	ns := namespace(t)
	s := serveShortWatches(t)
	add := func(name string) {
		t.Helper()
		create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	change := func(name string) {
		t.Helper()
		says(t, ns, name, func(sb *v1alpha1.Sandbox) { sb.Status.Revision++ })
	}
	remove := func(name string) {
		t.Helper()
		if err := api.Delete(t.Context(), sandboxOf(t, ns, name)); err != nil {
			t.Fatal(err)
		}
	}
	add("a")
	add("b")
	add("c")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	watching := func(args string) *run {
		return startAs(ctx, t, admin(t), ns, "", append([]string{"--server=" + s.url}, strings.Fields(args)...)...)
	}
	events, rows, one := watching("sandbox list -w -o json --output-watch-events"), watching("sandbox list -w --output-watch-events"), watching("sandbox get b -w --output-watch-events -o json")
	all := []*run{events, rows, one}
	want := map[*run]string{events: "ADDED a, ADDED b, ADDED c", rows: "ADDED a, ADDED b, ADDED c", one: "ADDED b"}
	printed := func(more, ofOne string) {
		t.Helper()
		want[events] += more
		want[rows] += more
		want[one] += ofOne
		for _, r := range all {
			eventually(t, func() error {
				if got := r.events(); got != want[r] {
					return fmt.Errorf("it prints %q, want %q:\n%s%s", got, want[r], r.out.String(), r.err.String())
				}
				return nil
			})
		}
	}
	printed("", "")
	// They end, and go on from where they were.
	s.await(t, 6, 0)
	change("b")
	printed(", MODIFIED b", ", MODIFIED b")

	// They end, and what comes then is soon too old to be told of.
	s.set(true, 0, "")
	s.await(t, 0, 3)
	change("a")
	remove("b")
	add("d")
	s.set(false, http.StatusGone, metav1.StatusReasonExpired)
	printed(", MODIFIED a, ADDED d, DELETED b", ", DELETED b")
	s.set(false, 0, "")
	add("b")
	printed(", ADDED b", ", ADDED b")

	// The API server cannot watch for a time, which is said.
	s.set(false, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	for _, r := range all {
		eventually(t, func() error {
			if !strings.Contains(r.err.String(), "cannot watch the sandboxes: a test says ServiceUnavailable") {
				return fmt.Errorf("it says %q", r.err.String())
			}
			return nil
		})
	}
	s.await(t, 4, 0)
	remove("c")
	s.set(false, 0, "")
	printed(", DELETED c", "")

	for _, r := range all {
		if said := r.err.String(); strings.Count(said, "a test says") != 1 {
			t.Errorf("it says %s", said)
		}
	}

	// What waiting does not help against ends it.
	s.set(false, http.StatusForbidden, metav1.StatusReasonForbidden)
	if got := rows.wait(t); got != 1 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, rows.err.String(), "a test says Forbidden", "next: ")
	if n := strings.Count(rows.out.String(), "NAME"); n != 1 {
		t.Errorf("the head is there %d times:\n%s", n, rows.out.String())
	}
}

// events are what a watch has printed, without the rest of it.
func (r *run) events() string {
	var out []string
	text := r.out.String()
	if !strings.HasPrefix(text, "{") {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 1 && f[0] != "EVENT" {
				out = append(out, f[0]+" "+f[1])
			}
		}
		return strings.Join(out, ", ")
	}
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var e struct {
			Type   string
			Object v1alpha1.Sandbox
		}
		if err := d.Decode(&e); err != nil {
			if err != io.EOF {
				out = append(out, err.Error()) // It is being written.
			}
			return strings.Join(out, ", ")
		}
		out = append(out, e.Type+" "+e.Object.Name)
	}
}
