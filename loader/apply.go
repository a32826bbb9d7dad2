// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Apply brings the kernel's maps to t, step by step in the order of
// routing.Table.Diff, so that no flow is misrouted on the way. The first Apply
// also attaches the programs.
//
// A table that does not fit is an error that names the flag, and nothing is
// changed. When writing fails half-way, which takes a kernel without memory,
// flows go by a mixture that misroutes none; the next Apply starts over with
// a fresh set. So it does when a table before t was compiled and not applied:
// steps are only known to be safe from one generation to the next.
func (k *Kernel) Apply(t *routing.Table) error {
	return k.do(func() error {
		k.applying.Lock()
		defer k.applying.Unlock()
		return k.apply(t)
	})
}

func (k *Kernel) apply(t *routing.Table) error {
	size := t.Size()
	if err := k.cfg.fits(size); err != nil {
		return err
	}
	if k.damaged || k.applied != nil && !t.Follows(k.applied) {
		if err := k.startOver(); err != nil {
			return err
		}
	}
	if k.published {
		if err := k.followCgroup(); err != nil {
			return err
		}
	}
	todo, err := k.plan(t)
	if err != nil {
		return err
	}
	afresh := k.applied == nil
	if err := k.write(todo); err != nil {
		k.damaged = true
		return err
	}
	if afresh {
		if err := k.keepHitsOf(t); err != nil {
			k.damaged = true
			return err
		}
	}
	k.applied, k.size = t, size
	if k.published || k.yielded {
		return nil
	}
	if err := k.publish(); err != nil {
		return err
	}
	k.published = true
	return nil
}

// startOver loads a fresh set in the place of one whose maps are damaged. The
// old one stays in force until the new one is published.
func (k *Kernel) startOver() error {
	fresh, err := k.cfg.load(k.first.kept())
	if err != nil {
		return err
	}
	old := k.objs
	k.objs, k.applied, k.published, k.damaged = fresh, nil, false, false
	if old == k.first {
		return old.closeTable()
	}
	return old.Close()
}

// fits says which flag is too small for s.
func (c Config) fits(s routing.Size) error {
	var errs []error
	for _, m := range []struct {
		flag  string
		limit uint32
		need  int
		what  string
	}{
		{"--max-backends", c.MaxBackends, s.Backends, "endpoints of redirects' targets"},
		{"--max-flow-routes", c.MaxFlowRoutes, s.Routes, "redirects"},
		{"--max-destinations", c.MaxDestinations, s.Dests, "destinations"},
		{"--max-identities", c.MaxIdentities, s.Identities, "sandboxes' pods"},
	} {
		if m.need > int(m.limit) {
			errs = append(errs, fmt.Errorf("%d %s do not fit into the kernel's map of %d: raise %s", m.need, m.what, m.limit, m.flag))
		}
	}
	return errors.Join(errs...)
}

// plan returns the steps that take the maps to t. It is an error that names the
// flag when there is no room for the moment in which what is new is there and
// what is gone is not gone yet.
func (k *Kernel) plan(t *routing.Table) (func(yield func(*routing.Step) bool), error) {
	diff := func(yield func(*routing.Step) bool) { t.Diff(k.applied, yield) }
	if k.applied == nil {
		return diff, nil // beside nothing, all that fits fits
	}
	// Going through large tables takes its time, so a small change, which is what
	// there is nearly always, is remembered and not worked out twice.
	const small = 1 << 14
	var steps []routing.Step
	remember := true
	// An upper bound of the highest water: a put that replaces a value is counted
	// although it takes no place.
	peak := k.size
	diff(func(s *routing.Step) bool {
		if remember {
			steps = append(steps, *s)
			remember = len(steps) < small
		}
		if s.Delete {
			return true
		}
		switch s.Map {
		case routing.Backends:
			peak.Backends++
		case routing.Routes:
			peak.Routes++
		case routing.Dests:
			peak.Dests++
		case routing.Identities:
			peak.Identities++
		}
		return true
	})
	if err := k.cfg.fits(peak); err != nil {
		return nil, fmt.Errorf("old and new entries do not fit side by side: %w (or restart the agent, which begins with empty maps)", err)
	}
	if !remember {
		return diff, nil
	}
	return func(yield func(*routing.Step) bool) {
		for i := range steps {
			if !yield(&steps[i]) {
				return
			}
		}
	}, nil
}

// write applies steps.
func (k *Kernel) write(steps func(yield func(*routing.Step) bool)) error {
	w := newWriter(k.objs.maps)
	for s := range steps {
		if err := w.step(s); err != nil {
			return fmt.Errorf("apply the table: %w", err)
		}
	}
	if err := w.flush(); err != nil {
		return fmt.Errorf("apply the table: %w", err)
	}
	return k.forgetHits(w.goneRoutes)
}

// keepHitsOf deletes the counters of routes that are not t's: no steps have said that
// they are gone.
func (k *Kernel) keepHitsOf(t *routing.Table) error {
	hits, err := k.hits()
	if err != nil {
		return err
	}
	gone := map[routing.RouteKey]bool{}
	for key := range hits {
		if _, _, ok := t.Describe(key); !ok {
			gone[key] = true
		}
	}
	return k.deleteHits(gone)
}

// forgetHits deletes the counters of routes that are gone.
func (k *Kernel) forgetHits(gone map[routing.RouteKey]bool) error {
	if len(gone) == 0 {
		return nil
	}
	// Most routes have no counter, since no flow has used them. Of a few it is
	// cheaper to try.
	const few = 256
	if len(gone) > few {
		hits, err := k.hits()
		if err != nil {
			return err
		}
		for key := range gone {
			if _, there := hits[key]; !there {
				delete(gone, key)
			}
		}
	}
	return k.deleteHits(gone)
}

// deleteHits deletes counters, as far as there are any.
func (k *Kernel) deleteHits(gone map[routing.RouteKey]bool) error {
	for key := range gone {
		if err := k.kept(bpf.SdMapSdHits).Delete(bpfRouteKey(key)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete the counter of a route: %w", err)
		}
	}
	return nil
}
