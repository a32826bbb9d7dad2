// SPDX-License-Identifier: Apache-2.0

package source

import (
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	k.note(now, w.affects(), matters)
	return nil
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
	w.changed = true
	k.note(now, w.affects(), matters)
	return nil
}

// Replace forgets all objects and takes in these.
func (w *watched[O, V]) Replace(list []any, version string) error {
	now := time.Now()
	objects := make(map[routing.Name]entry[V], len(list))
	for _, obj := range list {
		o, ok := obj.(O)
		if !ok {
			continue
		}
		if e, keep := w.entry(o); keep {
			objects[nameOf(o)] = e
		}
	}
	k := w.of
	k.mu.Lock()
	defer k.mu.Unlock()
	same := w.synced && reflect.DeepEqual(w.objects, objects)
	w.objects, w.version, w.synced = objects, version, true
	if same {
		k.tell(now)
		return nil
	}
	w.changed = true
	k.note(now, w.affects(), true)
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

// affects reports whether changes of this kind change which other changes matter.
func (w *watched[O, V]) affects() bool { return w.revision != nil }

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

// referenced are the Services that redirects lead from and to.
func referenced(lists ...[]routing.Sandbox) map[routing.Name]bool {
	out := map[routing.Name]bool{}
	for _, list := range lists {
		for i := range list {
			s := &list[i]
			for j := range s.Redirects {
				r := &s.Redirects[j]
				out[routing.Name{Namespace: s.Name.Namespace, Name: r.From.Service}] = true
				if r.To.Service != "" {
					ns := r.To.Namespace
					if ns == "" {
						ns = s.Name.Namespace
					}
					out[routing.Name{Namespace: ns, Name: r.To.Service}] = true
				}
			}
		}
	}
	return out
}
