// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"

	"github.com/sidetrack-dev/sidetrack/daemon/router/http2"
)

// canPart is conn.canPart: the moment between two streams is best, and in the
// middle of them will do.
func (h *http2Conn) canPart(midway bool) bool {
	if h.after != goOn || h.drain > 0 || !midway && h.relay.Open() > 0 {
		return false
	}
	for _, u := range h.c.ups {
		if len(u.pending) > 0 {
			return false
		}
	}
	return h.relay.CanMove()
}

// describe is what another router must know, and the upstreams in the order of
// the relay's links, less a primary one that is gone.
func (h *http2Conn) describe() ([]*upstream, *http2.State) {
	state, links := h.relay.State()
	var ups []*upstream
	for i, l := range links {
		if !state.Links[i].Gone {
			ups = append(ups, l.Peer.(*upstream))
		}
	}
	return ups, &state
}

// resumeHTTP2 goes on with the relay of another process. Only the connection's
// loop may call it.
func (c *conn) resumeHTTP2(s *http2.State) error {
	h := &http2Conn{c: c}
	relay, links, err := http2.Resume(c.loop.h2, h, s)
	if err != nil {
		return err
	}
	ups := c.ups
	for i, l := range links {
		if s.Links[i].Gone {
			continue
		}
		if len(ups) == 0 {
			return fmt.Errorf("%w: %d upstreams for %d links", errUnfit, len(c.ups), len(links))
		}
		ups[0].link, l.Peer = l, ups[0]
		ups = ups[1:]
	}
	if len(ups) > 0 || s.Links[0].Gone != (c.cur == nil) || c.cur != nil && c.cur.link != relay.Primary() {
		return errUnfit
	}
	h.relay, c.h2 = relay, h
	return nil
}
