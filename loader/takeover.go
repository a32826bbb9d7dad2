// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// One agent takes over from another that runs. Both have their own maps and
// programs in the kernel; what passes from one to the other are the pinned flow
// links and the lock:
//
//	old.Legacy         what the new one must know, and the lock itself
//	new: Open, Apply   as ever, but beside the old one. The flow links get the
//	                   new programs, the new capture programs are attached
//	                   after the old ones, which are taken off then
//	old.Yield          nothing of the old one acts any more; it keeps its maps up
//	                   to date all the same,
//	old.Resume         so that it can be the one that acts again, when the new one
//	                   is gone, however far that got

// Legacy is what a running agent tells the one that takes over from it.
type Legacy struct {
	// Lock is the running agent's lock on its pins. It is one lock however many
	// processes have it open, and ends with the last of them.
	Lock *os.File
	// CapturePrograms and CaptureLinks are the ids of what the running agent has
	// attached, and will have taken off.
	CapturePrograms, CaptureLinks []uint32
}

// Legacy returns what an agent needs that takes over from this one. The caller
// closes the Lock. An agent that has not been in force will not be, from here
// on, before Resume: the other one could not know of its programs.
func (k *Kernel) Legacy() (l *Legacy, err error) {
	err = k.do(func() error {
		k.applying.Lock()
		defer k.applying.Unlock()
		if k.lock == nil {
			return errors.New("another agent acts")
		}
		if !k.published {
			k.yielded = true
		}
		l = &Legacy{}
		for _, p := range capturePrograms {
			c := k.capture[p.name]
			if c == nil {
				continue
			}
			info, err := c.Info()
			if err != nil {
				return fmt.Errorf("look at link of %s: %w", p.name, err)
			}
			l.CapturePrograms = append(l.CapturePrograms, uint32(info.Program))
			l.CaptureLinks = append(l.CaptureLinks, uint32(info.ID))
		}
		fd, err := unix.FcntlInt(k.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("duplicate the lock: %w", err)
		}
		l.Lock = os.NewFile(uintptr(fd), k.dir)
		return nil
	})
	return l, err
}

// inherit takes over a running agent's lock.
func (k *Kernel) inherit(l *Legacy) error {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(l.Lock.Fd()), &theirs); err != nil {
		return fmt.Errorf("look at the running agent's lock: %w", err)
	}
	if err := unix.Stat(k.dir, &ours); err != nil {
		return fmt.Errorf("look at the directory of pins: %w", err)
	}
	if theirs.Dev != ours.Dev || theirs.Ino != ours.Ino {
		return fmt.Errorf("%w, with its pins elsewhere than in %s: use the same --bpffs, or stop it first", ErrRunning, k.dir)
	}
	fd, err := unix.FcntlInt(l.Lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate the running agent's lock: %w", err)
	}
	k.lock = os.NewFile(uintptr(fd), k.dir)
	return nil
}

// disinherit takes the old agent's capture programs off, now that ours are
// attached. It does that itself when it hears of it, but it might be stuck.
func (k *Kernel) disinherit() {
	l := k.cfg.Legacy
	if l == nil {
		return
	}
	k.cfg.Legacy = nil
	for _, id := range l.CaptureLinks {
		old, err := link.NewFromID(link.ID(id))
		if errors.Is(err, os.ErrNotExist) {
			continue // it was quicker
		}
		if err == nil {
			err = errors.Join(old.Detach(), old.Close())
		}
		if err != nil && !errors.Is(err, unix.ENOLINK) {
			k.log.Warn("the earlier agent's capture program is not taken off; it does that by itself", "err", err)
		}
	}
}

// legacyProgram reports whether an attached program is one that the agent before
// us will take off.
func (k *Kernel) legacyProgram(id ebpf.ProgramID) bool {
	if k.cfg.Legacy == nil {
		return false
	}
	for _, p := range k.cfg.Legacy.CapturePrograms {
		if ebpf.ProgramID(p) == id {
			return true
		}
	}
	return false
}

// Yield ends this agent's part in the kernel: another one acts. Apply,
// SetNamespaces and RenewLease go on to work on maps that nobody looks at.
func (k *Kernel) Yield() error {
	return k.do(func() error {
		k.applying.Lock()
		defer k.applying.Unlock()
		k.yielded, k.published = true, false
		errs := []error{k.detachCapture()}
		// Their pins are the other agent's, and so is the lock.
		errs = append(errs, k.closeFlow())
		if k.lock != nil {
			errs = append(errs, k.lock.Close())
			k.lock = nil
		}
		return errors.Join(errs...)
	})
}

// Resume makes this agent the one that acts after another one has taken over, or
// had begun to, and is gone. It answers ErrRunning while there is one.
func (k *Kernel) Resume() error {
	return k.do(func() error {
		k.applying.Lock()
		defer k.applying.Unlock()
		if k.lock == nil {
			f, err := tryLockDir(k.dir)
			if err != nil {
				return err
			}
			k.lock = f
		}
		err := k.republish()
		if err != nil && k.yielded {
			// Another agent may be luckier.
			err = errors.Join(err, k.detachCapture(), k.closeFlow(), k.lock.Close())
			k.lock = nil
		}
		return err
	})
}

// republish puts the present programs where traffic meets them, whosever are
// there now.
func (k *Kernel) republish() error {
	if k.applied == nil {
		k.yielded = false
		return nil // the first Apply publishes
	}
	if err := errors.Join(k.closeFlow(), removeLeftovers(k.dir)); err != nil {
		return err
	}
	k.objs.pinned = false
	for name, l := range k.capture {
		if !k.attachedHere(l) {
			// The other agent has taken it off.
			delete(k.capture, name)
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	// A process that was killed a moment ago still has its links.
	if err := wait(k.refuseForeign); err != nil {
		return err
	}
	k.published = false
	if err := k.publish(); err != nil {
		return err
	}
	k.yielded, k.published = false, true
	return nil
}

func (k *Kernel) closeFlow() error {
	var errs []error
	for name, l := range k.flow {
		errs = append(errs, l.Close())
		delete(k.flow, name)
	}
	return errors.Join(errs...)
}
