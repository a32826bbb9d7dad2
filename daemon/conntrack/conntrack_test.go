// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhoeverAnswersIsReadOutOfTheKernelsWords(t *testing.T) {
	var b []byte
	b = appendAttr(b, 3, 1, 2, 3)
	b, tuple := beginNested(b, ctaTupleReply)
	b, proto := beginNested(b, ctaTupleProto)
	b = appendAttr(b, ctaProtoNum, unix.IPPROTO_TCP)
	b = appendAttr(b, ctaProtoSrcPort, 0x1f, 0x90)
	endNested(b, proto)
	b, ip := beginNested(b, ctaTupleIP)
	b = appendAttr(b, ctaSrc4, 10, 1, 2, 3)
	endNested(b, ip)
	endNested(b, tuple)
	want := netip.MustParseAddrPort("10.1.2.3:8080")
	if got, err := replySource(b); err != nil || got != want {
		t.Errorf("%s and %v, want %s", got, err, want)
	}
	// Nothing else is made of less, or of lengths that cannot be.
	for n := range len(b) {
		if got, err := replySource(b[:n]); err == nil && got != want {
			t.Errorf("%d bytes: %s", n, got)
		}
	}
	for i := 0; i+1 < len(b); i += 4 {
		for _, size := range []uint16{0, 1, 0xffff} {
			bad := slices.Clone(b)
			binary.NativeEndian.PutUint16(bad[i:], size)
			if got, err := replySource(bad); err == nil && got.Addr().Is6() {
				t.Errorf("length %d at %d: %s", size, i, got)
			}
		}
	}
}
