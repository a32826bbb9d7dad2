// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Router is what the agent needs of router.Router.
type Router interface {
	SetTable(*routing.Table)
	Listen(router.Namespace) (router.Ports, error)
	Unlisten(c routing.Cookie)
	Drain(context.Context) error
}

// listeners are the router's listeners in the pods' namespaces.
type listeners struct {
	router Router
	open   map[routing.Cookie]*listener
	failed map[routing.Cookie]error // those that are wanted and cannot be had
	timer  *time.Timer
}

type listener struct {
	loader.Listener
	wanted bool
	// until is when it may be closed; zero while the kernel may steer to it.
	until time.Time
}

// captures says for which namespaces a listener is wanted.
type captures struct {
	table    *routing.Table
	untagged bool // for pods of no sandbox, and those that a group's key counts for
}

func newCaptures(t *routing.Table) captures {
	c := captures{table: t}
	if !t.Captures() {
		return c
	}
	for _, d := range t.Dests() {
		if d.Captured {
			c.untagged = true
			break
		}
	}
	return c
}

func (c captures) in(ns routing.Cookie) bool {
	id := c.table.Identity(ns)
	if id.Sandbox == 0 {
		return c.untagged
	}
	return id.Inject && c.table.Captures() || id.Grouped && c.untagged
}

// want opens the listeners that the table asks for and notes those that it does
// not. It returns for how many namespaces there should be one and is none.
func (l *listeners) want(t *routing.Table, all []pods.Namespace) (missing int) {
	c := newCaptures(t)
	l.failed = map[routing.Cookie]error{}
	// A namespace that we are no longer told of may well live on, with connections
	// in it: steering ends first, as always, and those that are there end by
	// themselves.
	for _, have := range l.open {
		have.wanted = false
	}
	for _, ns := range all {
		have := l.open[ns.Cookie]
		switch wanted := c.in(ns.Cookie); {
		case have != nil:
			have.wanted = wanted
			if wanted {
				have.until = time.Time{}
			}
		case wanted:
			ports, err := l.router.Listen(router.Namespace{Cookie: ns.Cookie, FD: ns.FD, Name: ns.Name})
			if err != nil {
				l.failed[ns.Cookie] = err
				missing++
				continue
			}
			l.open[ns.Cookie] = &listener{Listener: loader.Listener{Port4: ports.V4, Port6: ports.V6}, wanted: true}
		}
	}
	return missing
}

// steerable is what the kernel may steer to: with old also to those that are
// not wanted any more but were until now.
func (l *listeners) steerable(old bool) map[routing.Cookie]loader.Listener {
	out := make(map[routing.Cookie]loader.Listener, len(l.open))
	for c, have := range l.open {
		if have.wanted || old && have.until.IsZero() {
			out[c] = have.Listener
		}
	}
	return out
}

func (l *listeners) cookies() map[routing.Cookie]bool {
	out := make(map[routing.Cookie]bool, len(l.open))
	for c, have := range l.open {
		if have.wanted {
			out[c] = true
		}
	}
	return out
}

// retire has the listeners closed, after a while, that the kernel has stopped
// steering to.
func (l *listeners) retire() {
	for _, have := range l.open {
		if !have.wanted && have.until.IsZero() {
			have.until = time.Now().Add(grace)
			if l.timer == nil {
				l.timer = time.NewTimer(grace)
			} else {
				l.timer.Reset(grace)
			}
		}
	}
}

// due receives when closeDue has something to do.
func (l *listeners) due() <-chan time.Time {
	if l.timer == nil {
		return nil
	}
	return l.timer.C
}

func (l *listeners) closeDue() {
	now := time.Now()
	var next time.Time
	for c, have := range l.open {
		switch {
		case have.until.IsZero():
		case !have.until.After(now):
			l.router.Unlisten(c)
			delete(l.open, c)
		case next.IsZero() || have.until.Before(next):
			next = have.until
		}
	}
	if !next.IsZero() {
		l.timer.Reset(next.Sub(now))
	}
}
