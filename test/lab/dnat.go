// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
)

// ErrNoNFT says that the command nft is missing, which DNAT needs.
var ErrNoNFT = errors.New("the command nft is missing (Debian's package nftables)")

// DNAT makes address service lead to one of the endpoints for what this pod
// sends, as kube-proxy's rules do on a node. The protocol is "tcp" or "udp".
// Rules add up; they go with the pod.
func (p *Pod) DNAT(protocol string, service netip.AddrPort, endpoints ...netip.AddrPort) error {
	return p.translate("output", protocol, service, endpoints)
}

// ForwardDNAT is DNAT for what other pods send by way of this one, which stands for their
// node: see RouteVia. Endpoints see the node's address.
func (p *Pod) ForwardDNAT(protocol string, service netip.AddrPort, endpoints ...netip.AddrPort) error {
	err := p.Do(func() error {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0); err != nil {
				return fmt.Errorf("have pod %s forward: %w", p.Name, err)
			}
		}
		// Client and endpoint are on one link: the node would tell them so.
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/send_redirects", []byte("0"), 0)
	})
	if err != nil {
		return err
	}
	return p.translate("prerouting", protocol, service, endpoints)
}

// RouteVia has the pod send what is for an address to another pod, which forwards it.
func (p *Pod) RouteVia(to netip.Addr, node *Pod) error {
	via := node.IPv4
	if to.Is6() {
		via = node.IPv6
	}
	return p.Do(func() error {
		for _, family := range []string{"ipv4", "ipv6"} {
			if err := os.WriteFile("/proc/sys/net/"+family+"/conf/eth0/accept_redirects", []byte("0"), 0); err != nil {
				return err
			}
		}
		dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}
		if err := netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("route %s by way of pod %s: %w", to, node.Name, err)
		}
		return nil
	})
}

// translate adds rules for what passes a hook.
func (p *Pod) translate(hook, protocol string, service netip.AddrPort, endpoints []netip.AddrPort) error {
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
	chain %[2]s {
		type nat hook %[2]s priority -100
		%[1]s daddr %[3]s %[4]s dport %[5]d dnat %[6]s to %[7]s
	}
`, family, hook, service.Addr(), protocol, service.Port(), dnatFamily(family, len(endpoints)), to)
	if hook == "prerouting" {
		rules += `	chain postrouting {
		type nat hook postrouting priority 100
		ct status dnat masquerade
	}
`
	}
	cmd := p.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules + "}\n")
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
