// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/conntrack"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// BenchmarkWhoAnswers is what it costs a loop to find out who answers an upstream, once
// for each that a record is made of.
func BenchmarkWhoAnswers(b *testing.B) {
	pod := lab.New(b).MustPod("node")
	addr := func(ip string, i int) netip.Addr {
		a := netip.MustParseAddr(ip).AsSlice()
		a[len(a)-3], a[len(a)-2], a[len(a)-1] = byte(i>>16), byte(i>>8), byte(i)
		out, _ := netip.AddrFromSlice(a)
		return out
	}
	const many = 100_000
	made := 0
	for _, entries := range []int{1, many} {
		err := pod.Do(func() error {
			for ; made < entries; made++ {
				for _, ip := range [][2]string{{"10.0.0.0", "10.96.0.1"}, {"fd00::", "fd00:96::1"}} {
					from, to := addr(ip[0], made), netip.MustParseAddr(ip[1])
					flow := &netlink.ConntrackFlow{
						FamilyType: unix.AF_INET6, TimeOut: 3600,
						Forward:   netlink.IPTuple{SrcIP: from.AsSlice(), DstIP: to.AsSlice(), SrcPort: 4000, DstPort: 80, Protocol: unix.IPPROTO_TCP},
						Reverse:   netlink.IPTuple{SrcIP: to.AsSlice(), DstIP: from.AsSlice(), SrcPort: 8080, DstPort: 4000, Protocol: unix.IPPROTO_TCP},
						ProtoInfo: &netlink.ProtoInfoTCP{State: 3},
					}
					if from.Is4() {
						flow.FamilyType = unix.AF_INET
					}
					if err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(flow.FamilyType), flow); err != nil {
						return fmt.Errorf("entry %d: %w", made, err)
					}
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		for _, ip := range [][2]string{{"10.0.0.0", "10.96.0.1"}, {"fd00::", "fd00:96::1"}} {
			b.Run(fmt.Sprintf("tracked/%d entries/%s", entries, ip[1]), func(b *testing.B) {
				var ct *conntrack.Table
				if err := pod.Do(func() (err error) { ct, err = conntrack.Open(); return err }); err != nil {
					b.Fatal(err)
				}
				defer ct.Close()
				b.ReportAllocs()
				for i := range b.N {
					from, to := netip.AddrPortFrom(addr(ip[0], i%entries), 4000), netip.AddrPortFrom(netip.MustParseAddr(ip[1]), 80)
					if got, err := ct.Answering(from, to); err != nil || got.Port() != 8080 {
						b.Fatal(got, err)
					}
				}
			})
		}
	}
	// A socket load balancer's: the last of so many endpoints.
	if err := pod.ServeTCP("node", ":8080"); err != nil {
		b.Fatal(err)
	}
	c, err := pod.Dial("tcp", netip.AddrPortFrom(pod.IPv4, 8080).String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 3, 100} {
		var candidates []netip.AddrPort
		for i := range n {
			candidates = append(candidates, netip.AddrPortFrom(addr("10.1.0.0", i), 8080))
		}
		candidates[n-1] = netip.AddrPortFrom(pod.IPv4, 8080)
		b.Run(fmt.Sprintf("balanced/%d endpoints", n), func(b *testing.B) {
			err := pod.Do(func() error {
				return raw.Control(func(fd uintptr) {
					for range b.N {
						if _, err := connectedTo(int32(fd), c.LocalAddr().(*net.TCPAddr).AddrPort(), slices.Values(candidates)); err != nil {
							b.Fatal(err)
						}
					}
				})
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
