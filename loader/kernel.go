// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// firstLease is the lease that programs are published with: long enough for an
// agent to come up and renew it.
const firstLease = 3 * time.Minute

// Kernel is the agent's hold on the kernel. See the package's comment.
type Kernel struct {
	cfg  Config
	log  *slog.Logger
	dir  string   // of our pins
	lock *os.File // on dir
	// cgroup2 is the root of cgroup2 where it is mounted nowhere, or nil.
	cgroup2 *os.File

	// life is held for reading by every method, and for writing by Close.
	life   sync.RWMutex
	closed bool

	// first is the set that was loaded first: its maps that hold more than a
	// table serve all later sets, too. Never changes.
	first *objects

	applying  sync.Mutex // guards what follows; held while the kernel is written to
	objs      *objects
	applied   *routing.Table // nil: objs' maps are empty
	size      routing.Size   // of applied
	published bool
	damaged   bool // a write failed half-way: objs' maps are neither the old table nor the new
	drained   bool // DetachCapture was called
	yielded   bool // another agent acts
	cgroup    uint64
	flow      map[string]link.Link // by program name
	capture   map[string]link.Link

	steering  sync.Mutex // guards listeners and sd_namespaces
	listeners map[routing.Cookie]Listener
}

// Open checks that this is the only agent, and loads programs and maps. It
// attaches nothing: that is done by the first Apply. Errors wrap ErrRunning when
// there is another agent.
func Open(cfg Config) (k *Kernel, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	k = &Kernel{
		cfg:       cfg,
		log:       cfg.Logger,
		dir:       pinDir(cfg.BPFFS),
		flow:      map[string]link.Link{},
		capture:   map[string]link.Link{},
		listeners: map[routing.Cookie]Listener{},
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
			k = nil
		}
	}()

	if k.cfg.Cgroup == "" {
		k.cfg.Cgroup, err = cgroup2Root()
		if errors.Is(err, errNoCgroup2) {
			if k.cgroup2, err = openCgroup2(); err == nil {
				k.cfg.Cgroup = pathOf(k.cgroup2)
			}
		}
		if err != nil {
			return k, err
		}
	}
	if k.cgroup, err = cgroupID(k.cfg.Cgroup); err != nil {
		return k, err
	}
	if err := mountBPFFS(cfg.BPFFS, cfg.NoMount); err != nil {
		return k, err
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return k, fmt.Errorf("make the directory of pins: %w", err)
	}
	if cfg.Legacy != nil {
		if err := k.inherit(cfg.Legacy); err != nil {
			return k, err
		}
	} else {
		if k.lock, err = lockDir(k.dir); err != nil {
			return k, err
		}
		// Under the lock, so whoever left them is gone.
		if err := removeLeftovers(k.dir); err != nil {
			return k, err
		}
		if err := wait(func() error { return k.refuseForeign() }); err != nil {
			return k, err
		}
	}
	if k.first, err = k.cfg.loadFirst(k.dir, k.log); err != nil {
		return k, errors.Join(err, unmet(k.cfg))
	}
	k.objs = k.first
	return k, k.renew(firstLease)
}

// loadFirst loads a set with the maps that are taken over from an earlier agent.
func (c Config) loadFirst(dir string, log *slog.Logger) (*objects, error) {
	spec, err := c.spec()
	if err != nil {
		return nil, err
	}
	keep, unfit := inheritedMaps(dir, spec)
	defer func() {
		for _, m := range keep {
			m.Close() // the set has clones
		}
	}()
	for _, name := range unfit {
		log.Warn("map of the earlier agent does not fit; open sockets may be shown endpoints instead of what they dialled", "map", name)
	}
	return c.load(keep)
}

// do runs f unless the Kernel is closed.
func (k *Kernel) do(f func() error) error {
	k.life.RLock()
	defer k.life.RUnlock()
	if k.closed {
		return os.ErrClosed
	}
	return f()
}

// kept returns a map that serves all sets.
func (k *Kernel) kept(name string) *ebpf.Map { return k.first.maps[name] }

// RenewLease lets the flow programs act for another d from now. Without it they
// let everything pass when the lease is over. Should the cgroup have been
// replaced meanwhile, the programs are attached to the new one.
func (k *Kernel) RenewLease(d time.Duration) error {
	return k.do(func() error {
		if err := k.renew(d); err != nil {
			return err
		}
		// An Apply that is under way looks after the cgroup itself.
		if !k.applying.TryLock() {
			return nil
		}
		defer k.applying.Unlock()
		return k.followCgroup()
	})
}

func (k *Kernel) renew(d time.Duration) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	until := uint64(now.Nano() + d.Nanoseconds())
	if err := k.kept(bpf.SdMapSdLease).Put(uint32(0), until); err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	return nil
}

// DetachCapture takes the capture programs off, for good: from now on new
// connections go to the baseline, or by flow redirects, and none to the router.
func (k *Kernel) DetachCapture() error {
	return k.do(func() error {
		k.applying.Lock()
		defer k.applying.Unlock()
		k.drained = true
		return k.detachCapture()
	})
}

func (k *Kernel) detachCapture() error {
	var errs []error
	for _, p := range capturePrograms {
		if l := k.capture[p.name]; l != nil {
			errs = append(errs, l.Close())
			delete(k.capture, p.name)
		}
	}
	return errors.Join(errs...)
}

// Close takes the capture programs off and lets go of everything else: flow
// redirects go on by their pins. It is safe after an Open that failed half-way
// and when called twice.
func (k *Kernel) Close() error {
	k.life.Lock()
	defer k.life.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	errs := []error{k.detachCapture()}
	for _, l := range k.flow {
		errs = append(errs, l.Close())
	}
	if k.objs != nil && k.objs != k.first {
		errs = append(errs, k.objs.Close())
	}
	if k.first != nil {
		errs = append(errs, k.first.Close())
	}
	if k.cgroup2 != nil {
		errs = append(errs, k.cgroup2.Close())
	}
	// Last: only now may the next agent come.
	if k.lock != nil {
		errs = append(errs, k.lock.Close())
	}
	return errors.Join(errs...)
}
