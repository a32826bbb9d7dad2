// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// pollInterval is how often each file is looked at: mounting a namespace on a
	// file, or unmounting it, sends no notification.
	pollInterval = time.Second
	// eagerInterval is the same for a while after a directory has changed.
	eagerInterval = 50 * time.Millisecond
	eagerFor      = 2 * time.Second
)

// Namespace is a network namespace of pods on this node.
type Namespace struct {
	Cookie routing.Cookie
	// FD is open on the namespace until the next Resolve or Close.
	FD int
	// Name is its file, for messages.
	Name string
	// Cgroup is set where Cookie stands for one pod of the host's network: the
	// directory (in cgroup version 2) that its processes are below. Others in the
	// namespace are not meant.
	Cgroup string
}

// Resolved is what is known of the pods' namespaces at one time.
type Resolved struct {
	// Pods are the pods whose namespace is known; no two share a Namespace and
	// disagree.
	Pods []routing.Pod
	// Namespaces are the distinct ones of Pods, in order of cookie.
	Namespaces []Namespace
	// Problems are the pods that are not in Pods, and why, and other pods' labels
	// that do not hold.
	Problems []routing.Problem
	// Uncovered counts the pods whose namespace is not known, though they run.
	Uncovered int
}

// Resolver finds pods' network namespaces and notices when they change.
type Resolver struct {
	log *slog.Logger

	pods []Pod
	held map[string]*namespace // by path or UID

	tree   *tree  // nil without a cluster
	cgroup Cgroup // that tree follows
	missed map[string]time.Time

	watch   *watch
	changes chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup
}

// namespace is one that is held open.
type namespace struct {
	fd     int
	id     fileID
	cookie routing.Cookie
}

// watch is what the watching goroutine knows of the paths.
type watch struct {
	mu    sync.Mutex
	known map[string]fileID // by path; zero when there is none
	again time.Time         // when Resolve is to be called in any case; zero: never
	fs    *fsnotify.Watcher // nil when there can be none
	dirs  map[string]bool
}

// NewResolver returns a Resolver without pods, for pods whose namespace is given.
func NewResolver(log *slog.Logger) *Resolver {
	r := &Resolver{
		log:     log,
		held:    map[string]*namespace{},
		watch:   &watch{known: map[string]fileID{}, dirs: map[string]bool{}},
		changes: make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("no notifications of namespace files, polling instead", "err", err)
	} else {
		r.watch.fs = w
	}
	r.stopped.Go(r.look)
	return r
}

// Changes receives when Resolve would give another answer than last time.
func (r *Resolver) Changes() <-chan struct{} { return r.changes }

// Close lets every namespace go.
func (r *Resolver) Close() error {
	close(r.stop)
	r.stopped.Wait()
	var errs []error
	if r.tree != nil {
		errs = append(errs, r.tree.close())
	}
	for _, ns := range r.held {
		unix.Close(ns.fd)
	}
	r.held = nil
	if r.watch.fs != nil {
		errs = append(errs, r.watch.fs.Close())
	}
	return errors.Join(errs...)
}

// Set replaces the pods. The next Resolve is about them.
func (r *Resolver) Set(pods []Pod) {
	r.pods = slices.SortedFunc(slices.Values(pods), func(a, b Pod) int { return a.Name.Compare(b.Name) })
	if r.tree != nil {
		r.tree.want(r.pods)
	}
}

// Resolve looks at every pod's namespace anew.
func (r *Resolver) Resolve() Resolved {
	var out Resolved
	problem := func(p *Pod, field, format string, args ...any) {
		out.Problems = append(out.Problems, routing.Problem{Kind: "Pod", Object: p.Name, Field: field, Message: fmt.Sprintf(format, args...)})
	}
	wanted, failed := map[string]bool{}, map[string]error{}
	known := map[string]fileID{}
	first := map[routing.Cookie]*Pod{}
	for i := range r.pods {
		p := &r.pods[i]
		if r.tree != nil {
			key, w, why := r.findByUID(p, known)
			wanted[key] = true
			if why != "" {
				problem(p, "", "%s", why)
				// What nobody on this node can mend, and every node has (kube-proxy is such a
				// pod), is a limit and not a gap.
				if !p.HostNetwork || r.cgroup.V2 || p.Sandbox != "" {
					out.Uncovered++
				}
			}
			if w != nil {
				out.add(p, "", w, first)
			}
			continue
		}
		const field = "metadata.annotations[sidetrack.dev/netns]"
		if why := p.check(); why != "" {
			problem(p, field, "%s", why)
			out.Uncovered++
			continue
		}
		path := p.path()
		if !wanted[path] {
			wanted[path] = true
			failed[path] = r.hold(path)
		}
		ns := r.held[path]
		if ns == nil {
			known[path] = fileID{}
			out.Uncovered++
			problem(p, field, "%s", unresolved(path, failed[path]))
			continue
		}
		known[path] = ns.id
		if p.HostNetwork && p.Sandbox != "" {
			problem(p, "metadata.labels[sidetrack.dev/sandbox]",
				"does not hold for a pod with hostNetwork: it would tag every flow of the node; tag its requests with the routing key instead")
			p = &Pod{Name: p.Name}
		}
		out.add(p, field, &Namespace{Cookie: ns.cookie, FD: ns.fd, Name: path}, first)
	}
	for path, ns := range r.held {
		if !wanted[path] {
			unix.Close(ns.fd)
			delete(r.held, path)
		}
	}
	slices.SortFunc(out.Namespaces, func(a, b Namespace) int { return cmp.Compare(a.Cookie, b.Cookie) })
	r.expect(known)
	return out
}

// add adds a pod whose namespace is known. First has, by cookie, the first pod of
// each.
func (out *Resolved) add(p *Pod, field string, ns *Namespace, first map[routing.Cookie]*Pod) {
	switch other := first[ns.Cookie]; {
	case other == nil:
		first[ns.Cookie] = p
		out.Namespaces = append(out.Namespaces, *ns)
	case other.Sandbox != p.Sandbox || other.Inject != p.Inject || p.Sandbox != "" && other.Name.Namespace != p.Name.Namespace:
		out.Problems = append(out.Problems, routing.Problem{Kind: "Pod", Object: p.Name, Field: field, Message: fmt.Sprintf(
			"is the network namespace of pod %s as well, whose sandbox labels differ and hold: give each its own namespace or the same labels", other.Name)})
		return
	}
	out.Pods = append(out.Pods, routing.Pod{Name: p.Name, Netns: ns.Cookie, Sandbox: p.Sandbox, Inject: p.Inject})
}

func unresolved(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "/proc/"):
		return fmt.Sprintf("there is no %s: the process is gone; until there is one the pod is not covered", path)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("there is no %s: make the namespace or correct the annotation; until then the pod is not covered", path)
	case errors.Is(err, errNotNetns):
		return fmt.Sprintf("%s is not a network namespace: make one there or correct the annotation; until then the pod is not covered", path)
	}
	return fmt.Sprintf("%s cannot be used: %v; the pod is not covered", path, err)
}

// hold makes r.held[path] what path leads to now, or removes it.
func (r *Resolver) hold(path string) error {
	id, err := identify(path)
	old := r.held[path]
	if err == nil && old != nil && old.id == id {
		return nil
	}
	var next *namespace
	if err == nil {
		next, err = open(path)
	}
	if old != nil {
		unix.Close(old.fd)
		delete(r.held, path)
	}
	if err != nil {
		return err
	}
	r.held[path] = next
	return nil
}

func open(path string) (*namespace, error) {
	fd, id, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	c, err := cookie(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &namespace{fd, id, c}, nil
}

// expect tells the watching goroutine what Resolve has found.
func (r *Resolver) expect(known map[string]fileID) {
	w := r.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known = known
	w.again = r.nextMiss()
	if w.fs == nil {
		return
	}
	dirs := map[string]bool{}
	for path := range known {
		// inotify knows nothing of procfs; the poll looks there.
		if dir := filepath.Dir(path); !strings.HasPrefix(dir, "/proc") {
			dirs[dir] = true
		}
	}
	for dir := range w.dirs {
		if !dirs[dir] {
			_ = w.fs.Remove(dir) // it may be gone
		}
	}
	w.dirs = map[string]bool{}
	for dir := range dirs {
		// Adding again is harmless, and needed when the directory is a new one.
		if err := w.fs.Add(dir); err == nil {
			w.dirs[dir] = true
		}
	}
}

// changed reports whether any path leads elsewhere than Resolve has found.
func (w *watch) changed() bool {
	w.mu.Lock()
	known := maps.Clone(w.known)
	again := w.again
	w.mu.Unlock()
	if !again.IsZero() && time.Now().After(again) {
		return true
	}
	for path, was := range known {
		id, err := identify(path)
		switch {
		case err != nil:
			id = fileID{}
		case was == fileID{}:
			// There is something now, but only a namespace would help.
			fd, _, err := openNetns(path)
			if err != nil {
				id = fileID{}
			} else {
				unix.Close(fd)
			}
		}
		if id != was {
			return true
		}
	}
	return false
}

// change says that Resolve would give another answer.
func (r *Resolver) change() {
	select {
	case r.changes <- struct{}{}:
	default:
	}
}

// look waits for changes until Close.
func (r *Resolver) look() {
	var events chan fsnotify.Event
	var errs chan error
	if r.watch.fs != nil {
		events, errs = r.watch.fs.Events, r.watch.fs.Errors
	}
	var eagerUntil time.Time
	timer := time.NewTimer(pollInterval)
	defer timer.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-events:
			eagerUntil = time.Now().Add(eagerFor)
		case err := <-errs:
			r.log.Debug("watching namespace files", "err", err)
		case <-timer.C:
		}
		if r.watch.changed() {
			r.change()
		}
		if time.Now().Before(eagerUntil) {
			timer.Reset(eagerInterval)
		} else {
			timer.Reset(pollInterval)
		}
	}
}
