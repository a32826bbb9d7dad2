// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
)

var pr42 = ledger.Owner{Name: routing.Name{Namespace: "shop", Name: "pr-42"}}

// newTestHub expects these nodes.
func newTestHub(patience time.Duration, nodes ...string) *hub {
	return newHub(patience, func(context.Context) (map[string]string, error) {
		out := map[string]string{}
		for _, n := range nodes {
			out[n] = "it is not connected"
		}
		return out, nil
	})
}

// agent answers its questions by hand.
type agent struct {
	h *hub
	*session
	leave func()
}

func (h *hub) agent(node, instance string) *agent {
	s, leave := h.connect(sessionKey{node, instance})
	return &agent{h, s, leave}
}

// next returns the agent's next line.
func (a *agent) next(t *testing.T) wire.Question {
	t.Helper()
	select {
	case q := <-a.questions:
		if q.written != nil {
			q.written <- struct{}{}
		}
		return q.Question
	case <-time.After(20 * time.Second):
		t.Fatalf("nobody asks %s", a.node)
		return wire.Question{}
	}
}

// say answers a question with records at these seconds.
func (a *agent) say(t *testing.T, id uint64, done bool, seconds ...int64) {
	t.Helper()
	answer := wire.Answer{ID: id, Next: 7, Done: done}
	for _, s := range seconds {
		answer.Records.Items = append(answer.Records.Items, ledgerv1alpha1.Record{Time: metav1.NewMicroTime(time.Unix(s, 0)), Node: "as it likes"})
	}
	answer.Records.Nodes = []ledgerv1alpha1.NodeAnswer{{Node: "as it likes", Answered: true}}
	if !a.h.answered(t.Context(), a.node, answer) {
		t.Errorf("nobody awaits the answer of %s", a.node)
	}
}

// told is a list in words.
func told(list *ledgerv1alpha1.RecordList) (out []string) {
	for _, r := range list.Items {
		out = append(out, fmt.Sprintf("%s %d", r.Node, r.Time.Unix()))
	}
	for _, n := range list.Nodes {
		s := fmt.Sprintf("%s %t", n.Node, n.Answered)
		if n.Omitted > 0 {
			s += fmt.Sprintf(" omitted %d", n.Omitted)
		}
		if n.Message != "" {
			s += ": " + n.Message
		}
		out = append(out, s)
	}
	return out
}

func TestRecordsOfAllNodesAreInOrderAndEveryNodeIsNamed(t *testing.T) {
	h := newTestHub(time.Minute, "one", "three", "two")
	one, two := h.agent("one", "x"), h.agent("two", "y")
	got := make(chan *ledgerv1alpha1.RecordList, 1)
	go func() {
		list, err := h.as("joe").Records(t.Context(), pr42, ledgerv1alpha1.Options{Limit: 3})
		if err != nil {
			t.Error(err)
		}
		got <- list
	}()
	q := one.next(t)
	if q.Name != "pr-42" || q.Namespace != "shop" || q.Limit != 3 || q.Follow {
		t.Errorf("the question is %+v", q)
	}
	other := two.next(t)
	// An answer of another node's is none.
	if h.answered(t.Context(), "two", wire.Answer{ID: q.ID, Done: true}) {
		t.Error("a node answers another's question")
	}
	one.say(t, q.ID, false, 1, 5)
	one.say(t, q.ID, true, 9)
	two.say(t, other.ID, true, 4, 7)
	want := []string{"one 5", "two 7", "one 9", "one true omitted 1", "three false: it is not connected", "two true omitted 1"}
	if diff := cmp.Diff(want, told(<-got)); diff != "" {
		t.Errorf("the list (-want +got):\n%s", diff)
	}
}

func TestANodeThatDoesNotAnswerSaysWhy(t *testing.T) {
	h := newTestHub(50*time.Millisecond, "one", "two")
	one, two := h.agent("one", "x"), h.agent("two", "y")
	got := make(chan *ledgerv1alpha1.RecordList, 1)
	go func() {
		list, err := h.as("joe").Records(t.Context(), pr42, ledgerv1alpha1.Options{})
		if err != nil {
			t.Error(err)
		}
		got <- list
	}()
	one.next(t)
	two.next(t)
	two.leave()
	list := <-got
	if len(list.Nodes) != 2 || list.Nodes[0].Answered || list.Nodes[1].Answered || !strings.Contains(list.Nodes[0].Message, "has not answered within") {
		t.Errorf("nodes %+v", list.Nodes)
	}
	// One that is asked too much.
	for len(one.questions) < cap(one.questions) {
		one.questions <- outgoing{}
	}
	list, err := h.as("joe").Records(t.Context(), pr42, ledgerv1alpha1.Options{})
	if err != nil || list.Nodes[0].Message != notAsked {
		t.Errorf("nodes %+v, %v", list.Nodes, err)
	}
	h.expected = func(context.Context) (map[string]string, error) { return nil, errors.New("no API server") }
	if _, err := h.as("joe").Records(t.Context(), pr42, ledgerv1alpha1.Options{}); err == nil {
		t.Error("nobody knows which nodes there are, and the answer does not say so")
	}
}

func TestAStreamSurvivesTheLossOfANodeAndSaysSo(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	one := h.agent("one", "x")
	lists := make(chan *ledgerv1alpha1.RecordList, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- h.as("joe").Follow(ctx, pr42, ledgerv1alpha1.Options{Limit: 10}, begun, func(l *ledgerv1alpha1.RecordList) error {
			lists <- l
			return nil
		})
	}()
	await := func(want ...string) {
		t.Helper()
		select {
		case l := <-lists:
			if diff := cmp.Diff(want, told(l)); diff != "" {
				t.Errorf("the stream says (-want +got):\n%s", diff)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the stream does not say %q", want)
		}
	}
	q := one.next(t)
	if !q.Follow || q.Limit != 10 || q.After != 0 {
		t.Errorf("the question is %+v", q)
	}
	one.say(t, q.ID, false, 1)
	await("one 1", "one true")
	one.leave()
	first := map[string]bool{}
	for range 2 {
		l := <-lists
		for _, n := range l.Nodes {
			first[n.Message] = true
		}
	}
	want := []string{"it is not connected", "the connection to its agent was lost; when it is back, what it still has is sent"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(first))); diff != "" {
		t.Errorf("of the lost node it says (-want +got):\n%s", diff)
	}
	// The same agent goes on where it was; another begins anew.
	one = h.agent("one", "x")
	if q = one.next(t); q.After != 7 || q.Limit != 0 {
		t.Errorf("the question after the loss is %+v", q)
	}
	one.say(t, q.ID, false, 2)
	await("one 2", "one true")
	if q := h.agent("one", "z").next(t); q.After != 0 {
		t.Errorf("another agent of the node is asked %+v", q)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if q := one.next(t); !q.End {
		t.Errorf("the agent is not told that nobody listens, but %+v", q)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) != 0 {
		t.Errorf("%d questions are left", len(h.asked))
	}
}

func TestAStreamEndsWithTheReasonForWhichItIsEnded(t *testing.T) {
	h := newTestHub(time.Minute, "one")
	ctx, end := context.WithCancelCause(t.Context())
	// What fails because of the end is none.
	h.expected = func(context.Context) (map[string]string, error) {
		end(ledger.Forbidden("not any more"))
		return nil, context.Canceled
	}
	err := h.as("joe").Follow(ctx, pr42, ledgerv1alpha1.Options{}, begun, func(*ledgerv1alpha1.RecordList) error { return nil })
	if !errors.Is(err, ledger.Forbidden("not any more")) {
		t.Errorf("it ended with %v", err)
	}
}

func TestTracesAreToldToAllOthers(t *testing.T) {
	h := newTestHub(time.Minute)
	one, two := h.agent("one", "x"), h.agent("two", "y")
	three := h.agent("three", "z") // does not listen
	done := make(chan struct{})
	go func() {
		h.spread(t.Context(), "one", []wire.Trace{{ID: "a", Service: "cart"}})
		close(done)
	}()
	if q := two.next(t); len(q.Traces) != 1 || q.Traces[0].Service != "cart" {
		t.Errorf("two is told %+v", q)
	}
	select {
	case <-done: // after spreadLimit, for three's sake
	case <-time.After(20 * time.Second):
		t.Error("who tells waits for ever")
	}
	if len(one.questions) != 0 || len(three.questions) != 1 {
		t.Errorf("%d lines for who has told, %d for who does not listen", len(one.questions), len(three.questions))
	}
}

// trace answers a question about a trace: where the agent knows it to have gone.
func (a *agent) trace(t *testing.T, id uint64, services ...string) {
	t.Helper()
	answer := wire.Answer{ID: id, Done: true}
	for _, s := range services {
		answer.Hops = append(answer.Hops, wire.Trace{Service: s, Endpoints: []string{"10.0.0.1:80"}})
	}
	answer.Records.Items = []ledgerv1alpha1.Record{{Time: metav1.NewMicroTime(time.Unix(1, 0))}}
	answer.Records.Nodes = []ledgerv1alpha1.NodeAnswer{{Trace: &ledgerv1alpha1.TraceAnswer{KnownNanos: 1}}}
	if !a.h.answered(t.Context(), a.node, answer) {
		t.Errorf("nobody awaits the answer of %s", a.node)
	}
}

func TestNodesAreToldWhereATraceHasGoneBeforeTheirAnswersCount(t *testing.T) {
	type answers map[string][]string
	for _, tc := range []struct {
		name   string
		rounds []answers // what nodes know, and nil from one that does not answer
		told   [][]string
		open   int64
	}{
		{"nobody knows of it", []answers{{"one": {}, "two": {}}}, [][]string{nil}, 0},
		{"both know of it", []answers{{"one": {"cart"}, "two": {"cart"}}}, [][]string{nil}, 0},
		{"one does not", []answers{{"one": {"cart"}, "two": {}}, {"one": {"cart"}, "two": {"cart"}}}, [][]string{nil, {"cart"}}, 0},
		{"one does not, and has no use for it", []answers{{"one": {"cart"}, "two": {}}, {"one": {"cart"}, "two": {}}}, [][]string{nil, {"cart"}}, 0},
		{"it goes on meanwhile", []answers{{"one": {"cart"}, "two": {}}, {"one": {"cart", "route"}, "two": {"cart"}}, {"one": {"cart", "route"}, "two": {"cart", "route"}}},
			[][]string{nil, {"cart"}, {"cart", "route"}}, 0},
		{"it does not end", []answers{{"one": {"a"}, "two": {}}, {"one": {"a", "b"}, "two": {}}, {"one": {"b", "c"}, "two": {}}, {"one": {"c", "d"}, "two": {}}},
			[][]string{nil, {"a"}, {"a", "b"}, {"a", "b", "c"}}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newTestHub(time.Minute, "one", "two")
			agents := []*agent{h.agent("one", "x"), h.agent("two", "y")}
			got := make(chan *ledgerv1alpha1.RecordList, 1)
			go func() {
				list, err := h.as("joe").Records(t.Context(), pr42, ledgerv1alpha1.Options{Trace: strings.Repeat("a", 32)})
				if err != nil {
					t.Error(err)
				}
				got <- list
			}()
			for round, know := range tc.rounds {
				for _, a := range agents {
					q := a.next(t)
					for q.End { // of the question before
						q = a.next(t)
					}
					var told []string
					for _, hop := range q.Hops {
						told = append(told, hop.Service)
					}
					slices.Sort(told)
					if !slices.Equal(told, tc.told[round]) {
						t.Errorf("round %d: node %s is told %q, want %q", round, a.node, told, tc.told[round])
					}
					a.trace(t, q.ID, know[a.node]...)
				}
			}
			list := <-got
			if len(list.Items) != 2 || len(list.Nodes) != 2 {
				t.Fatalf("the list is %q", told(list))
			}
			for _, n := range list.Nodes {
				if n.Trace == nil || n.Trace.Open != tc.open {
					t.Errorf("node %s: %+v, want %d under way", n.Node, n.Trace, tc.open)
				}
			}
			if n := h.room.taken(); n != 2*recordBytes {
				t.Errorf("%d bytes are counted, want those of the last answers", n)
			}
		})
	}
}

func (h *hub) as(user string) reader { return reader{h, user} }

func begun() error { return nil }
