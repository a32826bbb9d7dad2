// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// hub is where questions and answers meet.
type hub struct {
	patience time.Duration // for a node's answer
	expected func(ctx context.Context) (map[string]string, error)

	room           room
	streams, lists seats

	mu       sync.Mutex
	next     uint64
	sessions map[sessionKey]*session
	asked    map[uint64]*asked
	changed  chan struct{} // closed, and made anew, when a session comes or goes
}

// sessionKey tells the agents of a node apart, which take turns.
type sessionKey struct{ node, instance string }

// session is one agent's connection.
type session struct {
	sessionKey
	questions chan outgoing
	gone      chan struct{}
}

// outgoing is a line for an agent.
type outgoing struct {
	wire.Question
	written chan<- struct{} // is told once the line is on its way; nil: nobody waits
}

// asked is a question whose answers are awaited. It belongs to one node.
type asked struct {
	node    string
	answers chan wire.Answer
	over    chan struct{} // nobody awaits them any more
	// take counts what an answer has in memory, and give takes it back; nil: whoever
	// awaits the answers does that.
	take func(n int64) bool
	give func(n int64)

	mu   sync.Mutex // one is handed over at a time
	part uint64     // the last that was
}

func newHub(patience time.Duration, expected func(ctx context.Context) (map[string]string, error)) *hub {
	// An agent may still answer what the collector before this one has asked. That
	// must never pass for the answer to another reader's question.
	first := rand.Uint64()
	return &hub{
		patience: patience, expected: expected, room: room{most: maxGathered},
		streams: seats{kind: "streams", most: maxStreams, each: streamsEach, again: againLater},
		lists:   seats{kind: "lists", most: maxLists, each: listsEach, again: againSoon},
		next:    first, sessions: map[sessionKey]*session{}, asked: map[uint64]*asked{}, changed: make(chan struct{}),
	}
}

// connect begins an agent's session; one of the same agent that is there has lost its
// connection. disconnect ends it.
func (h *hub) connect(k sessionKey) (s *session, disconnect func()) {
	s = &session{sessionKey: k, questions: make(chan outgoing, 256), gone: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.sessions[k]; old != nil {
		close(old.gone)
	}
	h.sessions[k] = s
	h.change()
	return s, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.sessions[k] == s {
			delete(h.sessions, k)
			close(s.gone)
			h.change()
		}
	}
}

// change wakes those who follow. The caller holds the lock.
func (h *hub) change() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// connected returns the sessions in order, and what is closed when there are others.
func (h *hub) connected() ([]*session, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int {
		return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.instance, b.instance))
	})
	return all, h.changed
}

// ask puts a question to an agent. end has to be called. Of a stream the answers are
// counted as the user's, and whoever has taken one gives it back.
func (h *hub) ask(s *session, q wire.Question, user string) (a *asked, end func(), ok bool) {
	h.mu.Lock()
	h.next++
	q.ID = h.next
	a = &asked{node: s.node, answers: make(chan wire.Answer, 1), over: make(chan struct{})}
	if q.Follow {
		a.take = func(n int64) bool { return h.room.take(user, n) }
		a.give = func(n int64) { h.room.give(user, n) }
	}
	h.asked[q.ID] = a
	h.mu.Unlock()
	end = func() {
		h.mu.Lock()
		_, open := h.asked[q.ID]
		delete(h.asked, q.ID)
		h.mu.Unlock()
		if open {
			close(a.over)
			a.drain()
			select {
			case s.questions <- outgoing{Question: wire.Question{ID: q.ID, End: true}}:
			default: // it finds out when it answers
			}
		}
	}
	select {
	case s.questions <- outgoing{Question: q}:
		return a, end, true
	default:
		return a, end, false
	}
}

// drain gives back what has come and is not taken any more. over is closed.
func (a *asked) drain() {
	a.mu.Lock() // none comes after it
	defer a.mu.Unlock()
	select {
	case answer := <-a.answers:
		if a.give != nil {
			a.give(sizes(answer.Records.Items))
		}
	default:
	}
}

// answered hands an answer of a node to who awaits it. It returns false when nobody
// does.
func (h *hub) answered(ctx context.Context, node string, answer wire.Answer) bool {
	h.mu.Lock()
	a := h.asked[answer.ID]
	h.mu.Unlock()
	if a == nil || a.node != node {
		return false
	}
	for i := range answer.Records.Items {
		// Whatever it says: a node speaks for itself.
		answer.Records.Items[i].Node = node
	}
	for i := range answer.Records.Nodes {
		answer.Records.Nodes[i].Node = node
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if answer.Part > 0 && answer.Part <= a.part {
		return true // sent again, since it was not known to have arrived
	}
	select {
	case <-a.over:
		return false
	default:
	}
	n := sizes(answer.Records.Items)
	if a.take != nil && !a.take(n) {
		// The agent tries again, when the reader may have read more.
		select {
		case <-a.over:
		case <-ctx.Done():
		}
		return false
	}
	select {
	case a.answers <- answer:
		a.part = answer.Part
		return true
	case <-a.over:
	case <-ctx.Done():
	}
	if a.give != nil {
		a.give(n)
	}
	return false
}

// spreadLimit is how long a node waits at most for others to be told.
const spreadLimit = 200 * time.Millisecond

// spread tells the agents of all other nodes of traces, and returns when they have
// been told or it takes too long.
func (h *hub) spread(ctx context.Context, from string, traces []wire.Trace) {
	sessions, _ := h.connected()
	written := make(chan struct{}, len(sessions))
	told := 0
	for _, s := range sessions {
		if s.node == from {
			continue
		}
		select {
		case s.questions <- outgoing{Question: wire.Question{Traces: traces}, written: written}:
			told++
		default: // it does not listen; then it does not know
		}
	}
	limit := time.NewTimer(spreadLimit)
	defer limit.Stop()
	for range told {
		select {
		case <-written:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func question(o ledger.Owner, want ledgerv1alpha1.Options) wire.Question {
	return wire.Question{
		Group: o.Group, Namespace: o.Name.Namespace, Name: o.Name.Name,
		Since: want.Since, Trace: want.Trace, Limit: want.Limit, Follow: want.Follow,
	}
}

const notAsked = "the node has too many questions to answer already; ask again"

// collect asks one agent, waits for all of its answer, and says what became of it.
// What has come of an answer that ends early stays; the answer is no whole one then.
func (h *hub) collect(ctx context.Context, s *session, q wire.Question, g *gathering) (collected, error) {
	failed := func(why string) (collected, error) {
		return collected{answer: ledgerv1alpha1.NodeAnswer{Node: s.node, Message: why}}, nil
	}
	a, end, ok := h.ask(s, q, g.user)
	defer end()
	if !ok {
		return failed(notAsked)
	}
	patience := time.NewTimer(h.patience)
	defer patience.Stop()
	var node collected
	for {
		select {
		case answer := <-a.answers:
			if answer.Refused != "" {
				return failed(answer.Refused)
			}
			if !g.add(answer.Records.Items) {
				return node, errTooMuch
			}
			if len(answer.Records.Nodes) > 0 {
				node.answer = answer.Records.Nodes[0]
			}
			if answer.Done {
				node.answer.Node, node.answer.Answered, node.hops = s.node, true, answer.Hops
				return node, nil
			}
		case <-s.gone:
			return failed("the connection to its agent was lost while it answered")
		case <-patience.C:
			return failed(fmt.Sprintf("its agent has not answered within %s", h.patience))
		case <-ctx.Done():
			return failed("the request ended before its agent had answered")
		}
	}
}

// reader is a user of the ledger, by the name of whose share it takes.
type reader struct {
	*hub
	user string
}

// Records implements ledger.Reader. The list counts as being in memory until ctx is
// over.
func (h reader) Records(ctx context.Context, o ledger.Owner, want ledgerv1alpha1.Options) (*ledgerv1alpha1.RecordList, error) {
	leave, err := h.lists.take(h.user, nil)
	if err != nil {
		return nil, err
	}
	defer leave()
	sessions, _ := h.connected()
	silent, err := h.silent(ctx, sessions)
	if err != nil {
		return nil, err
	}
	want.Follow = false
	q := question(o, want)
	for round := 1; ; round++ {
		g := newGathering(&h.room, h.user, want.Limit)
		nodes, err := h.collectAll(ctx, sessions, q, g)
		if err != nil {
			g.close()
			return nil, err
		}
		hops, known := hopsOf(nodes, q.Hops)
		switch {
		case known:
		case round < maxRounds:
			g.close()
			q.Hops = hops
			continue
		default:
			// The trace goes to more Services while it is asked for.
			for i := range nodes {
				if t := nodes[i].answer.Trace; t != nil {
					t.Open = max(t.Open, 1)
				}
			}
		}
		answers := silent
		for i := range nodes {
			answers = append(answers, nodes[i].answer)
		}
		list := g.list(answers)
		context.AfterFunc(ctx, g.close)
		return list, nil
	}
}

// collectAll asks all agents at once.
func (h *hub) collectAll(ctx context.Context, sessions []*session, q wire.Question, g *gathering) ([]collected, error) {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	nodes := make([]collected, len(sessions))
	var waiting sync.WaitGroup
	for i, s := range sessions {
		waiting.Go(func() {
			var err error
			if nodes[i], err = h.collect(asking, s, q, g); err != nil {
				cancel(err)
			}
		})
	}
	waiting.Wait()
	if err := context.Cause(asking); err != nil && ctx.Err() == nil {
		return nil, err
	}
	return nodes, nil
}

func newList() *ledgerv1alpha1.RecordList {
	list := &ledgerv1alpha1.RecordList{Items: []ledgerv1alpha1.Record{}}
	list.APIVersion, list.Kind = ledgerv1alpha1.APIVersion, ledgerv1alpha1.RecordListKind
	return list
}

func finish(list *ledgerv1alpha1.RecordList) {
	ledger.SortRecords(list.Items)
	slices.SortStableFunc(list.Nodes, func(a, b ledgerv1alpha1.NodeAnswer) int { return cmp.Compare(a.Node, b.Node) })
}

// silent are the nodes that should be connected and are not.
func (h *hub) silent(ctx context.Context, sessions []*session) ([]ledgerv1alpha1.NodeAnswer, error) {
	expected, err := h.expected(ctx)
	if err != nil {
		return nil, fmt.Errorf("which nodes have to be asked is not known: %w", err)
	}
	for _, s := range sessions {
		delete(expected, s.node)
	}
	var out []ledgerv1alpha1.NodeAnswer
	for node, why := range expected {
		out = append(out, ledgerv1alpha1.NodeAnswer{Node: node, Message: why})
	}
	return out, nil
}
