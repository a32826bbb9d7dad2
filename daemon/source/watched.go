// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// watched is what is kept of all objects of one kind: V of each, and no object.
// client-go's Reflector fills it, event by event, and replaces all of it after a
// list. Its methods take the source's lock, except where they say otherwise.
type watched[O metav1.Object, V any] struct {
	of   *Kubernetes
	name string // the kind's plural, for messages
	// convert returns false for an object that says nothing about routing.
	convert func(O) (V, bool, []routing.Problem)
	// concerns says which changes matter to the table now; the others are known,
	// and wait for one that does.
	concerns func(name routing.Name, v *V) bool
	// revision, which may be nil, tells apart what convert does not.
	revision func(O) int64
	// names, which may be nil, calls yield with every Service that v has to do with.
	names func(v *V, yield func(routing.Name))
	// counted says that somebody may wait for the version of a change that changes
	// nothing.
	counted bool

	objects map[routing.Name]entry[V]
	// changed says that all is older than objects.
	changed bool
	all     []V
	version string
	synced  bool
}

type entry[V any] struct {
	value    V
	revision int64
	problems []routing.Problem
}

// entry is what is kept of an object; false: nothing.
func (w *watched[O, V]) entry(o O) (entry[V], bool) {
	v, keep, problems := w.convert(o)
	e := entry[V]{value: v, problems: problems}
	if w.revision != nil {
		e.revision = w.revision(o)
	}
	return e, keep
}

func nameOf(o metav1.Object) routing.Name {
	return routing.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Add, Update, Delete, Replace, Resync and Bookmark are what client-go wants of a
// store.

// Add takes in a new object.
func (w *watched[O, V]) Add(obj any) error { return w.put(obj) }

// Update takes in a changed object.
func (w *watched[O, V]) Update(obj any) error { return w.put(obj) }

func (w *watched[O, V]) put(obj any) error {
	now := time.Now()
	o, ok := obj.(O)
	if !ok {
		return nil
	}
	next, keep := w.entry(o)
	if !keep {
		return w.Delete(obj)
	}
	name := nameOf(o)
	k := w.of
	k.mu.Lock()
	defer k.mu.Unlock()
	w.version = o.GetResourceVersion()
	old, had := w.objects[name]
	w.objects[name] = next
	if had {
		w.concern(&old.value, -1)
	}
	w.concern(&next.value, +1)
	matters := w.concerns(name, &next.value) || had && w.concerns(name, &old.value)
	if had && reflect.DeepEqual(old, next) {
		if w.counted && matters {
			k.tell(now)
		} else {
			k.lag = true
		}
		return nil
	}
	w.changed = true
	k.note(now, matters)
	return nil
}

// concern counts the Services that a sandbox has to do with. The caller holds the
// lock.
func (w *watched[O, V]) concern(v *V, n int) {
	if w.names == nil {
		return
	}
	w.names(v, func(name routing.Name) {
		if n := w.of.concerned[name] + n; n > 0 {
			w.of.concerned[name] = n
		} else {
			delete(w.of.concerned, name)
		}
	})
}

// Delete forgets an object.
func (w *watched[O, V]) Delete(obj any) error {
	now := time.Now()
	o, ok := obj.(O)
	if !ok {
		return nil
	}
	name := nameOf(o)
	k := w.of
	k.mu.Lock()
	defer k.mu.Unlock()
	w.version = o.GetResourceVersion()
	old, had := w.objects[name]
	if !had {
		k.lag = true
		return nil
	}
	matters := w.concerns(name, &old.value)
	delete(w.objects, name)
	w.concern(&old.value, -1)
	w.changed = true
	k.note(now, matters)
	return nil
}

// early is an object of a list that is streamed. What routing does not need of it is
// gone before the next one comes: all of a large cluster's objects at a time would be
// most of the agent's memory.
type early[V any] struct {
	name  routing.Name
	entry entry[V]
	keep  bool
}

var _ cache.TransformingStore = (*watched[*corev1.Pod, pods.Pod])(nil) // it is asserted nowhere else

// Transformer is asked by client-go's Reflector; it takes no lock.
func (w *watched[O, V]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		o, ok := obj.(O)
		if !ok {
			return obj, nil
		}
		e, keep := w.entry(o)
		return &early[V]{nameOf(o), e, keep}, nil
	}
}

// Replace forgets all objects and takes in these.
func (w *watched[O, V]) Replace(list []any, version string) error {
	now := time.Now()
	objects := make(map[routing.Name]entry[V], len(list))
	for _, obj := range list {
		switch o := obj.(type) {
		case *early[V]:
			if o.keep {
				objects[o.name] = o.entry
			}
		case O:
			if e, keep := w.entry(o); keep {
				objects[nameOf(o)] = e
			}
		}
	}
	k := w.of
	k.mu.Lock()
	defer k.mu.Unlock()
	same := w.synced && reflect.DeepEqual(w.objects, objects)
	w.version, w.synced = version, true
	if same {
		k.tell(now)
		return nil
	}
	for _, e := range w.objects {
		w.concern(&e.value, -1)
	}
	for _, e := range objects {
		w.concern(&e.value, +1)
	}
	w.objects, w.changed = objects, true
	k.note(now, true)
	return nil
}

// Resync does nothing: there is no other place to bring up to date.
func (w *watched[O, V]) Resync() error { return nil }

// Bookmark takes in that nothing has happened up to a version.
func (w *watched[O, V]) Bookmark(version string) error {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	w.version = version
	w.of.lag = true
	return nil
}

// values returns what is kept, in no order. The slice is shared between snapshots
// and never changed. The caller holds the lock.
func (w *watched[O, V]) values() []V {
	if w.changed {
		w.all = make([]V, 0, len(w.objects))
		for _, e := range w.objects {
			w.all = append(w.all, e.value)
		}
		w.changed = false
	}
	return w.all
}

// problems returns what is wrong with objects, by name. The caller holds the lock.
func (w *watched[O, V]) problems() []Problem {
	var names []routing.Name
	for name, e := range w.objects {
		if len(e.problems) > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, routing.Name.Compare)
	var out []Problem
	for _, name := range names {
		for _, p := range w.objects[name].problems {
			out = append(out, Problem{Problem: p})
		}
	}
	return out
}

// concernedBy calls yield with every Service that a sandbox redirects, leads to or
// observes.
func concernedBy(s *routing.Sandbox, yield func(routing.Name)) {
	for i := range s.Redirects {
		r := &s.Redirects[i]
		yield(routing.Name{Namespace: s.Name.Namespace, Name: r.From.Service})
		if r.To.Service != "" {
			yield(routing.Name{Namespace: cmp.Or(r.To.Namespace, s.Name.Namespace), Name: r.To.Service})
		}
	}
	if s.ObserveAll {
		yield(everyService(s.Name.Namespace))
	}
	for _, name := range s.Observe {
		yield(routing.Name{Namespace: s.Name.Namespace, Name: name})
	}
}
