// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// patience is how long a pod that runs, says its object, may have no namespace
// before that is a gap: objects and processes are never in step.
const patience = 5 * time.Second

// hostNetns is the file of the namespace that pods on the host's network have, and
// the agent too.
const hostNetns = "/proc/self/ns/net"

// NewClusterResolver returns a Resolver without pods, for pods that have a UID and
// are found by their cgroups.
func NewClusterResolver(c Cgroup, log *slog.Logger) (*Resolver, error) {
	r := NewResolver(log)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		w = nil
		log.Warn("pods' cgroups cannot be watched, looking at them instead; raise fs.inotify.max_user_instances", "err", err)
	}
	t, err := newTree(c.Dir, w, r.change, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("follow the pods' cgroups: %w", err), r.Close())
	}
	r.tree, r.cgroup = t, c
	return r, nil
}

// findByUID finds the namespace of a pod of a cluster, and what it is held by.
// Without one it says why, if that is a gap.
func (r *Resolver) findByUID(p *Pod, known map[string]fileID) (key string, ns *Namespace, why string) {
	s, ok := r.tree.see(p.UID)
	if p.HostNetwork {
		if !r.cgroup.V2 {
			return hostNetns, nil, "is on the host's network, where pods are told from other processes by cgroups of version 2, and pods are in none here; it is not covered: " +
				"run the node with cgroup version 2"
		}
		err := r.hold(hostNetns)
		if err != nil {
			return hostNetns, nil, unresolved(hostNetns, err)
		}
		held := r.held[hostNetns]
		known[hostNetns] = held.id
		if !ok {
			return hostNetns, nil, r.miss(p, errNoProcess)
		}
		delete(r.missed, p.UID)
		return hostNetns, &Namespace{Cookie: routing.HostPod(s.cgroup), FD: held.fd, Name: hostNetns, Cgroup: s.dir}, ""
	}

	key = "uid:" + p.UID
	old := r.held[key]
	if old != nil && old.id != s.ns {
		unix.Close(old.fd)
		delete(r.held, key)
		old = nil
	}
	switch {
	case !ok:
		return key, nil, r.miss(p, errNoProcess)
	case s.ns == fileID{} && s.why == nil:
		return key, nil, r.miss(p, errNoProcess)
	case s.ns == fileID{}:
		return key, nil, r.miss(p, s.why)
	case old == nil:
		next, err := r.tree.open(p.UID)
		if err != nil {
			return key, nil, r.miss(p, err)
		}
		r.held[key], old = next, next
	}
	delete(r.missed, p.UID)
	return key, &Namespace{Cookie: old.cookie, FD: old.fd, Name: "the network namespace of pod " + p.Name.String()}, ""
}

// miss notes that a pod has no namespace, and says why when that has been so for
// too long.
func (r *Resolver) miss(p *Pod, why error) string {
	since, ok := r.missed[p.UID]
	switch {
	case !p.Running:
		delete(r.missed, p.UID)
		return ""
	case !ok:
		if r.missed == nil {
			r.missed = map[string]time.Time{}
		}
		r.missed[p.UID] = time.Now()
		return ""
	case time.Since(since) < patience:
		return ""
	case errors.Is(why, errNoProcess):
		return fmt.Sprintf("runs, but has no process below %s: see that this is where this node's pods are, or say where with --pods-cgroup; until then the pod is not covered", r.cgroup.Dir)
	case errors.Is(why, fs.ErrPermission):
		return fmt.Sprintf("%v: add CAP_SYS_PTRACE; until then the pod is not covered", why)
	}
	return fmt.Sprintf("%v; the pod is not covered", why)
}

// nextMiss returns when the next of the pods that are missed becomes a gap, and
// forgets pods that are not wanted any more.
func (r *Resolver) nextMiss() (next time.Time) {
	if len(r.missed) == 0 {
		return next
	}
	wanted := map[string]bool{}
	for i := range r.pods {
		wanted[r.pods[i].UID] = true
	}
	now := time.Now()
	for uid, since := range r.missed {
		if !wanted[uid] {
			delete(r.missed, uid)
			continue
		}
		if at := since.Add(patience); at.After(now) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}
