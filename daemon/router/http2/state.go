// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// State is what another relay, in another process, must know to go on with a
// connection. It is plain data that can be written as JSON.
type State struct {
	// Links are the primary one, also where it is gone, and the others.
	Links   []LinkState
	Streams []StreamState `json:",omitempty"`
	Pings   []PingState   `json:",omitempty"` // of links
	Asked   []PingState   `json:",omitempty"` // of the client
	Talker  int           `json:",omitempty"` // the link that the client has heard of last

	Last   uint32 `json:",omitempty"` // the client's newest stream
	GoAway uint32 // the newest that is served
	Split  bool   `json:",omitempty"`
	// Elsewhere tells of the newest streams which did not go to the primary link.
	Elsewhere []uint64 `json:",omitempty"`
	Newest    uint32   `json:",omitempty"`

	Client   TableState // of the client's header blocks
	Anew     bool       `json:",omitempty"` // blocks to the client are encoded anew
	Table    uint32     // what the client has announced, and so on
	Window   int64
	Widest   int64
	MaxFrame int
	Settings []SettingState `json:",omitempty"`

	Conn, Owed, OwedOthers int64 // of windows
}

// LinkState is State's part about a link.
type LinkState struct {
	Gone     bool       `json:",omitempty"`
	Blocks   TableState // of its header blocks
	Anew     bool       `json:",omitempty"` // blocks to it are encoded anew
	Table    uint32     // what it has announced, and so on
	Initial  int64
	Widest   int64
	MaxFrame int
	Most     int
	Settled  bool   `json:",omitempty"`
	Unacked  int    `json:",omitempty"`
	Last     uint32 `json:",omitempty"`
	Closing  bool   `json:",omitempty"`
	Window   int64
	Spent    int64 `json:",omitempty"`
	Room     int64
}

// TableState is a table of header compression: a block that makes it, and the
// sizes that it may have.
type TableState struct {
	Block         []byte `json:",omitempty"`
	Size, Allowed uint32
}

// StreamState is State's part about a stream. Link is an index of State.Links, -1
// for none.
type StreamState struct {
	ID          uint32
	Link        int
	GRPC        bool  `json:",omitempty"`
	Head        bool  `json:",omitempty"`
	ClientDone  bool  `json:",omitempty"`
	ServerDone  bool  `json:",omitempty"`
	Answered    bool  `json:",omitempty"`
	ServerEnded bool  `json:",omitempty"`
	Room        int64 `json:",omitempty"`
	MayTake     int64 `json:",omitempty"`
	MaySend     int64 `json:",omitempty"`
}

// PingState is one of Link, or to it, that has not been answered.
type PingState struct {
	Link int
	Data [8]byte
}

// SettingState is a setting of the client (RFC 9113, section 6.5.1).
type SettingState struct {
	ID    uint16
	Value uint32
}

// Bounds of a State, so that it fits into a message of its own whatever its
// tables are.
const (
	maxMovingStreams = 100
	maxMovingTables  = 16 << 10
)

// CanMove reports whether the relay holds nothing of the connection but its
// State: no byte of a frame, nothing that waits for a window.
func (r *Relay) CanMove() bool {
	if r.over || r.poisoned || r.mute || r.swallow > 0 || r.draining || !r.in.atRest() || r.in.preface > 0 || r.out.closed() ||
		r.buffered > 0 || len(r.stalled) > 0 || r.refundable > 0 || r.withheld > 0 || len(r.streams) > maxMovingStreams {
		return false
	}
	tables := int(r.in.table)
	for _, l := range r.links() {
		if l.Full || l.poisoned || !l.in.atRest() || l.out.midway || len(l.blocked)+len(l.waiting) > 0 || !l.Proven() {
			return false
		}
		tables += int(l.in.table)
	}
	if tables > maxMovingTables && r.tableBytes() > maxMovingTables {
		return false
	}
	for _, s := range r.streams {
		if s.held != nil || !s.up.empty() || len(s.down) > 0 {
			return false
		}
	}
	return true
}

func (in *reader) atRest() bool { return in.raw == nil && in.left == 0 }

// links are the primary link, also where it is gone, and the others.
func (r *Relay) links() []*Link { return append([]*Link{r.primary}, r.others...) }

func (r *Relay) tableBytes() int {
	n := len(r.sh.dump(&r.in))
	for _, l := range r.links() {
		n += len(r.sh.dump(&l.in))
	}
	return n
}

// State describes a relay that can move. Links are in the order of its Links.
func (r *Relay) State() (State, []*Link) {
	links := r.links()
	index := func(l *Link) int { return slices.Index(links, l) }
	s := State{
		Last: r.last, GoAway: r.goAway, Split: r.split,
		Client: r.sh.tableState(&r.in), Anew: r.enc != nil,
		Table: r.clientTable, Window: r.clientWindow, Widest: r.widest, MaxFrame: r.clientMax,
		Conn: r.clientConn, Owed: r.owed, OwedOthers: r.owedOthers,
	}
	if p := r.places; p != nil {
		s.Elsewhere, s.Newest = slices.Clone(p.bits[:]), p.top
	}
	for _, c := range r.clientSetting {
		s.Settings = append(s.Settings, SettingState{uint16(c.ID), c.Val})
	}
	for _, l := range links {
		s.Links = append(s.Links, LinkState{
			Gone: l.gone, Blocks: r.sh.tableState(&l.in), Anew: l.enc != nil,
			Table: l.table, Initial: l.initial, Widest: l.widest, MaxFrame: l.frame, Most: l.most, Settled: l.settled, Unacked: l.unacked,
			Last: l.last, Closing: l.closing, Window: l.window, Spent: l.spent, Room: l.room,
		})
	}
	for _, x := range r.streams {
		s.Streams = append(s.Streams, StreamState{
			ID: x.id, Link: index(x.link), GRPC: x.grpc, Head: x.head,
			ClientDone: x.clientDone, ServerDone: x.serverDone, Answered: x.answered, ServerEnded: x.serverEnded,
			Room: x.room, MayTake: x.mayTake, MaySend: x.maySend,
		})
	}
	slices.SortFunc(s.Streams, func(a, b StreamState) int { return cmp.Compare(a.ID, b.ID) })
	for _, p := range r.pings {
		s.Pings = append(s.Pings, PingState{index(p.link), p.data})
	}
	for _, p := range r.asked {
		s.Asked = append(s.Asked, PingState{index(p.link), p.data})
	}
	s.Talker = max(index(r.talker), 0)
	return s, links
}

var errUnfit = errors.New("http2: the state of a connection does not fit together")

// Resume makes a relay that goes on where another one was. It returns its links in
// the order of s.Links. An error says why it cannot.
func Resume(sh *Shared, env Env, s *State) (*Relay, []*Link, error) {
	if len(s.Links) == 0 || len(s.Elsewhere) > 0 != s.Split || s.Split && len(s.Elsewhere) != len(ownership{}.bits) ||
		s.MaxFrame < leastMaxFrame || s.Last > maxWindow || s.GoAway > maxWindow || s.Table > initialTable {
		return nil, nil, errUnfit
	}
	r := New(sh, env)
	r.in.preface, r.out.shut = 0, false
	r.last, r.goAway, r.split = s.Last, s.GoAway, s.Split
	if s.Split {
		r.places = &ownership{bits: [ownershipSize / 64]uint64(s.Elsewhere), top: s.Newest}
	}
	if err := sh.restore(&r.in, s.Client); err != nil {
		return nil, nil, err
	}
	r.clientTable, r.clientWindow, r.widest, r.clientMax = s.Table, s.Window, s.Widest, s.MaxFrame
	if s.Anew {
		r.enc = sh.newEncoder(r.clientTable)
	}
	for _, c := range s.Settings {
		r.clientSetting = append(r.clientSetting, wire.Setting{ID: wire.SettingID(c.ID), Val: c.Value})
	}
	r.clientConn, r.owed, r.owedOthers = s.Conn, s.Owed, s.OwedOthers
	for i := range s.Links {
		if err := r.resumeLink(&s.Links[i], i == 0); err != nil {
			return nil, nil, err
		}
	}
	links := r.links()
	for i := range s.Streams {
		x := &s.Streams[i]
		if x.Link < -1 || x.Link >= len(links) || r.streams[x.ID] != nil {
			return nil, nil, errUnfit
		}
		var l *Link
		if x.Link >= 0 {
			l = links[x.Link]
		}
		n := r.newStream(x.ID, l)
		n.grpc, n.head, n.clientDone, n.serverDone, n.answered, n.serverEnded = x.GRPC, x.Head, x.ClientDone, x.ServerDone, x.Answered, x.ServerEnded
		n.room, n.mayTake, n.maySend = x.Room, x.MayTake, x.MaySend
	}
	var ok [2]bool
	r.pings, ok[0] = resumePings(s.Pings, links)
	r.asked, ok[1] = resumePings(s.Asked, links)
	if !ok[0] || !ok[1] || s.Talker < 0 || s.Talker >= len(links) {
		return nil, nil, errUnfit
	}
	if s.Talker > 0 {
		r.talker = links[s.Talker]
	}
	return r, links, nil
}

func resumePings(all []PingState, links []*Link) ([]ping, bool) {
	var out []ping
	for _, p := range all {
		if p.Link < 1 || p.Link >= len(links) || len(out) == maxPings {
			return nil, false
		}
		out = append(out, ping{data: p.Data, link: links[p.Link]})
	}
	return out, true
}

func (r *Relay) resumeLink(s *LinkState, primary bool) error {
	l := r.primary
	if !primary {
		l = r.newLink()
		r.others = append(r.others, l)
	}
	if s.MaxFrame < leastMaxFrame || s.Gone && !primary || !primary && !s.Anew || s.Anew && s.Table > r.sh.limits.TableBytes {
		return errUnfit
	}
	if err := r.sh.restore(&l.in, s.Blocks); err != nil {
		return err
	}
	l.gone, l.table, l.initial, l.widest, l.frame, l.most = s.Gone, s.Table, s.Initial, s.Widest, s.MaxFrame, s.Most
	l.settled, l.unacked, l.last, l.closing = s.Settled, s.Unacked, s.Last, s.Closing
	l.window, l.spent, l.room = s.Window, s.Spent, s.Room
	if s.Anew {
		l.enc = r.sh.newEncoder(l.table)
	}
	return nil
}

// tableState describes what a peer's encoder takes for known.
func (sh *Shared) tableState(in *reader) TableState {
	return TableState{Block: sh.dump(in), Size: in.table, Allowed: in.allowed}
}

// restore makes a decoder that knows what another one did.
func (sh *Shared) restore(in *reader, s TableState) error {
	if s.Size > s.Allowed || s.Allowed > max(sh.limits.TableBytes, initialTable) {
		return errUnfit
	}
	in.dec = hpack.NewDecoder(s.Size, sh.emit)
	in.dec.SetAllowedMaxDynamicTableSize(s.Allowed)
	in.table, in.allowed = s.Size, s.Allowed
	if err := sh.decode(in, s.Block, false); err != nil {
		return fmt.Errorf("http2: a table of header compression: %w", err)
	}
	return nil
}

// dump returns a block that makes a decoder's table out of an empty one. hpack
// shows its table in no other way than by decoding references to it, newest first
// (RFC 7541, section 2.3.3).
func (sh *Shared) dump(in *reader) []byte {
	const static = 61 // entries of the static table
	var fields []hpack.HeaderField
	in.dec.SetEmitFunc(func(f hpack.HeaderField) { fields = append(fields, f) })
	in.dec.SetEmitEnabled(true)
	var ref [10]byte
	for i := uint64(static + 1); ; i++ {
		if _, err := in.dec.Write(appendInteger(ref[:0], 0x80, 7, i)); err != nil {
			break // the table has no more
		}
		// Nothing is half-read.
		_ = in.dec.Close()
	}
	_ = in.dec.Close()
	in.dec.SetEmitFunc(sh.emit)
	var block []byte
	for _, f := range slices.Backward(fields) {
		// With incremental indexing and a new name (RFC 7541, section 6.2.1).
		block = append(block, 0x40)
		for _, text := range []string{f.Name, f.Value} {
			block = append(appendInteger(block, 0, 7, uint64(len(text))), text...)
		}
	}
	return block
}

// appendInteger appends an integer with a prefix of some bits, behind what first
// has above them (RFC 7541, section 5.1).
func appendInteger(b []byte, first byte, bits uint, n uint64) []byte {
	limit := uint64(1)<<bits - 1
	if n < limit {
		return append(b, first|byte(n))
	}
	return binary.AppendUvarint(append(b, first|byte(limit)), n-limit)
}

// sizeUpdate reads a change of the table's size that a decoder has accepted (RFC
// 7541, section 6.3).
func sizeUpdate(b []byte) uint32 {
	const limit = 1<<5 - 1
	n := uint64(b[0] & limit)
	if n == limit {
		more, _ := binary.Uvarint(b[1:])
		n += more
	}
	return uint32(n)
}
