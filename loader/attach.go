// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Where a program comes among others of the same cgroup and hook. Flow programs
// come first where the kernel lets them choose (Linux 6.17): then they see what the
// application has dialled, and it is shown that again, although a socket load
// balancer is there and was before us. Capture comes after flow in any case.
const (
	attachFirst = unix.BPF_F_BEFORE
	attachLast  = 0
)

// attach attaches a program to the configured cgroup.
func (k *Kernel) attach(p program, where uint32) (link.Link, error) {
	l, err := k.attachAt(p, where)
	if where != attachLast && errors.Is(err, unix.EINVAL) {
		l, err = k.attachAt(p, attachLast) // an older kernel
	}
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("attach %s to cgroup %s: %w (perhaps a program at it or above it was attached without BPF_F_ALLOW_MULTI; \"bpftool cgroup tree\" lists them)", p.name, k.cfg.Cgroup, err)
	}
	if err != nil {
		return nil, fmt.Errorf("attach %s to cgroup %s: %w", p.name, k.cfg.Cgroup, err)
	}
	return l, nil
}

func (k *Kernel) attachAt(p program, where uint32) (link.Link, error) {
	dir, err := os.Open(k.cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{
		Target: int(dir.Fd()), Program: k.objs.programs[p.name], Attach: p.attach, Flags: where,
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}
