// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

// get is a request that carries the key, when there is one.
const get = "GET / HTTP/1.1\r\nHost: web\r\n{key}\r\n"

// again proves that the end of what was before has been found: one more request
// and response on the same connection.
func again() []step { return []step{c(get), sv(ok)} }

func then(steps ...step) []step { return append(steps, again()...) }

func TestRequestsAndResponsesKeepTheirBytes(t *testing.T) {
	hidden := "GET /x HTTP/1.1\r\nHost: web\r\nX-Sidetrack-Key: " + keyB + "\r\n\r\n\r"
	long := strings.Repeat("long cookie ", 700)
	both(t, func(t *testing.T, s *shop) {
		playAll(t, s, s.ways(), []dialogue{
			{"a GET and another", then(c(get), sv(ok))},
			{"order, case and spaces of headers", then(
				c("GET /a%20b?q=1&q=2;x HTTP/1.1\r\nhOST: web\r\nX-b: 2\r\nx-A:1\r\n{key}X-b:\t two  \r\nx-empty:\r\nAccept:*/*\r\nCOOKIE: a=b; c=\"d\"\r\nX-B: three \t\r\n\r\n"),
				sv("HTTP/1.1 200 Fine, thank you\r\nsErVeR: x\r\nContent-length:3\r\nSet-Cookie: a\r\nset-cookie: b\r\nX-Empty:\r\nx:  y \r\n\r\nabc"))},
			{"bytes above ASCII in values", then(
				c("GET /\xc3\xa4 HTTP/1.1\r\nHost: web\r\nX-Utf8: \xc3\xa4\xff\x80\r\n{key}\r\n"),
				sv("HTTP/1.1 200 \xc3\xb6k\r\nX: \xe4\xff\r\nContent-Length: 0\r\n\r\n"))},
			{"a long head", then(
				c("GET / HTTP/1.1\r\nHost: web\r\nCookie: "+long+"\r\n{key}X-Last: 1\r\n\r\n"),
				sv("HTTP/1.1 200 OK\r\nX-Long: "+long+"\r\nContent-Length: 0\r\n\r\n"))},
			{"a response without a reason phrase", then(c(get), sv("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n"))},
			{"all forms of targets and methods", then(
				c("OPTIONS * HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv(ok),
				c("GET http://web.shop/x?y HTTP/1.1\r\nHost: web.shop\r\n{key}\r\n"), sv(ok),
				c("M-SEARCH /x HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv(ok),
				c("get / HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv(ok),
				c("PROPFIND /a/../b//c?%zz HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv(ok))},
			{"a body with Content-Length", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 11\r\n\r\nhello\r\n\r\nxx"), sv(ok),
				c("PUT / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 0\r\n\r\n"), sv(ok),
				c("GET / HTTP/1.1\r\nContent-Length: 3\r\nHost: web\r\n{key}\r\nGET"), sv(ok))},
			{"a body that looks like a request", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: "+strconv.Itoa(len(hidden))+"\r\n\r\n"+hidden), sv(ok))},
			{"chunks, extensions and trailers of a request", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"+
					"5\r\nhello\r\n00A;name=\"v;\\\"\";x\r\n0123456789\r\n1;y\r\n!\r\n0;last\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n"), sv(ok),
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}transfer-encoding: ChunkeD\r\n\r\n0\r\n\r\n"), sv(ok),
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n"), sv(ok))},
			{"chunks, extensions and trailers of a response", then(
				c(get), sv("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding:chunked\r\n\r\n5\r\nhello\r\n"),
				sv("0a;x=y\r\n0123456789\r\n000\r\nX-Sum: 1\r\n\r\n"))},
			{"a body and its response at a snail's pace", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\n\r\n"),
				c("5\r"), c("\nhel"), c("lo"), c("\r"), c("\n0"), c("\r\n"), c("X: "), c("1\r\n\r"), c("\n"),
				sv("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
				sv("1"), sv("\r"), sv("\nx"), sv("\r\n"), sv("0\r\n"), sv("\r"), sv("\n"))},
			{"HEAD has no body whatever the head says", then(
				c("HEAD / HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
				c("HEAD / HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
				c("HEAD / HTTP/1.1\r\nHost: web\r\n{key}\r\n"), sv("HTTP/1.1 200 OK\r\n\r\n"))},
			{"204 and 304 have no body whatever the head says", then(
				c(get), sv("HTTP/1.1 204 No Content\r\n\r\n"),
				c(get), sv("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n"),
				c(get), sv("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"))},
			{"100-continue", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
				sv("HTTP/1.1 100 Continue\r\n\r\n"), c("hello"), sv(ok))},
			{"100-continue that the client does not wait for", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
				sv("HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"+ok))},
			{"100-continue that the server refuses, and the body comes all the same", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
				sv("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"), c("hello"))},
			{"informational responses", then(
				c(get), sv("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), sv("HTTP/1.1 102 Processing\r\n\r\n"), sv("HTTP/1.1 103 Early Hints\r\n\r\n"+ok))},
			{"pipelining", then(
				c(get+strings.ReplaceAll(get, " / ", " /2 ")+"POST /3 HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 3\r\n\r\nabc"+get),
				sv(ok+"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"), sv("HTTP/1.1 204 No Content\r\n\r\n"), sv(ok))},
			{"an early response, then the rest of the body", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 10\r\n\r\n01234"), sv(ok), c("56789"))},
			{"an early response that closes", []step{
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 100\r\n\r\n01234"),
				sv("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"), {serverCloses, ""}}},
			{"a response delimited by the end of the connection", []step{
				c(get), sv("HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello"), sv(", world"), {serverCloses, ""}}},
			{"a response delimited by the end that is cut off", []step{
				c(get), sv("HTTP/1.1 200 OK\r\n\r\nhello"), {serverResets, ""}}},
			{"HTTP/1.0", []step{
				c("GET / HTTP/1.0\r\n{key}\r\n"), sv("HTTP/1.0 200 OK\r\n\r\nhello"), {serverCloses, ""}}},
			{"HTTP/1.0 that is kept alive", []step{
				c("GET / HTTP/1.0\r\nConnection: keep-alive\r\n{key}\r\n"), sv("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi"),
				c("GET / HTTP/1.0\r\nConnection: keep-alive\r\n{key}\r\n"), sv("HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi")}},
			{"Connection: close", []step{
				c("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{key}\r\n"),
				sv("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"), {serverCloses, ""}}},
			{"a server that closes an idle connection", []step{c(get), sv(ok), {serverCloses, ""}}},
			{"a server that resets an idle connection", []step{c(get), sv(ok), {serverResets, ""}}},
			{"a server that says good-bye unasked", []step{c(get), sv(ok),
				sv("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), {serverCloses, ""}}},
			{"a server that closes instead of an answer", []step{c(get), {serverCloses, ""}}},
			{"a server that resets instead of an answer", []step{c(get), {serverResets, ""}}},
			{"a server that closes within a response", []step{c(get), sv("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi"), {serverCloses, ""}}},
			{"a server that resets within a response", []step{c(get), sv("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi"), {serverResets, ""}}},
			{"a server that closes within a head", []step{c(get), {serverEnds, "HTTP/1.1 200 OK\r\nContent-Le"}}},
			{"a server that resets within a head", []step{c(get), {serverBreaks, "HTTP/1.1 200 OK\r\nContent-Le"}}},
			{"a client that closes its side after a request", []step{c(get), {clientFIN, ""}, sv(ok), {serverCloses, ""}}},
			{"a client that closes its side within a body", []step{
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 10\r\n\r\nhi"), {clientFIN, ""}, sv(ok), {serverCloses, ""}}},
			{"a client that closes an idle connection", []step{c(get), sv(ok), {clientFIN, ""}}},
			{"a client that resets while it waits", []step{c(get), {clientResets, ""}}},
			{"a client that resets within a body", []step{c("POST / HTTP/1.1\r\nHost: web\r\n{key}Content-Length: 10\r\n\r\nhi"), {clientResets, ""}}},
			{"a client that resets within a response", []step{c(get), sv("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi"), {clientResets, ""}}},
		})
	})
}

func TestTunnelsAreStreamsOfBytes(t *testing.T) {
	binary := "\x81\x05hello\x00\xff\r\n\r\nGET / HTTP/1.1\r\nX-Sidetrack-Key: " + keyB + "\r\n\r\n"
	both(t, func(t *testing.T, s *shop) {
		playAll(t, s, s.ways(), []dialogue{
			{"Upgrade to WebSocket", []step{
				c("GET /chat HTTP/1.1\r\nHost: web\r\n{key}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"),
				sv("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
				c(binary), sv(binary), {bothSay, strings.Repeat(binary, 1000)}, sv("bye"), {serverFIN, ""}, c("bye"), {clientFIN, ""}}},
			{"an upgrade whose first frame comes with the head", []step{
				c("GET /chat HTTP/1.1\r\nHost: web\r\n{key}Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n"),
				sv("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + binary), c(binary), {serverResets, ""}}},
			{"an upgrade that the server refuses", then(
				c("GET /chat HTTP/1.1\r\nHost: web\r\n{key}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), sv(ok))},
			{"an upgrade with a body that the server refuses before it has all of it", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\nContent-Length: 10\r\n\r\n01234"),
				sv(ok), c("56789"))},
			{"an upgrade with a body that the server refuses after it", then(
				c("POST / HTTP/1.1\r\nHost: web\r\n{key}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\nContent-Length: 10\r\n\r\n0123456789"), sv(ok))},
			{"CONNECT that the server refuses, pipelined", []step{
				c("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n"), sv("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"),
				c(get + get), sv(ok), sv(ok)}},
			{"an upgrade after other requests", append(again(),
				c("GET /chat HTTP/1.1\r\nHost: web\r\n{key}Upgrade: foo/2\r\nConnection: Upgrade\r\n\r\n"),
				sv("HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo/2\r\nConnection: Upgrade\r\n\r\n"), sv(binary), c(binary), step{clientFIN, ""}, sv("x"), step{serverFIN, ""})},
			{"CONNECT", []step{
				c("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n"), sv("HTTP/1.1 200 Connected\r\n\r\n"),
				c(binary), sv(binary), {bothSay, strings.Repeat(binary, 1000)}, {clientFIN, ""}, sv("rest"), {serverFIN, ""}}},
			{"CONNECT with a length that means nothing", []step{
				c("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n"), sv("HTTP/1.1 200 Connected\r\nContent-Length: 0\r\n\r\n"), c(binary), sv(binary)}},
			{"CONNECT that the server refuses", then(
				c("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n{key}\r\n"), sv("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"))},
		})
	})
}

func TestHeadsMayComeInPieces(t *testing.T) {
	req := "POST /x HTTP/1.1\r\nHost: web\r\n{key}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n"
	resp := "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n"
	both(t, func(t *testing.T, s *shop) {
		playAll(t, s, s.ways(), []dialogue{{"byte by byte", then(slow(req), slowS(resp), slow(get), slowS(ok))}})
		for _, w := range s.ways() {
			t.Run("split once, at every byte: "+w.name, func(t *testing.T) {
				e, strangers := s.open(t, w)
				text := strings.ReplaceAll(req, "{key}", w.key)
				for i := 1; i < len(text); i++ {
					// What comes before the split cannot be waited for: a head that is
					// not complete is held back.
					if err := e.split(text, i, true); err != nil {
						t.Fatalf("request split at %d: %v", i, err)
					}
					if err := e.split(resp, 1+i%(len(resp)-1), false); err != nil {
						t.Fatalf("response split at %d: %v", 1+i%(len(resp)-1), err)
					}
				}
				if err := strangers(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// split sends text in two segments.
func (e *ends) split(text string, at int, toServer bool) error {
	src, dst := e.client, e.server
	if !toServer {
		src, dst = dst, src
	}
	done := make(chan error, 1)
	go func() {
		if err := send(src, text[:at], false); err != nil {
			done <- err
			return
		}
		pause()
		done <- send(src, text[at:], false)
	}()
	if dst == nil {
		var err error
		if dst, err = e.accept(); err != nil {
			return err
		}
	}
	if err := readExactly(dst, text); err != nil {
		return err
	}
	if err := <-done; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
