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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
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
	ledger *ledger.Ledger
	log    *logLines
	told   *told
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

// enter brings an agent onto the stage, with a kernel that may refuse every table.
func (p *plot) enter(from *Predecessor, stay bool, refuse ...error) *actor {
	p.t.Helper()
	a := &actor{stage: &stage{names: map[routing.Cookie]string{}}, plot: p, log: &logLines{}, told: &told{}, done: make(chan struct{})}
	a.refuse = errors.Join(refuse...)
	a.ledger = ledger.New(ledger.Config{Node: "node"})
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
		Lease: time.Minute, DrainTimeout: 5 * time.Second, Logger: log, Reporter: a.told, Ledger: a.ledger,
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

// recordsSince is from when on the agent's ledger says that it has all there is.
func (a *actor) recordsSince() time.Time {
	return a.ledger.Read(ledger.Owner{Name: routing.Name{Namespace: "shop", Name: "pr-42"}}, ledger.Query{}).Since
}

func (p *plot) eventually(what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
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
	if err := c.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
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
