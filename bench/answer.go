// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// What the two servers are called. Each answer's body begins with its server's
// name and a line feed; headers would not do, because a proxy may change them.
const (
	baseline = "baseline"
	fork     = "fork"
)

// headBytes is how long a request's head is: about what a browser or a service
// with tracing sends.
const headBytes = 1024

// bodyBytes is how long an answer's body is.
const bodyBytes = 256

// requestHead returns a request of headBytes bytes. An untagged one differs from
// a tagged one only in the name of one baggage member, of the same length.
func requestHead(host, key string, tagged, closing bool) []byte {
	member := "requestid"
	if tagged {
		member = "sidetrack"
	}
	connection := "keep-alive"
	if closing {
		connection = "close"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET /api/v1/orders/4711?expand=items HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n", host, connection)
	b.WriteString("User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
		"Accept: application/json, text/plain;q=0.9, */*;q=0.5\r\n" +
		"Accept-Language: en-GB,en;q=0.8,de;q=0.5\r\n" +
		"Accept-Encoding: gzip, deflate, br\r\n" +
		"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n")
	fmt.Fprintf(&b, "Baggage: userid=alice,plan=gold,%s=%s,region=eu-central\r\n", member, key)
	b.WriteString("X-Request-Id: 7f1c7f0a-2d3b-4c47-9a55-0e6f3f0d9b1e\r\nCookie: session=")
	const end = "\r\n\r\n"
	b.WriteString(strings.Repeat("x", headBytes-b.Len()-len(end)))
	b.WriteString(end)
	return b.Bytes()
}

// response returns what the server of that name answers.
func response(name string, closing bool) []byte {
	body := name + "\n"
	body += strings.Repeat(".", bodyBytes-len(body))
	connection := ""
	if closing {
		connection = "Connection: close\r\n"
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\n%sContent-Length: %d\r\n\r\n%s",
		connection, len(body), body)
}

// wrongAnswer is the one error that makes a run fail: an answer came, but not
// from where it had to.
type wrongAnswer struct{ reason string }

func (w wrongAnswer) Error() string { return w.reason }

// checker finds out where answers end and whether they came from the right
// server. Most are byte for byte the one before, which makes that cheap.
type checker struct {
	want string
	last []byte
}

// next returns the length of the answer that b begins with, zero when it is not
// complete yet.
func (c *checker) next(b []byte) (int, error) {
	if n := len(c.last); n > 0 && len(b) >= n && bytes.Equal(b[:n], c.last) {
		return n, nil
	}
	head := bytes.Index(b, []byte("\r\n\r\n"))
	if head < 0 {
		return 0, nil
	}
	r := bytes.NewReader(b)
	buffered := bufio.NewReaderSize(r, len(b)+16)
	resp, err := http.ReadResponse(buffered, nil)
	if err != nil {
		return 0, wrongAnswer{fmt.Sprintf("%q is not an HTTP answer: %v", first(b, 200), err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, wrongAnswer{fmt.Sprintf("status %s, want 200: %q", resp.Status, first(b[head+4:], 200))}
	}
	if resp.ContentLength < 0 {
		return 0, wrongAnswer{"the answer has no Content-Length"}
	}
	n := head + 4 + int(resp.ContentLength)
	if len(b) < n {
		return 0, nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, wrongAnswer{fmt.Sprintf("reading the body: %v", err)}
	}
	if got, _, _ := bytes.Cut(body, []byte("\n")); string(got) != c.want || len(body) != bodyBytes {
		return 0, wrongAnswer{fmt.Sprintf("%d bytes from %q, want %d from %q", len(body), first(got, 40), bodyBytes, c.want)}
	}
	c.last = append(c.last[:0], b[:n]...)
	return n, nil
}

func first(b []byte, n int) []byte { return b[:min(n, len(b))] }
