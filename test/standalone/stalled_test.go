// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"

	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPeersThatStopReadingCostLittleMemory: 200 connections on which somebody
// has stopped to read, in each direction, and what the router holds of them.
func TestPeersThatStopReadingCostLittleMemory(t *testing.T) {
	const connections, perConnection = 200, 256 << 10
	for _, tt := range []struct {
		name string
		// request is what the client sends; then it sends without end or reads nothing.
		request string
		endless bool
		key     string
	}{
		{"clients, of a download", "GET / HTTP/1.1\r\nHost: w\r\n{key}\r\n", false, ""},
		{"clients, of a fork's download", "GET / HTTP/1.1\r\nHost: w\r\n{key}\r\n", false, "X-Sidetrack-Key: " + keyA + "\r\n"},
		{"servers, of an upload", "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 1000000000\r\n\r\n", true, ""},
		{"servers, of a chunked upload to a fork", "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n", true, "X-Sidetrack-Key: " + keyA + "\r\n"},
		{"servers, of what is not HTTP", "\x16\x03\x01", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShop(t)
			a := s.start()
			n := s.nextPort()
			place := s.base
			if tt.key != "" {
				place = s.forkA
			}
			conns := rawServer(t, place, n)
			if place != s.base {
				// Or nobody is connected.
				if err := s.base.ServeHTTP("baseline", fmt.Sprintf(":%d", n)); err != nil {
					t.Fatal(err)
				}
			}
			warm, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
			if err != nil {
				t.Fatal(err)
			}
			warm.Close()
			before := residentKB(t, a.cmd.Process.Pid)

			// What has been written last tells when nothing moves any more.
			var moved atomic.Int64
			var wg sync.WaitGroup
			pour := func(c net.Conn) {
				wg.Go(func() {
					block := make([]byte, 64<<10)
					for {
						k, err := c.Write(block)
						moved.Add(int64(k))
						if err != nil {
							return
						}
					}
				})
			}
			var ends []net.Conn
			defer func() {
				for _, c := range ends {
					reset(c)
				}
				wg.Wait()
			}()
			for range connections {
				c, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
				if err != nil {
					t.Fatal(err)
				}
				ends = append(ends, c)
				if err := send(c, replaceKey(tt.request, tt.key), false); err != nil {
					t.Fatal(err)
				}
				server := firstWithBytes(t, conns, replaceKey(tt.request, tt.key))
				ends = append(ends, server)
				if tt.endless {
					pour(c)
				} else {
					if err := send(server, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", false); err != nil {
						t.Fatal(err)
					}
					pour(server)
				}
			}
			last := int64(-1)
			eventually(t, func() error {
				now := moved.Load()
				defer func() { last = now }()
				if now == last {
					return nil
				}
				time.Sleep(300 * time.Millisecond)
				return fmt.Errorf("bytes go on moving (%d)", now)
			})
			grown := (residentKB(t, a.cmd.Process.Pid) - before) << 10
			t.Logf("%d bytes each for %d connections (%d bytes wait in all)", grown/connections, connections, last)
			if grown/connections > perConnection {
				t.Errorf("the agent has grown by %d bytes for each connection, want at most %d", grown/connections, perConnection)
			}
			// The stalled ones are in nobody's way.
			m := s.nextPort()
			if err := s.base.ServeHTTP("baseline", fmt.Sprintf(":%d", m)); err != nil {
				t.Fatal(err)
			}
			if got := s.client.MustGet(fmt.Sprintf("http://%s:%d/", wideIP, m)); got.Server != "baseline" {
				t.Errorf("%+v", got)
			}
		})
	}
}

// firstWithBytes accepts the connection that brings text; others may have been
// dialled for nothing.
func firstWithBytes(t *testing.T, conns <-chan net.Conn, text string) net.Conn {
	t.Helper()
	for {
		select {
		case c := <-conns:
			err := readExactly(c, text)
			if err == nil {
				return c
			}
			c.Close()
		case <-time.After(patience):
			t.Fatalf("no connection has brought %.40q", text)
		}
	}
}

// TestAStalledClientGoesOnWhenItReadsAgain and has missed nothing.
func TestAStalledClientGoesOnWhenItReadsAgain(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveEcho()
		for _, w := range []tag{{"baseline", nil}, {s.want("fork-b"), []string{"x-sidetrack-key: " + keyB}}} {
			conn, err := s.client.Dial("tcp", webIP+":80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			e := newExchanger(conn)
			x := exchange{method: "GET", want: w.want, headers: w.headers, size: 8 << 20, sizeChunked: true}
			// The request goes out; nobody reads for a while.
			slow := &pausing{Conn: conn}
			e.conn = slow
			e.r.Reset(slow)
			if err := e.do(x); err != nil {
				t.Errorf("%s: %v", w.want, err)
			}
			x.size, x.sizeChunked = 10, false
			if err := e.do(x); err != nil {
				t.Errorf("%s, the request after it: %v", w.want, err)
			}
		}
	})
}

// pausing reads a little, with long breaks in between.
type pausing struct {
	net.Conn
	reads int
}

func (p *pausing) Read(b []byte) (int, error) {
	p.reads++
	if p.reads%300 == 1 {
		time.Sleep(100 * time.Millisecond)
	}
	return p.Conn.Read(b)
}
