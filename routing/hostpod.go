// SPDX-License-Identifier: Apache-2.0

package routing

// hostPod is a bit that no namespace's cookie has: these count up from one.
const hostPod Cookie = 1 << 63

// HostPod returns what stands for the source of a pod on the host's network. It has
// no namespace of its own, so it is known by the id of its cgroup (version 2),
// which every process of its containers is below. The kernel's programs make the
// same of it.
func HostPod(cgroup uint64) Cookie { return Cookie(cgroup) | hostPod }

// IsHostPod reports whether c is HostPod's.
func (c Cookie) IsHostPod() bool { return c&hostPod != 0 }
