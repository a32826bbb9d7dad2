// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Flow is a tagged flow to a destination that the table knows, as it began: a
// connect, or the first of a socket's datagrams to one destination and again one of
// them every ten seconds. A connection that is captured is none.
type Flow struct {
	At        time.Time
	Source    routing.Cookie
	Socket    uint64 // its cookie (SO_COOKIE)
	Sandbox   routing.SandboxID
	Dialled   netip.AddrPort
	Protocol  routing.Protocol
	Datagrams bool // seen by sendmsg, not by connect
	Verdict   routing.Verdict
	Reason    routing.Reason
	Endpoint  netip.AddrPort // where it goes instead; the zero AddrPort: where it was going, or nowhere
}

// flowsDelay is how long flows gather that follow on one another. Who waits for each
// of them is woken by each, on a CPU that the flows' own processes could use; the
// kernel wakes nobody while there are some that have not been read.
const flowsDelay = 20 * time.Millisecond

// FlowReader reads flows as they begin, or flowsDelay later. One goroutine may read;
// Close may be called from any.
type FlowReader struct {
	ring *ringbuf.Reader
	rec  ringbuf.Record
	read bool // some, since it has slept
	// due is how many bytes of the ring are still to be read before a Flush is answered, while
	// answering.
	due       int
	answering bool

	mu     sync.Mutex // held while looking how full the ring is, and closing it
	asked  bool       // Flush has been called and not been seen by Read
	closed bool
}

// Flows returns a reader of the flows that begin from now on. There must be one at
// a time.
func (k *Kernel) Flows() (r *FlowReader, err error) {
	err = k.do(func() error {
		ring, err := ringbuf.NewReader(k.kept(bpf.SdMapSdEvents))
		if err != nil {
			return fmt.Errorf("read the flows' events: %w", err)
		}
		r = &FlowReader{ring: ring}
		return nil
	})
	return r, err
}

// Read waits for the next flow. The error is os.ErrClosed after Close.
func (r *FlowReader) Read() (Flow, error) {
	for {
		if err := r.heed(); err != nil {
			return Flow{}, err
		}
		if r.answering && r.due <= 0 {
			r.answering = false
			return Flow{}, ErrFlushed
		}
		if r.read && r.rec.Remaining == 0 && !r.answering {
			r.read = false
			time.Sleep(flowsDelay)
			continue
		}
		err := r.ring.ReadInto(&r.rec)
		if errors.Is(err, ringbuf.ErrFlushed) {
			// The ring has been found empty, and after heed had looked. An earlier Flush that was
			// answered without this leaves it behind: then nobody asks.
			r.due = 0
			continue
		}
		if err != nil {
			return Flow{}, err
		}
		r.read = true
		r.due -= recordHeader + (len(r.rec.RawSample)+7)&^7
		// The programs of an earlier version may have left shorter ones.
		if len(r.rec.RawSample) >= int(unsafe.Sizeof(bpf.SdFlowEvent{})) {
			break
		}
	}
	e := (*bpf.SdFlowEvent)(unsafe.Pointer(&r.rec.RawSample[0]))
	f := Flow{
		At:        sinceBoot(e.Time),
		Source:    routing.Cookie(e.Source),
		Socket:    e.Socket,
		Sandbox:   routing.SandboxID(e.Sandbox),
		Dialled:   goAddrPort(e.Dst.Addr, e.Dst.Port),
		Protocol:  routing.Protocol(e.Dst.Proto),
		Datagrams: e.Program == bpf.SdProgramPROGRAM_SENDMSG4 || e.Program == bpf.SdProgramPROGRAM_SENDMSG6,
		Reason:    routing.NoRedirect,
	}
	switch e.Reason {
	case bpf.SdReasonREASON_REDIRECTED:
		f.Reason = routing.Redirected
	case bpf.SdReasonREASON_REFUSED, bpf.SdReasonREASON_BASELINE, bpf.SdReasonREASON_NO_BACKEND:
		f.Reason = routing.Unavailable
	}
	switch e.Verdict {
	case bpf.SdVerdictVERDICT_FORK:
		f.Verdict, f.Endpoint = routing.ToFork, goAddrPort(e.Endpoint.Addr, e.Endpoint.Port)
	case bpf.SdVerdictVERDICT_REFUSE:
		f.Verdict = routing.Refuse
	}
	return f, nil
}

// recordHeader is how many bytes the kernel puts before each record in a ring
// (BPF_RINGBUF_HDR_SZ); a record takes a multiple of eight.
const recordHeader = 8

// heed sees to a Flush that has been called: what is to be read first is what is in the
// ring now. That the ring is found empty would not do as a sign, since under load it never
// is; nor the flows' times, since one that began earlier may be behind another.
func (r *FlowReader) heed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if r.asked {
		r.asked, r.answering, r.due = false, true, r.ring.AvailableBytes()
	}
	return nil
}

// ErrFlushed is what Read answers once for each Flush.
var ErrFlushed = errors.New("the flows that had begun have been read")

// Flush has Read answer ErrFlushed when it has answered every flow that has begun
// before this call, however many begin meanwhile. It may be called from any goroutine, and
// again when Read has answered.
func (r *FlowReader) Flush() error {
	r.mu.Lock()
	r.asked = true
	r.mu.Unlock()
	return r.ring.Flush() // Read may be waiting.
}

// Close ends Read.
func (r *FlowReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if err := r.ring.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// UntoldFlows returns how many flows no reader was told of, since the agent
// started, because too many began before it could read.
func (k *Kernel) UntoldFlows() (n uint64, err error) {
	err = k.do(func() error {
		var perCPU []uint64
		if err := k.kept(bpf.SdMapSdUntold).Lookup(uint32(0), &perCPU); err != nil {
			return fmt.Errorf("read how many flows were not told: %w", err)
		}
		for _, c := range perCPU {
			n += c
		}
		return nil
	})
	return n, err
}

// sinceBoot turns nanoseconds since boot into the time of the wall.
func sinceBoot(ns uint64) time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(int64(ns) - now.Nano()))
}

// goAddrPort is the reverse of bpfAddr and bpfPort. An IPv4 address is given as one.
func goAddrPort(addr [4]uint32, port uint16) netip.AddrPort {
	var b [16]byte
	for i, w := range addr {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	var p [2]byte
	binary.NativeEndian.PutUint16(p[:], port)
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), binary.BigEndian.Uint16(p[:]))
}
