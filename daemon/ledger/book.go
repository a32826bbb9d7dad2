// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// A book keeps its records as bytes, in chunks: a tagged request costs no memory that
// the garbage collector has to look at, and none of its own but every hundredth.
// What is in a chunk never changes; records are added behind it. So a reader takes a
// book's chunks under the lock, and reads without it.

// book is one owner's records, the oldest first.
type book struct {
	owner   routing.SandboxInfo // without what is secret, or changes
	chunks  []chunk
	bytes   int64
	records int64
	dropped int64
	since   time.Time // when the newest of those that are dropped was added; zero: none is
}

// chunk is a part of a book.
type chunk struct {
	b       []byte
	first   uint64 // the number of its first record
	records int64
	until   time.Time // when its newest record was added
}

const (
	minChunk = 1 << 10
	maxChunk = 32 << 10
	// A book that is full loses a chunk: that is to be a small part of it.
	chunksOfBook = 16
)

// add takes in an entry at a time, and returns by how many bytes the book has grown. It may
// have most.
func (b *book) add(e *Entry, now time.Time, most int64) (grown int64) {
	n := e.size()
	last := len(b.chunks) - 1
	if last < 0 || cap(b.chunks[last].b)-len(b.chunks[last].b) < n {
		grown = max(minChunk, min(b.bytes, maxChunk, most/chunksOfBook), int64(n))
		b.chunks = append(b.chunks, chunk{b: make([]byte, 0, grown), first: e.seq})
		b.bytes += grown
		last++
	}
	c := &b.chunks[last]
	c.b = e.put(c.b)
	c.records++
	c.until = now
	b.records++
	return grown
}

// shrink forgets the oldest chunk, and returns by how many bytes the book has shrunk
// and how many records it has lost.
func (b *book) shrink() (bytes, records int64) {
	oldest := b.chunks[0]
	b.chunks[0] = chunk{}
	b.chunks = b.chunks[1:]
	bytes, records = int64(cap(oldest.b)), oldest.records
	b.bytes -= bytes
	b.records -= records
	b.dropped += records
	b.since = oldest.until
	return bytes, records
}

// A kept record begins with what all of them have, little-endian; see put. What a
// reader chooses by is at the places that are named here.
const (
	keptSize  = 0 // of the whole, 4 bytes
	keptSeq   = 4
	keptAt    = 12 // nanoseconds since 1970
	keptTrace = 20
	keptHead  = 36
)

const (
	flagGRPC = 1 << iota
	flagLost
	flagHealed
	flagCaller
	flagFlow
	flagOpen
)

// keptFlags is where the flags are, and behind them the flow with flagFlow.
const keptFlags = keptHead + 8 + 4*8 + 4 + 2 + 2 + 4

// put appends an entry to b, which has room for it.
func (e *Entry) put(b []byte) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, e.seq)
	b = le.AppendUint64(b, uint64(e.At.UnixNano()))
	b = append(b, e.Trace[:]...)
	b = append(b, e.Parent[:]...)
	b = le.AppendUint64(b, uint64(e.Latency))
	b = le.AppendUint64(b, uint64(e.Source))
	b = le.AppendUint64(b, uint64(e.Sent))
	b = le.AppendUint64(b, uint64(e.Received))
	b = le.AppendUint32(b, uint32(e.GRPCStatus))
	b = le.AppendUint16(b, uint16(e.Status))
	b = le.AppendUint16(b, e.Port)
	var flags byte
	for i, set := range [...]bool{e.HasGRPC, e.Lost, e.Healed, e.caller != nil, e.Flow != 0, e.Open} {
		if set {
			flags |= 1 << i
		}
	}
	b = append(b, byte(e.Hook), byte(e.Protocol), byte(e.Verdict), byte(e.Reason), flags)
	if e.Flow != 0 {
		b = le.AppendUint64(b, e.Flow)
	}
	b = putAddr(b, e.Dialled)
	b = putAddr(b, e.Answer)
	b = putName(b, e.Service)
	b = putName(b, e.answering)
	if p := e.caller; p != nil {
		b = putName(b, p.Name)
		b = putText(b, p.Workload)
		b = putText(b, p.Sandbox)
	}
	b = putText(b, e.Target)
	b = putText(b, e.Error)
	b = putText(b, e.Method)
	b = putText(b, e.Authority)
	b = putText(b, e.Path)
	le.PutUint32(b[start+keptSize:], uint32(len(b)-start))
	return b
}

// size is how many bytes an entry takes at most once it is kept.
func (e *Entry) size() int {
	n := keptHead + 8 + 4*8 + 4 + 2 + 2 + 5 + 8 + 2*(1+16+2) + 13*2 +
		len(e.Service.Namespace) + len(e.Service.Name) + len(e.answering.Namespace) + len(e.answering.Name) +
		len(e.Target) + len(e.Error) + len(e.Method) + len(e.Authority) + len(e.Path)
	if p := e.caller; p != nil {
		n += len(p.Name.Namespace) + len(p.Name.Name) + len(p.Workload) + len(p.Sandbox)
	}
	return n
}

// keptEntry is the reverse of put.
func keptEntry(b []byte, owner *routing.SandboxInfo) *Entry {
	le := binary.LittleEndian
	e := &Entry{
		Owner: owner,
		seq:   le.Uint64(b[keptSeq:]),
		At:    time.Unix(0, int64(le.Uint64(b[keptAt:]))),
	}
	b = b[keptTrace:]
	b = b[copy(e.Trace[:], b):]
	b = b[copy(e.Parent[:], b):]
	e.Latency = time.Duration(le.Uint64(b))
	e.Source = routing.Cookie(le.Uint64(b[8:]))
	e.Sent = int64(le.Uint64(b[16:]))
	e.Received = int64(le.Uint64(b[24:]))
	e.GRPCStatus = int32(le.Uint32(b[32:]))
	e.Status = int(le.Uint16(b[36:]))
	e.Port = le.Uint16(b[38:])
	e.Hook, e.Protocol, e.Verdict, e.Reason = Hook(b[40]), Protocol(b[41]), routing.Verdict(b[42]), routing.Reason(b[43])
	flags := b[44]
	b = b[45:]
	e.HasGRPC, e.Lost, e.Healed, e.Open = flags&flagGRPC != 0, flags&flagLost != 0, flags&flagHealed != 0, flags&flagOpen != 0
	if flags&flagFlow != 0 {
		e.Flow = le.Uint64(b)
		b = b[8:]
	}
	e.Dialled, b = takeAddr(b)
	e.Answer, b = takeAddr(b)
	e.Service, b = takeName(b)
	e.answering, b = takeName(b)
	if flags&flagCaller != 0 {
		p := &Pod{}
		p.Name, b = takeName(b)
		p.Workload, b = takeText(b)
		p.Sandbox, b = takeText(b)
		e.caller = p
	}
	e.Target, b = takeText(b)
	e.Error, b = takeText(b)
	e.Method, b = takeBytes(b)
	e.Authority, b = takeBytes(b)
	e.Path, _ = takeBytes(b)
	return e
}

func putText[T string | []byte](b []byte, s T) []byte {
	s = s[:min(len(s), math.MaxUint16)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func putName(b []byte, n routing.Name) []byte {
	return putText(putText(b, n.Namespace), n.Name)
}

func putAddr(b []byte, a netip.AddrPort) []byte {
	addr := a.Addr()
	switch {
	case !addr.IsValid():
		return append(b, 0)
	case addr.Is4():
		v4 := addr.As4()
		b = append(append(b, 4), v4[:]...)
	default:
		v6 := addr.As16()
		b = append(append(b, 16), v6[:]...)
	}
	return binary.LittleEndian.AppendUint16(b, a.Port())
}

// takeBytes returns a part of b: what is in a chunk never changes.
func takeBytes(b []byte) (s, rest []byte) {
	n := 2 + int(binary.LittleEndian.Uint16(b))
	return b[2:n:n], b[n:]
}

func takeText(b []byte) (string, []byte) {
	s, rest := takeBytes(b)
	return string(s), rest
}

func takeName(b []byte) (n routing.Name, rest []byte) {
	n.Namespace, b = takeText(b)
	n.Name, b = takeText(b)
	return n, b
}

func takeAddr(b []byte) (netip.AddrPort, []byte) {
	n := 1 + int(b[0])
	if n == 1 {
		return netip.AddrPort{}, b[1:]
	}
	addr, _ := netip.AddrFromSlice(b[1:n])
	return netip.AddrPortFrom(addr, binary.LittleEndian.Uint16(b[n:])), b[n+2:]
}

// choose appends to page what a query asks for of the records in chunks, which
// belong to owner.
func (q *Query) choose(p *Page, chunks []chunk, owner *routing.SandboxInfo) {
	le := binary.LittleEndian
	since := int64(math.MinInt64)
	if !q.Since.IsZero() {
		since = q.Since.UnixNano()
	}
	var chosen [][]byte
	for i, c := range chunks {
		if i+1 < len(chunks) && chunks[i+1].first <= q.After+1 {
			continue
		}
		for b := c.b; len(b) > 0; {
			kept := b[:le.Uint32(b[keptSize:])]
			b = b[len(kept):]
			switch {
			case le.Uint64(kept[keptSeq:]) <= q.After:
			case int64(le.Uint64(kept[keptAt:])) < since:
			case q.Trace != TraceID{} && TraceID(kept[keptTrace:keptHead]) != q.Trace:
			default:
				chosen = append(chosen, kept)
			}
		}
	}
	chosen = withoutOpen(chosen)
	if over := len(chosen) - q.Limit; q.Limit > 0 && over > 0 {
		p.Omitted = int64(over)
		chosen = chosen[over:]
	}
	for _, kept := range chosen {
		p.Entries = append(p.Entries, keptEntry(kept, owner))
	}
}

// withoutOpen leaves out records of open flows where the flow's last is there as well.
func withoutOpen(all [][]byte) [][]byte {
	var ended map[uint64]bool
	for _, kept := range all {
		if flow, open := flowOf(kept); flow != 0 && !open {
			if ended == nil {
				ended = map[uint64]bool{}
			}
			ended[flow] = true
		}
	}
	if ended == nil {
		return all
	}
	return slices.DeleteFunc(all, func(kept []byte) bool {
		flow, open := flowOf(kept)
		return open && ended[flow]
	})
}

// flowOf is whether a kept record is a flow's, and then whether that was open.
func flowOf(kept []byte) (flow uint64, open bool) {
	if kept[keptFlags]&flagFlow == 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(kept[keptFlags+1:]), kept[keptFlags]&flagOpen != 0
}
