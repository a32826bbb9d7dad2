// SPDX-License-Identifier: Apache-2.0

// Package conntrack asks the kernel's connection tracking who answers a connection
// whose destination is translated on the way, as kube-proxy's rules and IPVS do with a
// Service's own address (linux/netfilter/nfnetlink_conntrack.h).
//
// It owns one netlink socket for each Table and nothing else; it lists nothing and
// changes nothing. A Table belongs to one goroutine at a time.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h. What is in an attribute is
// in network byte order, its header in the machine's.
const (
	ctNew = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctGet = ctNew | 1

	ctaTupleOrig  = 1
	ctaTupleReply = 2

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaSrc4, ctaDst4 = 1, 2
	ctaSrc6, ctaDst6 = 3, 4

	ctaProtoNum, ctaProtoSrcPort, ctaProtoDstPort = 1, 2, 3

	attrHeader = 4
	ctHeader   = unix.NLMSG_HDRLEN + 4 // with struct nfgenmsg
)

// Table asks a network namespace's connection tracking about connections, one at a
// time. It is written by hand since a loop asks it: libraries for ctnetlink wait for
// their answers by way of Go's poller, and allocate.
type Table struct {
	fd    int32
	seq   uint32
	asked int
	buf   [1024]byte
}

// ErrNotTracked says that there is no entry for a connection.
var ErrNotTracked = errors.New("connection tracking knows no such connection")

// Open makes a Table for the calling thread's namespace, and finds out whether it may
// ask there: that takes CAP_NET_ADMIN and the module nf_conntrack_netlink.
func Open() (*Table, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open ctnetlink: %w", err)
	}
	c := &Table{fd: int32(fd)}
	// The first question may have the kernel load a module, for which no loop waits.
	nobody := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if _, err := c.Answering(nobody, nobody); !errors.Is(err, ErrNotTracked) {
		c.Close()
		return nil, fmt.Errorf("ask ctnetlink: %w", err)
	}
	c.asked = 0
	return c, nil
}

// Close ends it.
func (c *Table) Close() { unix.Close(int(c.fd)) }

// Asked is how many connections it has been asked about.
func (c *Table) Asked() int { return c.asked }

// Answering returns who answers the TCP connection from one address to another: to
// itself, unless something on the way translates it. Without an entry it answers
// ErrNotTracked. The kernel looks it up by its hash and has answered before the call
// returns, however many connections it knows.
func (c *Table) Answering(from, to netip.AddrPort) (netip.AddrPort, error) {
	c.seq++
	c.asked++
	if e := c.send(from, to); e != noError {
		return netip.AddrPort{}, e
	}
	for {
		n, e := recv(c.fd, c.buf[:])
		if e != noError {
			return netip.AddrPort{}, e
		}
		m := c.buf[:n]
		if n < unix.NLMSG_HDRLEN || binary.NativeEndian.Uint32(m[8:]) != c.seq {
			continue // of a question whose answer nobody has read
		}
		switch typ := binary.NativeEndian.Uint16(m[4:]); {
		case typ == unix.NLMSG_ERROR && n >= unix.NLMSG_HDRLEN+4:
			e := unix.Errno(-int32(binary.NativeEndian.Uint32(m[unix.NLMSG_HDRLEN:])))
			if e == unix.ENOENT {
				return netip.AddrPort{}, ErrNotTracked
			}
			return netip.AddrPort{}, e
		case typ == ctNew && n >= ctHeader:
			return replySource(m[ctHeader:])
		}
		return netip.AddrPort{}, errStrangeAnswer
	}
}

var errStrangeAnswer = errors.New("the kernel's answer is none")

func (c *Table) send(from, to netip.AddrPort) unix.Errno {
	family, src, dst := uint8(unix.AF_INET6), uint16(ctaSrc6), uint16(ctaDst6)
	if from.Addr().Is4() {
		family, src, dst = unix.AF_INET, ctaSrc4, ctaDst4
	}
	b := append(c.buf[:0], make([]byte, ctHeader)...)
	b[unix.NLMSG_HDRLEN] = family
	b, tuple := beginNested(b, ctaTupleOrig)
	b, ip := beginNested(b, ctaTupleIP)
	b = appendAttr(b, src, from.Addr().AsSlice()...)
	b = appendAttr(b, dst, to.Addr().AsSlice()...)
	endNested(b, ip)
	b, proto := beginNested(b, ctaTupleProto)
	b = appendAttr(b, ctaProtoNum, unix.IPPROTO_TCP)
	b = appendAttr(b, ctaProtoSrcPort, byte(from.Port()>>8), byte(from.Port()))
	b = appendAttr(b, ctaProtoDstPort, byte(to.Port()>>8), byte(to.Port()))
	endNested(b, proto)
	endNested(b, tuple)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], ctGet)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], c.seq)
	_, e := send(c.fd, b)
	return e
}

// The calls here go through RawSyscall: they never block, since the socket is
// non-blocking and the kernel has answered before a question's call returns.

const noError = unix.Errno(0)

func send(fd int32, b []byte) (int, unix.Errno) { return call(unix.SYS_SENDTO, fd, b) }

func recv(fd int32, b []byte) (int, unix.Errno) { return call(unix.SYS_RECVFROM, fd, b) }

func call(number uintptr, fd int32, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// replySource reads who answers out of a connection's attributes.
func replySource(attrs []byte) (netip.AddrPort, error) {
	tuple := attr(attrs, ctaTupleReply)
	ip, proto := attr(tuple, ctaTupleIP), attr(tuple, ctaTupleProto)
	addr := attr(ip, ctaSrc4)
	if addr == nil {
		addr = attr(ip, ctaSrc6)
	}
	a, ok := netip.AddrFromSlice(addr)
	port := attr(proto, ctaProtoSrcPort)
	if !ok || len(port) != 2 {
		return netip.AddrPort{}, errStrangeAnswer
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), nil
}

// attr returns the value of the first attribute of a type; nil: there is none.
func attr(b []byte, typ uint16) []byte {
	for len(b) >= attrHeader {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attrHeader || size > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == typ {
			return b[attrHeader:size]
		}
		b = b[min(aligned(size), len(b)):]
	}
	return nil
}

func aligned(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

func appendAttr(b []byte, typ uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, aligned(len(value))-len(value))...)
}

// beginNested begins an attribute of attributes, up to endNested with what it returns.
func beginNested(b []byte, typ uint16) ([]byte, int) {
	return appendAttr(b, typ|unix.NLA_F_NESTED), len(b)
}

func endNested(b []byte, at int) { binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at)) }
