// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Agents take turns without anybody's noticing: the new one brings its own
// programs, maps and listeners into force beside the old one's, then the old one
// yields and gives its connections away (docs/decisions/0009-handover.md). One
// agent acts at any time. It is the one that was last in force and lives: should
// the new one end, the old one acts again if it is still there.

// HandoverKernel is what a handover needs of loader.Kernel.
type HandoverKernel interface {
	Legacy() (*loader.Legacy, error)
	Yield() error
	Resume() error
}

// HandoverRouter is what a handover needs of router.Router.
type HandoverRouter interface {
	Open() int
	Destinations() []routing.Remembered
	Listening() []routing.Cookie
	Offer(ctx context.Context, most int, midway bool) []*router.Moving
	Release([]*router.Moving)
	Keep([]*router.Moving)
	OfferAll()
	Receive(*router.Moving) error
	Begin([]*router.Moving)
	Discard([]*router.Moving)
}

// MetricsServer is where metrics are served by whichever agent acts.
type MetricsServer interface {
	// Address and File are what another agent needs to go on serving.
	Address() string
	File() (*os.File, error)
	Start() error
	Stop() error
}

// HandoverConfig lets an Agent take over from another and hand over to the next.
type HandoverConfig struct {
	// Socket is where the agent that acts is found.
	Socket string
	// Predecessor is the agent to take over from; nil: there is none.
	Predecessor *Predecessor
	Kernel      HandoverKernel
	Router      HandoverRouter
	Metrics     MetricsServer // nil: there are none
	// Version is the program's, for the other's log.
	Version string
	// Stay has the agent wait for its end from outside after it has handed over,
	// instead of ending: for where whatever ends is started again.
	Stay bool
	// Settle is how long the next agent has to be in force before it gets
	// connections, unless this one is to end: one that fails soon after its start
	// takes none with it.
	Settle time.Duration
}

// turns is an Agent's part in taking turns; nil: it takes none.
type turns struct {
	HandoverConfig
	agent *Agent
	log   *slog.Logger

	// do is what other goroutines have the agent's do.
	do    chan func()
	ended chan struct{} // closed when the agent's goroutine takes no more
	gone  chan struct{} // closed when everything has been handed over

	busy    sync.Mutex // held by the one conversation with a successor
	taking  atomic.Bool
	shadow  atomic.Bool // it has a successor and has never been in force
	leaving atomic.Bool // it has handed over, and is to end
	ending  atomic.Bool
	working sync.WaitGroup
	talk    talks
	finish  func() // closes gone

	// preceded says that the predecessor lives and would act again.
	preceded atomic.Bool

	// Of the agent's goroutine.
	since    time.Time // when the first table was there
	begun    bool      // in force, or waiting for the predecessor to yield
	listener *handover.Listener
	yielded  time.Time // zero: it acts
}

func newTurns(cfg *HandoverConfig, a *Agent) *turns {
	if cfg == nil {
		return nil
	}
	t := &turns{
		HandoverConfig: *cfg, agent: a, log: a.log,
		do: make(chan func()), ended: make(chan struct{}), gone: make(chan struct{}),
	}
	t.finish = sync.OnceFunc(func() { close(t.gone) })
	t.taking.Store(cfg.Predecessor != nil)
	t.preceded.Store(cfg.Predecessor != nil)
	if cfg.Predecessor == nil {
		// Before it is in force, which may never be: another agent must be able to take
		// its place all the same.
		t.open()
	}
	return t
}

// open lets other agents find this one.
func (t *turns) open() {
	if t.listener != nil {
		return
	}
	l, err := handover.Listen("unixpacket", t.Socket)
	if err != nil {
		t.log.Error("no other agent will be able to take over from this one", "err", err)
		return
	}
	t.listener = l
	t.working.Go(func() { t.listen(l) })
}

// notReady says why an agent whose table is in force is not ready yet.
func (t *turns) notReady() string {
	switch {
	case t == nil:
	case t.taking.Load():
		return "taking over from another agent"
	case t.shadow.Load():
		return "another agent is taking over before this one has been in force"
	}
	return ""
}

// first returns the table before the first.
func (t *turns) first() *routing.Table {
	if t == nil || t.Predecessor == nil {
		return nil
	}
	return routing.Recall(t.Predecessor.remembered)
}

// call has the agent's goroutine run f. It returns false when that is over.
func (t *turns) call(f func()) bool {
	ran := make(chan struct{})
	select {
	case t.do <- func() { f(); close(ran) }:
		<-ran
		return true
	case <-t.ended:
		return false
	}
}

// foundWithin is how long an agent that takes over looks for pods that its
// predecessor covers, before it does without.
const foundWithin = 5 * time.Second

// early returns in how many namespaces the predecessor listens and this agent
// should, and does not yet. After a while it returns none.
func (t *turns) early(wanted captures, open map[routing.Cookie]*listener) (missing int) {
	if t == nil || t.Predecessor == nil || t.begun {
		return 0
	}
	if t.since.IsZero() {
		t.since = time.Now()
	}
	for _, c := range t.Predecessor.listening {
		if open[c] == nil && wanted.in(c) {
			missing++
		}
	}
	if missing > 0 && t.Predecessor.dead(0) {
		return 0 // nobody covers them
	}
	if missing > 0 && time.Since(t.since) > foundWithin {
		t.log.Warn("pods that the earlier agent covers are not found; going on without them", "pods", missing)
		return 0
	}
	return missing
}

// calls and over are for the agent's select; nil channels when it takes no turns.
func (t *turns) calls() <-chan func() {
	if t == nil {
		return nil
	}
	return t.do
}

func (t *turns) over() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.gone
}

// inForce follows every change that is in force in the kernel.
func (t *turns) inForce() {
	if t == nil || t.begun {
		return
	}
	t.begun = true
	if t.Predecessor == nil {
		// An agent whose first table comes after another has taken its place does not
		// take that back: resume does, if the other one ends.
		if t.yielded.IsZero() && !t.shadow.Load() {
			t.act()
		}
		return
	}
	t.working.Go(t.succeed)
}

// succeed takes over from the predecessor.
func (t *turns) succeed() {
	p := t.Predecessor
	if err := p.activate(); err != nil {
		t.log.Warn("the earlier agent does not say that it has yielded; it is left behind", "err", err)
	}
	if !t.call(func() { t.act(); t.taking.Store(false) }) {
		return
	}
	if err := p.receive(t.Router, t.agent.recordsBegin); err != nil && !t.ending.Load() {
		t.log.Warn("connections of the earlier agent that are not here yet end with it", "err", err)
	}
	t.preceded.Store(false)
	p.conn.Close()
}

// act begins what only the agent in force does.
func (t *turns) act() {
	t.yielded = time.Time{}
	t.agent.acts(true)
	if t.Metrics != nil {
		if err := t.Metrics.Start(); err != nil {
			t.log.Error("metrics are not served", "err", err)
		}
	}
	t.open()
}

// rest ends it.
func (t *turns) rest() error {
	var errs []error
	if t.listener != nil {
		errs = append(errs, t.listener.Close())
		t.listener = nil
	}
	if t.Metrics != nil {
		errs = append(errs, t.Metrics.Stop())
	}
	return errors.Join(errs...)
}

// endTurn ends this agent's turn at its end. A predecessor that is still there
// acts again at once; otherwise detach is all there is to do.
func (t *turns) endTurn(detach func() error) error {
	if t == nil || !t.preceded.Load() {
		return detach()
	}
	err := errors.Join(t.Kernel.Yield(), t.rest())
	t.ending.Store(true)
	t.Predecessor.hangUp()
	return err
}

// close ends all that is left, when the agent's goroutine is at its end.
func (t *turns) close() error {
	if t == nil {
		return nil
	}
	t.ending.Store(true)
	close(t.ended)
	err := t.rest()
	t.talk.close()
	t.Predecessor.hangUp()
	t.working.Wait()
	t.Predecessor.Close()
	return err
}

// talks are the conversations that are going on.
type talks struct {
	mu     sync.Mutex
	all    map[*handover.Conn]bool
	closed bool
}

// begin notes a conversation; false: it is too late for one.
func (t *talks) begin(c *handover.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.all == nil {
		t.all = map[*handover.Conn]bool{}
	}
	t.all[c] = true
	return true
}

func (t *talks) end(c *handover.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, c)
}

func (t *talks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.all {
		c.Close()
	}
}
