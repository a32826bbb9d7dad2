// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Inventory lists what a program may leave behind: one line for each thing.
type Inventory map[string]bool

// Take lists named network namespaces, cgroups, BPF programs and maps whose
// names begin with one of the prefixes, whatever is pinned in the bpffs given
// (may be empty), and this process's descriptors.
func Take(bpffs string, prefixes ...string) (Inventory, error) {
	inv := Inventory{}
	match := func(name string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	entries, err := os.ReadDir(NetnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for _, e := range entries {
		if match(e.Name()) {
			inv["netns "+e.Name()] = true
		}
	}
	root, err := Cgroup2()
	if err != nil {
		return nil, err
	}
	if err := inv.walk("cgroup", root, func(path string, d fs.DirEntry) bool { return d.IsDir() && match(filepath.Base(path)) }); err != nil {
		return nil, err
	}
	if bpffs != "" {
		if err := inv.walk("pin", bpffs, func(_ string, d fs.DirEntry) bool { return !d.IsDir() }); err != nil {
			return nil, err
		}
	}
	for _, k := range []objectKind{bpfPrograms, bpfMaps} {
		if err := inv.objects(k, match); err != nil {
			return nil, err
		}
	}
	if err := inv.descriptors(); err != nil {
		return nil, err
	}
	return inv, nil
}

// Since returns what is in inv and was not in before, sorted.
func (inv Inventory) Since(before Inventory) []string {
	var more []string
	for _, line := range slices.Sorted(maps.Keys(inv)) {
		if !before[line] {
			more = append(more, line)
		}
	}
	return more
}

// NoLeaks registers a check that runs when the test is over, after what is
// registered later: nothing that Take lists has come to stay. The kernel frees
// some things a little later than they are closed, so the check is patient.
func NoLeaks(tb TB, bpffs string, prefixes ...string) {
	tb.Helper()
	before, err := Take(bpffs, prefixes...)
	if err != nil {
		tb.Fatalf("take the inventory: %v", err)
	}
	tb.Cleanup(func() {
		tb.Helper()
		err := eventually(20*time.Second, func() error {
			after, err := Take(bpffs, prefixes...)
			if err != nil {
				return err
			}
			if more := after.Since(before); len(more) > 0 {
				return fmt.Errorf("left behind:\n\t%s", strings.Join(more, "\n\t"))
			}
			return nil
		})
		if err != nil {
			tb.Errorf("%v", err)
		}
	})
}

func (inv Inventory) walk(kind, root string, want func(string, fs.DirEntry) bool) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case want(path, d):
			inv[kind+" "+path] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", root, err)
	}
	return nil
}

// descriptors lists this process's open files.
func (inv Inventory) descriptors() error {
	// The runtime opens its own two with the first file that can be polled.
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	r.Close()
	w.Close()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue // the descriptor that this list is read from
		}
		inv["descriptor "+e.Name()+" "+target] = true
	}
	return nil
}

// objectKind is a kind of object that bpf(2) numbers.
type objectKind struct {
	name       string
	next, open int // commands
	nameOffset int // of the name in struct bpf_prog_info, bpf_map_info
}

var (
	bpfPrograms = objectKind{"program", unix.BPF_PROG_GET_NEXT_ID, unix.BPF_PROG_GET_FD_BY_ID, 64}
	bpfMaps     = objectKind{"map", unix.BPF_MAP_GET_NEXT_ID, unix.BPF_MAP_GET_FD_BY_ID, 24}
)

// objects asks the kernel itself, because this package must not share the code
// that it is a check of.
func (inv Inventory) objects(k objectKind, match func(string) bool) error {
	for id := uint32(0); ; {
		ids := struct{ start, next, flags uint32 }{start: id}
		_, err := bpf(k.next, unsafe.Pointer(&ids), unsafe.Sizeof(ids))
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list BPF %ss: %w", k.name, err)
		}
		id = ids.next
		name, err := k.nameOf(id)
		if errors.Is(err, unix.ENOENT) {
			continue // freed meanwhile
		}
		if err != nil {
			return fmt.Errorf("look at BPF %s %d: %w", k.name, id, err)
		}
		if match(name) {
			inv[fmt.Sprintf("%s %d %s", k.name, id, name)] = true
		}
	}
}

func (k objectKind) nameOf(id uint32) (string, error) {
	open := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(k.open, unsafe.Pointer(&open), unsafe.Sizeof(open))
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	info := new([256]byte)
	var pin runtime.Pinner // the kernel gets its address as a number
	pin.Pin(info)
	defer pin.Unpin()
	ask := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(len(info)), uint64(uintptr(unsafe.Pointer(info)))}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(info[k.nameOffset : k.nameOffset+unix.BPF_OBJ_NAME_LEN]), nil
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
