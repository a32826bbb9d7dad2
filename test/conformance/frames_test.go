// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// peer is one end of an HTTP/2 connection, frame by frame. It answers SETTINGS by
// itself.
type peer struct {
	t    *testing.T
	conn net.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newPeer(t *testing.T, conn net.Conn) *peer {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	p := &peer{t: t, conn: conn, Framer: http2.NewFramer(conn, conn)}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	if err := conn.SetDeadline(time.Now().Add(lab.Patience(30 * time.Second))); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *peer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// headers sends a header block; fields are names and values in turns.
func (p *peer) headers(stream uint32, end bool, fields ...string) {
	p.t.Helper()
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.must(p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	p.must(p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.block.Bytes(), EndStream: end, EndHeaders: true}))
}

// request opens a stream, tagged when there is a key.
func (p *peer) request(stream uint32, end bool, key string) {
	p.t.Helper()
	fields := []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "web"}
	if key != "" {
		fields = append(fields, keyHeader, key)
	}
	p.headers(stream, end, fields...)
}

// next returns the next frame that says something about a stream or that is a
// PING or GOAWAY.
func (p *peer) next() http2.Frame {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		p.must(err)
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.must(p.WriteSettingsAck())
			}
		case *http2.WindowUpdateFrame:
		default:
			return f
		}
	}
}

// rawServers listen in a world's baseline and in fork a.
type rawServers struct{ base, fork net.Listener }

func (w *world) rawServers(t *testing.T, port int) rawServers {
	t.Helper()
	var all [2]net.Listener
	for i, p := range []*lab.Pod{w.base, w.forks["a"]} {
		l, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		all[i] = l
	}
	return rawServers{all[0], all[1]}
}

// accept takes a connection, and the client's preface from it.
func accept(t *testing.T, l net.Listener, settings ...http2.Setting) *peer {
	t.Helper()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(lab.Patience(30 * time.Second))); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, conn)
	b := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != http2.ClientPreface {
		t.Fatalf("the server reads %q, %v", b, err)
	}
	p.must(p.WriteSettings(settings...))
	return p
}

// rawClient dials the Service and sends the preface.
func (w *world) rawClient(t *testing.T, port int) *peer {
	t.Helper()
	conn, err := w.client.Dial("tcp", fmt.Sprintf("%s:%d", serviceIP, port))
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, conn)
	_, err = io.WriteString(conn, http2.ClientPreface)
	p.must(err)
	p.must(p.WriteSettings())
	return p
}

// TestCodesOfResetsArrive in both directions, from the baseline and from a fork.
func TestCodesOfResetsArrive(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{"", keys["a"]} {
		t.Run(fmt.Sprintf("tagged %v", key != ""), func(t *testing.T) {
			port := w.port()
			servers := w.rawServers(t, port)
			client := w.rawClient(t, port)
			server := accept(t, servers.base)
			codes := []http2.ErrCode{http2.ErrCodeNo, http2.ErrCodeCancel, http2.ErrCodeRefusedStream, http2.ErrCodeInternal, http2.ErrCodeEnhanceYourCalm, 0x4d2}
			id := uint32(1)
			for i, code := range codes {
				client.request(id, false, key)
				if i == 0 && key != "" {
					server = accept(t, servers.fork)
				}
				if f, ok := server.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != id {
					t.Fatalf("the server reads %v, want the request %d", f, id)
				}
				server.must(server.WriteRSTStream(id, code))
				if f, ok := client.next().(*http2.RSTStreamFrame); !ok || f.StreamID != id || f.ErrCode != code {
					t.Errorf("the client reads %v, want a reset with %v", f, code)
				}
				id += 2
				client.request(id, false, key)
				if f, ok := server.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != id {
					t.Fatalf("the server reads %v, want the request %d", f, id)
				}
				client.must(client.WriteRSTStream(id, code))
				if f, ok := server.next().(*http2.RSTStreamFrame); !ok || f.StreamID != id || f.ErrCode != code {
					t.Errorf("the server reads %v, want a reset with %v", f, code)
				}
				id += 2
			}
		})
	}
}

// TestPingsComeBack whoever has talked last.
func TestPingsComeBack(t *testing.T) {
	w := newWorld(t)
	port := w.port()
	servers := w.rawServers(t, port)
	client := w.rawClient(t, port)
	base := accept(t, servers.base)
	data := [8]byte{1, 2, 3}
	ping := func(server *peer) {
		t.Helper()
		data[7]++
		client.must(client.WritePing(false, data))
		if f, ok := server.next().(*http2.PingFrame); !ok || f.IsAck() || f.Data != data {
			t.Errorf("the server reads %v, want the client's ping", f)
		}
		server.must(server.WritePing(true, data))
		if f, ok := client.next().(*http2.PingFrame); !ok || !f.IsAck() || f.Data != data {
			t.Errorf("the client reads %v, want the answer to its ping", f)
		}
	}
	ping(base)
	client.request(1, true, keys["a"])
	fork := accept(t, servers.fork)
	fork.next()
	fork.headers(1, true, ":status", "200")
	client.next()
	// The one that has sent something last: servers take pings of who gets nothing
	// from them for an attack.
	ping(fork)
	client.request(3, true, "")
	base.next()
	base.headers(3, true, ":status", "200")
	client.next()
	ping(base)

	t.Run("servers' pings are answered by the client", func(t *testing.T) {
		for _, server := range []*peer{base, fork} {
			data[7]++
			server.must(server.WritePing(false, data))
			if f, ok := client.next().(*http2.PingFrame); !ok || f.IsAck() || f.Data != data {
				t.Errorf("the client reads %v, want the server's ping", f)
			}
			client.must(client.WritePing(true, data))
			if f, ok := server.next().(*http2.PingFrame); !ok || !f.IsAck() || f.Data != data {
				t.Errorf("the server reads %v, want the answer to its ping", f)
			}
		}
	})
	t.Run("the fork's server leaves before it answers", func(t *testing.T) {
		client.request(5, true, keys["a"])
		fork.next()
		fork.headers(5, true, ":status", "200")
		client.next()
		data[7]++
		client.must(client.WritePing(false, data))
		fork.next()
		fork.conn.Close()
		if f, ok := client.next().(*http2.PingFrame); !ok || !f.IsAck() || f.Data != data {
			t.Errorf("the client reads %v, want an answer to its ping", f)
		}
	})
}

// TestGoAwayOfAForkIsNotTheBaselines: streams of others go on, and so do new ones.
func TestGoAwayOfAForkIsNotTheBaselines(t *testing.T) {
	w := newWorld(t)
	port := w.port()
	servers := w.rawServers(t, port)
	client := w.rawClient(t, port)
	base := accept(t, servers.base)
	client.request(1, true, "")
	base.next()
	client.request(3, true, keys["a"])
	fork := accept(t, servers.fork)
	fork.next()
	fork.must(fork.WriteGoAway(3, http2.ErrCodeNo, []byte("over")))
	// What it has accepted it answers.
	fork.headers(3, false, ":status", "200")
	if f, ok := client.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != 3 {
		t.Fatalf("the client reads %v, want the answer to 3", f)
	}
	client.request(5, true, keys["a"])
	other := accept(t, servers.fork)
	if f, ok := other.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != 5 {
		t.Fatalf("the fork's new connection reads %v, want 5", f)
	}
	other.headers(5, true, ":status", "200")
	if f, ok := client.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != 5 {
		t.Fatalf("the client reads %v, want the answer to 5", f)
	}
	fork.must(fork.WriteData(3, true, []byte("end")))
	if f, ok := client.next().(*http2.DataFrame); !ok || f.StreamID != 3 || string(f.Data()) != "end" {
		t.Fatalf("the client reads %v, want the end of 3", f)
	}
	base.headers(1, true, ":status", "200")
	if f, ok := client.next().(*http2.MetaHeadersFrame); !ok || f.StreamID != 1 {
		t.Fatalf("the client reads %v, want the answer to 1", f)
	}
	base.must(base.WriteGoAway(5, http2.ErrCodeNo, []byte("bye")))
	if f, ok := client.next().(*http2.GoAwayFrame); !ok || f.ErrCode != http2.ErrCodeNo || f.LastStreamID < 5 {
		t.Fatalf("the client reads %v, want the baseline's GOAWAY", f)
	}
	base.must(base.conn.(*net.TCPConn).CloseWrite())
	// It may say so again, since nothing is left to go on for.
	for {
		f, err := client.ReadFrame()
		if errors.Is(err, io.EOF) {
			return
		}
		if _, ok := f.(*http2.GoAwayFrame); !ok {
			t.Fatalf("the client reads %v, %v, want the end", f, err)
		}
	}
}
