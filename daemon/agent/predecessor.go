// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// answerWithin is how long the other agent may take for an answer that it has
	// at hand.
	answerWithin = 10 * time.Second
	// againAfter and againFor are how soon and for how long an agent is asked again
	// that is about to be able to hand over.
	againAfter = 100 * time.Millisecond
	againFor   = 15 * time.Second
	// deathWithin is how long a process whose conversation has ended may take to be
	// gone, if it is about to.
	deathWithin = 2 * time.Second
)

// Predecessor is the agent that runs while this one starts, and lets it take
// over.
type Predecessor struct {
	conn  *handover.Conn
	alive *os.File // ends with its process
	log   *slog.Logger

	// Legacy is what loader.Open needs to start beside it.
	Legacy *loader.Legacy
	// Metrics is its listener for metrics, at MetricsAddress; nil when it has none.
	Metrics        *os.File
	MetricsAddress string

	version    string
	remembered []routing.Remembered
	listening  []routing.Cookie
}

// FindPredecessor asks the agent at a socket to hand over. The error wraps
// handover.ErrNobody when none answers.
func FindPredecessor(ctx context.Context, socket string, hello handover.Hello, log *slog.Logger) (*Predecessor, error) {
	hello.Protocol, hello.ConnFormats = handover.Protocol, []int{router.ConnFormat}
	for end := time.Now().Add(againFor); ; {
		p, err := askPredecessor(socket, &hello, log)
		var refused refusedError
		if err == nil || !errors.As(err, &refused) || !refused.later || time.Now().After(end) {
			return p, err
		}
		log.Info("the agent that runs cannot hand over yet; asking again", "reason", refused.why)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(againAfter):
		}
	}
}

// refusedError is the other agent's no.
type refusedError struct {
	why   string
	later bool
}

func (e refusedError) Error() string {
	return "the agent that runs does not hand over: " + e.why
}

func askPredecessor(socket string, hello *handover.Hello, log *slog.Logger) (_ *Predecessor, err error) {
	conn, err := handover.Dial(socket)
	if err != nil {
		return nil, err
	}
	p := &Predecessor{conn: conn, log: log}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := conn.ReceiveWithin(answerWithin); err != nil {
		return nil, err
	}
	if err := conn.Send(handover.KindHello, hello); err != nil {
		return nil, err
	}
	m, err := conn.Receive()
	if errors.Is(err, io.EOF) {
		// It has ended, or does not know what is wanted of it.
		return nil, fmt.Errorf("%w: the one at %s has hung up", handover.ErrNobody, socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent that runs to hand over: %w", err)
	}
	defer m.CloseFDs()
	var will handover.Will
	if m.Kind != handover.KindWill {
		return nil, fmt.Errorf("the agent that runs answers with message %c: it is of a version that cannot hand over to this one; stop it first", m.Kind)
	}
	if err := m.Read(&will, false); err != nil {
		return nil, err
	}
	if will.Refused != "" {
		return nil, refusedError{will.Refused, will.Later}
	}
	want := 2
	if will.MetricsAddress != "" {
		want++
	}
	if will.Protocol != handover.Protocol || len(m.FDs) != want {
		return nil, fmt.Errorf("the agent that runs (version %s) speaks another protocol (%d with %d descriptors): stop it first", will.Version, will.Protocol, len(m.FDs))
	}
	p.version, p.MetricsAddress = will.Version, will.MetricsAddress
	p.Legacy = &loader.Legacy{
		Lock:            os.NewFile(uintptr(m.FDs[0]), "lock"),
		CapturePrograms: will.CapturePrograms, CaptureLinks: will.CaptureLinks,
	}
	p.alive = os.NewFile(uintptr(m.FDs[1]), "alive")
	if will.MetricsAddress != "" {
		p.Metrics = os.NewFile(uintptr(m.FDs[2]), "metrics")
	}
	m.FDs = nil // they are p's
	for range will.Dests {
		m, err := conn.Receive()
		if err != nil {
			return nil, fmt.Errorf("ask the agent that runs to hand over: %w", err)
		}
		m.CloseFDs()
		var d handover.Dests
		if err := m.Read(&d, false); err != nil {
			return nil, err
		}
		p.remembered = append(p.remembered, d.All...)
		p.listening = append(p.listening, d.Listening...)
	}
	log.Info("taking over from the agent that runs", "its version", will.Version, "destinations", len(p.remembered), "connections move", will.ConnFormat != 0)
	return p, nil
}

// Close ends the conversation. The other agent goes on, or acts again.
func (p *Predecessor) Close() {
	if p == nil {
		return
	}
	p.conn.Close()
	p.Taken()
	if p.alive != nil {
		p.alive.Close()
	}
}

// Taken closes what others have made duplicates of: the lock, which would else
// stay this process's beyond its turn, and the metrics listener.
func (p *Predecessor) Taken() {
	if p == nil {
		return
	}
	if p.Metrics != nil {
		p.Metrics.Close()
	}
	if p.Legacy != nil {
		p.Legacy.Lock.Close()
	}
}

// hangUp ends the conversation alone.
func (p *Predecessor) hangUp() {
	if p != nil {
		p.conn.Close()
	}
}

// activate tells it that this agent is in force, and waits until it has yielded.
// An error says that nobody knows whether it has; it acts no more all the same,
// since its programs are off.
func (p *Predecessor) activate() error {
	if err := p.conn.ReceiveWithin(answerWithin); err != nil {
		return err
	}
	if err := p.conn.Send(handover.KindActive, nil); err != nil {
		return err
	}
	m, err := p.conn.Receive()
	if err != nil {
		return errors.Join(err, p.conn.ReceiveWithin(0))
	}
	m.CloseFDs()
	if m.Kind != handover.KindYielded {
		return fmt.Errorf("it answers with message %c", m.Kind)
	}
	return p.conn.ReceiveWithin(0)
}

// receive takes over connections until the other agent has no more, and then
// waits until it is gone. What is in the middle when it dies is gone on with. alone is
// called once nothing passes the other agent any more.
func (p *Predecessor) receive(to HandoverRouter, alone func()) error {
	var held []*router.Moving
	moved := 0
	alone = sync.OnceFunc(alone)
	defer alone()
	defer func() {
		if len(held) > 0 {
			// It is dead, or has given up a conversation that it could not end: then the
			// connections are still its.
			if p.dead(deathWithin) {
				to.Begin(held)
			} else {
				to.Discard(held)
			}
		}
		p.log.Info("the earlier agent is gone", "connections taken over", moved)
	}()
	for {
		m, err := p.conn.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m.Kind {
		case handover.KindConns:
			to.Discard(held)
			held = nil
			have, n := p.take(&m, to)
			held = have
			if err := p.conn.Send(handover.KindHave, n); err != nil {
				return err
			}
		case handover.KindYours:
			to.Begin(held)
			moved += len(held)
			held = nil
		case handover.KindKeep:
			to.Discard(held)
			held = nil
		case handover.KindDone:
			alone()
			p.log.Info("all connections of the earlier agent are here", "connections taken over", moved)
		case handover.KindYielded: // later than this agent has waited for it
		default:
			m.CloseFDs()
			return fmt.Errorf("message %c is unknown", m.Kind)
		}
	}
}

// take prepares to go on with connections, and says with which.
func (p *Predecessor) take(m *handover.Message, to HandoverRouter) (held []*router.Moving, answer *handover.Have) {
	answer = &handover.Have{}
	all, err := m.Connections()
	if err != nil {
		// Whatever is in there, it stays where it is.
		answer.Why = err.Error()
		p.log.Warn("connections of the earlier agent end with it", "err", err)
		return nil, answer
	}
	for _, c := range all {
		err := to.Receive(c)
		if err == nil {
			held = append(held, c)
		} else if answer.Why == "" {
			answer.Why = err.Error()
		}
		answer.OK = append(answer.OK, err == nil)
	}
	return held, answer
}

// dead reports whether its process is gone, or goes within a while.
func (p *Predecessor) dead(within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.alive.Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if n > 0 && err == nil {
			return fds[0].Revents&unix.POLLHUP != 0
		}
		if !time.Now().Before(end) {
			return false
		}
	}
}
