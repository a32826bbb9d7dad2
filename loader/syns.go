// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/bpf"
)

// SYNs keeps clients' SYNs from the listeners that it is attached to, and tells
// of them. Of one listener there are at most some 1,000 that Next has not told of
// yet; what comes beyond is lost, and sent again by the client after a second. A SYN that carries the agent's mark reaches the listener. It belongs
// to one goroutine, and works on when the Kernel is closed.
type SYNs struct {
	objects *objects
	ring    *ringbuf.Reader
	record  ringbuf.Record
}

// SYN is what a client has sent to begin a connection.
type SYN struct {
	// Early says that it is no SYN, but data that came to the listener because the
	// kernel has no socket for them, or not in that moment. They were dropped.
	Early bool
	// Listener is the cookie of the listening socket that it was meant for.
	Listener uint64
	// From and To are its addresses as the packet has them: To is 127.a.b.c or ::1.
	From, To netip.AddrPort
	// TOS is the IPv4 type of service or the IPv6 traffic class.
	TOS uint8
	// Hops is the IPv4 time to live or the IPv6 hop limit.
	Hops uint8
	// Header is the TCP header with its options as the client has sent it, without
	// data; its checksum means nothing. Valid until the next call of Next.
	Header []byte
}

// HoldSYNs loads what keeps SYNs back, with a ring of its own.
func (k *Kernel) HoldSYNs() (s *SYNs, err error) {
	err = k.do(func() error {
		s, err = newSYNs(k.cfg.Mark, map[string]*ebpf.Map{bpf.SdMapSdExits: k.kept(bpf.SdMapSdExits)})
		return err
	})
	return s, err
}

// NewSYNs is HoldSYNs without a Kernel: nobody sees what its program counts.
func NewSYNs(mark uint32) (*SYNs, error) { return newSYNs(mark, nil) }

func newSYNs(mark uint32, keep map[string]*ebpf.Map) (*SYNs, error) {
	cfg := DefaultConfig()
	cfg.Mark = mark
	spec, err := cfg.spec()
	if err != nil {
		return nil, err
	}
	hold := spec.Programs[bpf.SdProgSdHold]
	spec.Programs = map[string]*ebpf.ProgramSpec{bpf.SdProgSdHold: hold}
	used := []string{bpf.SdMapSdSyns, bpf.SdMapSdSynBudgets, bpf.SdMapSdExits, rodata}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !slices.Contains(used, name) })
	o, err := loadSpec(spec, keep)
	if err != nil {
		return nil, err
	}
	ring, err := ringbuf.NewReader(o.maps[bpf.SdMapSdSyns])
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", bpf.SdMapSdSyns, err), o.Close())
	}
	// Next asks for nothing that is not there; should it ever, it must not block.
	ring.SetDeadline(time.Unix(1, 0))
	return &SYNs{objects: o, ring: ring}, nil
}

// FD is readable while Next has something to tell.
func (s *SYNs) FD() int { return s.objects.maps[bpf.SdMapSdSyns].FD() }

// Attach has the SYNs held from now on that a listening socket gets.
func (s *SYNs) Attach(listener int) error {
	if err := unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, s.objects.programs[bpf.SdProgSdHold].FD()); err != nil {
		return fmt.Errorf("attach %s to a listener: %w", bpf.SdProgSdHold, err)
	}
	return nil
}

// Next tells of the next SYN. It answers false when there is none, and does not
// block.
func (s *SYNs) Next(syn *SYN) (bool, error) {
	// The reader enters the kernel only when it has been asked in vain.
	if s.ring.AvailableBytes() == 0 {
		return false, nil
	}
	if err := s.ring.ReadInto(&s.record); errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil // what was there has been discarded
	} else if err != nil {
		return false, fmt.Errorf("read %s: %w", bpf.SdMapSdSyns, err)
	}
	if n := len(s.record.RawSample); n != int(unsafe.Sizeof(bpf.SdSyn{})) {
		return false, fmt.Errorf("read %s: a record of %d bytes", bpf.SdMapSdSyns, n)
	}
	in := (*bpf.SdSyn)(unsafe.Pointer(unsafe.SliceData(s.record.RawSample)))
	tcp := in.Tcp[:in.TcpLen]
	const flags, flagSYN = 13, 0x02
	syn.Early = tcp[flags]&flagSYN == 0
	syn.Listener, syn.TOS, syn.Header = in.Listener, in.Tos, tcp
	syn.Hops = in.Hops
	syn.From = netip.AddrPortFrom(goAddr(in.Saddr), uint16(tcp[0])<<8|uint16(tcp[1]))
	syn.To = netip.AddrPortFrom(goAddr(in.Daddr), uint16(tcp[2])<<8|uint16(tcp[3]))
	return true, nil
}

// Close ends the reading. Listeners keep the program until they are closed, and
// SYNs that come to them are lost.
func (s *SYNs) Close() error { return errors.Join(s.ring.Close(), s.objects.Close()) }
