// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// Hook is who saw the traffic.
type Hook uint8

// The hooks.
const (
	AtRouter Hook = iota
	AtConnect
	AtSendMsg
)

// Protocol is what was spoken.
type Protocol uint8

// The protocols.
const (
	HTTP1 Protocol = iota
	HTTP2
	GRPC
	TCP
	UDP
	Opaque
)

// Entry is a record in the making, or one that has been read. Whoever has it from Open
// or OpenConnection fills in what it learns, and hands it to Finish, once.
type Entry struct {
	At       time.Time // of the wall, with the monotonic clock
	Latency  time.Duration
	Hook     Hook
	Protocol Protocol

	// Owner is whose ledger it is in.
	Owner *routing.SandboxInfo
	// Source is the network namespace, or the pod in the host's, that called.
	Source  routing.Cookie
	Dialled netip.AddrPort
	Service routing.Name // the zero Name: not known
	Port    uint16       // of the Service, zero: not known

	Verdict routing.Verdict
	Reason  routing.Reason
	Target  string
	Answer  netip.AddrPort // the zero AddrPort: nobody was asked

	Method, Authority, Path []byte // in text, or nobody's; never changed
	Status                  int
	GRPCStatus              int32 // when HasGRPC
	HasGRPC                 bool
	Sent, Received          int64

	Trace  TraceID
	Parent SpanID
	Lost   bool // the caller has lost the key
	Healed bool
	Error  string

	Flow uint64 // see Ledger.FlowID; zero: none
	Open bool   // of a Flow: there is more to come

	text      []byte
	seq       uint64
	begun     bool // see Ledger.Begin
	dest      routing.DestID
	keyed     bool         // it goes with a key, and has a trace: see Going
	caller    *Pod         // nil: not known
	answering routing.Name // pod; the zero Name: not known
	ended     bool
	finished  bool
}

// Bounds of what is taken from a request.
const (
	maxPath      = 1024
	maxAuthority = 255
	maxMethod    = 32
	maxError     = 256
)

// Ask fills in what a request's head says. The bytes may change afterwards.
// target is the request's target or :path; its query is left out.
func (e *Entry) Ask(method, authority, target []byte) {
	e.Method = e.keep(method, maxMethod)
	if i := bytes.Index(target, []byte("://")); i > 0 && target[0] != '/' {
		// The absolute form has the authority in it (RFC 9112, section 3.2.2).
		target = target[i+3:]
		if i := bytes.IndexAny(target, "/?"); i >= 0 {
			authority, target = target[:i], target[i:]
		} else {
			authority, target = target, nil
		}
		if i := bytes.LastIndexByte(authority, '@'); i >= 0 {
			authority = authority[i+1:]
		}
	}
	e.Authority = e.keep(authority, maxAuthority)
	if i := bytes.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	e.Path = e.keep(target, maxPath)
}

// keep returns a copy of b, cut at a bound and made valid UTF-8.
func (e *Entry) keep(b []byte, most int) []byte {
	if len(b) > most {
		b = b[:most]
	}
	if !utf8.Valid(b) {
		return bytes.ToValidUTF8(b, []byte("\uFFFD"))
	}
	from := len(e.text)
	e.text = append(e.text, b...)
	return e.text[from:len(e.text):len(e.text)]
}

// Fail notes what went wrong; what is noted first stays.
func (e *Entry) Fail(why string) {
	if e.Error == "" {
		e.Error = strings.ToValidUTF8(why[:min(len(why), maxError)], "\uFFFD")
	}
}

// weight is how many bytes an entry takes that is not kept yet, names that are shared
// left out.
func (e *Entry) weight() int64 {
	return int64(unsafe.Sizeof(*e)) + int64(unsafe.Sizeof(e)) + int64(cap(e.text)+len(e.Target)+len(e.Error))
}
