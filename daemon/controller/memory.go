// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// memory is what a reconciler knows of its objects besides what is in them. All
// of it can be lost: then nodes are asked for something newer than is necessary.
type memory struct {
	mu      sync.Mutex
	objects map[reconcile.Request]*remembered
	waiting map[reconcile.Request]bool
}

// remembered is about one object.
type remembered struct {
	uid types.UID
	// written is the resource version of the last status that was written: what the
	// cache has from before it is not looked at.
	written string
	// Of this generation and revision is since, the resource version at which they
	// were first seen together.
	generation, revision int64
	since                string
	// lagging is since when nodes have not had the newest endpoints.
	lagging time.Time
	// explained is what an event said last of a pod that is silent itself.
	explained map[string]explanation
}

type explanation struct {
	pod     types.UID
	reason  string
	message string
	at      time.Time
}

func newMemory() *memory {
	return &memory{objects: map[reconcile.Request]*remembered{}, waiting: map[reconcile.Request]bool{}}
}

// of returns what is known of an object. One request is never worked on twice at a
// time, so the result needs no lock.
func (m *memory) of(req reconcile.Request, uid types.UID) *remembered {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.objects[req]
	if r == nil || r.uid != uid {
		r = &remembered{uid: uid, explained: map[string]explanation{}}
		m.objects[req] = r
	}
	return r
}

func (m *memory) forget(req reconcile.Request) (types.UID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.objects[req]
	delete(m.objects, req)
	delete(m.waiting, req)
	if r == nil {
		return "", false
	}
	return r.uid, true
}

// wait says whether an object is to be looked at when a node says something.
func (m *memory) wait(req reconcile.Request, waits bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if waits {
		m.waiting[req] = true
	} else {
		delete(m.waiting, req)
	}
}

func (m *memory) waiters() []reconcile.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.waiting))
}

func (m *memory) all() []reconcile.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.objects))
}

// at notes the version at which a generation and revision are seen, and returns
// the one at which they first were.
func (r *remembered) at(generation, revision int64, version string) string {
	if r.since == "" || r.generation != generation || r.revision != revision {
		r.generation, r.revision, r.since = generation, revision, version
	}
	return r.since
}
