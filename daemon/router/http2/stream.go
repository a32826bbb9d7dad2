// SPDX-License-Identifier: Apache-2.0

package http2

import (
	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream is one that is under way.
type stream struct {
	id   uint32
	link *Link
	grpc bool
	head bool

	clientDone bool // the client has ended it, and the link knows
	serverDone bool // the server has ended it, and the client knows
	answered   bool // the server has sent a final response's head

	serverEnded bool  // the server has ended it; followed on other links than the primary
	room        int64 // what the server may send, less the client's initial window

	// On a link other than the primary: what the client, and what the link, may
	// still be sent, less the respective initial window.
	mayTake int64 // the client may send
	maySend int64 // we may send to the link
	// charged is what has come of the client's and not been given back to its connection,
	// because the stream may go by the primary link yet, which will do that.
	charged int64

	watch *Watch

	up   upload
	down []download
	held *opening // not opened on its link yet
}

// upload is what the client has sent and the link does not allow yet.
type upload struct {
	data     []byte
	end      bool
	trailers []hpack.HeaderField
	queued   bool // in Link.blocked
}

// blockSize is how much a decoded header block takes, about.
func blockSize(fields []hpack.HeaderField) (n int) {
	for i := range fields {
		n += int(fields[i].Size())
	}
	return n
}

func (u *upload) empty() bool { return len(u.data) == 0 && !u.end && u.trailers == nil }

// download is something of a stream that waits for the client's window.
type download struct {
	data   []byte // a DATA frame as it came
	size   int    // of its payload
	cost   int    // of all this, in Relay.kept
	end    bool
	fields []hpack.HeaderField
	head   head // of fields
	fixed  []byte
	reset  bool
	code   wire.ErrCode
}

// opening is a request that waits until it is let go, and its link allows one more
// stream.
type opening struct {
	flags  wire.Flags
	prio   []byte
	fields []hpack.HeaderField
	hold   bool // until it is let go
}

func (r *Relay) newStream(id uint32, l *Link) *stream {
	var s *stream
	if n := len(r.sh.spare); n > 0 {
		s = r.sh.spare[n-1]
		r.sh.spare = r.sh.spare[:n-1]
	} else {
		s = new(stream)
	}
	*s = stream{id: id, link: l}
	r.streams[id] = s
	if l != nil {
		l.streams++
	}
	return s
}

const spareStreams = 1024

// finish forgets a stream that both sides have ended.
func (r *Relay) finish(s *stream) {
	if s.clientDone && s.serverDone {
		r.earn(resetCost)
		r.forget(s)
	}
}

// forget forgets a stream.
func (r *Relay) forget(s *stream) {
	if r.streams[s.id] != s {
		return
	}
	r.unwatch(s, "")
	delete(r.streams, s.id)
	l := s.link
	if l != nil {
		l.streams--
		if l.secondary() {
			l.unblock(s)
		}
	}
	r.unstall(s)
	if len(r.sh.spare) < spareStreams {
		r.sh.spare = append(r.sh.spare, s)
	}
	if l != nil && l.secondary() {
		r.openHeld(l)
	}
}

// streamOf returns an open stream of a link.
func (r *Relay) streamOf(l *Link, id uint32) *stream {
	if s := r.streams[id]; s != nil && s.link == l {
		return s
	}
	return nil
}

// owner returns the link that frames of the client about a stream go to; nil:
// none.
func (r *Relay) owner(id uint32) *Link {
	if r.split && id&1 == 1 {
		if s := r.streams[id]; s != nil {
			return s.link
		}
		if r.places.has(id) || id > r.primary.last && id <= r.last {
			return nil
		}
	}
	if r.primary.gone {
		return nil
	}
	return r.primary
}

// ownership remembers of the newest streams which have not gone to the primary
// link: frames about them may come after their end.
type ownership struct {
	bits [ownershipSize / 64]uint64
	top  uint32 // number of the newest stream, counted from the client's first
}

const ownershipSize = 4096

func (o *ownership) add(id uint32, elsewhere bool) {
	n := id >> 1
	for k := o.top + 1; k < n && k < o.top+ownershipSize; k++ {
		o.bits[k%ownershipSize/64] &^= 1 << (k % 64)
	}
	o.top = n
	if elsewhere {
		o.bits[n%ownershipSize/64] |= 1 << (n % 64)
	} else {
		o.bits[n%ownershipSize/64] &^= 1 << (n % 64)
	}
}

func (o *ownership) has(id uint32) bool {
	n := id >> 1
	return n <= o.top && o.top-n < ownershipSize && o.bits[n%ownershipSize/64]&(1<<(n%64)) != 0
}

// moved is told that a stream goes by the primary link after all.
func (o *ownership) moved(id uint32) {
	if n := id >> 1; n <= o.top && o.top-n < ownershipSize {
		o.bits[n%ownershipSize/64] &^= 1 << (n % 64)
	}
}
