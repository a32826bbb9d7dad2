// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Config is what a Kernel is opened with.
type Config struct {
	// Cgroup is the directory of the cgroup (v2) below which traffic is looked
	// at. Empty: the root of cgroup2, wherever that is mounted.
	Cgroup string
	// BPFFS is where the BPF file system is; it is mounted there when it is not,
	// unless NoMount is set: what a container mounts goes with the container, and
	// so would the pins.
	BPFFS   string
	NoMount bool
	// Mark is the SO_MARK of the agent's own sockets, which are left alone. The
	// default has no bit of kube-proxy's, Cilium's or Calico's.
	Mark uint32

	// HostPods has pods on the host's network told apart by their cgroups: see
	// routing.HostPod. The host's network is the one that Open is called in.
	HostPods bool

	// How many entries the maps have. What does not fit is an error that names
	// the flag in parentheses.
	MaxFlowRoutes   uint32 // sandboxes × Services they redirect (--max-flow-routes)
	MaxDestinations uint32 // addresses × ports of Services and their endpoints (--max-destinations)
	MaxBackends     uint32 // endpoints of redirects' targets (--max-backends)
	MaxIdentities   uint32 // sandboxes' pods on this node (--max-identities)
	MaxNamespaces   uint32 // pods on this node (--max-namespaces)
	// MaxUDPPeers bounds how many pairs of an unconnected UDP socket and a
	// redirected peer are remembered; the longest unused give way.
	MaxUDPPeers uint32 // (--max-udp-peers)

	// Legacy is what a running agent has said that this one takes over from; nil:
	// there is none.
	Legacy *Legacy

	Logger *slog.Logger // nil: nothing is logged
}

// DefaultConfig returns the settings that suit a node. A map costs 16 bytes for
// each entry it may have, and some 100 for each that it has.
func DefaultConfig() Config {
	return Config{
		BPFFS:           "/sys/fs/bpf",
		Mark:            0x3053,
		MaxFlowRoutes:   1 << 20,
		MaxDestinations: 1 << 18,
		MaxBackends:     1 << 20,
		MaxIdentities:   1 << 17,
		MaxNamespaces:   1 << 14,
		MaxUDPPeers:     1 << 16,
	}
}

// Validate reports settings that cannot work.
func (c Config) Validate() error {
	var errs []error
	if c.BPFFS == "" {
		errs = append(errs, errors.New("bpffs: a directory is needed, such as /sys/fs/bpf"))
	}
	if c.Mark == 0 {
		errs = append(errs, errors.New("mark: 0 is every socket's mark; choose another"))
	}
	for _, s := range []struct {
		flag       string
		value, max uint32
	}{
		{"--max-flow-routes", c.MaxFlowRoutes, 1 << 26},
		{"--max-destinations", c.MaxDestinations, uint32(routing.MaxDestID)},
		{"--max-backends", c.MaxBackends, 1 << 26},
		{"--max-identities", c.MaxIdentities, 1 << 26},
		{"--max-namespaces", c.MaxNamespaces, 1 << 26},
		{"--max-udp-peers", c.MaxUDPPeers, 1 << 26},
	} {
		if s.value == 0 || s.value > s.max {
			errs = append(errs, fmt.Errorf("%s: %d is not between 1 and %d", s.flag, s.value, s.max))
		}
	}
	return errors.Join(errs...)
}
