// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
)

// TestTheNewAgentDiesAtEachStep: the old one acts again, and connections that
// the new one had not begun with are still served.
func TestTheNewAgentDiesAtEachStep(t *testing.T) {
	for _, stay := range []bool{false, true} {
		for _, tc := range []struct {
			name  string
			steps func(o *other)
			acted bool // the new one was in force
		}{
			{"after the will", func(o *other) {}, false},
			{"with nonsense", func(o *other) { o.send(handover.KindHave, nil) }, false},
			{"once it is in force", func(o *other) { o.send(handover.KindActive, nil) }, true},
			{"after the other has yielded", func(o *other) { o.send(handover.KindActive, nil); o.want(handover.KindYielded) }, true},
			{"with a connection in its hands", func(o *other) {
				o.send(handover.KindActive, nil)
				o.want(handover.KindYielded)
				o.want(handover.KindConns).CloseFDs()
			}, true},
			{"having declined all", func(o *other) {
				o.send(handover.KindActive, nil)
				o.want(handover.KindYielded)
				m := o.want(handover.KindConns)
				var c handover.Conns
				if err := m.Read(&c, true); err != nil {
					o.t.Error(err)
				}
				m.CloseFDs()
				o.send(handover.KindHave, &handover.Have{OK: make([]bool, len(c.All)), Why: "for a test"})
				o.want(handover.KindYours)
			}, true},
			{"without having understood", func(o *other) {
				o.send(handover.KindActive, nil)
				o.want(handover.KindYielded)
				o.want(handover.KindConns).CloseFDs()
				o.send(handover.KindHave, &handover.Have{Why: "for a test"})
				o.want(handover.KindKeep)
			}, true},
		} {
			t.Run(fmt.Sprintf("%s, stay %v", tc.name, stay), func(t *testing.T) {
				p := newPlot(t)
				old := p.enter(nil, stay).acts()
				clients := []*client{old.dial().must(), old.dial().must(), old.dial()}
				o := p.call(greeting())
				tc.steps(o)
				o.conn.Close()
				p.eventually("the old agent acts again", func() bool { return old.has("kernel: resume") == 1 })
				if n := old.has("kernel: yield"); (n > 0) != tc.acted {
					t.Errorf("it has yielded %d times", n)
				}
				for _, c := range clients {
					c.must()
				}
				// And it can be taken over from once more.
				p.eventually("the old agent is found again", func() bool {
					c, err := handover.Dial(p.socket())
					if err == nil {
						c.Close()
					}
					return err == nil
				})
				p.eventually("it is not busy any more", func() bool {
					o := p.call(greeting())
					defer o.conn.Close()
					return o.will.Refused == ""
				})
			})
		}
	}
}

// TestWhatTheNewAgentHasBegunWithIsNotTheOldOnesAnyMore: what the new agent has begun with ends with
// it, and nothing else.
func TestWhatTheNewAgentHasBegunWithIsNotTheOldOnesAnyMore(t *testing.T) {
	p := newPlot(t)
	old := p.enter(nil, true).acts()
	moved := old.dial().must()
	o := p.call(greeting())
	o.send(handover.KindActive, nil)
	o.want(handover.KindYielded)
	o.want(handover.KindConns).CloseFDs()
	o.send(handover.KindHave, &handover.Have{OK: []bool{true}})
	o.want(handover.KindYours)
	if err := moved.ask(); err == nil {
		t.Error("the old agent goes on with a connection that it has given away")
	}
	o.want(handover.KindDone)
	if n := old.router.Open(); n != 0 {
		t.Errorf("it holds %d connections", n)
	}
	o.conn.Close()
	p.eventually("the old agent acts again", func() bool { return old.has("kernel: resume") == 1 })
	old.dial().must()
}

// TestTheOldAgentDiesAtEachStep: the new one acts, and goes on with what was on
// its way.
func TestTheOldAgentDiesAtEachStep(t *testing.T) {
	for _, tc := range []struct {
		name   string
		steps  func(e *elder, send func()) // send sends a connection
		serves bool                        // that connection
		die    bool
	}{
		{"after the will", func(*elder, func()) {}, false, true},
		{"before it has yielded", func(e *elder, _ func()) { e.want(handover.KindActive) }, false, true},
		{"after it has yielded", func(e *elder, _ func()) { e.want(handover.KindActive); e.send(handover.KindYielded) }, false, true},
		{"with a connection on its way", func(e *elder, send func()) {
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			send()
		}, true, true},
		{"with a connection that is held", func(e *elder, send func()) {
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			send()
			e.want(handover.KindHave)
		}, true, true},
		{"after it has let go", func(e *elder, send func()) {
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			send()
			e.want(handover.KindHave)
			e.send(handover.KindYours)
		}, true, true},
		{"having kept it", func(e *elder, send func()) {
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			send()
			e.want(handover.KindHave)
			e.send(handover.KindKeep)
		}, false, true},
		{"not at all: it hangs up with a connection on its way", func(e *elder, send func()) {
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			send()
			e.want(handover.KindHave)
		}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlot(t)
			// Its connections are those of a router that nobody runs.
			first := p.enter(nil, true).acts()
			c := first.dial().must()
			if err := first.agent.turns.listener.Close(); err != nil {
				t.Fatal(err)
			}
			e := p.elder(handover.Will{Protocol: handover.Protocol, Version: "test", ConnFormat: router.ConnFormat})
			from := p.mustFind()
			<-e.met
			if tc.name == "after the will" {
				e.die()
			}
			next := p.enter(from, false)
			var ms []*router.Moving
			tc.steps(e, func() {
				ms = first.router.Offer(t.Context(), 1, false)
				batches, err := handover.Batches(ms)
				if err != nil || len(batches) != 1 {
					t.Fatalf("%d batches, %v", len(batches), err)
				}
				if err := e.conn.SendBatch(batches[0]); err != nil {
					t.Fatal(err)
				}
			})
			switch {
			case tc.name == "after the will":
			case tc.die:
				if tc.serves {
					first.router.Release(ms)
				} else {
					first.router.Keep(ms)
				}
				e.die()
			default:
				e.conn.Close()
				time.Sleep(100 * time.Millisecond)
				first.router.Keep(ms)
			}
			next.acts()
			c.must()
			want := 0
			if tc.serves {
				want = 1
			}
			p.eventually("the connection is where it belongs", func() bool { return next.router.Open() == want })
			next.dial().must()
			if !tc.die {
				unix.Close(e.alive)
			}
		})
	}
}

// TestALedgerBeginsWhenNothingPassesAnotherAgent: what has is on the record of that one,
// and nowhere once that is gone.
func TestALedgerBeginsWhenNothingPassesAnotherAgent(t *testing.T) {
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("all has moved: %v", done), func(t *testing.T) {
			p := newPlot(t)
			e := p.elder(handover.Will{Protocol: handover.Protocol, Version: "test", ConnFormat: router.ConnFormat})
			from := p.mustFind()
			<-e.met
			next := p.enter(from, false)
			e.want(handover.KindActive)
			e.send(handover.KindYielded)
			next.acts()
			began := next.recordsSince()
			last := time.Now()
			if done {
				e.send(handover.KindDone)
			} else {
				e.die()
			}
			p.eventually("the ledger begins later", func() bool { return next.recordsSince().After(last) })
			if began.After(last) {
				t.Errorf("it had begun at %s already", began)
			}
			if !done {
				return
			}
			// The end of who has nothing any more changes nothing.
			began = next.recordsSince()
			e.die()
			p.eventually("the earlier agent is gone", func() bool { return !next.agent.turns.preceded.Load() })
			if got := next.recordsSince(); !got.Equal(began) {
				t.Errorf("it begins at %s, and after the other one's end at %s", began, got)
			}
		})
	}
	t.Run("the other one is gone, and this one acts again", func(t *testing.T) {
		p := newPlot(t)
		old := p.enter(nil, true).acts()
		o := p.call(greeting())
		o.send(handover.KindActive, nil)
		o.want(handover.KindYielded)
		last := time.Now()
		if old.recordsSince().After(last) {
			t.Error("it begins before the other one has ended")
		}
		o.conn.Close()
		p.eventually("the ledger begins later", func() bool { return old.recordsSince().After(last) })
	})
}

// TestAgentsTakeTurns: one after the other, and the last gives way.
func TestAgentsTakeTurns(t *testing.T) {
	p := newPlot(t)
	acting := p.enter(nil, false).acts()
	var clients []*client
	for range 30 {
		clients = append(clients, acting.dial().must())
	}
	for range 4 {
		next := p.enter(p.mustFind(), false).acts()
		<-acting.done
		if err := acting.end(); err != nil {
			t.Error(err)
		}
		for _, c := range clients {
			c.must()
		}
		clients = append(clients, next.dial().must())
		acting = next
	}
}

// TestAnAgentThatWasNeverInForceGivesWay: a new version may be what is needed.
func TestAnAgentThatWasNeverInForceGivesWay(t *testing.T) {
	p := newPlot(t)
	stuck := p.enter(nil, false, errors.New("no room in the kernel"))
	p.eventually("it has failed", func() bool { return strings.Contains(stuck.agent.State().NotReady, "no room") })
	// One that goes again changes nothing.
	o := p.call(greeting())
	if o.will.Refused != "" {
		t.Fatal(o.will.Refused)
	}
	o.conn.Close()
	p.eventually("it goes on", func() bool { return stuck.has("kernel: resume") == 1 })
	next := p.enter(p.mustFind(), false).acts()
	<-stuck.done
	next.dial().must()
}

// TestAFirstTableAfterTheTurnIsOverTakesNothingBack: the agent that was never in
// force gets over what kept it from being so.
func TestAFirstTableAfterTheTurnIsOverTakesNothingBack(t *testing.T) {
	p := newPlot(t)
	stuck := p.enter(nil, true, errors.New("no room in the kernel"))
	p.eventually("it has failed", func() bool { return strings.Contains(stuck.agent.State().NotReady, "no room") })
	next := p.enter(p.mustFind(), true).acts()
	p.eventually("it has yielded", func() bool { return stuck.has("kernel: yield") == 1 })
	stuck.set(func() { stuck.refuse = nil })
	p.eventually("it has its table", func() bool { return !strings.Contains(stuck.agent.State().NotReady, "no room") })
	if turns := stuck.told.turns(); len(turns) == 0 || turns[len(turns)-1] {
		t.Errorf("its turns are %v, want them to be over", turns)
	}
	if err := stuck.end(); err != nil {
		t.Error(err)
	}
	// The one that acts is still to be found.
	if o := p.call(greeting()); o.will.Refused != "" {
		t.Error(o.will.Refused)
	}
	next.dial().must()
}

// TestAnAgentWithoutATableDoesNotActWhenItsTurnComesAgain: an empty table would
// send everything to the baseline.
func TestAnAgentWithoutATableDoesNotActWhenItsTurnComesAgain(t *testing.T) {
	p := newPlot(t)
	stuck := p.enter(nil, true, errors.New("no room in the kernel"))
	p.eventually("it has failed", func() bool { return strings.Contains(stuck.agent.State().NotReady, "no room") })
	next := p.enter(p.mustFind(), true).acts()
	p.eventually("it has yielded", func() bool { return stuck.has("kernel: yield") == 1 })
	if err := next.end(); err != nil {
		t.Error(err)
	}
	p.eventually("it has the kernel again", func() bool { return stuck.has("kernel: resume") == 1 })
	if why := stuck.agent.State().NotReady; why == "" {
		t.Error("it says that it is ready")
	}
	if stuck.log.count("acts again") > 0 {
		t.Error("it acts, and has nothing to act with")
	}
	stuck.set(func() { stuck.refuse = nil })
	stuck.acts().dial().must()
	if o := p.call(greeting()); o.will.Refused != "" {
		t.Error(o.will.Refused)
	}
}

// TestOneOfThreeActs: a second handover while the first agent is still there,
// which then must not act again.
func TestOneOfThreeActs(t *testing.T) {
	p := newPlot(t)
	first := p.enter(nil, true).acts()
	c := first.dial().must()
	second := p.enter(p.mustFind(), true).acts()
	third := p.enter(p.mustFind(), true).acts()
	p.eventually("the connection is with the third", func() bool { return third.router.Open() == 1 })
	first.set(func() { first.locked = true })
	if err := second.end(); err != nil {
		t.Error(err)
	}
	c.must()
	time.Sleep(300 * time.Millisecond)
	if n := first.has("kernel: resume"); n > 0 {
		t.Error("the first agent acts beside the third")
	}
	// When the lock is free, because the third one is gone, it does.
	first.set(func() { first.locked = false })
	p.eventually("the first agent acts again", func() bool { return first.has("kernel: resume") == 1 })
}

// TestAnEndedSuccessorGivesTheTurnBack at once, not after its drain.
func TestAnEndedSuccessorGivesTheTurnBack(t *testing.T) {
	p := newPlot(t)
	first := p.enter(nil, true).acts()
	second := p.enter(p.mustFind(), true).acts()
	slow := second.dial()
	if _, err := io.WriteString(slow.conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	p.eventually("the second has its request", func() bool { return second.router.Stats().FromClients > 0 })
	ended := make(chan error, 1)
	go func() { ended <- second.end() }()
	p.eventually("the first agent acts again", func() bool { return first.has("kernel: resume") == 1 })
	p.eventually("it is said who acts", func() bool {
		return slices.Equal(first.told.turns(), []bool{true, false, true}) && slices.Equal(second.told.turns(), []bool{true})
	})
	if second.has("kernel: yield") != 1 || second.has("kernel: detach capture") != 0 {
		t.Error("the second has not yielded")
	}
	first.dial().must()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWhatCannotBeHandedOverIsSaid: to the other agent, with a reason.
func TestWhatCannotBeHandedOverIsSaid(t *testing.T) {
	p := newPlot(t)
	old := p.enter(nil, true).acts()
	c := old.dial().must()
	for name, tc := range map[string]struct {
		change func(*handover.Hello)
		want   string
	}{
		"another protocol": {func(h *handover.Hello) { h.Protocol = 99 }, "protocol"},
		"another mark":     {func(h *handover.Hello) { h.Mark = 7 }, "--mark"},
	} {
		hello := greeting()
		tc.change(&hello)
		if o := p.call(hello); !strings.Contains(o.will.Refused, tc.want) || o.will.Later || len(o.fds) > 0 {
			t.Errorf("%s: %+v with %d descriptors", name, o.will, len(o.fds))
		}
	}
	if _, err := FindPredecessor(t.Context(), p.socket(), handover.Hello{Mark: 7}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--mark") {
		t.Errorf("another mark: %v", err)
	}
	busy := p.call(greeting())
	if o := p.call(greeting()); o.will.Refused == "" || !o.will.Later {
		t.Errorf("a second one at once: %+v", o.will)
	}
	busy.conn.Close()
	p.eventually("the first one is forgotten", func() bool {
		o := p.call(greeting())
		defer o.conn.Close()
		return o.will.Refused == ""
	})

	// A version that knows no connections of this format: they stay, and are served.
	p.eventually("the first one is forgotten", func() bool {
		hello := greeting()
		hello.ConnFormats = []int{99}
		o := p.call(hello)
		if o.will.Refused != "" {
			return false
		}
		if o.will.ConnFormat != 0 {
			t.Errorf("connections will come in format %d", o.will.ConnFormat)
		}
		o.send(handover.KindActive, nil)
		o.want(handover.KindYielded)
		return true
	})
	c.must()
	time.Sleep(100 * time.Millisecond)
	c.must()
	if n := old.router.Open(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestConnectionsThatCannotMoveEndWithTheirAgent: not before its drain timeout.
func TestConnectionsThatCannotMoveEndWithTheirAgent(t *testing.T) {
	p := newPlot(t)
	old := p.enter(nil, false).acts()
	c := old.dial().must()
	hello := greeting()
	hello.ConnFormats = nil
	o := p.call(hello)
	began := time.Now()
	o.send(handover.KindActive, nil)
	o.want(handover.KindYielded)
	for time.Since(began) < time.Second {
		c.must()
		time.Sleep(50 * time.Millisecond)
	}
	<-old.done
	if took := time.Since(began); took < old.agent.cfg.DrainTimeout {
		t.Errorf("it has ended after %s, before its drain timeout of %s", took, old.agent.cfg.DrainTimeout)
	}
	if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection ends with %v, want FIN", err)
	}
}
