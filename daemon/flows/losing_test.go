// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

func (s *scene) missed() int64 {
	list, _ := s.ledger.List(ledger.Owner{Name: name("pr-1")}, ledger.Query{})
	return list.Nodes[0].MissedEnds
}

func (s *scene) place() *place {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	for _, p := range s.f.places {
		return p
	}
	return nil
}

// nothing routes.
func nothing(routing.Cookie) bool { return false }

// socket connects one in the runner's pod.
func (s *scene) socket(address string) int {
	s.Helper()
	var fd int
	s.must(s.runner.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	s.must(s.connect(fd, address))
	return fd
}

func (s *scene) connect(fd int, address string) error {
	to := netip.MustParseAddrPort(address)
	for {
		err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if err != unix.EINTR {
			return err
		}
	}
}

func TestFlowsAreOverWhileOthersGoOnBeginning(t *testing.T) {
	s := newScene(t, nil)
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			c, err := s.runner.Dial("tcp4", stockVIP+":5432")
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			_, _ = io.WriteString(c, "100 close\n")
			_, _ = io.ReadFull(c, make([]byte, 100))
			_ = c.Close()
		}
	})
	defer load.Wait()
	defer close(stop)
	s.records(func(all []api.Record) bool {
		ended := 0
		for _, r := range all {
			if !r.Open && r.ReceivedBytes == 100 {
				ended++
			}
		}
		return ended >= 200
	})
}

// TestWhatEndsOtherwiseIsNotCountedAsMissed: what a record says by itself is nobody's loss.
func TestWhatEndsOtherwiseIsNotCountedAsMissed(t *testing.T) {
	s := newScene(t, nil)
	fd := -1
	s.must(s.runner.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	if err := s.connect(fd, stockVIP+":9"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("nobody listens, and connect says %v", err)
	}
	s.must(s.connect(fd, stockVIP+":5432"))
	s.records(func(all []api.Record) bool { return len(all) == 2 && all[1].Open })
	all := s.records(func(all []api.Record) bool {
		return len(all) == 2 && strings.Contains(all[0].Error+all[1].Error, "connected anew")
	})
	for _, r := range all {
		if refused := r.Dialled == stockVIP+":9"; refused != strings.Contains(r.Error, "refused, or given up: its socket has connected anew") || refused == r.Open {
			t.Errorf("%+v", r)
		}
	}
	// The pod goes away with an open connection.
	spaces := s.spaces
	s.spaces = nil
	s.apply()
	s.spaces = spaces
	s.records(func(all []api.Record) bool {
		return len(all) == 2 && strings.Contains(all[0].Error+all[1].Error, "its pod is gone")
	})
	unix.Close(fd)
	if n := s.missed(); n != 0 {
		t.Errorf("%d ends are said to be missed", n)
	}
}

// TestAConnectionThatWasResetIsNotOverBeforeItIsClosed: it is not among the sockets that the
// kernel lists, so it is missing after a loss.
func TestAConnectionThatWasResetIsNotOverBeforeItIsClosed(t *testing.T) {
	s := newScene(t, func(c *Config) { c.grace = time.Hour })
	fd := s.socket(stockVIP + ":5432")
	for _, what := range []string{"10 reset\n", "x"} {
		_, err := unix.Write(fd, []byte(what))
		s.must(err)
	}
	p := s.place()
	o := over{place: p}
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		o.at, o.alive = time.Now(), map[uint64]bool{}
		s.must(p.list(0, true, func(s *sockdiag.Socket) { o.alive[s.Cookie] = true }))
		if len(o.alive) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the connection is not reset: %v", o.alive)
		}
	}
	s.records(func(all []api.Record) bool { return len(all) == 1 && all[0].Open })
	s.f.take(&o)
	unix.Close(fd)
	if r := s.last(1); !strings.Contains(r.Error, "aborted") || r.ReceivedBytes != 10 || r.SentBytes != 10 {
		t.Errorf("%+v", r)
	}
	// And one whose end does not come, is given up.
	s.f.mu.Lock()
	s.f.cfg.grace = time.Millisecond
	s.f.mu.Unlock()
	fd = s.socket(stockVIP + ":5432")
	defer unix.Close(fd)
	s.records(func(all []api.Record) bool { return len(all) == 2 && all[1].Open })
	s.f.take(&over{place: p, at: time.Now(), alive: map[uint64]bool{}})
	if r := s.last(2); !strings.Contains(r.Error, "too many were at once") || s.missed() != 1 {
		t.Errorf("%d missed, %+v", s.missed(), r)
	}
}

// failing tells nothing of ends, but that it cannot.
type failing struct{ closed chan struct{} }

func (e failing) Read(ends []sockdiag.End) ([]sockdiag.End, error) {
	select {
	case <-e.closed:
		return ends, os.ErrClosed
	default:
		return ends, errors.New("the disk is on fire")
	}
}

func (e failing) ReadNow(ends []sockdiag.End) ([]sockdiag.End, error) { return e.Read(ends) }

func (e failing) Close() error { close(e.closed); return nil }

func TestAPlaceThatFailsIsOpenedAnew(t *testing.T) {
	s := newScene(t, nil)
	before := s.place()
	diag, err := sockdiag.Open(s.spaces[0].FD)
	s.must(err)
	bad := &place{cookie: before.cookie, ends: failing{make(chan struct{})}, diag: diag}
	s.f.mu.Lock()
	s.f.places[bad.cookie] = bad
	s.f.mu.Unlock()
	before.end()
	c := s.dial(stockVIP + ":5432")
	s.ask(c, 1, "answer")
	s.records(func(all []api.Record) bool { return len(all) == 1 && all[0].Open })
	s.f.hear(bad)
	if r := s.last(1); !strings.Contains(r.Error, "the disk is on fire") {
		t.Errorf("%+v", r)
	}
	if p := s.place(); p != nil {
		t.Error("it is still followed")
	}
	c.Close()
	s.apply()
	c = s.dial(stockVIP + ":5432")
	sent := s.ask(c, 5, "answer")
	c.Close()
	if r := s.last(2); r.SentBytes != sent || r.ReceivedBytes != 5 || r.Error != "" {
		t.Errorf("%+v", r)
	}
}

// stuck reads nothing, and answers no flush.
type stuck struct {
	fails, closed chan struct{}
}

func newStuck() stuck { return stuck{make(chan struct{}), make(chan struct{})} }

func (r stuck) Read() (loader.Flow, error) {
	select {
	case <-r.fails:
		return loader.Flow{}, errors.New("the disk is on fire")
	case <-r.closed:
		return loader.Flow{}, os.ErrClosed
	}
}

func (r stuck) Flush() error { return nil }

func (r stuck) Close() error { close(r.closed); return nil }

func (s *scene) followerOf(r Reader, change func(*Config)) *Follower {
	cfg := Config{Reader: r, Ledger: ledger.New(ledger.Config{}), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	f := New(cfg)
	s.Cleanup(func() { s.must(f.Close()) })
	return f
}

func TestEndsThatAreNotSiftedWaitInTheKernel(t *testing.T) {
	const most, batch = 8, 512
	s := newScene(t, nil)
	f := s.followerOf(newStuck(), func(c *Config) { c.waiting = most })
	f.Watch(s.table, s.spaces, nothing)
	for range 3 * batch {
		c, err := s.runner.Dial("tcp4", stockVIP+":5432")
		s.must(err)
		s.must(c.Close())
	}
	// Once something waits, nothing more is taken than what has been read already.
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		f.mu.Lock()
		n := 0
		for _, o := range f.over {
			n += len(o.ends)
		}
		waiting := f.waiting
		f.mu.Unlock()
		if n != waiting || n > batch {
			t.Fatalf("%d ends wait, and %d are counted", n, waiting)
		}
		if n > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no ends wait")
		}
	}
}

func TestWithoutItsReaderNothingIsFollowed(t *testing.T) {
	s := newScene(t, nil)
	r := newStuck()
	f := s.followerOf(r, nil)
	f.Watch(s.table, s.spaces, nothing)
	without := diagSockets(t, s.runner)
	dial := func() net.Conn {
		c, err := s.runner.Dial("tcp4", stockVIP+":5432")
		s.must(err)
		return c
	}
	s.must(dial().Close())
	close(r.fails)
	empty := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.isDeaf() && len(f.places) == 0 && len(f.over) == 0
	}
	for end := time.Now().Add(time.Minute); !empty() || diagSockets(t, s.runner) >= without; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("ends are heard of for nobody")
		}
	}
	f.Watch(s.table, s.spaces, nothing)
	s.must(dial().Close())
	if !empty() {
		t.Error("a namespace is opened for nobody")
	}
}
