// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"net/netip"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// The kernel's form of routing's values: addresses are 16 bytes, IPv4 mapped
// into IPv6; addresses and ports are in network byte order.

func bpfAddr(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func goAddr(w [4]uint32) netip.Addr {
	var b [16]byte
	for i, v := range w {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}

func bpfPort(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

func bpfEndpoint(a netip.AddrPort) bpf.SdEndpoint {
	return bpf.SdEndpoint{Addr: bpfAddr(a.Addr()), Port: bpfPort(a.Port())}
}

func bpfBackendKey(k routing.BackendKey) bpf.SdBackendKey {
	return bpf.SdBackendKey{Group: uint32(k.Group), Slot: k.Slot}
}

func bpfRouteKey(k routing.RouteKey) bpf.SdRouteKey {
	return bpf.SdRouteKey{Sandbox: uint32(k.Sandbox), Class: uint32(k.Class)}
}

func bpfRoute(r routing.Route) bpf.SdRoute {
	v := bpf.SdRoute{Group: uint32(r.Group), V4: r.V4, V6: r.V6}
	if r.Unavailable == routing.Baseline {
		v.Flags |= bpf.SdRouteFlagROUTE_BASELINE
	}
	return v
}

func bpfDestKey(k routing.DestKey) bpf.SdDestKey {
	return bpf.SdDestKey{Addr: bpfAddr(k.Addr), Port: bpfPort(k.Port), Proto: uint8(k.Protocol)}
}

func bpfDest(d routing.Dest) bpf.SdDest {
	v := bpf.SdDest{Id: uint32(d.ID), Class: uint32(d.Class)}
	if d.Captured {
		v.Flags |= bpf.SdDestFlagDEST_CAPTURED
	}
	return v
}

func bpfIdentity(i routing.Identity) bpf.SdIdentity {
	v := bpf.SdIdentity{Sandbox: uint32(i.Sandbox)}
	if i.Inject {
		v.Flags |= bpf.SdIdentityFlagIDENTITY_INJECT
	}
	if i.Grouped {
		v.Flags |= bpf.SdIdentityFlagIDENTITY_GROUP
	}
	return v
}
