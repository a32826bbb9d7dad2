// SPDX-License-Identifier: Apache-2.0

package router

import (
	"sync"
	"testing"

	wire "golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// TestStreamsWhoseHeadersStandForMuchAllArrive: of what is read at once some waits until
// the rest is taken, on the way to servers and on the way back.
func TestStreamsWhoseHeadersStandForMuchAllArrive(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	got := map[string]int{}
	for _, p := range []*lab.Pod{w.base, w.fork} {
		w.script(p, func(c *peer) {
			c.expect(wire.ClientPreface)
			f := newFrames(c)
			_ = f.WriteSettings()
			for {
				fr, err := f.ReadFrame()
				if err != nil {
					return
				}
				if h, ok := fr.(*wire.MetaHeadersFrame); ok {
					mu.Lock()
					got[p.Name]++
					mu.Unlock()
					f.bomb(h.StreamID, ":status", "200")
				}
			}
		})
	}
	f := w.frames(w.dial(w.client))
	const streams = 16
	go func() {
		for i := range uint32(streams) {
			if i%4 == 0 {
				f.bomb(1+2*i, asking("baggage", "sidetrack="+key)...)
			} else {
				f.bomb(1+2*i, asking()...)
			}
		}
	}()
	answered := map[uint32]bool{}
	f.await("all answers", func(fr wire.Frame) bool {
		if h, ok := fr.(*wire.MetaHeadersFrame); ok && h.PseudoValue("status") == "200" && h.StreamEnded() {
			answered[h.StreamID] = true
		}
		return len(answered) == streams
	})
	mu.Lock()
	defer mu.Unlock()
	if got["fork"] != streams/4 || got["base"] != streams-streams/4 {
		t.Errorf("streams have come to %v", got)
	}
}
