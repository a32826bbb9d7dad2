// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"sync"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
)

// lookEvery is how often a stream looks for nodes that have joined or fallen silent.
const lookEvery = 10 * time.Second

// follower is one reader's stream.
type follower struct {
	hub  *hub
	user string
	q    wire.Question
	send func(*ledgerv1alpha1.RecordList) error

	mu       sync.Mutex // one sends at a time
	failed   error
	known    map[sessionKey]uint64 // Next of each agent's last answer
	followed map[*session]bool
	said     map[string]string // of nodes that do not answer, what was said last
}

// errFree is why a stream ends.
var errFree = ledger.TooMuch{Reason: "somebody else wants to read, and you have many streams of the ledger, of which this was the newest", Again: againLater}

// Follow implements ledger.Reader.
func (h reader) Follow(ctx context.Context, o ledger.Owner, want ledgerv1alpha1.Options, begin func() error, send func(*ledgerv1alpha1.RecordList) error) error {
	want.Follow = true
	f := &follower{
		hub: h.hub, user: h.user, q: question(o, want), send: send,
		known: map[sessionKey]uint64{}, followed: map[*session]bool{}, said: map[string]string{},
	}
	ctx, end := context.WithCancelCause(ctx)
	cancel := func() { end(nil) }
	leave, err := h.streams.take(h.user, func() { end(errFree) })
	if err != nil {
		cancel()
		return err
	}
	defer leave()
	if err := begin(); err != nil {
		cancel()
		return err
	}
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		sessions, changed := h.connected()
		for _, s := range sessions {
			if !f.begin(s) {
				continue
			}
			streams.Go(func() {
				if f.stream(ctx, s) != nil {
					cancel()
				}
			})
		}
		silent, err := h.silent(ctx, sessions)
		if err == nil {
			err = f.say(silent)
		}
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// begin reports whether an agent is not followed yet.
func (f *follower) begin(s *session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.followed[s] {
		return false
	}
	f.followed[s] = true
	return true
}

// stream passes on what one agent says until it is gone. An error means that the
// reader is.
func (f *follower) stream(ctx context.Context, s *session) error {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.followed, s)
	}()
	q := f.q
	f.mu.Lock()
	q.After = f.known[s.sessionKey]
	if q.After > 0 {
		q.Limit = 0
	}
	f.mu.Unlock()
	a, end, ok := f.hub.ask(s, q, f.user)
	defer end()
	if !ok {
		return f.say([]ledgerv1alpha1.NodeAnswer{{Node: s.node, Message: notAsked}})
	}
	patience := time.NewTimer(f.hub.patience)
	defer patience.Stop()
	for {
		select {
		case answer := <-a.answers:
			patience.Stop()
			if answer.Refused != "" {
				a.give(sizes(answer.Records.Items))
				// It is asked again when the stream looks for nodes next.
				return f.say([]ledgerv1alpha1.NodeAnswer{{Node: s.node, Message: answer.Refused}})
			}
			err := f.pass(s, &answer)
			a.give(sizes(answer.Records.Items))
			if err != nil {
				return err
			}
		case <-patience.C:
			// It may still come, and is passed on then.
			if err := f.say([]ledgerv1alpha1.NodeAnswer{{Node: s.node, Message: "its agent has not answered yet"}}); err != nil {
				return err
			}
		case <-s.gone:
			return f.say([]ledgerv1alpha1.NodeAnswer{{Node: s.node, Message: "the connection to its agent was lost; when it is back, what it still has is sent"}})
		case <-ctx.Done():
			return nil
		}
	}
}

// pass sends an agent's answer on.
func (f *follower) pass(s *session, answer *wire.Answer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[s.sessionKey] = answer.Next
	delete(f.said, s.node)
	list := newList()
	list.Items = append(list.Items, answer.Records.Items...)
	for _, n := range answer.Records.Nodes {
		n.Answered = true
		list.Nodes = append(list.Nodes, n)
	}
	return f.emit(list)
}

// say tells of nodes that do not answer, each once.
func (f *follower) say(silent []ledgerv1alpha1.NodeAnswer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := newList()
	for _, n := range silent {
		if f.said[n.Node] != n.Message {
			f.said[n.Node] = n.Message
			list.Nodes = append(list.Nodes, n)
		}
	}
	if len(list.Nodes) == 0 {
		return nil
	}
	return f.emit(list)
}

// emit sends a list. The caller holds the lock.
func (f *follower) emit(list *ledgerv1alpha1.RecordList) error {
	if f.failed == nil {
		finish(list)
		f.failed = f.send(list)
	}
	return f.failed
}
