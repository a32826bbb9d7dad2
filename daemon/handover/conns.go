// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// How much goes into one message of connections: what fits for certain.
const (
	connBytes = maxMessage - 4<<10
	connFDs   = maxFDs - 16
)

// Batch is as many connections as go into one message.
type Batch struct {
	Moving []*router.Moving
	body   Conns
	fds    []int
}

// Batches divides connections among messages.
func Batches(ms []*router.Moving) ([]*Batch, error) {
	var out []*Batch
	var b *Batch
	var ns map[routing.Cookie]int
	var sockets []int
	size := 0
	finish := func() {
		if b != nil {
			b.body.Namespaces = len(b.fds)
			b.fds = append(b.fds, sockets...)
			out = append(out, b)
		}
		b, ns, sockets, size = &Batch{}, map[routing.Cookie]int{}, nil, 0
	}
	for _, m := range ms {
		text, err := json.Marshal(m.State)
		if err != nil {
			return nil, fmt.Errorf("describe a connection: %w", err)
		}
		// With the namespace's index and punctuation.
		need := len(text) + 32
		if b == nil || size+need > connBytes || len(b.fds)+len(sockets)+2+len(m.Upstreams) > connFDs {
			finish()
		}
		at, ok := ns[m.State.Netns]
		if !ok {
			at = len(b.fds)
			ns[m.State.Netns] = at
			b.fds = append(b.fds, m.Netns)
		}
		b.Moving = append(b.Moving, m)
		b.body.All = append(b.body.All, OneConn{Netns: at, State: m.State})
		sockets = append(append(sockets, m.Client), m.Upstreams...)
		size += need
	}
	finish()
	return out, nil
}

// SendBatch sends a batch.
func (c *Conn) SendBatch(b *Batch) error { return c.Send(KindConns, b.body, b.fds...) }

// Connections returns the connections of a message. All its descriptors are
// theirs then; on error they are closed.
func (m *Message) Connections() ([]*router.Moving, error) {
	defer m.CloseFDs() // what the connections have is not in m any more
	var body Conns
	if err := m.Read(&body, true); err != nil {
		return nil, err
	}
	want := body.Namespaces
	for _, c := range body.All {
		want += 1 + len(c.State.Upstreams)
		if c.Netns < 0 || c.Netns >= body.Namespaces {
			return nil, errors.New("a connection has no namespace")
		}
	}
	if body.Namespaces < 0 || want != len(m.FDs) {
		return nil, fmt.Errorf("connections with %d descriptors came with %d", want, len(m.FDs))
	}
	out := make([]*router.Moving, 0, len(body.All))
	for _, c := range body.All {
		fd, err := unix.FcntlInt(uintptr(m.FDs[c.Netns]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, m := range out {
				unix.Close(m.Netns)
			}
			return nil, fmt.Errorf("duplicate a namespace's descriptor: %w", err)
		}
		out = append(out, &router.Moving{State: c.State, Netns: fd})
	}
	sockets := m.FDs[body.Namespaces:]
	for _, c := range out {
		n := len(c.State.Upstreams)
		c.Client, c.Upstreams = sockets[0], sockets[1:1+n:1+n]
		sockets = sockets[1+n:]
	}
	m.FDs = m.FDs[:body.Namespaces]
	return out, nil
}
