// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// pollInterval is how often the directory is looked at without a
	// notification: some file systems send none, and symbolic links may lead
	// anywhere.
	pollInterval = 500 * time.Millisecond
	// pollRest is how many times as long as a look took the next one is put off:
	// looking at a hundred thousand files must not be all that is done.
	pollRest = 20
	// settleTime is how long the directory has to be quiet before it is read, so
	// that a file is not read while it is being written; settleLimit bounds the
	// wait when it never is.
	settleTime  = 40 * time.Millisecond
	settleLimit = 100 * time.Millisecond
	// emptyTime is how long a file that had something in it has to be empty before
	// that is believed: who writes a file in place empties it first.
	emptyTime = 300 * time.Millisecond
)

// Manifests is a directory of Kubernetes objects in YAML files.
type Manifests struct {
	dir   string
	log   *slog.Logger
	files map[string]*file
	dirID fileID
	gone  bool // the directory is not there now

	watcher *fsnotify.Watcher // nil when there can be none
	out     chan Snapshot
	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once
}

// signature tells a file's states apart without reading it.
type signature struct {
	id           fileID
	size         int64
	mtime, ctime syscall.Timespec
}

type fileID struct{ dev, ino uint64 }

func sign(info fs.FileInfo) signature {
	st := info.Sys().(*syscall.Stat_t)
	return signature{fileID{uint64(st.Dev), st.Ino}, st.Size, st.Mtim, st.Ctim}
}

// OpenManifests reads every *.yaml file in dir and goes on to watch it. The
// first Snapshot is on the channel when it returns.
//
// A file that cannot be used keeps its own last good state and does not touch
// the others'. A file that is deleted takes its objects with it; a directory
// that disappears as a whole does not, and is found again when it comes back.
func OpenManifests(dir string, log *slog.Logger) (*Manifests, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("manifests: there is no directory %s: create it or correct --manifests", dir)
	case err != nil:
		return nil, fmt.Errorf("manifests: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("manifests: %s is not a directory: name the directory that the files are in", dir)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	m := &Manifests{
		dir:   dir,
		log:   log,
		files: map[string]*file{},
		out:   make(chan Snapshot, 1),
		stop:  make(chan struct{}),
	}
	if m.watcher, err = fsnotify.NewWatcher(); err != nil {
		m.watcher = nil
		log.Warn("no notifications of changed files, polling instead", "err", err)
	} else if err := m.watcher.Add(filepath.Dir(dir)); err != nil {
		log.Debug("parent of the manifests' directory is not watched", "err", err)
	}
	m.scan()
	runtime.GC() // parsers leave fifty times what is kept
	m.publish()
	m.stopped.Go(m.run)
	return m, nil
}

// Snapshots is where each change arrives. One that nobody has taken yet is
// replaced by the next.
func (m *Manifests) Snapshots() <-chan Snapshot { return m.out }

// Close ends watching. No Snapshot comes afterwards.
func (m *Manifests) Close() error {
	m.once.Do(func() { close(m.stop) })
	m.stopped.Wait()
	if m.watcher != nil {
		return m.watcher.Close()
	}
	return nil
}

func (m *Manifests) run() {
	poll := time.NewTimer(pollInterval)
	defer poll.Stop()
	var events chan fsnotify.Event
	var errs chan error
	if m.watcher != nil {
		events, errs = m.watcher.Events, m.watcher.Errors
	}
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	var since time.Time // when the first change of this round was noticed
	touched := func() {
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		quiet.Reset(max(0, min(settleTime, settleLimit-now.Sub(since))))
	}
	for {
		select {
		case <-m.stop:
			return
		case e := <-events:
			if e.Name == m.dir || filepath.Dir(e.Name) == m.dir {
				touched()
			}
		case err := <-errs:
			// An overflow, most likely: whatever was lost, a look finds it.
			m.log.Debug("watching the manifests", "err", err)
			touched()
		case <-poll.C:
			began := time.Now()
			if since.IsZero() && m.stale() {
				touched()
			}
			poll.Reset(max(pollInterval, pollRest*time.Since(began)))
		case <-quiet.C:
			since = time.Time{}
			if m.scan() {
				m.publish()
			}
		}
	}
}

func (m *Manifests) publish() {
	s := snapshot(m.files)
	if m.gone {
		s.Problems = append([]Problem{{Refused: true, Problem: routing.Problem{
			Message: fmt.Sprintf("the manifests' directory %s is gone: what was in it last stays in force until it is back", m.dir),
		}}}, s.Problems...)
	}
	select {
	case <-m.out:
	default:
	}
	m.out <- s
}

// list returns the manifest files that are there now.
func (m *Manifests) list() (map[string]signature, fileID, error) {
	info, err := os.Stat(m.dir)
	if err != nil {
		return nil, fileID{}, err
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fileID{}, err
	}
	found := map[string]signature{}
	for _, e := range entries {
		// Editors' lock files and a ConfigMap's inner folders begin with a dot.
		if filepath.Ext(e.Name()) != ".yaml" || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		// Through symbolic links: a ConfigMap's files are such.
		info, err := os.Stat(filepath.Join(m.dir, e.Name()))
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		found[e.Name()] = sign(info)
	}
	return found, sign(info).id, nil
}

// stale reports whether the directory is not as it was last read.
func (m *Manifests) stale() bool {
	found, id, err := m.list()
	if err != nil {
		return !m.gone
	}
	if m.gone || id != m.dirID || len(found) != len(m.files) {
		return true
	}
	for name, sig := range found {
		if f := m.files[name]; f == nil || f.stat != sig {
			return true
		}
	}
	return false
}

// scan reads what has changed and reports whether anything has.
func (m *Manifests) scan() bool {
	found, id, err := m.list()
	if err != nil {
		was := m.gone
		m.gone = true
		return !was
	}
	changed := m.gone
	m.gone = false
	if id != m.dirID {
		m.dirID = id
		m.watch()
		// What was written between list and watch would be noticed by the poll
		// alone.
		if again, _, err := m.list(); err == nil {
			found = again
		}
	}
	for name := range m.files {
		if _, there := found[name]; !there {
			delete(m.files, name)
			changed = true
		}
	}
	for name, sig := range found {
		f := m.files[name]
		if f == nil {
			f = &file{name: name}
			m.files[name] = f
		}
		if f.stat == sig {
			continue
		}
		if sig.size > 0 || f.stat.size == 0 {
			f.emptied = time.Time{}
		} else if f.emptied.IsZero() {
			f.emptied = time.Now()
		}
		if !f.emptied.IsZero() && time.Since(f.emptied) < emptyTime {
			continue // the next poll finds it changed still
		}
		changed = true
		f.stat = sig
		if err := m.read(f); err != nil {
			f.unreadable = fmt.Sprintf("cannot be read: %v", err)
		}
	}
	if changed {
		settle(m.files)
	}
	return changed
}

// read reads a file. One that is written to meanwhile has another signature by
// the next look, which reads it again.
func (m *Manifests) read(f *file) error {
	h, err := os.Open(filepath.Join(m.dir, f.name))
	if err != nil {
		return err
	}
	defer h.Close()
	info, err := h.Stat()
	if err != nil {
		return err
	}
	text := bytes.NewBuffer(make([]byte, 0, info.Size()+bytes.MinRead))
	if _, err := text.ReadFrom(h); err != nil {
		return err
	}
	f.stat = sign(info)
	f.parse(text.Bytes())
	return nil
}

// watch has the directory that is there now watched; its predecessor's watch may
// have moved away with it.
func (m *Manifests) watch() {
	if m.watcher == nil {
		return
	}
	_ = m.watcher.Remove(m.dir) // there may be none
	if err := m.watcher.Add(m.dir); err != nil {
		m.log.Warn("manifests' directory is not watched, polling instead", "err", err)
	}
}
