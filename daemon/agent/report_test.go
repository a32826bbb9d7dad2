// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/nodestate"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// told is a Reporter that remembers.
type told struct {
	mu     sync.Mutex
	last   nodestate.State
	first  *nodestate.State // with which something was said to be in force
	n      int              // reports
	urgent int
	took   []time.Duration
	closed bool
	acts   []bool
}

func (r *told) Act(acts bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acts = append(r.acts, acts)
}

// turns returns what has been said of this agent's turns.
func (r *told) turns() []bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.acts)
}

func (r *told) Report(s nodestate.State, urgent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = s
	if r.first == nil && s.Applied != nil {
		r.first = &s
	}
	r.n++
	if urgent {
		r.urgent++
	}
}

func (r *told) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func (r *told) changed(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took = append(r.took, took)
}

// sandboxes returns the version that is said to be in force, and how often
// something urgent has been said.
func (r *told) sandboxes() (string, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.Applied == nil {
		return "", r.urgent
	}
	return r.last.Applied.Sandboxes, r.urgent
}

func (r *told) inForce() *nodestate.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first
}

func (r *told) reports() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

// send has the source send a snapshot and waits until the Reporter has heard of it.
func (r *rehearsal) send(s source.Snapshot) {
	r.t.Helper()
	before := r.told.reports()
	r.script <- s
	for limit := time.Now().Add(time.Minute); r.told.reports() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			r.t.Fatal("nothing is said of the snapshot")
		}
	}
}

func version(n string) source.Versions { return source.Versions{Sandboxes: n} }

func TestVersionsAreSaidOnceTheyAreInForce(t *testing.T) {
	r := rehearse(t)
	r.send(source.Snapshot{Versions: version("10")})
	if v, urgent := r.told.sandboxes(); v != "10" || urgent != 1 {
		t.Errorf("said %q, %d times urgently", v, urgent)
	}
	// What is not in force is not said, whatever comes after it.
	r.stage.set(func() { r.stage.refuse = errors.New("the map is full") })
	in := routing.Input{Services: []routing.Service{shopService}, Sandboxes: []routing.Sandbox{sandbox("0123456789")}}
	seen := time.Now().Add(-time.Second)
	r.send(source.Snapshot{Input: in, Versions: version("11"), Since: seen})
	r.script <- source.Snapshot{Input: in, Versions: version("12"), Same: true, Since: time.Now()}
	r.told.mu.Lock()
	problems := r.told.last.Problems
	r.told.mu.Unlock()
	if v, _ := r.told.sandboxes(); v != "10" {
		t.Errorf("said %q while the kernel refuses, want what is in force", v)
	}
	if len(problems) == 0 || !strings.Contains(problems[0].Message, "the map is full") {
		t.Errorf("problems %v, want the kernel's first", problems)
	}
	// A retry brings it into force, and that took since it was seen.
	r.stage.set(func() { r.stage.refuse = nil })
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if v, _ := r.told.sandboxes(); v == "12" {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the retry is not said")
		}
	}
	r.told.mu.Lock()
	defer r.told.mu.Unlock()
	if len(r.told.took) != 1 || r.told.took[0] < time.Second {
		t.Errorf("changes took %v, want one that took more than a second", r.told.took)
	}
}

// TestNothingIsSaidToBeInForceBeforeOldConnectionsAreCounted: whoever waits for it would
// send a request that one of them leads to the baseline, and see none.
func TestNothingIsSaidToBeInForceBeforeOldConnectionsAreCounted(t *testing.T) {
	p := newPlot(t)
	conn, err := p.client.Dial("tcp", "10.96.0.7:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// It is busy for as long as its request has not come to its end.
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	a := p.enter(nil, false).acts()
	p.eventually("something is in force", func() bool { return a.told.inForce() != nil })
	if got := a.told.inForce().Connections; got[shopService.Name] != 1 {
		t.Errorf("with the first that is said to be in force, connections from before are %v", got)
	}
}

func TestVersionsAloneChangeNothingButWhatIsSaid(t *testing.T) {
	r := rehearse(t)
	r.send(source.Snapshot{Versions: version("10")})
	r.stage.take()
	_, urgent := r.told.sandboxes()
	// Somebody may wait for this one.
	r.send(source.Snapshot{Versions: version("11"), Same: true, Since: time.Now()})
	if v, n := r.told.sandboxes(); v != "11" || n != urgent+1 {
		t.Errorf("said %q, %d times urgently", v, n-urgent)
	}
	// Nobody does for this one.
	r.send(source.Snapshot{Versions: version("12"), Same: true})
	if v, n := r.told.sandboxes(); v != "12" || n != urgent+1 {
		t.Errorf("said %q, %d times urgently", v, n-urgent)
	}
	r.want()
}

func TestTheAgentsEndIsSaid(t *testing.T) {
	r := rehearse(t)
	r.send(source.Snapshot{Versions: version("10")})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.told.mu.Lock()
	defer r.told.mu.Unlock()
	if !r.told.closed {
		t.Error("the Reporter is not closed")
	}
}
