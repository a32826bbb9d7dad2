// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// ErrNoNFT says that the command nft is missing, which DNAT needs.
var ErrNoNFT = errors.New("the command nft is missing (Debian's package nftables)")

// DNAT makes address service lead to one of the endpoints for what this pod
// sends, as kube-proxy's rules do on a node. The protocol is "tcp" or "udp".
// Rules add up; they go with the pod.
func (p *Pod) DNAT(protocol string, service netip.AddrPort, endpoints ...netip.AddrPort) error {
	if _, err := exec.LookPath("nft"); err != nil {
		return ErrNoNFT
	}
	if len(endpoints) == 0 {
		return errors.New("DNAT needs an endpoint")
	}
	family := "ip"
	if service.Addr().Is6() {
		family = "ip6"
	}
	// With a port, nft wants an IPv6 address in brackets, which AddrPort prints.
	to := endpoints[0].String()
	if len(endpoints) > 1 {
		var m strings.Builder
		for i, e := range endpoints {
			if i > 0 {
				m.WriteString(", ")
			}
			fmt.Fprintf(&m, "%d : %s . %d", i, e.Addr(), e.Port())
		}
		to = fmt.Sprintf("numgen random mod %d map { %s }", len(endpoints), m.String())
	}
	rules := fmt.Sprintf(`table %[1]s lab {
	chain output {
		type nat hook output priority -100
		%[1]s daddr %[2]s %[3]s dport %[4]d dnat %[5]s to %[6]s
	}
}
`, family, service.Addr(), protocol, service.Port(), dnatFamily(family, len(endpoints)), to)
	cmd := p.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("add DNAT rules in pod %s: %w: %s", p.Name, err, out)
	}
	return nil
}

// dnatFamily is the family that a dnat statement must name when it maps.
func dnatFamily(family string, endpoints int) string {
	if endpoints > 1 {
		return family + " addr . port"
	}
	return family
}
