// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is one end of a connection whose frames a test writes and reads itself.
type frames struct {
	*peer
	*wire.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newFrames(p *peer) *frames {
	f := &frames{peer: p, Framer: wire.NewFramer(p.conn, p.r)}
	f.enc = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return f
}

// client begins as a client does.
func (w *world) frames(p *peer) *frames {
	w.t.Helper()
	f := newFrames(p)
	p.send(wire.ClientPreface)
	if err := f.WriteSettings(); err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (f *frames) headers(id uint32, end bool, pairs ...string) {
	f.t.Helper()
	f.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		// Writing to memory does not fail.
		_ = f.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	if err := f.WriteHeaders(wire.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		f.t.Error(err)
	}
}

// bomb is headers with a block of a few hundred bytes that another encoder makes hundreds
// of thousand of: one field fills the table, any other puts it out.
func (f *frames) bomb(id uint32, pairs ...string) {
	f.t.Helper()
	f.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1], Sensitive: true})
	}
	for range 200 {
		_ = f.enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 4050)})
		f.block.WriteString("\x0f\x11\x01v") // "cookie: v", which is not put there
	}
	if err := f.WriteHeaders(wire.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		f.t.Error(err)
	}
}

func asking(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "route.shop", ":path", "/"}, more...)
}

// await reads frames until one is what is wanted.
func (f *frames) await(what string, ok func(wire.Frame) bool) {
	f.t.Helper()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			f.t.Fatalf("waited for %s: %v", what, err)
		}
		if ok(fr) {
			return
		}
	}
}

// answer awaits a response's head with this status.
func (f *frames) answer(id uint32, status string) {
	f.t.Helper()
	f.await(fmt.Sprintf("%s on stream %d", status, id), func(fr wire.Frame) bool {
		h, ok := fr.(*wire.MetaHeadersFrame)
		if ok && h.StreamID == id && h.PseudoValue("status") != status {
			f.t.Errorf("stream %d: %v, want %s", id, h.Fields, status)
		}
		return ok && h.StreamID == id
	})
}

// expectReset reads on until the connection is reset.
func (f *frames) expectReset() {
	f.t.Helper()
	for {
		if _, err := f.ReadFrame(); err != nil {
			if !strings.Contains(err.Error(), "connection reset") {
				f.t.Errorf("%v, want RST", err)
			}
			return
		}
	}
}

func (f *frames) expectEOF() {
	f.t.Helper()
	for {
		if _, err := f.ReadFrame(); err != nil {
			if err != io.EOF {
				f.t.Errorf("%v, want FIN", err)
			}
			return
		}
	}
}
