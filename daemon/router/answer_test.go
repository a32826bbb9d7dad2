// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// answering starts a server at the baseline and at the fork that sends this after
// each request, and a name after "X-Served-By: ".
func (w *world) answering(answer string) {
	for _, p := range []*lab.Pod{w.base, w.fork} {
		w.script(p, func(c *peer) {
			for {
				if _, err := readRequest(c.r); err != nil {
					return
				}
				c.send(strings.ReplaceAll(answer, "NAME", p.Name))
			}
		})
	}
}

func TestAnswersOfEveryFramingLeaveTheConnectionInStep(t *testing.T) {
	for _, tc := range []struct{ name, method, answer string }{
		{"Content-Length", "GET", "HTTP/1.1 200 OK\r\nX-Served-By: NAME\r\nContent-Length: 5\r\n\r\nhello"},
		{"chunked, with extensions and trailers", "GET", "HTTP/1.1 200 OK\r\nX-Served-By: NAME\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3 \r\nxyz\r\n0\r\nX-Sum: NAME\r\n\r\n"},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nX-Served-By: NAME\r\nContent-Length: 5\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\nX-Served-By: NAME\r\n\r\n"},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nX-Served-By: NAME\r\nContent-Length: 5\r\n\r\n"},
		{"after interim answers", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </NAME>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nX-Served-By: NAME\r\nContent-Length: 2\r\n\r\nok"},
		{"odd case and order", "GET", "HTTP/1.1 299 Odd  reason\r\ncontent-LENGTH:2\r\nX-served-BY:NAME\r\nA: \r\n\r\nok"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.answering(tc.answer)
			c := w.dial(w.client)
			for i := range 6 {
				header, want := untagged, "base"
				if i%2 == 1 {
					header, want = tagged, "fork"
				}
				c.send(tc.method + " / HTTP/1.1\r\nHost: a\r\n" + header + "\r\n")
				c.expect(strings.ReplaceAll(tc.answer, "NAME", want))
			}
		})
	}
}

func TestAnAnswerMayComeByteByByte(t *testing.T) {
	w := newWorld(t)
	const answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
	w.script(w.fork, func(c *peer) {
		for {
			if _, err := readRequest(c.r); err != nil {
				return
			}
			for i := range len(answer) {
				c.send(answer[i : i+1])
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	w.names(w.base)
	c := w.dial(w.client)
	for range 3 {
		c.send(get(tagged))
		c.expect(answer)
		c.send(get(untagged))
		c.response("GET")
	}
}

func TestAnAnswerMayEndWithTheConnection(t *testing.T) {
	for _, tc := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
		w := newWorld(t)
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				if _, err := readRequest(c.r); err == nil {
					c.send("HTTP/1.0 200 OK\r\n\r\nfrom " + p.Name)
					c.send(strings.Repeat("x", 300_000))
				}
			})
		}
		c := w.dial(w.client)
		c.send(get(tc.header))
		if _, body := c.response("GET"); body != "from "+tc.want+strings.Repeat("x", 300_000) {
			t.Errorf("%d bytes, want those of %s", len(body), tc.want)
		}
		c.expectFIN()
		c.conn.Close()
		w.noConnections()
	}
}

func (w *world) servers() []*lab.Pod { return []*lab.Pod{w.base, w.fork} }

func TestABodyWaitsForContinue(t *testing.T) {
	w := newWorld(t)
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			for {
				line, err := c.r.ReadString('\n')
				if err != nil {
					return
				}
				if line != "\r\n" {
					continue
				}
				c.send("HTTP/1.1 100 Continue\r\n\r\n")
				body := make([]byte, 5)
				if _, err := io.ReadFull(c.r, body); err != nil {
					return
				}
				c.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", body))
			}
		})
	}
	c := w.dial(w.client)
	for _, header := range []string{untagged, tagged, untagged} {
		c.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n" + header + "\r\n")
		c.expect("HTTP/1.1 100 Continue\r\n\r\n")
		c.send("hello")
		c.expect("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
	}
}

func TestAnAnswerMayComeBeforeTheRequestIsWhole(t *testing.T) {
	w := newWorld(t)
	const early = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly"
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			for {
				line, err := c.r.ReadString('\n')
				if err != nil {
					return
				}
				if line != "\r\n" {
					continue
				}
				c.send(early)
				if _, err := io.CopyN(io.Discard, c.r, 100_000); err != nil {
					return
				}
			}
		})
	}
	c := w.dial(w.client)
	for _, header := range []string{untagged, tagged, untagged, tagged} {
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n" + header + "\r\n")
		c.expect(early)
		c.send(strings.Repeat("b", 100_000))
	}
}

func TestAnEarlyRefusalArrivesAlthoughTheServerResets(t *testing.T) {
	for _, header := range []string{untagged, tagged} {
		w := newWorld(t)
		const refusal = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
		for _, p := range w.servers() {
			w.script(p, func(c *peer) {
				for {
					line, err := c.r.ReadString('\n')
					if err != nil {
						return
					}
					if line == "\r\n" {
						break
					}
				}
				c.send(refusal)
				// Closing with unread bytes makes it an RST.
			})
		}
		c := w.dial(w.client)
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n" + header + "\r\n" + strings.Repeat("b", 100_000))
		c.expect(refusal)
		// The client goes on sending, as it would to the server.
		_, err := io.Copy(c.conn, strings.NewReader(strings.Repeat("b", 9_000_000)))
		if err == nil {
			t.Error("the client could send a body that nobody reads")
		}
		c.conn.Close()
		w.noConnections()
	}
}

func TestAnAmbiguousAnswerIsRelayedAndTiesTheConnection(t *testing.T) {
	for _, tc := range []struct{ name, answer string }{
		{"Content-Length with Transfer-Encoding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{"bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"},
		{"a bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"},
		{"no HTTP at all", "ICY 200 OK\r\n\r\nhello"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.answering(tc.answer)
			c := w.dial(w.client)
			c.send(get(untagged))
			c.expect(tc.answer)
			c.send(get(untagged))
			c.expect(tc.answer)
			// This one belongs to the fork, whose answer must not come among others that
			// nobody can tell apart.
			c.send(get(tagged))
			if b := c.expectRST(); len(b) > 0 {
				t.Errorf("the tagged request was answered: %q", b)
			}
			if n := w.router.Stats().Errors["reset_after_ambiguous_answer"]; n != 1 {
				t.Errorf("%d resets counted, want 1", n)
			}
			w.noConnections()
		})
	}
}
