// SPDX-License-Identifier: Apache-2.0

package router

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// mirror makes the baseline send back what it receives, after its greeting, and
// everybody else say who they are.
func (w *world) mirror(greeting string) {
	w.script(w.base, func(c *peer) {
		if greeting != "" {
			c.send(greeting)
		}
		// Not io.Copy: it would splice, through pipes that Go keeps.
		_, _ = io.Copy(struct{ io.Writer }{c.conn}, struct{ io.Reader }{c.r})
		// FIN comes back as well.
		_ = c.conn.CloseWrite()
	})
	w.names(w.fork)
}

func TestServersThatSpeakFirstAreHeard(t *testing.T) {
	for _, greeting := range []string{
		"220 mail.example.org ESMTP\r\n",
		"J\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00", // MySQL's
		"x",
	} {
		w := newWorld(t)
		w.mirror(greeting)
		c := w.dial(w.client)
		c.expect(greeting)
		c.send("EHLO me\r\n")
		c.expect("EHLO me\r\n")
		c.send("\x00\x01\x02")
		c.expect("\x00\x01\x02")
		// A key in what is certainly no HTTP means nothing.
		c.send("DATA baggage: sidetrack=" + key + "\r\n")
		c.expect("DATA baggage: sidetrack=" + key + "\r\n")
		if err := c.conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.expectFIN()
		w.noConnections()
	}
}

func TestWhatIsNotHTTPFlowsByteForByte(t *testing.T) {
	for _, tc := range []struct{ name, in string }{
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{"Redis", "*1\r\n$4\r\nPING\r\n"},
		{"a line", "hello\n"},
		{"a word and no line's end", "hello"},
		{"one byte", "h"},
		{"an empty line", "\r\n"},
		{"HTTP/0.9", "GET /\r\n"},
		{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.mirror("")
			c := w.dial(w.client)
			c.send(tc.in)
			c.expect(tc.in)
			random := make([]byte, 3<<20)
			if _, err := rand.Read(random); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = c.conn.Write(random)
				_ = c.conn.CloseWrite()
			}()
			got, err := io.ReadAll(c.r)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(random) {
				t.Errorf("%d of %d bytes came back, %v", len(got), len(random), err)
			}
			w.noConnections()
		})
	}
}

var doubtful = []struct{ name, head string }{
	{"Content-Length with Transfer-Encoding", "POST / HTTP/1.1\r\nHost: a\r\nKEYContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"different Content-Lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nKEYContent-Length: 6\r\n\r\nhello!"},
	{"a bare line feed", "GET / HTTP/1.1\r\nHost: a\nKEY\r\n"},
	{"bare line feeds only", "GET / HTTP/1.1\nHost: a\nKEY\n"},
	{"a folded field", "GET / HTTP/1.1\r\nX: a\r\n folded\r\nKEY\r\n"},
	{"a NUL", "GET / HTTP/1.1\r\nX: \x00\r\nKEY\r\n"},
	{"a control byte", "GET / HTTP/1.1\r\nX: \x01\r\nKEY\r\n"},
	{"a bare carriage return", "GET / HTTP/1.1\r\nKEYX: a\rb\r\n\r\n"},
	{"a blank before the colon", "GET / HTTP/1.1\r\nX : a\r\nKEY\r\n"},
	{"two blanks in the request line", "GET  / HTTP/1.1\r\nHost: a\r\nKEY\r\n"},
	{"an unknown version", "GET / HTTP/1.9\r\nHost: a\r\nKEY\r\n"},
	{"HTTP/1.0 with chunked", "POST / HTTP/1.0\r\nKEYTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
}

func TestAmbiguousRequestsWithoutAKeyReachTheBaselineUntouched(t *testing.T) {
	for _, tc := range doubtful {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.mirror("")
			raw := strings.ReplaceAll(tc.head, "KEY", "")
			c := w.dial(w.client)
			for i := range len(raw) {
				c.send(raw[i : i+1])
			}
			c.expect(raw)
			if w.router.Stats().Errors["ambiguous_passed"] != 1 {
				t.Error("it was not counted")
			}
		})
	}
}

func TestAmbiguousRequestsWithAKeyAreRefused(t *testing.T) {
	for _, tc := range doubtful {
		for how, field := range map[string]string{"": tagged, " with the key folded": "x-sidetrack-key:\r\n " + key + "\r\n", " with a blank before the colon": "x-sidetrack-key : " + key + "\r\n"} {
			t.Run(tc.name+how, func(t *testing.T) {
				w := newWorld(t)
				touched := w.script(w.base, func(c *peer) {
					if b, _ := io.ReadAll(c.r); len(b) > 0 {
						t.Errorf("the baseline received %q", b)
					}
				})
				_ = touched
				raw := strings.ReplaceAll(tc.head, "KEY", field)
				c := w.dial(w.client)
				c.send(raw)
				resp, body := c.response("GET")
				if resp.StatusCode != http.StatusBadRequest || !resp.Close || !strings.Contains(body, "routing key") {
					t.Errorf("answered %s %q", resp.Status, body)
				}
				c.expectFIN()
				c.conn.Close()
				w.noConnections()
			})
		}
	}
}

func TestATaggedRequestCannotHideBehindAnAmbiguousOne(t *testing.T) {
	for _, piece := range []int{1, 5, 1000} {
		w := newWorld(t)
		w.mirror("")
		c := w.dial(w.client)
		first := "GET / HTTP/1.1\nHost: a\n\n"
		c.send(first)
		c.expect(first)
		c.send(get(""))
		c.expect(get(""))
		raw := get(tagged)
		var cut error
		for i := 0; i < len(raw) && cut == nil; i += piece {
			_, cut = io.WriteString(c.conn, raw[i:min(i+piece, len(raw))])
			time.Sleep(time.Millisecond)
		}
		got, err := io.ReadAll(c.r)
		// An RST is told once: to a write, if there was one after it.
		if cut == nil && err == nil {
			t.Error("the connection was not reset")
		}
		if !strings.HasPrefix(raw, string(got)) || strings.Contains(string(got), "\r\n\r\n") {
			t.Errorf("the baseline got and sent back %q", got)
		}
		if w.router.Stats().Errors["reset_key_in_opaque"] != 1 {
			t.Error("it was not counted")
		}
		w.noConnections()
	}
}

func TestABadChunkEndsWhatCanBeTold(t *testing.T) {
	w := newWorld(t)
	const good, bad = "POST / HTTP/1.1\r\nHost: a\r\nKEYTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "5\nhello\r\n0\r\n\r\n"
	w.mirror("")
	t.Run("to the baseline it passes, and is searched", func(t *testing.T) {
		c := w.dial(w.client)
		raw := strings.ReplaceAll(good, "KEY", "") + bad
		c.send(raw)
		c.expect(raw)
		c.send(get(tagged))
		c.expectRST()
	})
	t.Run("with a key it is refused", func(t *testing.T) {
		c := w.dial(w.client)
		c.send(strings.ReplaceAll(good, "KEY", tagged))
		c.send(bad)
		if resp, _ := c.response("POST"); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("answered %s", resp.Status)
		}
		c.expectFIN()
	})
}

func TestHeadsThatAreTooLarge(t *testing.T) {
	w := newWorld(t)
	w.mirror("")
	long := "GET / HTTP/1.1\r\nHost: a\r\nKEYX: " + strings.Repeat("v", 70_000) + "\r\n\r\n"
	t.Run("without a key pass", func(t *testing.T) {
		raw := strings.ReplaceAll(long, "KEY", "")
		c := w.dial(w.client)
		c.sendAside(raw)
		c.expect(raw)
	})
	t.Run("with a key are refused", func(t *testing.T) {
		c := w.dial(w.client)
		c.send(strings.ReplaceAll(long, "KEY", tagged))
		if resp, _ := c.response("GET"); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answered %s", resp.Status)
		}
		c.expectFIN()
	})
	t.Run("with a key that comes too late are reset", func(t *testing.T) {
		c := w.dial(w.client)
		first := "GET / HTTP/1.1\r\nX: " + strings.Repeat("v", 70_000) + "\r\n"
		c.sendAside(first)
		c.expect(first) // so the router has given up on finding the head's end
		_, _ = io.WriteString(c.conn, tagged+"\r\n")
		c.expectRST()
	})
}

func TestUpgradesBecomeTunnelsWhereTheyWereRouted(t *testing.T) {
	w := newWorld(t)
	const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			for {
				raw, err := readRequest(c.r)
				if err != nil {
					return
				}
				if !strings.Contains(string(raw), "Upgrade:") {
					c.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					continue
				}
				c.send(switching + p.Name + ".")
				_, _ = io.Copy(struct{ io.Writer }{c.conn}, struct{ io.Reader }{c.r})
				return
			}
		})
	}
	for _, tc := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
		c := w.dial(w.client)
		c.send(get(untagged))
		c.response("GET")
		// What comes behind the request in one piece belongs to the tunnel.
		c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + tc.header + "\r\n\x81\x05hello")
		c.expect(switching + tc.want + ".\x81\x05hello")
		// A tunnel's bytes are nobody's requests.
		c.send(get(tagged))
		c.expect(get(tagged))
		c.conn.Close()
	}
	w.noConnections()
	if n := w.router.Stats().Tunnels; n != 2 {
		t.Errorf("%d tunnels counted, want 2", n)
	}
}

func TestARefusedUpgradeLeavesHTTP(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	c := w.dial(w.client)
	const upgrade = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
	c.send(get(upgrade) + get(tagged) + get(tagged+upgrade) + get(untagged))
	for i, want := range []string{"base", "fork", "fork", "base"} {
		if resp, _ := c.response("GET"); resp.Header.Get("X-Served-By") != want {
			t.Errorf("answer %d is of %s, want %s", i, resp.Header.Get("X-Served-By"), want)
		}
	}
}

func TestConnectBecomesATunnel(t *testing.T) {
	w := newWorld(t)
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			if _, err := readRequest(c.r); err != nil {
				return
			}
			c.send("HTTP/1.1 200 Fine\r\nX: " + p.Name + "\r\n\r\n")
			_, _ = io.Copy(struct{ io.Writer }{c.conn}, struct{ io.Reader }{c.r})
		})
	}
	for _, tc := range []struct{ header, want string }{{untagged, "base"}, {tagged, "fork"}} {
		c := w.dial(w.client)
		c.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n" + tc.header + "\r\n")
		c.expect("HTTP/1.1 200 Fine\r\nX: " + tc.want + "\r\n\r\n")
		c.send("\x00\x01")
		c.expect("\x00\x01")
	}
}

func TestARefusedConnectLeavesHTTP(t *testing.T) {
	w := newWorld(t)
	w.answering("HTTP/1.1 403 No\r\nX-Served-By: NAME\r\nContent-Length: 2\r\n\r\nno")
	c := w.dial(w.client)
	c.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n" + get(tagged))
	for i, want := range []string{"base", "fork"} {
		if resp, _ := c.response("GET"); resp.Header.Get("X-Served-By") != want {
			t.Errorf("answer %d is of %s, want %s", i, resp.Header.Get("X-Served-By"), want)
		}
	}
}
