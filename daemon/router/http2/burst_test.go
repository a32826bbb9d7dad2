// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"strings"
	"testing"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// bombs are header blocks of a few hundred bytes that stand for almost a MiB each, as
// does what another encoder makes of them: one field fills a table of the usual size,
// so that any other field which is put there puts it out.
func bombs(first []hpack.HeaderField, frames func(write *wire.Framer, block []byte, i int)) []byte {
	var out, block bytes.Buffer
	write := wire.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&block)
	head := func() {
		block.Reset()
		for _, f := range first {
			f.Sensitive = true // it is not to be in the table
			_ = enc.WriteField(f)
		}
	}
	head()
	_ = enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 4050)})
	frames(write, block.Bytes(), 0)
	for i := 1; out.Len() < 60<<10; i++ {
		head()
		// The field that is the table's newest, and "cookie: v" without indexing.
		block.WriteString(strings.Repeat("\xbe\x0f\x11\x01v", 200))
		frames(write, block.Bytes(), i)
	}
	return out.Bytes()
}

// mostAtOnce is how much of bytes that were read at once may come out of the relay before it
// looks whether it is taken.
const mostAtOnce = blocksAtOnce + DefaultHeaderBytes + 64<<10

func TestWhatAReadMayStandForIsBounded(t *testing.T) {
	for name, fields := range map[string][]hpack.HeaderField{"to the baseline": keyed(""), "to a fork": keyed(keyA)} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, Limits{})
			c := s.client
			c.headers(1, true, keyed(keyA)...)
			s.settle()
			streams := 0
			in := bombs(fields, func(w *wire.Framer, block []byte, i int) {
				streams++
				c.must(w.WriteHeaders(wire.HeadersFrameParam{StreamID: uint32(3 + 2*i), BlockFragment: block, EndStream: true, EndHeaders: true}))
			})
			to := s.servers["base"]
			if name == "to a fork" {
				to = s.servers["a"]
			}
			calls, all := 0, 0
			for len(in) > 0 {
				before := to.fromRelay.Len()
				used := s.relay.FromClient(in)
				out := to.fromRelay.Len() - before
				if out > mostAtOnce {
					t.Fatalf("%d bytes were read, and %d are to be sent at once", used, out)
				}
				if used < len(in) != s.relay.Paused() || used == 0 || s.relay.Over() {
					t.Fatalf("%d of %d bytes are used, paused %t, over %t", used, len(in), s.relay.Paused(), s.relay.Over())
				}
				in, all = in[used:], all+out
				calls++
			}
			if calls < 5 || all < 10*mostAtOnce/2 {
				t.Errorf("all that was read stood for %d bytes, in %d parts: the test shows nothing", all, calls)
			}
			// Nothing is missing.
			to.take()
			got := 0
			for id, x := range to.streams {
				if id >= 3 && len(x.got.blocks) == 1 && x.got.end {
					got++
				}
			}
			if got != streams {
				t.Errorf("%d of %d streams have come", got, streams)
			}
		})
	}
}

func TestWhatAReadOfAForkMayStandForIsBounded(t *testing.T) {
	s := newScene(t, Limits{})
	c := s.client
	for i := range uint32(90) {
		c.headers(1+2*i, true, keyed(keyA)...)
	}
	s.settle()
	in := bombs(status("200"), func(w *wire.Framer, block []byte, i int) {
		c.must(w.WriteHeaders(wire.HeadersFrameParam{StreamID: uint32(1 + 2*i), BlockFragment: block, EndStream: true, EndHeaders: true}))
	})
	calls, all := 0, 0
	for len(in) > 0 {
		before := c.fromRelay.Len()
		used := s.relay.FromLink(s.links["a"], in)
		out := c.fromRelay.Len() - before
		if out > mostAtOnce || used == 0 || used < len(in) != s.relay.Paused() {
			t.Fatalf("%d of %d bytes are used, paused %t, and %d are to be sent at once", used, len(in), s.relay.Paused(), out)
		}
		in, all = in[used:], all+out
		calls++
	}
	if calls < 5 || all < 10*mostAtOnce/2 {
		t.Errorf("all that was read stood for %d bytes, in %d parts: the test shows nothing", all, calls)
	}
}
