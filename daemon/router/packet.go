// SPDX-License-Identifier: Apache-2.0

package router

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The packets that the router sends by hand, over lo, for connections that have
// not been accepted: a client's SYN once more, and what refuses one. Each is
// appended to b with its IP header. An IPv4 header's checksum, length and
// identification are for the kernel to fill in (raw(7)).

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	icmpHeader = 8
	ownHops    = 64

	tcpSeq, tcpAck, tcpFlags, tcpSum = 4, 8, 13, 16 // offsets
	flagRST, flagACK                 = 0x04, 0x10

	// quoted is how much of the packet that an ICMP error is about follows its IP
	// header: ports and sequence number (RFC 792).
	quoted = 8
)

// appendIP appends an IP header for size bytes of a protocol.
func appendIP(b []byte, from, to netip.Addr, tos, hops, protocol uint8, size int) []byte {
	if to.Is4() {
		b = append(b, 4<<4|ipv4Header/4, tos)
		b = binary.BigEndian.AppendUint16(b, uint16(ipv4Header+size))
		b = append(b, 0, 0, 0x40, 0, hops, protocol, 0, 0) // not to be fragmented
		src, dst := from.As4(), to.As4()
		return append(append(b, src[:]...), dst[:]...)
	}
	b = append(b, 6<<4|tos>>4, tos<<4, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, protocol, hops)
	src, dst := from.As16(), to.As16()
	return append(append(b, src[:]...), dst[:]...)
}

// checksum is the Internet checksum (RFC 1071) of b behind what sum has summed
// up.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// pseudoHeader sums up what stands for the IP header in the checksum of TCP and
// of ICMPv6 (RFC 9293, 3.1; RFC 8200, 8.1).
func pseudoHeader(from, to netip.Addr, protocol uint8, size int) uint32 {
	sum := uint32(protocol) + uint32(size)
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
	}
	if to.Is4() {
		src, dst := from.As4(), to.As4()
		add(src[:])
		add(dst[:])
	} else {
		src, dst := from.As16(), to.As16()
		add(src[:])
		add(dst[:])
	}
	return sum
}

// hopsOfEcho is what a SYN is sent again with, so that it is told from the client's:
// on lo nobody lowers it, and nobody looks at it.
func hopsOfEcho(client uint8) uint8 {
	if client == ownHops {
		return ownHops - 1
	}
	return ownHops
}

// appendTCP appends a packet that is a TCP header alone.
func appendTCP(b []byte, from, to netip.Addr, tos, hops uint8, header []byte) []byte {
	b = append(appendIP(b, from, to, tos, hops, unix.IPPROTO_TCP, len(header)), header...)
	tcp := b[len(b)-len(header):]
	tcp[tcpSum], tcp[tcpSum+1] = 0, 0
	binary.BigEndian.PutUint16(tcp[tcpSum:], checksum(pseudoHeader(from, to, unix.IPPROTO_TCP, len(tcp)), tcp))
	return b
}

// appendRefusal appends the RST that answers a SYN where nobody listens (RFC 9293,
// 3.10.7.1).
func appendRefusal(b []byte, from, to netip.AddrPort, syn []byte) []byte {
	var h [tcpHeader]byte
	binary.BigEndian.PutUint16(h[0:], to.Port())
	binary.BigEndian.PutUint16(h[2:], from.Port())
	binary.BigEndian.PutUint32(h[tcpAck:], binary.BigEndian.Uint32(syn[tcpSeq:])+1)
	h[12], h[tcpFlags] = tcpHeader/4<<4, flagRST|flagACK
	return appendTCP(b, to.Addr(), from.Addr(), 0, ownHops, h[:])
}

// appendReset appends the RST that answers data for a connection that is not
// there (RFC 9293, 3.10.7.1).
func appendReset(b []byte, from, to netip.AddrPort, data []byte) []byte {
	var h [tcpHeader]byte
	binary.BigEndian.PutUint16(h[0:], to.Port())
	binary.BigEndian.PutUint16(h[2:], from.Port())
	copy(h[tcpSeq:tcpSeq+4], data[tcpAck:])
	h[12], h[tcpFlags] = tcpHeader/4<<4, flagRST
	return appendTCP(b, to.Addr(), from.Addr(), 0, ownHops, h[:])
}

// appendUnreachable appends the ICMP or ICMPv6 message that says with a code why
// a SYN could not be delivered.
func appendUnreachable(b []byte, from, to netip.AddrPort, syn []byte, code unreachable) []byte {
	if to.Addr().Is4() {
		b = appendIP(b, to.Addr(), from.Addr(), 0, ownHops, unix.IPPROTO_ICMP, icmpHeader+ipv4Header+quoted)
		at := len(b)
		b = append(b, icmpUnreachable, code.v4, 0, 0, 0, 0, 0, 0)
		b = append(appendIP(b, from.Addr(), to.Addr(), 0, ownHops, unix.IPPROTO_TCP, len(syn)), syn[:quoted]...)
		binary.BigEndian.PutUint16(b[at+2:], checksum(0, b[at:]))
		return b
	}
	b = appendIP(b, to.Addr(), from.Addr(), 0, ownHops, unix.IPPROTO_ICMPV6, icmpHeader+ipv6Header+quoted)
	at := len(b)
	b = append(b, icmp6Unreachable, code.v6, 0, 0, 0, 0, 0, 0)
	b = append(appendIP(b, from.Addr(), to.Addr(), 0, ownHops, unix.IPPROTO_TCP, len(syn)), syn[:quoted]...)
	binary.BigEndian.PutUint16(b[at+2:], checksum(pseudoHeader(to.Addr(), from.Addr(), unix.IPPROTO_ICMPV6, len(b)-at), b[at:]))
	return b
}

// Destination unreachable, in RFC 792 and RFC 4443.
const icmpUnreachable, icmp6Unreachable = 3, 1

// unreachable is the code of a destination unreachable message in either
// protocol.
type unreachable struct{ v4, v6 uint8 }

// unreachableFor returns what has the client's kernel fail connect(2) with an
// error, or with the nearest that there is: ICMP has nothing for EACCES.
func unreachableFor(e unix.Errno) (unreachable, bool) {
	switch e {
	case unix.ENETUNREACH:
		return unreachable{0, 0}, true // net unreachable; no route
	case unix.EHOSTUNREACH:
		return unreachable{1, 3}, true // host unreachable; address unreachable
	case unix.EACCES, unix.EPERM:
		return unreachable{13, 1}, true // administratively prohibited
	case unix.ENOPROTOOPT:
		return unreachable{2, 3}, true // protocol unreachable
	}
	return unreachable{}, false
}

// sendRaw sends a packet with its own IP header.
func sendRaw(fd int32, packet []byte, to netip.Addr) unix.Errno {
	var sa unix.RawSockaddrAny
	return sendTo(fd, packet, &sa, putSockaddr(&sa, netip.AddrPortFrom(to, 0)))
}
