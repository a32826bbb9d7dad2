// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attach attaches a program to the configured cgroup, by default after those that
// are there already.
//
// A socket load balancer that was there before us has rewritten a connection's
// destination when we see it. So on the way back we have to come before it: we
// show it the address that it has chosen, and it shows the application the one
// that this has dialled. Newer kernels (mainline's 6.17) let programs choose that; on others the
// application is shown what the balancer has chosen. (Those that decide must not come
// first: another program's refusal could not be told from ours any more, which
// capture undoes.)
func (k *Kernel) attach(p program) (link.Link, error) {
	var flags uint32
	if p.first {
		flags = unix.BPF_F_BEFORE
	}
	l, err := k.attachWith(p, flags)
	if p.first && errors.Is(err, unix.EINVAL) {
		l, err = k.attachWith(p, 0)
	}
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("attach %s to cgroup %s: %w (perhaps a program at it or above it was attached without BPF_F_ALLOW_MULTI; \"bpftool cgroup tree\" lists them)", p.name, k.cfg.Cgroup, err)
	}
	if err != nil {
		return nil, fmt.Errorf("attach %s to cgroup %s: %w", p.name, k.cfg.Cgroup, err)
	}
	return l, nil
}

func (k *Kernel) attachWith(p program, flags uint32) (link.Link, error) {
	dir, err := os.Open(k.cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{
		Target: int(dir.Fd()), Program: k.objs.programs[p.name], Attach: p.attach, Flags: flags,
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}
