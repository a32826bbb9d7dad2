// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// newSuffix ends the name of a pin until it is renamed over its predecessor. (bpffs
// allows no dots.)
const newSuffix = "_new"

// publish puts the programs of k.objs, whose maps are filled, where traffic
// meets them.
func (k *Kernel) publish() error {
	for _, p := range flowPrograms {
		if err := k.publishFlow(p); err != nil {
			return err
		}
	}
	if err := k.objs.pin(k.dir); err != nil {
		return err
	}
	if k.drained {
		return nil
	}
	// After flow, so that they run after flow: of one cgroup, the kernel runs the
	// program first that was attached first.
	for _, p := range capturePrograms {
		if err := k.publishCapture(p); err != nil {
			return err
		}
	}
	k.disinherit()
	return nil
}

// pin pins all maps, unless they are already.
func (o *objects) pin(dir string) error {
	if o.pinned {
		return nil
	}
	for _, name := range mapNames {
		// A duplicate, because a Map that was pinned once is moved by Pin, not pinned.
		m, err := o.maps[name].Clone()
		if err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
		if err := errors.Join(replacePin(filepath.Join(dir, name), m.Pin), m.Close()); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	o.pinned = true
	return nil
}

// publishFlow lets a program take the place of its predecessor in the pinned
// link, so that there is no moment without either. Where there is no such link,
// or it is another cgroup's, a new one is made.
func (k *Kernel) publishFlow(p program) error {
	path := filepath.Join(k.dir, p.name)
	old := k.flow[p.name]
	if old == nil {
		var err error
		old, err = link.LoadPinnedLink(path, nil)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("open link %s: %w", path, err)
		}
	}
	if old != nil {
		k.flow[p.name] = old
		if k.attachedHere(old) {
			if err := old.Update(k.objs.programs[p.name]); err != nil {
				return fmt.Errorf("update link %s: %w", path, err)
			}
			return nil
		}
		k.log.Warn("pinned link belongs to a cgroup that is gone or not the configured one; replacing it", "link", p.name)
	}

	l, err := k.attach(p)
	if err != nil {
		return err
	}
	if err := replacePin(path, l.Pin); err != nil {
		l.Close()
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	k.flow[p.name] = l
	if old != nil {
		// Its pin is gone, so this detaches it from where it was.
		return old.Close()
	}
	return nil
}

func (k *Kernel) publishCapture(p program) error {
	if old := k.capture[p.name]; old != nil {
		if k.attachedHere(old) {
			if err := old.Update(k.objs.programs[p.name]); err != nil {
				return fmt.Errorf("update link of %s: %w", p.name, err)
			}
			return nil
		}
		delete(k.capture, p.name)
		if err := old.Close(); err != nil {
			return err
		}
	}
	l, err := k.attach(p)
	if err != nil {
		return err
	}
	k.capture[p.name] = l
	// Only now can two agents that started at the same time see each other.
	return k.refuseForeign()
}

// attachedHere reports whether a link is attached to the configured cgroup. One
// whose cgroup was removed has the id zero.
func (k *Kernel) attachedHere(l link.Link) bool {
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == k.cgroup
}

// followCgroup attaches everything anew when the cgroup's directory was removed
// and made again, as a container runtime's restart may do: links to the old one
// stay, look healthy, and see no traffic.
func (k *Kernel) followCgroup() error {
	if !k.published {
		return nil
	}
	id, err := cgroupID(k.cfg.Cgroup)
	if err != nil {
		return err
	}
	if id == k.cgroup {
		return nil
	}
	k.log.Warn("the cgroup was replaced; attaching to the new one", "cgroup", k.cfg.Cgroup)
	k.cgroup = id
	k.published = false
	if err := k.publish(); err != nil {
		return err
	}
	k.published = true
	return nil
}

// refuseForeign answers ErrRunning when capture programs that are not ours are
// attached to the cgroup. They are pinned nowhere, so their agent lives; with
// another bpffs than ours, or we would have met at the lock.
func (k *Kernel) refuseForeign() error {
	dir, err := os.Open(k.cfg.Cgroup)
	if err != nil {
		return fmt.Errorf("look for other agents: %w", err)
	}
	defer dir.Close()
	for _, p := range capturePrograms {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: p.attach})
		if err != nil {
			return fmt.Errorf("look for other agents: %w", err)
		}
		foreign := 0
		for _, a := range res.Programs {
			if programName(a.ID) == p.name && !k.legacyProgram(a.ID) {
				foreign++
			}
		}
		if k.capture[p.name] != nil {
			foreign--
		}
		if foreign > 0 {
			return fmt.Errorf("%w: its program %s is attached to cgroup %s; stop it first", ErrRunning, p.name, k.cfg.Cgroup)
		}
	}
	return nil
}

// programName returns the name of a loaded program, or nothing when it has gone.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}

// replacePin pins something in one step in the place of whatever is pinned at
// path.
func replacePin(path string, pin func(string) error) error {
	if err := pin(path + newSuffix); err != nil {
		return err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return errors.Join(err, os.Remove(path+newSuffix))
	}
	return nil
}

// removeLeftovers removes pins that an agent was about to rename as it died.
func removeLeftovers(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), newSuffix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove leftover: %w", err)
			}
		}
	}
	return nil
}
