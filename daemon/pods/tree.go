// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// A process is put into its cgroup before it enters its namespace, which nobody
	// is told of. So when a container's cgroup has come, it is looked into again and
	// again: at first after firstLook, then after an eighth of the time that it has
	// taken so far, at last every lastLook, and for lookFor in all.
	firstLook = time.Millisecond
	lastLook  = 80 * time.Millisecond
	lookFor   = 10 * time.Second
	// scanInterval is how often everything is looked at for which there was no
	// notification.
	scanInterval = time.Second
	// blindInterval is the same where there are no notifications, or nothing to be
	// notified of.
	blindInterval = 50 * time.Millisecond
)

// tree follows the cgroups of this node's pods and knows the namespace that each
// pod's processes are in. All pods are followed, since a pod's object often comes
// later than its cgroup.
//
// What changes is told by inotify. A directory is watched before it is listed, so
// nothing comes unseen in between. A pod costs one watch and, every second, one
// stat.
type tree struct {
	log     *slog.Logger
	dir     string
	home    fileID // the agent's own namespace: a pod's process that is there has not entered its own yet
	changed func() // called when what is known of a wanted pod has changed
	watcher *fsnotify.Watcher

	stop    chan struct{}
	stopped sync.WaitGroup

	mu     sync.Mutex // guards what follows, and podCgroup's fields that say so
	uids   map[string]*podCgroup
	wanted map[string]*Pod // by UID

	// The rest belongs to the goroutine.
	pods    map[string]*podCgroup // by directory
	parents map[string]bool       // directories that pods' are in
	looking map[*podCgroup]bool
	blind   bool // not all that should be watched is
	absent  bool // there is no dir
}

// podCgroup is a pod's directory.
type podCgroup struct {
	uid, dir string
	id       uint64 // the directory's inode number: in version 2, the cgroup's id

	ns *namespace // guarded by mu; nil when it is not known
	// why there is no namespace; nil when there is no process either. Guarded by mu.
	why error

	pid   string    // a process in ns
	since time.Time // looked at eagerly
	next  time.Time // to be looked at
}

// newTree follows the pods' cgroups below dir. The watcher becomes its own; without
// one it looks again and again.
func newTree(dir string, watcher *fsnotify.Watcher, changed func(), log *slog.Logger) (*tree, error) {
	home, err := identify(hostNetns)
	if err != nil {
		return nil, err
	}
	t := &tree{
		log: log, dir: dir, home: home, changed: changed, watcher: watcher, blind: watcher == nil,
		stop:   make(chan struct{}),
		uids:   map[string]*podCgroup{},
		wanted: map[string]*Pod{},
		pods:   map[string]*podCgroup{}, parents: map[string]bool{}, looking: map[*podCgroup]bool{},
	}
	// What is there already is known before the first question.
	t.scan()
	t.lookAt(time.Now())
	t.stopped.Go(t.run)
	return t, nil
}

func (t *tree) close() error {
	close(t.stop)
	t.stopped.Wait()
	for _, p := range t.pods {
		if p.ns != nil {
			unix.Close(p.ns.fd)
		}
	}
	if t.watcher != nil {
		return t.watcher.Close()
	}
	return nil
}

// want says which pods changed is called for.
func (t *tree) want(pods []Pod) {
	wanted := make(map[string]*Pod, len(pods))
	for i := range pods {
		if p := &pods[i]; p.UID != "" {
			wanted[p.UID] = p
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = wanted
}

// seen is what is known of a pod.
type seen struct {
	dir    string
	cgroup uint64
	ns     fileID // zero when it is not known
	why    error  // why it is not, if the pod has processes
}

// see returns what is known of a pod; false when it has no cgroup here.
func (t *tree) see(uid string) (seen, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.uids[uid]
	if p == nil {
		return seen{}, false
	}
	s := seen{dir: p.dir, cgroup: p.id, why: p.why}
	if p.ns != nil {
		s.ns = p.ns.id
	}
	return s, true
}

// open opens the namespace of a pod once more.
func (t *tree) open(uid string) (*namespace, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.uids[uid]
	if p == nil || p.ns == nil {
		return nil, errNoProcess
	}
	fd, err := unix.FcntlInt(uintptr(p.ns.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &namespace{fd, p.ns.id, p.ns.cookie}, nil
}

func (t *tree) run() {
	var events chan fsnotify.Event
	var errs chan error
	if t.watcher != nil {
		events, errs = t.watcher.Events, t.watcher.Errors
	}
	scan := time.NewTimer(t.untilScan())
	defer scan.Stop()
	look := time.NewTimer(t.untilLook())
	defer look.Stop()
	for {
		select {
		case <-t.stop:
			return
		case e := <-events:
			t.handle(e)
		case err := <-errs:
			// Most likely the kernel's queue was full.
			t.log.Debug("watching the pods' cgroups", "err", err)
			t.scan()
		case <-scan.C:
			t.scan()
			t.verify()
			scan.Reset(t.untilScan())
		case <-look.C:
		}
		t.lookAt(time.Now())
		look.Reset(t.untilLook())
	}
}

// untilScan returns when to scan next.
func (t *tree) untilScan() time.Duration {
	if t.blind || t.absent {
		return blindInterval
	}
	return scanInterval
}

// handle takes one notification. What it says may be over by now, so it is only
// the reason to look.
func (t *tree) handle(e fsnotify.Event) {
	parent, name := filepath.Dir(e.Name), filepath.Base(e.Name)
	switch p := t.pods[parent]; {
	case p != nil && e.Has(fsnotify.Create) && isContainer(name):
		t.lookEagerly(p)
	case p != nil && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Write) && name == "cgroup.events"):
		// A container has gone, or the first process has come or the last one gone.
		if p.ns == nil {
			t.lookEagerly(p)
		} else {
			t.verifyPod(p)
		}
	case t.pods[e.Name] != nil && e.Has(fsnotify.Remove):
		t.dropIfGone(t.pods[e.Name])
	case e.Name == t.dir || e.Has(fsnotify.Create) && t.parents[parent]:
		t.enter(parent, name)
	}
}

// scan looks at all directories of pods.
func (t *tree) scan() {
	parents := map[string]bool{}
	t.absent = !isDir(t.dir)
	t.list(t.dir, parents)
	t.parents = parents
	for _, p := range t.pods {
		t.dropIfGone(p)
		if p.ns == nil && !t.looking[p] {
			t.look(p)
		}
	}
}

// list enters all that is in a directory of pods and classes.
func (t *tree) list(dir string, parents map[string]bool) {
	parents[dir] = true
	t.watch(dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // it is not there (any more)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if dir == t.dir && isQoSClass(e.Name()) {
			t.list(filepath.Join(dir, e.Name()), parents)
		} else {
			t.enter(dir, e.Name())
		}
	}
}

// enter takes note of a directory.
func (t *tree) enter(parent, name string) {
	dir := filepath.Join(parent, name)
	if dir == t.dir || parent == t.dir && isQoSClass(name) {
		t.list(dir, t.parents)
		return
	}
	uid, ok := podUID(name)
	if !ok {
		return
	}
	id, err := identify(dir)
	if err != nil {
		return
	}
	if old := t.pods[dir]; old != nil {
		if old.id == id.ino {
			return
		}
		t.drop(old) // it was removed and made again
	}
	p := &podCgroup{uid: uid, dir: dir, id: id.ino}
	t.pods[dir] = p
	t.mu.Lock()
	t.uids[uid] = p
	t.mu.Unlock()
	t.watch(dir)
	t.tell(p)
	t.lookEagerly(p)
}

// watch has the kernel tell what happens in a directory. To watch one again does
// nothing.
func (t *tree) watch(dir string) {
	if t.watcher == nil {
		return
	}
	err := t.watcher.Add(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return // what is not there (any more) needs no watch
	}
	if !t.blind {
		t.log.Warn("not every pod's cgroup can be watched, looking at them instead; raise fs.inotify.max_user_watches", "err", err)
	}
	t.blind = true
}

func (t *tree) dropIfGone(p *podCgroup) {
	if id, err := identify(p.dir); err != nil || id.ino != p.id {
		t.drop(p)
		if err == nil {
			t.enter(filepath.Dir(p.dir), filepath.Base(p.dir))
		}
	}
}

func (t *tree) drop(p *podCgroup) {
	delete(t.pods, p.dir)
	delete(t.looking, p)
	t.mu.Lock()
	if t.uids[p.uid] == p {
		delete(t.uids, p.uid)
	}
	ns := p.ns
	p.ns = nil
	t.mu.Unlock()
	if ns != nil {
		unix.Close(ns.fd)
	}
	t.tell(p)
}

// tell says that something about p has changed.
func (t *tree) tell(p *podCgroup) {
	t.mu.Lock()
	wanted := t.wanted[p.uid] != nil
	t.mu.Unlock()
	if wanted {
		t.changed()
	}
}
