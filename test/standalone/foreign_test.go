// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The attach types of the programs that Sidetrack and its neighbours use.
var attachTypes = map[string]uint32{
	"connect4": unix.BPF_CGROUP_INET4_CONNECT, "connect6": unix.BPF_CGROUP_INET6_CONNECT,
	"sendmsg4": unix.BPF_CGROUP_UDP4_SENDMSG, "sendmsg6": unix.BPF_CGROUP_UDP6_SENDMSG,
	"recvmsg4": unix.BPF_CGROUP_UDP4_RECVMSG, "recvmsg6": unix.BPF_CGROUP_UDP6_RECVMSG,
	"getpeername4": unix.BPF_CGROUP_INET4_GETPEERNAME, "getpeername6": unix.BPF_CGROUP_INET6_GETPEERNAME,
}

// bpf is bpf(2). What attr points to must be pinned where it contains addresses.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// foreign is another program's cgroup program: it allows everything. This
// package asks the kernel itself, because it must not share code with what it
// tests.
type foreign struct {
	name       string
	attachType uint32
	fd         int
	id         uint32
}

// loadForeign loads "return 1" for an attach type.
func loadForeign(t *testing.T, name string, attachType uint32) *foreign {
	t.Helper()
	insns := [2]struct {
		code, regs uint8
		off        int16
		imm        int32
	}{
		{0xb7, 0, 0, 1}, // r0 = 1
		{0x95, 0, 0, 0}, // exit
	}
	license := [4]byte{'G', 'P', 'L'}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&insns)
	pin.Pin(&license)
	attr := struct {
		progType, count  uint32
		insns, license   uint64
		logLevel, logLen uint32
		log              uint64
		kernel, flags    uint32
		name             [16]byte
		ifindex, expect  uint32
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, count: uint32(len(insns)),
		insns: uint64(uintptr(unsafe.Pointer(&insns))), license: uint64(uintptr(unsafe.Pointer(&license))),
		expect: attachType,
	}
	copy(attr.name[:], "other")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		t.Fatalf("load another program for %s: %v", name, err)
	}
	f := &foreign{name: name, attachType: attachType, fd: fd}
	t.Cleanup(func() { unix.Close(fd) })
	info := new([128]byte)
	pin.Pin(info)
	ask := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(len(info)), uint64(uintptr(unsafe.Pointer(info)))}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
		t.Fatal(err)
	}
	f.id = *(*uint32)(unsafe.Pointer(&info[4]))
	return f
}

// attach attaches the program to a cgroup, beside others.
func (f *foreign) attach(t *testing.T, cgroup string) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	attr := struct{ target, prog, attachType, flags uint32 }{uint32(dir.Fd()), uint32(f.fd), f.attachType, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		t.Fatalf("attach another program to %s: %v", f.name, err)
	}
	t.Cleanup(func() {
		dir, err := os.Open(cgroup)
		if err != nil {
			return // the cgroup has gone, and the program with it
		}
		defer dir.Close()
		attr.target = uint32(dir.Fd())
		_, _ = bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)) // the same
	})
}

// pin gives the program a name in a bpffs.
func (f *foreign) pin(t *testing.T, path string) {
	t.Helper()
	name := append([]byte(path), 0)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&name[0])
	attr := struct {
		path      uint64
		fd, flags uint32
	}{uint64(uintptr(unsafe.Pointer(&name[0]))), uint32(f.fd), 0}
	if _, err := bpf(unix.BPF_OBJ_PIN, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		t.Fatalf("pin another program: %v", err)
	}
}

// attached lists the ids of the programs on a cgroup, by attach type.
func attached(t *testing.T, cgroup string) map[string][]uint32 {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	all := map[string][]uint32{}
	for name, attachType := range attachTypes {
		ids := new([64]uint32)
		var pin runtime.Pinner
		pin.Pin(ids)
		attr := struct {
			target, attachType, queryFlags, attachFlags uint32
			ids                                         uint64
			count, pad                                  uint32
			flags                                       uint64
		}{target: uint32(dir.Fd()), attachType: attachType, ids: uint64(uintptr(unsafe.Pointer(ids))), count: uint32(len(ids))}
		_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		pin.Unpin()
		if err != nil {
			t.Fatalf("ask what is attached to %s: %v", name, err)
		}
		all[name] = slices.Clone(ids[:attr.count])
	}
	return all
}

// countAttached is attached without the ids, which change.
func countAttached(t *testing.T, cgroup string) map[string]int {
	t.Helper()
	n := map[string]int{}
	for name, ids := range attached(t, cgroup) {
		n[name] = len(ids)
	}
	return n
}

// neighbours attaches another program everywhere and pins one. The check that
// it returns says whether all are still there.
func neighbours(t *testing.T, s *shop) func() error {
	t.Helper()
	var all []*foreign
	for name, attachType := range attachTypes {
		f := loadForeign(t, name, attachType)
		f.attach(t, s.Cgroup)
		all = append(all, f)
	}
	if err := os.MkdirAll(s.BPFFS+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	paths := []string{s.BPFFS + "/sd_other", s.BPFFS + "/other/prog"}
	for _, path := range paths {
		all[0].pin(t, path)
	}
	return func() error {
		var errs []error
		now := attached(t, s.Cgroup)
		for _, f := range all {
			if !slices.Contains(now[f.name], f.id) {
				errs = append(errs, fmt.Errorf("another program's %s is not attached any more", f.name))
			}
		}
		for _, path := range paths {
			if _, err := os.Stat(path); err != nil {
				errs = append(errs, fmt.Errorf("another program's pin: %w", err))
			}
		}
		return errors.Join(errs...)
	}
}
