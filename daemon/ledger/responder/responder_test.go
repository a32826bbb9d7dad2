// SPDX-License-Identifier: Apache-2.0

package responder

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
)

var pr42 = &routing.SandboxInfo{ID: 1, Name: routing.Name{Namespace: "shop", Name: "pr-42"}, Key: "key-of-pr-42"}

// collector is an API server with a collector behind it, played by hand.
type collector struct {
	questions chan wire.Question
	answers   chan wire.Answer
	refuse    atomic.Int64 // so many answers more are lost
	connects  atomic.Int64
}

// start runs a responder that a collector asks.
func start(t *testing.T, l *ledger.Ledger) *collector {
	t.Helper()
	c := &collector{questions: make(chan wire.Question, 100), answers: make(chan wire.Answer, 100)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/"+wire.Questions):
			c.connects.Add(1)
			rc, out := http.NewResponseController(w), json.NewEncoder(w)
			for {
				if rc.Flush() != nil {
					return
				}
				select {
				case q := <-c.questions:
					if out.Encode(&q) != nil {
						return
					}
				case <-r.Context().Done():
					return
				}
			}
		case c.refuse.Add(-1) >= 0:
			http.Error(w, "the server is starting", http.StatusServiceUnavailable)
		default:
			var a wire.Answer
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, wire.MaxAnswer)).Decode(&a); err != nil {
				t.Errorf("an answer: %v", err)
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			c.answers <- a
		}
	}))
	r, err := Start(&rest.Config{Host: s.URL}, "node-a", l, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return c
}

func (c *collector) next(t *testing.T) wire.Answer {
	t.Helper()
	select {
	case a := <-c.answers:
		return a
	case <-time.After(time.Minute):
		t.Fatal("no answer comes")
		return wire.Answer{}
	}
}

func ask(id uint64, follow bool) wire.Question {
	return wire.Question{ID: id, Namespace: pr42.Name.Namespace, Name: pr42.Name.Name, Follow: follow}
}

func record(l *ledger.Ledger, path string) {
	l.Add(&ledger.Entry{At: time.Now(), Owner: pr42, Method: []byte("GET"), Path: []byte(path)})
}

func TestAStreamGoesOnAfterAnAnswerThatDidNotArrive(t *testing.T) {
	l := ledger.New(ledger.Config{Node: "node-a"})
	c := start(t, l)
	c.questions <- ask(7, true)
	if a := c.next(t); a.Part != 1 || len(a.Records.Items) != 0 {
		t.Errorf("the first answer is %+v", a)
	}
	c.refuse.Store(2)
	record(l, "/one")
	a := c.next(t)
	if a.ID != 7 || a.Part != 2 || len(a.Records.Items) != 1 || a.Records.Items[0].Request.Path != "/one" {
		t.Errorf("after two that were lost the answer is %+v", a)
	}
	record(l, "/two")
	if a := c.next(t); a.Part != 3 || len(a.Records.Items) != 1 || a.Records.Items[0].Request.Path != "/two" {
		t.Errorf("the next answer is %+v", a)
	}
}

// What was dropped may have been of the trace, whatever node's clock says when.
func TestATraceIsKnownForAsLongAsNothingWasDropped(t *testing.T) {
	cart := routing.Service{Name: routing.Name{Namespace: "shop", Name: "cart"}, Ports: []routing.ServicePort{{Port: 80, Protocol: routing.TCP}}}
	table, problems := routing.Compile(routing.Input{
		Services: []routing.Service{cart}, Sandboxes: []routing.Sandbox{{Name: pr42.Name, Key: pr42.Key, Observe: []string{"cart"}}},
	}, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	l := ledger.New(ledger.Config{Node: "node-a", MaxSandboxBytes: 64 << 10})
	c := start(t, l)
	l.SetTable(table)
	owner := table.SandboxNamed(pr42.Name, false)
	add := func() { l.Add(&ledger.Entry{At: time.Now(), Owner: owner, Path: []byte(strings.Repeat("p", 1000))}) }
	known := func(id uint64) time.Duration {
		q := ask(id, false)
		q.Trace = strings.Repeat("1", 32)
		c.questions <- q
		n := c.next(t).Records.Nodes[0]
		if n.Trace == nil || n.Trace.Unwatched {
			t.Fatalf("the node says %+v", n)
		}
		return time.Duration(n.Trace.KnownNanos)
	}
	began := time.Now()
	add()
	if got := known(1); got < time.Since(began)-time.Minute || got == 0 {
		t.Errorf("nothing was dropped, and it is known for %s", got)
	}
	for range 100 {
		add()
	}
	dropped := time.Now()
	for range 100 {
		add()
	}
	if got := known(2); got > time.Since(dropped) {
		t.Errorf("something was dropped within the last %s, and the trace is known for %s", time.Since(dropped), got)
	}
}

func TestTheLargestRecordsFitIntoAnswersAndOnlyTheLastLeadsBehindThem(t *testing.T) {
	l := ledger.New(ledger.Config{Node: "node-a"})
	// In JSON each of these takes six bytes.
	worst := func(n int) []byte { return []byte(strings.Repeat("<", n)) }
	const n = wire.AnswerRecords + 1
	for range n {
		e := &ledger.Entry{At: time.Now(), Owner: pr42, Target: strings.Repeat("t", 300), Service: routing.Name{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63)}}
		e.Ask(worst(100), worst(2000), append([]byte("/"), worst(5000)...))
		e.Fail(string(worst(1000)))
		l.Add(e)
	}
	c := start(t, l)
	c.questions <- ask(7, false)
	first, last := c.next(t), c.next(t)
	if len(first.Records.Items) != n-1 || first.Done || first.Next != 0 {
		t.Errorf("the first answer has %d records, done %t, next %d", len(first.Records.Items), first.Done, first.Next)
	}
	if len(last.Records.Items) != 1 || !last.Done || last.Next != n {
		t.Errorf("the last answer has %d records, done %t, next %d", len(last.Records.Items), last.Done, last.Next)
	}
}

func TestAQuestionTooManyIsRefused(t *testing.T) {
	l := ledger.New(ledger.Config{Node: "node-a"})
	c := start(t, l)
	for id := range uint64(maxQuestions) {
		c.questions <- ask(id+1, true)
		c.next(t)
	}
	c.questions <- ask(1000, true)
	if a := c.next(t); a.ID != 1000 || a.Refused != tooMany {
		t.Errorf("it is answered with %+v", a)
	}
	c.questions <- wire.Question{ID: 1, End: true}
	deadline := time.Now().Add(time.Minute)
	for id := uint64(1001); ; id++ {
		c.questions <- ask(id, true)
		if a := c.next(t); a.Refused == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it refuses though one has ended")
		}
	}
}

func TestAsManyTracesAsThereMayBeDoNotEndTheConnection(t *testing.T) {
	l := ledger.New(ledger.Config{Node: "node-a"})
	c := start(t, l)
	said := wire.Question{}
	for i := range wire.MaxTraces {
		said.Traces = append(said.Traces, wire.Trace{
			ID: ledger.TraceID{15: byte(i + 1)}.String(), Namespace: "shop", Name: "pr-42", ServiceNamespace: "shop", Service: "route",
			Endpoints: slices.Repeat([]string{"[2001:db8:1111:2222:3333:4444:5555:6666]:65535"}, maxEndpoints),
		})
	}
	c.questions <- said
	c.questions <- ask(7, false)
	if a := c.next(t); a.ID != 7 || c.connects.Load() != 1 {
		t.Errorf("question %d is answered over connection %d", a.ID, c.connects.Load())
	}
}
