// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// plot is what the agents of a play of turns have in common: pods, objects, and
// the lock that a kernel would give to one of them.
type plot struct {
	t            *testing.T
	world        *lab.World
	client, base *lab.Pod
	input        source.Snapshot
	dir          string
}

func newPlot(t *testing.T) *plot {
	t.Helper()
	w := lab.New(t)
	p := &plot{t: t, world: w, client: w.MustPod("client"), base: w.MustPod("base", "10.96.0.7"), dir: t.TempDir()}
	if err := p.base.ServeHTTP("base", ":80"); err != nil {
		t.Fatal(err)
	}
	p.input = source.Snapshot{
		Input: routing.Input{Services: []routing.Service{shopService}, Sandboxes: []routing.Sandbox{sandbox("key-of-pr-42")}},
		Pods:  []pods.Pod{{Name: routing.Name{Namespace: "shop", Name: "client"}, Netns: p.client.Netns}},
	}
	return p
}

func (p *plot) socket() string { return filepath.Join(p.dir, "run", "agent.sock") }

// actor is an agent with a real router and a kernel that is a stage.
type actor struct {
	*stage
	plot   *plot
	agent  *Agent
	router *router.Router
	locked bool // by somebody else: Resume fails
	log    *logLines
	end    func() error
	done   chan struct{}
}

func (a *actor) Legacy() (*loader.Legacy, error) {
	a.note("kernel: legacy")
	f, err := os.Open(a.plot.dir)
	return &loader.Legacy{Lock: f, CapturePrograms: []uint32{1}, CaptureLinks: []uint32{2}}, err
}

func (a *actor) Yield() error { a.note("kernel: yield"); return nil }

func (a *actor) Resume() error {
	busy := false
	a.set(func() { busy = a.locked })
	if busy {
		return loader.ErrRunning
	}
	a.note("kernel: resume")
	return nil
}

// enter brings an agent onto the stage.
func (p *plot) enter(from *Predecessor, stay bool) *actor {
	p.t.Helper()
	a := &actor{stage: &stage{names: map[routing.Cookie]string{}}, plot: p, log: &logLines{}, done: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(a.log, nil))
	r, err := router.New(router.Config{Loops: 1, Mark: 0x3053, Logger: log})
	if err != nil {
		p.t.Fatal(err)
	}
	a.router = r
	resolver := pods.NewResolver(log)
	objects := make(script, 1)
	a.agent, err = New(Config{
		Source: objects, Pods: resolver, Kernel: a.stage, Router: r, Mark: 0x3053,
		Lease: time.Minute, DrainTimeout: 2 * time.Second, Logger: log,
		Handover: &HandoverConfig{Socket: p.socket(), Predecessor: from, Kernel: a, Router: r, Version: "test", Stay: stay},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended error
	go func() {
		ended = errors.Join(a.agent.Run(ctx), r.Close(), resolver.Close())
		from.Close()
		close(a.done)
	}()
	a.end = sync.OnceValue(func() error { cancel(); <-a.done; return ended })
	p.t.Cleanup(func() {
		if err := a.end(); err != nil {
			p.t.Error(err)
		}
		if p.t.Failed() {
			p.t.Logf("an agent's log:\n%s", a.log.text.String())
		}
	})
	objects <- p.input
	return a
}

// acts waits until an agent is ready.
func (a *actor) acts() *actor {
	a.plot.t.Helper()
	a.plot.eventually("the agent is ready", func() bool { return a.agent.State().NotReady == "" })
	return a
}

func (p *plot) eventually(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// has reports whether something has happened on the stage.
func (a *actor) has(event string) (n int) {
	a.set(func() {
		for _, e := range a.events {
			if e == event {
				n++
			}
		}
	})
	return n
}

// client is one kept-alive connection to an agent's router.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// dial connects where the kernel would steer to.
func (a *actor) dial() *client {
	p := a.plot
	p.t.Helper()
	cookie, err := p.client.Cookie()
	if err != nil {
		p.t.Fatal(err)
	}
	f, err := os.Open(p.client.Path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	ports, err := a.router.Listen(router.Namespace{Cookie: routing.Cookie(cookie), FD: int(f.Fd()), Name: "client"})
	if err != nil {
		p.t.Fatal(err)
	}
	table := a.agent.State().Table
	d, ok := table.LookupDest(netip.MustParseAddrPort("10.96.0.7:80"), routing.TCP)
	if !ok {
		p.t.Fatal("the Service is not in the table")
	}
	conn, err := p.client.Dial("tcp", fmt.Sprintf("127.%d.%d.%d:%d", d.ID>>16, d.ID>>8&255, d.ID&255, ports.V4))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return &client{p.t, conn, bufio.NewReader(conn)}
}

func (c *client) ask() error {
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c.conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if by := resp.Header.Get(lab.ServedBy); by != "base" {
		return fmt.Errorf("%q answered", by)
	}
	return nil
}

func (c *client) must() *client {
	c.t.Helper()
	if err := c.ask(); err != nil {
		c.t.Error(err)
	}
	return c
}

// other plays the new agent by hand.
type other struct {
	t    *testing.T
	conn *handover.Conn
	will handover.Will
	fds  []int // of the will
}

// call begins to take over.
func (p *plot) call(hello handover.Hello) *other {
	p.t.Helper()
	conn, err := handover.Dial(p.socket())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	o := &other{t: p.t, conn: conn}
	if err := conn.Send(handover.KindHello, &hello); err != nil {
		p.t.Fatal(err)
	}
	m := o.want(handover.KindWill)
	if err := m.Read(&o.will, true); err != nil {
		p.t.Fatal(err)
	}
	o.fds = m.FDs
	p.t.Cleanup(func() { m.CloseFDs() })
	for range o.will.Dests {
		o.want(handover.KindDests)
	}
	return o
}

func greeting() handover.Hello {
	return handover.Hello{Protocol: handover.Protocol, ConnFormats: []int{router.ConnFormat}, Mark: 0x3053}
}

func (o *other) want(kind handover.Kind) *handover.Message {
	o.t.Helper()
	m, err := o.conn.Receive()
	if err != nil || m.Kind != kind {
		o.t.Fatalf("message %c and %v, want %c", m.Kind, err, kind)
	}
	return &m
}

func (o *other) send(kind handover.Kind, body any) {
	o.t.Helper()
	if err := o.conn.Send(kind, body); err != nil {
		o.t.Fatal(err)
	}
}

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

// elder plays the old agent by hand.
type elder struct {
	t     *testing.T
	l     *handover.Listener
	conn  *handover.Conn
	alive int // the pipe's end that its death closes
	met   chan struct{}
}

func (p *plot) elder(will handover.Will) *elder {
	p.t.Helper()
	l, err := handover.Listen("unixpacket", p.socket())
	if err != nil {
		p.t.Fatal(err)
	}
	e := &elder{t: p.t, l: l, met: make(chan struct{})}
	p.t.Cleanup(func() { l.Close() })
	go func() {
		defer close(e.met)
		conn, err := l.Accept()
		if err != nil {
			p.t.Error(err)
			return
		}
		e.conn = conn
		if _, err := conn.Receive(); err != nil {
			p.t.Error(err)
		}
		write, read, err := pipe()
		lock, e2 := os.Open(p.dir)
		if err := errors.Join(err, e2); err != nil {
			p.t.Error(err)
			return
		}
		e.alive = write
		if err := conn.Send(handover.KindWill, &will, int(lock.Fd()), read); err != nil {
			p.t.Error(err)
		}
		unix.Close(read)
		lock.Close()
	}()
	return e
}

// die is what happens to a process that is killed.
func (e *elder) die() {
	unix.Close(e.alive)
	e.conn.Close()
}

func (p *plot) find() (*Predecessor, error) {
	return FindPredecessor(p.t.Context(), p.socket(), handover.Hello{Version: "test", Mark: 0x3053}, slog.New(slog.DiscardHandler))
}

func (p *plot) mustFind() *Predecessor {
	p.t.Helper()
	from, err := p.find()
	if err != nil {
		p.t.Fatal(err)
	}
	return from
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

func (e *elder) want(kind handover.Kind) {
	e.t.Helper()
	m, err := e.conn.Receive()
	if err != nil || m.Kind != kind {
		e.t.Fatalf("message %c and %v, want %c", m.Kind, err, kind)
	}
}

func (e *elder) send(kind handover.Kind) {
	e.t.Helper()
	if err := e.conn.Send(kind, nil); err != nil {
		e.t.Fatal(err)
	}
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
	o.send(handover.KindActive, nil)
	o.want(handover.KindYielded)
	began := time.Now()
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
