// SPDX-License-Identifier: Apache-2.0

// Package responder answers the collector's questions about a node's ledger, and
// passes on, to other nodes and from them, which traces are tagged.
//
// It owns the node's connection to the collector, by way of the API server, and its
// renewal. It opens no port, and never waits for the collector anywhere but in its
// own goroutines. A Responder may be closed from any goroutine.
package responder

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// answerLimit is how long an answer may take to arrive.
	answerLimit = 30 * time.Second
	// maxQuestions is how many questions are answered at a time: the collector asks no
	// more for all its readers.
	maxQuestions = 128
	// gather is how long records of a stream wait for one another.
	gather = 100 * time.Millisecond
)

// Responder answers questions until it is closed.
type Responder struct {
	ledger   *ledger.Ledger
	node     string
	instance string
	base     *url.URL
	client   *http.Client
	log      *slog.Logger

	words   chan ledger.Announcement
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu   sync.Mutex
	open map[uint64]context.CancelFunc // questions that are being answered
}

// Start begins to answer questions about a node's ledger, and to tell other nodes of
// its traces and it of theirs, with the credentials of the node's agent. It is called
// before there is traffic.
func Start(cfg *rest.Config, node string, l *ledger.Ledger, log *slog.Logger) (*Responder, error) {
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Responder{
		ledger: l, node: node, instance: rand.Text(), base: base, client: client, log: log,
		cancel: cancel, open: map[uint64]context.CancelFunc{}, words: make(chan ledger.Announcement, maxWords),
	}
	l.Announce(r.announce)
	r.running.Go(func() { r.run(ctx) })
	for range speakers {
		r.running.Go(func() { r.speak(ctx) })
	}
	return r, nil
}

// Close ends it.
func (r *Responder) Close() error {
	r.cancel()
	r.running.Wait()
	r.client.CloseIdleConnections()
	return nil
}

// run keeps the connection until ctx is over.
func (r *Responder) run(ctx context.Context) {
	said := ""
	newBackoff := func() wait.Backoff {
		return wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 7, Cap: 5 * time.Second}
	}
	backoff := newBackoff()
	for ctx.Err() == nil {
		err := r.watch(ctx, func() {
			backoff = newBackoff()
			if said != "" {
				r.log.Info("ledger's collector is answered again")
				said = ""
			}
		})
		if ctx.Err() != nil {
			return
		}
		if text := short(err); err != nil && text != said {
			r.log.Warn("ledger's collector cannot be reached, this node's part cannot be read meanwhile; trying again", "reason", text)
			said = text
		}
		select {
		case <-time.After(backoff.Step()):
		case <-ctx.Done():
		}
	}
}

// short leaves out the address, which is different each time.
func short(err error) string {
	if err == nil {
		return ""
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

func (r *Responder) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	u, err := r.base.Parse(path)
	if err != nil {
		return nil, err
	}
	return http.NewRequestWithContext(ctx, method, u.String(), body)
}

// watch takes questions from one connection. connected is called once there is one.
func (r *Responder) watch(ctx context.Context, connected func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Questions go with the connection that they came by.
	defer r.endAll()
	req, err := r.request(ctx, http.MethodGet, wire.QuestionsPath(r.node, r.instance), http.NoBody)
	if err != nil {
		return err
	}
	silence := time.AfterFunc(3*wire.Heartbeat, func() { cancel(errors.New("nothing is heard of it")) })
	defer silence.Stop()
	resp, err := r.client.Do(req)
	if err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the API server answers %s", resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, wire.MaxQuestion)
	for lines.Scan() {
		silence.Reset(3 * wire.Heartbeat)
		if connected != nil {
			connected()
			connected = nil
		}
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var q wire.Question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("a question is not understood: %w", err)
		}
		if len(q.Traces) > 0 {
			r.hear(q.Traces)
			continue
		}
		r.take(ctx, &q)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return nil // the other side has ended it, as it may at any time
}

// take begins to answer a question, or stops.
func (r *Responder) take(ctx context.Context, q *wire.Question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if end := r.open[q.ID]; end != nil || q.End {
		if end != nil {
			end()
		}
		return
	}
	if len(r.open) >= maxQuestions {
		r.log.Warn("ledger: too many questions at a time; one is not answered", "most", maxQuestions)
		r.running.Go(func() {
			if err := r.post(ctx, &wire.Answer{ID: q.ID, Part: 1, Refused: tooMany}); err != nil && ctx.Err() == nil {
				r.log.Debug("ledger: a refusal has not arrived", "err", short(err))
			}
		})
		return
	}
	ctx, end := context.WithCancel(ctx)
	r.open[q.ID] = end
	r.running.Go(func() {
		defer func() {
			end()
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.open, q.ID)
		}()
		if err := r.answer(ctx, q); err != nil && ctx.Err() == nil {
			r.log.Debug("ledger: an answer has not arrived", "err", short(err))
		}
	})
}

func (r *Responder) endAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, end := range r.open {
		end()
	}
}

// tooMany is why a question is not answered.
const tooMany = "its agent answers too many readers already; ask again when some have ended"

// answer answers a question, and goes on for as long as it follows.
func (r *Responder) answer(ctx context.Context, q *wire.Question) error {
	o := ledger.Owner{Name: routing.Name{Namespace: q.Namespace, Name: q.Name}, Group: q.Group}
	want := ledger.Query{After: q.After, Since: q.Since, Trace: ledger.ParseTraceID(q.Trace), Limit: q.Limit}
	dropped, part := int64(-1), uint64(0)
	hops, state := r.settle(o, want.Trace, q)
	for {
		list, next := r.ledger.List(o, want)
		ledger.Settled(&list, state)
		if n := list.Nodes[0].Dropped; len(list.Items) > 0 || n != dropped {
			dropped = n
			for items, more := list.Items, true; more; {
				list.Items = items[:min(len(items), wire.AnswerRecords)]
				items = items[len(list.Items):]
				more = len(items) > 0
				part++
				a := wire.Answer{ID: q.ID, Part: part, Next: next, Records: list, Done: !q.Follow && !more}
				if more {
					a.Next = want.After // the order is that of time: nothing is behind a part
				}
				if a.Done {
					a.Hops = hops
				}
				if err := r.deliver(ctx, &a); err != nil {
					return err
				}
			}
		}
		if !q.Follow {
			return nil
		}
		want.After, want.Limit = next, 0
		if err := r.ledger.Wait(ctx, next); err != nil {
			return err
		}
		select {
		case <-time.After(gather):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// maxHopEndpoints bounds the endpoints of all hops of an answer. Nobody has forks of
// so many pods.
const maxHopEndpoints = 1 << 14

// settle makes sure that the records which are read next are all that there are of a
// trace, or says which are missing. Of a stream nothing is said, nor where no trace is
// asked for.
func (r *Responder) settle(o ledger.Owner, id ledger.TraceID, q *wire.Question) (hops []wire.Trace, _ *ledgerv1alpha1.TraceAnswer) {
	if q.Follow || id == (ledger.TraceID{}) {
		return nil, nil
	}
	known, state := r.ledger.Settle(o, id, announcements(q.Hops))
	endpoints := 0
	for i := range known {
		if endpoints += len(known[i].Endpoints); endpoints > maxHopEndpoints {
			state.KnownNanos = 0 // others cannot be told
			break
		}
		hops = append(hops, word(&known[i]))
	}
	return hops, &state
}

// deliver posts an answer until it has arrived, nobody awaits it any more, or ctx is
// over: a reader that stops for a while, or an API server that fails once, must not
// make a stream silently end here.
func (r *Responder) deliver(ctx context.Context, a *wire.Answer) error {
	backoff := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}
	for {
		err := r.post(ctx, a)
		var answered *statusError
		switch {
		case err == nil, ctx.Err() != nil:
			return err
		case errors.As(err, &answered) && (answered.code == http.StatusGone || answered.code == http.StatusBadRequest):
			return err
		}
		r.log.Debug("ledger: an answer has not arrived; trying again", "err", short(err))
		select {
		case <-time.After(backoff.Step()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Responder) post(ctx context.Context, a *wire.Answer) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return r.send(ctx, wire.AnswersPath(r.node), body)
}

// statusError is an answer that is not 200.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return "the collector answers " + e.text }

func (r *Responder) do(req *http.Request) error {
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &statusError{resp.StatusCode, resp.Status}
	}
	return nil
}
