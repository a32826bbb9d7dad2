// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Nobody has these addresses: whoever reaches them has been balanced.
const (
	lbVIP4 = "10.96.0.99"
	lbVIP6 = "fd96::99"
)

// Offsets in struct bpf_sock_addr.
const userIP4, userIP6 = 4, 8

// balancer is a socket load balancer of somebody else's, with one backend: a
// connection or datagram to the address goes to the backend, and the application
// is shown the address.
type balancer struct {
	*scene
	sockets *ebpf.Map // cookies of those that were balanced
}

// balance attaches a balancer to a cgroup, as Cilium does to the root.
func (s *scene) balance(cgroup string) {
	s.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 8, ValueSize: 8, MaxEntries: 1024})
	s.must(err)
	s.Cleanup(func() { m.Close() })
	b := &balancer{s, m}
	vip4, vip6 := netip.MustParseAddr(lbVIP4), netip.MustParseAddr(lbVIP6)
	for _, t := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupUDP4Sendmsg} {
		b.attach(cgroup, t, b.forward(vip4, s.base.IPv4))
	}
	for _, t := range []ebpf.AttachType{ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP6Sendmsg} {
		b.attach(cgroup, t, b.forward(vip6, s.base.IPv6))
	}
	for _, t := range []ebpf.AttachType{ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCGroupUDP4Recvmsg} {
		b.attach(cgroup, t, b.reverse(s.base.IPv4, vip4))
	}
	for _, t := range []ebpf.AttachType{ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCGroupUDP6Recvmsg} {
		b.attach(cgroup, t, b.reverse(s.base.IPv6, vip6))
	}
}

func (b *balancer) attach(cgroup string, t ebpf.AttachType, body asm.Instructions) {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "lb", Type: ebpf.CGroupSockAddr, AttachType: t, License: "GPL", Instructions: body})
	b.must(err)
	b.Cleanup(func() { p.Close() })
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: t, Program: p})
	b.must(err)
	b.Cleanup(func() { l.Close() })
}

// words are an address's as a program sees them, and where.
func words(a netip.Addr) (offset int16, out []int32) {
	offset = userIP4
	b := a.AsSlice()
	if a.Is6() {
		offset = userIP6
	}
	for ; len(b) > 0; b = b[4:] {
		out = append(out, int32(binary.NativeEndian.Uint32(b)))
	}
	return offset, out
}

// rewrite makes "to" of "from", and ends the program. R6 is the context.
func rewrite(from, to netip.Addr, more asm.Instructions) (p asm.Instructions) {
	offset, old := words(from)
	_, next := words(to)
	for i, w := range old {
		p = append(p, asm.LoadMem(asm.R7, asm.R6, offset+int16(4*i), asm.Word), asm.JNE.Imm32(asm.R7, w, "out"))
	}
	for i, w := range next {
		p = append(p, asm.Mov.Imm32(asm.R7, w), asm.StoreMem(asm.R6, offset+int16(4*i), asm.R7, asm.Word))
	}
	p = append(p, more...)
	return append(p, asm.Mov.Imm(asm.R0, 1).WithSymbol("out"), asm.Return())
}

func (b *balancer) forward(vip, backend netip.Addr) asm.Instructions {
	p := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	return append(p, rewrite(vip, backend, asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, b.sockets.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -16),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	})...)
}

func (b *balancer) reverse(backend, vip netip.Addr) asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, b.sockets.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
	}
	return append(p, rewrite(backend, vip, nil)...)
}

// newBalancedScene has the Service's addresses balanced: above the pods' cgroup, or
// by programs of the same cgroup that were attached before ours or after.
func newBalancedScene(t *testing.T, where string) *scene {
	t.Helper()
	s := newScene(t)
	s.input.Services[0].Addresses = append(s.input.Services[0].Addresses, addrs(lbVIP4, lbVIP6)...)
	cfg := s.config()
	var err error
	cfg.Cgroup, err = s.w.Subgroup("self") // where the test is
	s.must(err)
	switch where {
	case "above":
		s.balance(s.w.Cgroup)
	case "before":
		s.balance(cfg.Cgroup)
	}
	s.k, err = Open(cfg)
	s.must(err)
	t.Cleanup(func() { s.k.Close() })
	s.apply()
	if where == "after" {
		s.balance(cfg.Cgroup)
	}
	return s
}

// canBeFirst reports whether the kernel lets a program come before others.
func (s *scene) canBeFirst() bool {
	s.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	s.must(err)
	defer p.Close()
	dir, err := os.Open(s.w.Cgroup)
	s.must(err)
	defer dir.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{
		Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect, Flags: unix.BPF_F_BEFORE,
	})
	if err == nil {
		s.must(l.Close())
	}
	return err == nil
}

func TestBesideASocketLoadBalancer(t *testing.T) {
	for _, where := range []string{"above", "after", "before"} {
		t.Run(where, func(t *testing.T) {
			s := newBalancedScene(t, where)
			tcp4, tcp6, udp4, udp6 := at(lbVIP4, 80), at(lbVIP6, 80), at(lbVIP4, 53), at(lbVIP6, 53)
			// An application is shown what it dialled. But where the kernel does not let
			// us be the first, what somebody before us has rewritten is all that we know,
			// and he knows nothing of the fork.
			blind := where == "before" && !s.canBeFirst()
			shown := func(dialled, endpoint string) string {
				if blind {
					return endpoint
				}
				return dialled
			}
			for _, d := range []struct {
				family                 int
				tcp, udp, tcpTo, udpTo string
			}{
				{unix.AF_INET, tcp4, udp4, at(s.base.IPv4, 80), at(s.base.IPv4, 53)},
				{unix.AF_INET6, tcp6, udp6, at(s.base.IPv6, 80), at(s.base.IPv6, 53)},
			} {
				s.socket(s.tagged, d.family, unix.SOCK_STREAM).mustConnect(d.tcp).mustHear("fork").mustShowPeer(shown(d.tcp, d.tcpTo))
				s.socket(s.tagged, d.family, unix.SOCK_DGRAM).mustConnect(d.udp).mustAsk("", "fork", shown(d.udp, d.udpTo))
				s.socket(s.tagged, d.family, unix.SOCK_DGRAM).mustAsk(d.udp, "fork", shown(d.udp, d.udpTo))
				// Everybody else is balanced as if we were not there.
				s.socket(s.other, d.family, unix.SOCK_STREAM).mustConnect(d.tcp).mustHear("baseline").mustShowPeer(d.tcp)
				s.socket(s.other, d.family, unix.SOCK_DGRAM).mustAsk(d.udp, "baseline", d.udp)
			}

			r := s.steer(s.other)
			s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).mustConnect(tcp4).mustHear("router").mustShowPeer(shown(tcp4, at(s.base.IPv4, 80)))
			captured := func(dialled, endpoint string) string {
				if where == "before" { // capture comes last
					return endpoint
				}
				return dialled
			}
			r.mustHaveCaptured(s, captured(tcp4, at(s.base.IPv4, 80)))
			s.socket(s.other, unix.AF_INET6, unix.SOCK_STREAM).mustConnect(tcp6).mustHear("router").mustShowPeer(shown(tcp6, at(s.base.IPv6, 80)))
			r.mustHaveCaptured(s, captured(tcp6, at(s.base.IPv6, 80)))

			// Without an endpoint of the fork there is no way round us.
			s.setReady(false)
			s.apply()
			c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
			c.mustRefuse(c.connect(tcp4))
			c = s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
			c.mustRefuse(c.sendTo(udp4))
			s.setReady(true)
			s.apply()
			s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(tcp4).mustHear("fork")
		})
	}
}
