// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// place is a namespace in which flows are followed.
type place struct {
	cookie routing.Cookie
	name   string
	ends   ends
	once   sync.Once

	broken error // why nothing is heard any more of ends; the Follower's lock is held for it

	mu   sync.Mutex
	diag *sockdiag.Diag // nil after close
}

// ends is sockdiag.Ends.
type ends interface {
	Read([]sockdiag.End) ([]sockdiag.End, error)
	ReadNow([]sockdiag.End) ([]sockdiag.End, error)
	Close() error
}

// openPlace begins to hear of ends in a namespace. It returns nil for the host's, where
// the ends of everybody's sockets would be told.
func (f *Follower) openPlace(ns *pods.Namespace) (*place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD, &st); err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	if (fileID{uint64(st.Dev), st.Ino}) == f.host {
		return nil, nil
	}
	diag, err := sockdiag.Open(ns.FD)
	if err != nil {
		return nil, err
	}
	ends, err := sockdiag.OpenEnds(ns.FD, f.cfg.Buffer)
	if err != nil {
		diag.Close()
		return nil, err
	}
	return &place{cookie: ns.Cookie, name: ns.Name, ends: ends, diag: diag}, nil
}

// end has hear come to its end.
func (p *place) end() { p.once.Do(func() { p.ends.Close() }) }

// list lists sockets in the namespace; see sockdiag.Diag.
func (p *place) list(port uint16, ending bool, yield func(*sockdiag.Socket)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.diag == nil {
		return os.ErrClosed
	}
	return p.diag.ListTo(port, ending, yield)
}

// hear takes in ends in a namespace until it is closed. Then nothing more is to be heard
// of flows there.
func (f *Follower) hear(p *place) {
	defer func() {
		p.mu.Lock()
		p.diag.Close()
		p.diag = nil
		p.mu.Unlock()
		f.leave(p)
	}()
	for {
		ends, err := p.ends.Read(nil)
		if len(ends) > 0 {
			f.queue(over{place: p, ends: ends})
		}
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, sockdiag.ErrLost):
			f.recover(p)
		case err != nil:
			f.log.Error("what flows of a pod carry is not known", "namespace", p.name, "err", err)
			f.abandon(p, err)
			continue
		}
		time.Sleep(f.cfg.gather)
	}
}

// abandon ends a place where nothing is to be heard. The next Watch opens another one.
func (f *Follower) abandon(p *place, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.broken = err
	if f.places[p.cookie] == p {
		delete(f.places, p.cookie)
	}
	p.end()
}

// recover finds out which flows are over of which it has not been told. The kernel tells
// with a delay, so what was there before and is heard of after a while is none of them.
func (f *Follower) recover(p *place) {
	for lost := true; lost; {
		lost = false
		// The kernel says that it has dropped something once, and again only after all that
		// was queued has been read.
		if !f.drain(p) {
			return
		}
		o := over{place: p, at: time.Now(), alive: map[uint64]bool{}}
		if err := p.list(0, true, func(s *sockdiag.Socket) { o.alive[s.Cookie] = true }); err != nil {
			f.log.Error("which flows of a pod are over is not known", "namespace", p.name, "err", err)
			return
		}
		for end := o.at.Add(late); time.Now().Before(end); time.Sleep(gather) {
			ends, err := p.ends.ReadNow(nil)
			if len(ends) > 0 {
				f.queue(over{place: p, ends: ends})
			}
			if errors.Is(err, os.ErrClosed) {
				return
			}
			lost = lost || errors.Is(err, sockdiag.ErrLost)
		}
		f.queue(o)
	}
}

// drain takes in the ends that are there, and reports whether there may be more some time.
func (f *Follower) drain(p *place) bool {
	for {
		ends, err := p.ends.ReadNow(nil)
		if errors.Is(err, os.ErrClosed) {
			return false
		}
		if len(ends) == 0 && !errors.Is(err, sockdiag.ErrLost) {
			return true
		}
		f.queue(over{place: p, ends: ends})
	}
}

// late is how long after a socket's end the kernel may tell of it, on a busy node.
const late = 200 * time.Millisecond

// queue has ends sifted. It waits where many are waiting.
func (f *Follower) queue(o over) {
	n := len(o.ends) + len(o.alive)
	f.mu.Lock()
	for f.waiting > 0 && f.waiting+n > f.cfg.waiting && !f.stopped() && !f.isDeaf() {
		f.room.Wait()
	}
	if !f.isDeaf() {
		f.over = append(f.over, o)
		f.waiting += n
	}
	f.mu.Unlock()
	notify(f.ended)
}

func (f *Follower) stopped() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// leave gives up flows of a namespace that is left.
func (f *Follower) leave(p *place) {
	if f.stopped() {
		return
	}
	f.queue(over{place: p, at: time.Now(), alive: map[uint64]bool{}})
}

// sift finds the flows among the sockets that are over. A flow is told of before its
// socket can end, but by another way, and is read later: so that is read first.
func (f *Follower) sift() {
	for {
		select {
		case <-f.ended:
		case <-f.stop:
			return
		case <-f.deaf:
			return
		}
		f.mu.Lock()
		all := f.over
		f.over, f.waiting = nil, 0
		f.room.Broadcast()
		f.mu.Unlock()
		if err := f.cfg.Reader.Flush(); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				f.log.Error("what flows carry is not known any more", "err", err)
				f.giveUp()
			}
			return
		}
		select {
		case <-f.flushed:
		case <-f.stop:
			return
		case <-f.deaf:
			return
		}
		for i := range all {
			f.take(&all[i])
		}
		time.Sleep(pause)
	}
}

// take makes the last records of flows that are over.
func (f *Follower) take(o *over) {
	for i := range o.ends {
		f.finish(&o.ends[i])
	}
	if o.alive == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var missing []*flow
	for e := f.order.Front(); e != nil; e = e.Next() {
		n := e.Value.(*flow)
		if n.place == o.place && n.began.Before(o.at) && !o.alive[n.socket] {
			missing = append(missing, n)
		}
	}
	switch {
	case o.place.broken != nil:
		for _, n := range missing {
			f.lost(n, "its end could not be heard of; what it carried is not known: "+o.place.broken.Error(), o.at)
		}
	case f.places[o.place.cookie] != o.place:
		for _, n := range missing {
			f.unknown(n, "its pod is gone, or is the sandbox's no more; what it carried is not known", o.at)
		}
	case len(missing) > 0:
		// It may be that some are not over: see defaultGrace.
		time.AfterFunc(f.cfg.grace, func() { f.close(missing, o.at) })
	}
}

// close makes last records of flows that were over at a time, and have had none since.
func (f *Follower) close(missing []*flow, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped() {
		return
	}
	for _, n := range missing {
		if !n.gone {
			f.lost(n, "its end was not told, because too many were at once; what it carried is not known", at)
		}
	}
}

var outcomes = map[sockdiag.Outcome]string{
	sockdiag.Aborted:        "the connection was aborted: reset, or not acknowledged",
	sockdiag.Disconnected:   "the caller has aborted the connection; what it carried is not known",
	sockdiag.NeverConnected: "no connection came about: refused, or not answered",
}

// finish makes the last record of a flow, if it is one, whose socket is over.
func (f *Follower) finish(e *sockdiag.End) {
	f.mu.Lock()
	n, t := f.known[e.Cookie], f.table
	if n == nil {
		f.mu.Unlock()
		return
	}
	f.forget(n)
	f.mu.Unlock()
	// From here on the flow is nobody else's.
	n.Lasted, n.Sent, n.Received, n.Error = max(e.At.Sub(n.began), 0), e.Sent, e.Received, outcomes[e.Outcome]
	if !n.Answer.IsValid() && e.Outcome != sockdiag.NeverConnected {
		n.Answer, _ = f.answering(t, e.Local, e.Peer)
	}
	f.cfg.Ledger.AddFlow(n.Flow)
}

// look makes records of flows that are under way, once it is known which pods they lead
// to, or that cannot be.
func (f *Follower) look() {
	tick := time.NewTicker(hold / 2)
	defer tick.Stop()
	for {
		select {
		case <-f.wake:
		case <-f.stop:
			return
		}
		for more := true; more; {
			select {
			case <-tick.C:
			case <-f.stop:
				return
			}
			more = f.lookOnce(time.Now())
		}
	}
}

// lookOnce reports whether flows are held still.
func (f *Follower) lookOnce(now time.Time) bool {
	f.mu.Lock()
	held := f.held[:0]
	var ask *place
	for _, n := range f.held {
		age := now.Sub(n.began)
		switch {
		case n.gone || n.told:
		case age < hold:
			held = append(held, n)
		case !f.hidden(n) || age > patience:
			f.open(n)
		default:
			held = append(held, n)
			if ask == nil {
				ask = n.place
			}
		}
	}
	clear(f.held[len(held):])
	f.held = held
	if ask == nil || now.Sub(f.lastAsk) < lookEvery {
		f.mu.Unlock()
		return len(held) > 0
	}
	f.lastAsk = now
	var port uint16
	wanted := map[uint64]bool{}
	for _, n := range held {
		if n.place != ask || !f.hidden(n) {
			continue
		}
		if p := n.Dialled.Port(); len(wanted) == 0 {
			port = p
		} else if p != port {
			port = 0
		}
		wanted[n.socket] = true
	}
	t := f.table
	f.mu.Unlock()
	f.ask(ask, port, wanted, t)
	return true
}

// hidden reports whether it is not to be seen which pod a flow leads to.
func (f *Follower) hidden(n *flow) bool {
	to := n.Dialled
	if n.Endpoint.IsValid() {
		to = n.Endpoint
	}
	_, pod := f.table.PodAt(to)
	return !pod && !n.Answer.IsValid()
}

// ask finds out which pods sockets of a namespace lead to.
func (f *Follower) ask(p *place, port uint16, wanted map[uint64]bool, t *routing.Table) {
	var found []sockdiag.Socket
	err := p.list(port, false, func(s *sockdiag.Socket) {
		if wanted[s.Cookie] {
			found = append(found, *s)
		}
	})
	if err != nil {
		return // It is in the flow's last record, or cannot be known.
	}
	for i := range found {
		s := &found[i]
		answer, sure := f.answering(t, s.Local, s.Peer)
		if !sure {
			continue
		}
		f.mu.Lock()
		if n := f.known[s.Cookie]; n != nil {
			n.Answer = answer
			f.open(n)
		}
		f.mu.Unlock()
	}
}
