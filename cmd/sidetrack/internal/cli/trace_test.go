// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// follow runs trace --follow on these parts of a stream, and ends it when all have been
// read, unless it ends by itself.
func follow(t *testing.T, parts ...ledger.RecordList) (said string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var asked atomic.Bool // the client asks again when a stream has ended, and not at once
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if asked.Swap(true) {
			cancel()
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(rw)
		for i := range parts {
			_ = e.Encode(&parts[i])
		}
	}))
	defer s.Close()
	c, err := cluster.Connect(&rest.Config{Host: s.URL}, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	p := newProgram(t.Context(), "sidetrack", "v1.2.3", genericiooptions.IOStreams{In: strings.NewReader(""), Out: &bytes.Buffer{}, ErrOut: &stderr})
	err = p.followHops(ctx, c, hops.Of{Name: "pr-42"}, ledger.Options{}, &hopFlags{output: resultOutput()})
	return stderr.String(), err
}

// stream is a ledger whose parts a test sends, and trace --follow at its end.
type stream struct {
	t        *testing.T
	parts    chan ledger.RecordList
	out, err transcript.Log
	stop     context.CancelFunc
	done     chan error
}

func newStream(t *testing.T, format string) *stream {
	t.Helper()
	s := &stream{t: t, parts: make(chan ledger.RecordList), done: make(chan error, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		rw.(http.Flusher).Flush()
		for {
			select {
			case part := <-s.parts:
				_ = json.NewEncoder(rw).Encode(&part)
				rw.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	c, err := cluster.Connect(&rest.Config{Host: server.URL}, "shop", nil)
	if err != nil {
		t.Fatal(err)
	}
	p := newProgram(t.Context(), "sidetrack", "v1.2.3", genericiooptions.IOStreams{In: strings.NewReader(""), Out: &s.out, ErrOut: &s.err})
	flags := &hopFlags{output: resultOutput(formatWide, formatName)}
	cmd := p.traceCommand()
	flags.output.format = format
	if err := flags.output.check(cmd); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.stop = cancel
	t.Cleanup(cancel)
	go func() { s.done <- p.followHops(ctx, c, hops.Of{Name: "pr-42"}, ledger.Options{}, flags) }()
	return s
}

func (s *stream) send(records ...ledger.Record) {
	s.t.Helper()
	select {
	case s.parts <- ledger.RecordList{TypeMeta: metav1.TypeMeta{Kind: "RecordList", APIVersion: ledger.APIVersion}, Items: records}:
	case err := <-s.done:
		s.t.Fatalf("it has ended: %v\n%s", err, s.err.String())
	case <-time.After(time.Minute):
		s.t.Fatal("nobody reads the stream")
	}
}

// prints waits until all of these are printed.
func (s *stream) prints(words ...string) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text, missing := s.out.String(), ""
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("it does not print %q:\n%s\n%s", missing, text, s.err.String())
		}
	}
}

// end interrupts it and returns what it has printed.
func (s *stream) end() string {
	s.t.Helper()
	s.stop()
	select {
	case err := <-s.done:
		if !errors.Is(err, context.Canceled) {
			s.t.Errorf("it ends with %v", err)
		}
	case <-time.After(time.Minute):
		s.t.Fatal("it does not end")
	}
	return s.out.String()
}

var hopsBegan = time.Now().Add(-time.Minute)

// hop is a record of a trace: when it began and how long it took, in milliseconds.
func hop(at, took int, from, service, answer string) ledger.Record {
	return ledger.Record{
		Time: metav1.NewMicroTime(hopsBegan.Add(time.Duration(at) * time.Millisecond)), LatencyNanos: int64(took) * 1e6, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
		Node: "n1", Hook: ledger.HookRouter, Protocol: ledger.ProtocolHTTP1, Decision: ledger.DecisionFork, Reason: "redirected", Status: 200,
		SentBytes: 120, ReceivedBytes: 340,
		Source: ledger.Source{Namespace: "shop", Pod: from + "-1", Workload: "Deployment/" + from}, Service: &ledger.Service{Namespace: "shop", Name: service, Port: 80},
		Request: &ledger.Request{Method: "GET", Path: "/" + service}, Answer: &ledger.Answer{Address: "10.1.0.1:8080", Namespace: "shop", Pod: answer},
	}
}

const (
	cartHop  = "Deployment/front -> cart.shop:80 GET /cart => FORK cart-1 200 5s"
	routeHop = "Deployment/cart -> route.shop:80 GET /route => FORK route-1 200 50ms"
)

// TestAFollowedTraceIsPutInOrderHoweverItComes: calls are on record when they are over,
// so what came of a call comes before it, by a moment or by its whole time.
func TestAFollowedTraceIsPutInOrderHoweverItComes(t *testing.T) {
	t.Run("together", func(t *testing.T) {
		s := newStream(t, "")
		s.send(hop(20, 50, "cart", "route", "route-1"), hop(10, 5000, "front", "cart", "cart-1"))
		s.prints("  " + cartHop + "\n  └─ " + routeHop + "\n")
		if out := s.end(); strings.Count(out, "/route") != 1 || strings.Contains(out, "as above") {
			t.Errorf("it prints\n%s", out)
		}
	})
	t.Run("the caller after what was written already", func(t *testing.T) {
		s := newStream(t, "")
		s.send(hop(20, 50, "cart", "route", "route-1"))
		s.prints("  " + routeHop + "\n")
		s.send(hop(10, 5000, "front", "cart", "cart-1"))
		s.prints("  " + cartHop + "\n  └─ " + routeHop + " (as above)\n")
		s.send(hop(30, 7, "cart", "stock", "stock-1"))
		s.prints("  " + cartHop + " (as above)\n  └─ Deployment/cart -> stock.shop:80 GET /stock => FORK stock-1 200 7ms\n")
		if out := s.end(); strings.Count(out, "/route") != 2 || strings.Count(out, "/stock") != 1 {
			t.Errorf("it prints\n%s", out)
		}
	})
	t.Run("what is not written when it is interrupted", func(t *testing.T) {
		s := newStream(t, "")
		for at := range 3 {
			s.send(hop(10*at, 5, "cart", "route", "route-1"))
		}
		// What is missing is said at once: all of it has been read then.
		s.parts <- ledger.RecordList{Nodes: []ledger.NodeAnswer{{Node: "n1", Message: "lost"}}}
		for deadline := time.Now().Add(time.Minute); !strings.Contains(s.err.String(), "lost") && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if out := s.end(); strings.Count(out, "/route") != 3 {
			t.Errorf("it prints\n%s", out)
		}
	})
}

func TestAFollowedTraceIsPrintedInEachFormat(t *testing.T) {
	first, second := hop(20, 50, "cart", "route", "route-1"), hop(10, 5000, "front", "cart", "cart-1")
	elsewhere := hop(40, 5, "route", "stubs", "stubs-1")
	elsewhere.Answer.Namespace = "stubs"
	written := func(format string) string {
		s := newStream(t, format)
		s.send(first)
		s.prints("route-1")
		s.send(second, first, elsewhere)
		s.prints(map[bool]string{true: "pod/cart-1", false: "stubs-1"}[format == formatName])
		text := s.end()
		if format == formatName && s.err.String() != "sidetrack: a pod of another namespace has answered, too: stubs/stubs-1\n" {
			t.Errorf("it says %q", s.err.String())
		}
		return text
	}
	if got := written(formatName); got != "pod/route-1\npod/cart-1\n" {
		t.Errorf("-o name: %q", got)
	}
	wide := written(formatWide)
	var lines []string
	for line := range strings.Lines(wide) {
		cells := strings.Fields(regexp.MustCompile(" {2,}").ReplaceAllString(strings.TrimSpace(line), "\t"))
		lines = append(lines, strings.Join(cells[1:], " "))
	}
	const more = " 120 340 redirected n1 4bf92f3577b34da6a3ce929d0e0e4736 -"
	if want := []string{
		"CALL REQUEST DECISION ANSWERED BY STATUS LATENCY SENT RECEIVED REASON NODE TRACE NOTES",
		"Deployment/cart -> route.shop:80 GET /route FORK route-1 200 50ms" + more,
		"Deployment/front -> cart.shop:80 GET /cart FORK cart-1 200 5s" + more,
		"├─ Deployment/cart -> route.shop:80 (as above) GET /route FORK route-1 200 50ms" + more,
	}; !slices.Equal(lines[:min(4, len(lines))], want) {
		t.Errorf("-o wide:\n%s\n%q", wide, lines)
	}
	d := json.NewDecoder(strings.NewReader(written("json")))
	for _, want := range []int{1, 2} {
		var list ledger.RecordList
		if err := d.Decode(&list); err != nil || len(list.Items) < want || list.Kind != "RecordList" {
			t.Errorf("-o json: %v: %+v", err, list)
		}
	}
	if got := strings.Split(written("yaml"), "---\n"); len(got) != 2 || !strings.Contains(got[1], "cart-1") {
		t.Errorf("-o yaml: %q", got)
	}
	if got := written("jsonpath={.items[*].answer.pod}"); !strings.HasPrefix(got, "route-1cart-1 ") {
		t.Errorf("-o jsonpath: %q", got)
	}
}

func TestAStreamsGapsAreSaidOnce(t *testing.T) {
	part := func(nodes ...ledger.NodeAnswer) ledger.RecordList {
		return ledger.RecordList{Items: []ledger.Record{{Time: metav1.NowMicro()}}, Nodes: nodes}
	}
	answered := func(dropped, missed, omitted int64) ledger.NodeAnswer {
		return ledger.NodeAnswer{Node: "n1", Answered: true, Dropped: dropped, MissedFlows: missed, Omitted: omitted}
	}
	said, _ := follow(t,
		part(answered(10, 4, 7)), part(answered(10, 4, 7)), part(answered(11, 5, 0)), part(answered(19, 7, 0)),
		part(answered(20, 7, 0)), part(answered(39, 7, 0)),
		part(ledger.NodeAnswer{Node: "n2", Answered: true, Dropped: 1}),
		part(ledger.NodeAnswer{Node: "n2", Message: "lost"}), part(ledger.NodeAnswer{Node: "n2", Message: "lost"}),
		part(ledger.NodeAnswer{Node: "n2", Message: "not connected"}),
		part(ledger.NodeAnswer{Node: "n2", Answered: true, Dropped: 1}),
		part(ledger.NodeAnswer{Node: "n2", Message: "not connected"}),
	)
	want := `sidetrack: node n1 has dropped its 10 oldest records
sidetrack: node n1 has no records of 4 flows, too many at once
sidetrack: node n1 has 7 more: see them with --limit or --since
sidetrack: node n1 has dropped its 20 oldest records
sidetrack: node n2 has dropped its 1 oldest records
sidetrack: node n2 has not answered, and its hops are missing: lost
sidetrack: node n2 has not answered, and its hops are missing: not connected
sidetrack: node n2 has not answered, and its hops are missing: not connected
`
	if d := cmp.Diff(want, said); d != "" {
		t.Errorf("it says (-want +got):\n%s", d)
	}
}

func TestAStreamThatTheLedgerHasEndedSaysWhy(t *testing.T) {
	ended := func(code int32, reason metav1.StatusReason) ledger.RecordList {
		return ledger.RecordList{Ended: &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "it is so"}}
	}
	for _, x := range []struct {
		end  ledger.RecordList
		want string
	}{
		{ended(403, metav1.StatusReasonForbidden), "you may not read the ledger of pr-42: it is so"},
		{ended(429, metav1.StatusReasonTooManyRequests), "the ledger has ended the stream of pr-42: it is so"},
	} {
		if _, err := follow(t, ledger.RecordList{}, x.end); err == nil || !strings.HasPrefix(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", x.end.Ended.Reason, err, x.want)
		}
	}
	// It goes on, until the test cancels it.
	if _, err := follow(t, ledger.RecordList{}, ended(503, metav1.StatusReasonServiceUnavailable)); !errors.Is(err, context.Canceled) {
		t.Errorf("of one that may go on: %v", err)
	}
}
