// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// ambiguous are requests that two implementations may understand differently.
// {key} is where a key may stand.
var ambiguous = map[string]string{
	"Content-Length with Transfer-Encoding":   "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"Transfer-Encoding with Content-Length":   "POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n{key}Content-Length: 5\r\n\r\n0\r\n\r\n",
	"unequal Content-Lengths":                 "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\n{key}Content-Length: 5\r\n\r\nabcde",
	"a list of unequal Content-Lengths":       "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 4, 5\r\n\r\nabcde",
	"Content-Length with a sign":              "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: +5\r\n\r\nabcde",
	"negative Content-Length":                 "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: -5\r\n\r\nabcde",
	"hexadecimal Content-Length":              "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 0x5\r\n\r\nabcde",
	"Content-Length with a space in it":       "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 5 5\r\n\r\nabcde",
	"Content-Length with an underscore":       "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 1_0\r\n\r\nabcde",
	"empty Content-Length":                    "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length:\r\n\r\nabcde",
	"Content-Length beyond 64 bits":           "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 18446744073709551621\r\n\r\nabcde",
	"bare LF at all line ends":                "POST / HTTP/1.1\nHost: w\n{key}Content-Length: 5\n\nabcde",
	"bare LF at one line's end":               "POST / HTTP/1.1\r\nHost: w\n{key}Content-Length: 5\r\n\r\nabcde",
	"bare LF at the head's end":               "POST / HTTP/1.1\r\nHost: w\r\n{key}Content-Length: 5\r\n\nabcde",
	"bare LF after the request line":          "POST / HTTP/1.1\nHost: w\r\n{key}Content-Length: 5\r\n\r\nabcde",
	"bare CR in a value":                      "GET / HTTP/1.1\r\nHost: w\r\nX: a\rb\r\n{key}\r\n",
	"bare CR before a name":                   "GET / HTTP/1.1\r\nHost: w\r\n\rX: b\r\n{key}\r\n",
	"CR CR LF":                                "GET / HTTP/1.1\r\nHost: w\r\nX: a\r\r\n{key}\r\n",
	"obs-fold":                                "GET / HTTP/1.1\r\nHost: w\r\nX: a\r\n b\r\n{key}\r\n",
	"obs-fold with a tab":                     "GET / HTTP/1.1\r\nHost: w\r\nX: a\r\n\tTransfer-Encoding: chunked\r\n{key}\r\n",
	"a space before the first name":           "GET / HTTP/1.1\r\n Host: w\r\n{key}\r\n",
	"NUL in a value":                          "GET / HTTP/1.1\r\nHost: w\r\nX: a\x00b\r\n{key}\r\n",
	"a control byte in a value":               "GET / HTTP/1.1\r\nHost: w\r\nX: a\x01b\r\n{key}\r\n",
	"DEL in a value":                          "GET / HTTP/1.1\r\nHost: w\r\nX: a\x7fb\r\n{key}\r\n",
	"a control byte in a name":                "GET / HTTP/1.1\r\nHost: w\r\nX\x0b: a\r\n{key}\r\n",
	"a space before a colon":                  "GET / HTTP/1.1\r\nHost: w\r\nX : a\r\n{key}\r\n",
	"Transfer-Encoding, space before a colon": "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"a line without a colon":                  "GET / HTTP/1.1\r\nHost: w\r\nnonsense\r\n{key}\r\n",
	"an empty name":                           "GET / HTTP/1.1\r\nHost: w\r\n: a\r\n{key}\r\n",
	"a name above ASCII":                      "GET / HTTP/1.1\r\nHost: w\r\n\xc3\xa4: a\r\n{key}\r\n",
	"chunked that is not last":                "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
	"chunked twice":                           "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"a coding that looks like chunked":        "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"chunked in quotes":                       "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"identity and chunked":                    "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: identity, chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
	"Transfer-Encoding with a vertical tab":   "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"Transfer-Encoding in HTTP/1.0":           "POST / HTTP/1.0\r\nHost: w\r\n{key}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}

// TestAmbiguousFramingIsPassedWithoutAKeyAndRefusedWithOne: never is there a
// reading by which a part of what one side takes for a body is a request that
// goes somewhere else.
func TestAmbiguousFramingIsPassedWithoutAKeyAndRefusedWithOne(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		for name, text := range ambiguous {
			t.Run(name, func(t *testing.T) {
				untagged := strings.ReplaceAll(text, "{key}", "")
				e, strangers := s.open(t, way{"", s.client, s.base, "", wideIP})
				d := dialogue{steps: []step{c(untagged), sv("HTTP/1.1 200 OK\r\nContent-Length: 2\nX: y\r\n\r\nhi"), c("GET /more HTTP/1.1\r\n\r\n"), sv("anything"), {serverCloses, ""}}}
				if err := d.play(e, ""); err != nil {
					t.Errorf("without a key: %v", err)
				}
				if err := strangers(); err != nil {
					t.Errorf("without a key: %v", err)
				}
				if s.agent == nil {
					return
				}
				if err := s.smuggle(t, untagged); err != nil {
					t.Errorf("with a key in what follows: %v", err)
				}
				eol := "\r\n"
				if !strings.Contains(text, "\r") {
					eol = "\n"
				}
				for _, key := range []string{"x-sidetrack-key: " + keyA, "Baggage: q=1, sidetrack=" + keyA + ";p", "tracestate: sidetrack=" + keyA} {
					if err := s.refused(t, strings.ReplaceAll(text, "{key}", key+eol)); err != nil {
						t.Errorf("with %.12s: %v", key, err)
					}
				}
			})
		}
	})
}

// smuggle sends a tagged request behind an ambiguous one without a key, which
// may be a body's end to one and a request to another. No fork may get it, and
// the baseline's answer must not be taken for a fork's: either it goes where the
// rest went, or the connection ends.
func (s *shop) smuggle(t *testing.T, untagged string) error {
	e, strangers := s.open(t, way{"", s.client, s.base, "", wideIP})
	text := untagged + "GET /smuggled HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key: " + keyA + "\r\n\r\n"
	if err := send(e.client, text, false); err != nil {
		return err
	}
	server, err := e.accept()
	if err != nil {
		// When all came at once, the end may have come before the baseline's connection.
		_ = e.client.SetReadDeadline(time.Now().Add(patience))
		if _, end := e.client.Read(make([]byte, 1)); end == nil || isTimeout(end) {
			return fmt.Errorf("%w, and the client reads %v", err, end)
		}
		return strangers()
	}
	_ = server.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(text))
	n, err := io.ReadFull(server, got)
	if err == nil {
		got = append(got, leftOver(server)...)
	} else {
		got = got[:n]
	}
	if !strings.HasPrefix(text, string(got)) || isTimeout(err) {
		return fmt.Errorf("the baseline got %q, %v; want all that was sent, or an end", got, err)
	}
	return strangers()
}

// refused wants a request to be answered with 400 and to reach nobody.
func (s *shop) refused(t *testing.T, text string) error {
	e, strangers := s.open(t, way{"", s.client, nil, "", wideIP})
	if err := send(e.client, text, false); err != nil {
		return err
	}
	if err := e.client.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(e.client), nil)
	if err != nil {
		return fmt.Errorf("read the response: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		return fmt.Errorf("status %d, want 400", resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the refusal: %w", err)
	}
	if strings.Contains(string(body), keyA) {
		return fmt.Errorf("the refusal shows the key: %q", body)
	}
	if _, err := e.client.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		return fmt.Errorf("the connection goes on after the refusal (%v)", err)
	}
	return strangers()
}

func TestAKeyIsSeenHoweverTheHeadIsBroken(t *testing.T) {
	s := newShop(t)
	s.start()
	for name, text := range map[string]string{
		"the key's own line ends with a bare LF":  "GET / HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key: " + keyA + "\n\r\n",
		"a space before the colon of the key":     "GET / HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key : " + keyA + "\r\n\r\n",
		"a key in a folded line":                  "GET / HTTP/1.1\r\nHost: w\r\nbaggage: a=b,\r\n sidetrack=" + keyA + "\r\n\r\n",
		"a key after a bare CR":                   "GET / HTTP/1.1\r\nHost: w\r\nX: y\rX-Sidetrack-Key: " + keyA + "\r\n\r\n",
		"a key that a control byte follows":       "GET / HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key: " + keyA + "\x00\r\n\r\n",
		"a key before the line that is ambiguous": "POST / HTTP/1.1\r\nX-Sidetrack-Key: " + keyA + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a key as the first of all lines":         "GET / HTTP/1.1\nX-Sidetrack-Key: " + keyA + "\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.refused(t, text); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnAmbiguousRequestAfterTaggedOnesReachesTheBaselineAlone: the connection
// to the fork must not see a byte of it.
func TestAnAmbiguousRequestAfterTaggedOnesReachesTheBaselineAlone(t *testing.T) {
	s := newShop(t)
	s.start()
	n := s.nextPort()
	base, fork := rawServer(t, s.base, n), rawServer(t, s.forkA, n)
	conn, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tagged := dialogue{steps: again()}
	toFork := &ends{client: conn, accepts: fork}
	if err := tagged.play(toFork, "X-Sidetrack-Key: "+keyA+"\r\n"); err != nil {
		t.Fatalf("the tagged request: %v", err)
	}
	toBase := &ends{client: conn, accepts: base}
	if err := tagged.play(toBase, ""); err != nil {
		t.Fatalf("the untagged request: %v", err)
	}
	text := strings.ReplaceAll(ambiguous["Content-Length with Transfer-Encoding"], "{key}", "")
	odd := dialogue{steps: []step{c(text), sv(ok), c("and on"), sv("and on"), {serverCloses, ""}}}
	if err := odd.play(toBase, ""); err != nil {
		t.Errorf("the ambiguous request: %v", err)
	}
	if b := leftOver(toFork.server); b != "" {
		t.Errorf("the fork got %q as well", b)
	}
}

func leftOver(conn net.Conn) string {
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	b, _ := io.ReadAll(conn)
	return string(b)
}

// TestABodyThatBreaksItsFramingGoesNowhereElse: the head was sound, the key was
// known, then a chunk is not one.
func TestABodyThatBreaksItsFramingGoesNowhereElse(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: w\r\n{key}Transfer-Encoding: chunked\r\n\r\n"
	both(t, func(t *testing.T, s *shop) {
		for name, body := range map[string]string{
			"a size that is no number":          "xyz\r\n0\r\n\r\n",
			"a negative size":                   "-1\r\n\r\n0\r\n\r\n",
			"a size in C's notation":            "0x1\r\na\r\n0\r\n\r\n",
			"a size beyond 64 bits":             "10000000000000001\r\na\r\n0\r\n\r\n",
			"a size line that ends in bare LF":  "1\na\r\n0\r\n\r\n",
			"a chunk that ends in bare LF":      "1\r\na\n0\r\n\r\n",
			"a chunk that is longer than said":  "1\r\nabc\r\n0\r\n\r\n",
			"a bare CR in a chunk's extension":  "1;a\rb\r\na\r\n0\r\n\r\n",
			"a control byte in an extension":    "1;a\x00b\r\na\r\n0\r\n\r\n",
			"a trailer whose line is no header": "0\r\nnonsense\r\n\r\n",
			"a trailer that is folded":          "0\r\nX: a\r\n b\r\n\r\n",
		} {
			t.Run(name, func(t *testing.T) {
				e, strangers := s.open(t, way{"", s.client, s.base, "", wideIP})
				d := dialogue{steps: []step{c(head), c(body), sv("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), {serverCloses, ""}}}
				if err := d.play(e, ""); err != nil {
					t.Errorf("without a key: %v", err)
				}
				if err := strangers(); err != nil {
					t.Errorf("without a key: %v", err)
				}
				if s.agent == nil {
					return
				}
				// With one, what follows must reach neither the baseline nor another
				// sandbox's fork; the fork itself may see it or not.
				e, strangers = s.open(t, way{"", s.client, s.forkA, "", wideIP})
				text := strings.ReplaceAll(head, "{key}", "X-Sidetrack-Key: "+keyA+"\r\n") + body +
					"GET / HTTP/1.1\r\nHost: w\r\n\r\n" + "GET / HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key: " + keyB + "\r\n\r\n"
				if err := send(e.client, text, false); err != nil {
					t.Fatalf("with a key: %v", err)
				}
				_ = e.client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				_, _ = io.ReadAll(e.client)
				if err := strangers(); err != nil {
					t.Errorf("with a key: %v", err)
				}
			})
		}
	})
}

// TestOddResponsesComeThrough: whatever the server says is the client's to judge.
func TestOddResponsesComeThrough(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		var all []dialogue
		for name, text := range map[string]string{
			"Content-Length with Transfer-Encoding": "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			"unequal Content-Lengths":               "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello",
			"bare LF":                               "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
			"obs-fold":                              "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
			"no HTTP at all":                        "this is not HTTP\r\n\r\n",
			"HTTP/0.9":                              "<html>hello</html>",
			"ICY":                                   "ICY 200 OK\r\nicy-name: x\r\n\r\nmusic",
			"a chunk that is none":                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
			"a status of 999":                       "HTTP/1.1 999 What\r\nContent-Length: 5\r\n\r\nhello",
			"a body where none is allowed":          "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
			"101 that nobody asked for":             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello",
			"more than it has announced":            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world",
			"control bytes":                         "HTTP/1.1 200 OK\r\nX: \x01\x02\r\nContent-Length: 5\r\n\r\nhello",
		} {
			all = append(all, dialogue{name, []step{c(get), sv(text), sv("the end"), {serverCloses, ""}}})
		}
		playAll(t, s, s.ways(), all)
	})
}
