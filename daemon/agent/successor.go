// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
)

const (
	// moveAtOnce bounds how many connections are nobody's at any moment.
	moveAtOnce = 64
	// midwayAfter is how long requests and answers under way may take to end before
	// their connections move in the middle of them.
	midwayAfter = 2 * time.Second
	// destsPerMessage keeps messages small: a destination has a name or two.
	destsPerMessage   = 50
	cookiesPerMessage = 2000
	// resumeInterval is how often an agent that has handed over tries to act again
	// once its successor has gone: there may be another one.
	resumeInterval = 100 * time.Millisecond
)

// listen answers successors until the socket is closed.
func (t *turns) listen(l *handover.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !t.talk.begin(c) {
			c.Close()
			return
		}
		t.working.Go(func() {
			defer c.Close()
			defer t.talk.end(c)
			if err := t.bequeath(c); err != nil && !t.ending.Load() {
				t.log.Warn("handing over", "err", err)
			}
		})
	}
}

// bequeath hands over to a successor.
func (t *turns) bequeath(c *handover.Conn) error {
	if err := c.ReceiveWithin(answerWithin); err != nil {
		return err
	}
	m, err := c.Receive()
	if err != nil {
		return err
	}
	m.CloseFDs()
	var hello handover.Hello
	if m.Kind != handover.KindHello {
		return fmt.Errorf("message %c instead of a greeting", m.Kind)
	}
	if err := m.Read(&hello, false); err != nil {
		return err
	}
	will := &handover.Will{Protocol: handover.Protocol, Version: t.Version}
	switch {
	case hello.Protocol != handover.Protocol:
		will.Refused = fmt.Sprintf("this one (version %s) speaks protocol %d only, and that one %d: stop this one first", t.Version, handover.Protocol, hello.Protocol)
	case hello.Mark != t.agent.cfg.Mark:
		will.Refused = fmt.Sprintf("the one has --mark %#x and the other %#x, so that they would not know each other's sockets: use the same, or stop this one first", t.agent.cfg.Mark, hello.Mark)
	case !t.busy.TryLock():
		will.Refused, will.Later = "it is handing over to another one", true
	default:
		defer t.busy.Unlock()
		return t.session(c, &hello, will)
	}
	return c.Send(handover.KindWill, will)
}

// session is a handover, from the will to the end of either.
func (t *turns) session(c *handover.Conn, hello *handover.Hello, will *handover.Will) error {
	if slices.Contains(hello.ConnFormats, router.ConnFormat) {
		will.ConnFormat = router.ConnFormat
	}
	// This end of the pipe is closed by the end of the process, and before that only
	// when nobody is in doubt about a connection.
	ours, theirs, err := pipe()
	if err != nil {
		return err
	}
	sure := true
	defer func() {
		if sure {
			unix.Close(ours)
		}
	}()
	t.call(func() {
		if !t.begun {
			// What it says of a table from now on would not be in force.
			t.shadow.Store(true)
			t.agent.acts(false)
		}
	})
	err = t.sendWill(c, will, theirs)
	unix.Close(theirs)
	if err != nil {
		// Nothing has been given, or the other one is gone before it could begin.
		t.regain()
		return err
	}
	t.log.Info("handing over to another agent", "its version", hello.Version)

	in := make(chan handover.Message)
	stop := make(chan struct{})
	defer close(stop)
	if err := c.ReceiveWithin(0); err != nil {
		return err
	}
	t.working.Go(func() {
		for {
			m, err := c.Receive()
			if err != nil {
				close(in)
				return
			}
			m.CloseFDs()
			select {
			case in <- m:
			case <-stop:
				return
			}
		}
	})

	var first handover.Message
	select {
	case first = <-in:
	case <-t.ended:
		return nil
	}
	if first.Kind != handover.KindActive {
		// It was not in force, or its programs are in some links and not in others.
		t.log.Warn("the other agent has ended before it was in force; this one goes on")
		t.regain()
		return nil
	}
	if !t.call(func() { err = t.yield() }) {
		return nil // it is ending
	}
	if err != nil {
		t.log.Warn("something of this agent may still be in force", "err", err)
	}
	if err := c.Send(handover.KindYielded, nil); err == nil && will.ConnFormat != 0 && t.settled(in) {
		if err := t.giveAway(c, in, &sure); err != nil && !t.ending.Load() {
			t.log.Warn("connections that have not moved end with this agent", "connections", t.Router.Open(), "err", err)
		}
	}
	return t.linger(c, in)
}

func pipe() (write, read int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make a pipe: %w", err)
	}
	return p[1], p[0], nil
}

// sendWill sends all that a successor needs to start.
func (t *turns) sendWill(c *handover.Conn, will *handover.Will, alive int) error {
	legacy, err := t.Kernel.Legacy()
	if err != nil {
		will.Refused, will.Later = err.Error(), true
		return c.Send(handover.KindWill, will)
	}
	defer legacy.Lock.Close()
	will.CapturePrograms, will.CaptureLinks = legacy.CapturePrograms, legacy.CaptureLinks
	fds := []int{int(legacy.Lock.Fd()), alive}
	if t.Metrics != nil {
		f, err := t.Metrics.File()
		if err != nil {
			return err
		}
		if f != nil {
			defer f.Close()
			will.MetricsAddress = t.Metrics.Address()
			fds = append(fds, int(f.Fd()))
		}
	}
	var dests []handover.Dests
	for some := range slices.Chunk(t.Router.Listening(), cookiesPerMessage) {
		dests = append(dests, handover.Dests{Listening: some})
	}
	if will.ConnFormat != 0 {
		for some := range slices.Chunk(t.Router.Destinations(), destsPerMessage) {
			dests = append(dests, handover.Dests{All: some})
		}
	}
	will.Dests = len(dests)
	if err := c.Send(handover.KindWill, will, fds...); err != nil {
		return err
	}
	for i := range dests {
		if err := c.Send(handover.KindDests, &dests[i]); err != nil {
			return err
		}
	}
	return nil
}

// yield ends this agent's turn: the other one is in force.
func (t *turns) yield() error {
	t.yielded = time.Now()
	t.agent.acts(false)
	err := t.Kernel.Yield()
	// The listeners in the namespaces stay: connections that were steered to them a
	// moment ago are still to be accepted.
	return errors.Join(err, t.rest())
}

// resume begins another turn of this agent.
func (t *turns) resume() error {
	if err := t.Kernel.Resume(); err != nil {
		return err
	}
	// What has passed the other one meanwhile was on record there, if anywhere.
	t.agent.recordsBegin()
	shadow := t.shadow.Swap(false)
	switch {
	case !t.begun:
		// There is nothing to act with: its first table makes it act.
		t.yielded = time.Time{}
		t.agent.acts(true)
		t.open()
		return nil
	case t.yielded.IsZero() && !shadow:
		return nil // it had not got that far
	}
	t.log.Warn("the agent that had taken over is gone; this one acts again")
	t.Router.OfferAll()
	t.act()
	t.agent.reconcile()
	return nil
}

// tryResume has this agent act again if it can, and reports whether nothing is
// left to try.
func (t *turns) tryResume(said *string) (done bool) {
	var err error
	if !t.call(func() { err = t.resume() }) || err == nil {
		return true
	}
	if text := err.Error(); text != *said {
		// There may be a third agent, which has taken over from the second.
		t.log.Warn("this agent does not act again yet; trying", "err", err)
		*said = text
	}
	return false
}

// regain is tryResume until it is done.
func (t *turns) regain() {
	tick := time.NewTicker(resumeInterval)
	defer tick.Stop()
	for said := ""; !t.tryResume(&said); {
		select {
		case <-tick.C:
		case <-t.ended:
			return
		}
	}
}

// settled waits until the other agent has been in force for a while. It returns
// false when the other one is gone.
func (t *turns) settled(in <-chan handover.Message) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < t.Settle && !t.leaving.Load() && !t.ending.Load(); {
		select {
		case _, ok := <-in:
			return ok
		case <-tick.C:
		}
	}
	return true
}

// accepted reports whether all connections are accepted that were steered here.
func (t *turns) accepted() (yes bool) {
	if !t.call(func() { yes = !t.yielded.IsZero() && time.Since(t.yielded) > grace }) {
		return true
	}
	return yes
}

// giveAway moves connections until there are none. It leaves sure false when it
// is not known what the other process makes of some.
func (t *turns) giveAway(c *handover.Conn, in <-chan handover.Message, sure *bool) error {
	began := time.Now()
	moved, said := 0, ""
	for {
		select {
		case _, ok := <-in:
			if !ok {
				return io.EOF
			}
			return errors.New("the other agent speaks without having been asked")
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), retryOffer)
		ms := t.Router.Offer(ctx, moveAtOnce, time.Since(began) > midwayAfter)
		cancel()
		if len(ms) == 0 {
			if t.Router.Open() == 0 && t.accepted() {
				t.log.Info("all connections have moved", "connections", moved, "took", time.Since(began))
				return c.Send(handover.KindDone, nil)
			}
			if t.ending.Load() {
				return errors.New("this agent is ending")
			}
			continue
		}
		batches, err := handover.Batches(ms)
		if err != nil {
			t.Router.Keep(ms)
			return err
		}
		for i, b := range batches {
			n, why, err := t.giveBatch(c, in, b, sure)
			moved += n
			if why != "" && why != said {
				t.log.Warn("the other agent does not take a connection; it stays here", "reason", why)
				said = why
			}
			if err != nil {
				for _, rest := range batches[i+1:] {
					t.Router.Keep(rest.Moving)
				}
				return err
			}
		}
	}
}

const retryOffer = 50 * time.Millisecond

// giveBatch moves some connections, or keeps them.
func (t *turns) giveBatch(c *handover.Conn, in <-chan handover.Message, b *handover.Batch, sure *bool) (moved int, why string, err error) {
	if err := c.SendBatch(b); err != nil {
		// It may have been sent all the same.
		*sure = false
		t.Router.Keep(b.Moving)
		return 0, "", err
	}
	var have handover.Have
	select {
	case m, ok := <-in:
		switch {
		case !ok:
			err = io.EOF
		case m.Kind != handover.KindHave:
			err = fmt.Errorf("message %c is no answer to connections", m.Kind)
		default:
			err = m.Read(&have, false)
		}
	case <-time.After(answerWithin):
		err = errors.New("the other agent does not answer")
	case <-t.ended:
		err = errors.New("this agent is ending")
	}
	if err != nil || len(have.OK) != len(b.Moving) {
		// None of them are the other's before it hears so.
		*sure = c.Send(handover.KindKeep, nil) == nil || errors.Is(err, io.EOF)
		t.Router.Keep(b.Moving)
		return 0, have.Why, err
	}
	var gone, stay []*router.Moving
	for i, m := range b.Moving {
		if have.OK[i] {
			gone = append(gone, m)
		} else {
			stay = append(stay, m)
		}
	}
	t.Router.Keep(stay)
	t.Router.Release(gone)
	return len(gone), have.Why, c.Send(handover.KindYours, nil)
}

// linger follows the end of giving away: until this agent may end, or has to act
// again.
func (t *turns) linger(c *handover.Conn, in <-chan handover.Message) error {
	tick := time.NewTicker(resumeInterval)
	defer tick.Stop()
	lost, said := false, ""
	for began := time.Now(); ; {
		select {
		case <-t.ended:
			return nil
		case m, ok := <-in:
			if ok {
				return fmt.Errorf("message %c after the end", m.Kind)
			}
			in, lost = nil, true
		case <-tick.C:
		}
		if lost && t.tryResume(&said) {
			return nil
		}
		if !t.Stay && t.accepted() && (t.Router.Open() == 0 || time.Since(began) > t.agent.cfg.DrainTimeout) && (!lost || time.Since(began) > answerWithin) {
			t.finish()
			return nil
		}
	}
}

// lastChance is how long requests may take to end that could not move, after all
// the time that they have had.
const lastChance = 500 * time.Millisecond

// left lets what can move do so, when the agent has handed over and is to end. It
// reports whether it has: otherwise this agent acts.
func (t *turns) left(ctx context.Context) bool {
	if t == nil || t.yielded.IsZero() {
		return false
	}
	t.leaving.Store(true)
	defer t.leaving.Store(false)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for t.Router.Open() > 0 || time.Since(t.yielded) < grace {
		select {
		case <-ctx.Done():
			return true
		case f := <-t.do:
			f()
			if t.yielded.IsZero() {
				return false // it acts again
			}
		case <-t.gone:
			return true
		case <-tick.C:
		}
	}
	return true
}
