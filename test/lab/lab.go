// SPDX-License-Identifier: Apache-2.0

// Package lab builds small worlds to send real traffic in: network namespaces
// that stand for pods, joined by a bridge in a namespace of its own, with a
// cgroup and a bpffs beside them. Tests, the demo and the benchmarks use it.
//
// It owns what it makes and takes it away again, also after a failure half-way.
// It never adds an interface, an address, a route or a rule to the host's own
// network namespace, needs no command (only DNAT wants nft), and knows nothing
// of Sidetrack.
//
// A World and its pods may be used from several goroutines, except that Close
// must be the last call.
//
// Importing the package has an effect on the program: see Pod.Command.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetnsDir is where network namespaces have names, as iproute2 has it.
const NetnsDir = "/var/run/netns"

// Every pod has an address in each of these; the last bytes count the pods.
var (
	podNet4 = netip.MustParsePrefix("10.77.0.0/16")
	podNet6 = netip.MustParsePrefix("fd77::/64")
)

const (
	bridge    = "fabric"
	bpffsName = "bpf" // in the world's folder
)

// World is one isolated world.
type World struct {
	// Name is the prefix of every name that the world takes on the host.
	Name string
	// Cgroup is the world's cgroup: the path of a directory in cgroup2. Programs
	// attached there see the traffic of all commands started by Pod.Command and,
	// after MoveSelf, of this process.
	Cgroup string
	// BPFFS is a bpffs of the world's own.
	BPFFS string

	dir    string
	fabric *Pod
	tb     TB

	mu      sync.Mutex
	pods    []*Pod
	nextPod int
	undo    []func() error
	home    string // cgroup.procs to go back to, after MoveSelf
	closed  bool
}

var worlds atomic.Int32

// NewWorld builds a world without pods. The name of each thing that it makes
// begins with prefix and this process's id, so that Sweep can tell whose it was.
func NewWorld(prefix string) (w *World, err error) {
	w = &World{Name: fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), worlds.Add(1))}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
			w = nil
		}
	}()
	if w.dir, err = os.MkdirTemp("", w.Name+"-"); err != nil {
		return w, fmt.Errorf("make the world's folder: %w", err)
	}
	w.onClose(func() error { return os.RemoveAll(w.dir) })
	if err := w.makeCgroup(); err != nil {
		return w, err
	}
	if err := w.mountBPFFS(); err != nil {
		return w, err
	}
	if w.fabric, err = w.newNamespace("fabric"); err != nil {
		return w, err
	}
	if err := w.makeBridge(); err != nil {
		return w, err
	}
	return w, nil
}

// Dir is a folder for files that live as long as the world.
func (w *World) Dir() string { return w.dir }

// Close takes away all that the world has made and kills every process that is
// still in its cgroup (but not this one, which goes back to where it was). It
// may be called more than once.
func (w *World) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	pods, undo := w.pods, w.undo
	w.pods, w.undo = nil, nil
	w.mu.Unlock()

	var errs []error
	// Processes first: they hold namespaces and sockets.
	errs = append(errs, w.killCgroup())
	for _, p := range slices.Backward(pods) {
		errs = append(errs, p.close())
	}
	if w.fabric != nil {
		errs = append(errs, w.fabric.close())
	}
	for _, f := range slices.Backward(undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// onClose registers what undoes a step. It runs after the pods are gone, last
// step first.
func (w *World) onClose(f func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.undo = append(w.undo, f)
}

func (w *World) mountBPFFS() error {
	dir := filepath.Join(w.dir, bpffsName)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the bpffs's mount point: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", dir, err)
	}
	w.BPFFS = dir
	w.onClose(func() error { return unmount(dir) })
	return nil
}

func (w *World) makeBridge() error {
	h, err := netlink.NewHandleAt(w.fabric.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the fabric: %w", err)
	}
	defer h.Close()
	// Without a querier a snooping bridge may drop neighbour solicitations.
	snooping := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}, MulticastSnooping: &snooping}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add the bridge (module bridge loaded?): %w", err)
	}
	if err := h.LinkSetUp(br); err != nil {
		return fmt.Errorf("set the bridge up: %w", err)
	}
	return nil
}
