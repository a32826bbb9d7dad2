// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// exchange is one request to a server of echo and what must come back.
type exchange struct {
	method      string
	number      int
	want        string
	headers     []string
	body        int64
	chunked     bool // the request's body
	size        int64
	sizeChunked bool // the response's
	status      string
}

// exchanger sends exchanges over one connection and never over another.
type exchanger struct {
	conn net.Conn
	r    *bufio.Reader
	head bytes.Buffer
}

func newExchanger(conn net.Conn) *exchanger {
	return &exchanger{conn: conn, r: bufio.NewReader(conn)}
}

// do sends the body while it reads the response, as a client does that must not
// depend on what a proxy can hold.
func (e *exchanger) do(x exchange) error {
	if err := e.conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return err
	}
	e.head.Reset()
	mode := ""
	if x.sizeChunked {
		mode = "&mode=chunked"
	}
	fmt.Fprintf(&e.head, "%s /?size=%d%s&status=%s HTTP/1.1\r\nHost: web\r\nX-Expect: %s\r\nX-Number: %d\r\n", x.method, x.size, mode, x.status, x.want, x.number)
	for _, h := range x.headers {
		e.head.WriteString(h + "\r\n")
	}
	switch {
	case x.chunked:
		e.head.WriteString("Transfer-Encoding: chunked\r\n")
	case x.method == "POST":
		fmt.Fprintf(&e.head, "Content-Length: %d\r\n", x.body)
	}
	e.head.WriteString("\r\n")
	if _, err := e.conn.Write(e.head.Bytes()); err != nil {
		return err
	}
	sent := make(chan error, 1)
	if x.body > 64<<10 {
		go func() { sent <- e.sendBody(x) }()
	} else {
		sent <- e.sendBody(x)
	}
	if err := e.check(x); err != nil {
		return err
	}
	return <-sent
}

func (e *exchanger) sendBody(x exchange) error {
	body := noise(x.body, x.body)
	if !x.chunked {
		if x.body == 0 {
			return nil
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{e.conn}, body, make([]byte, 100_000))
		return err
	}
	buf, line := make([]byte, 77_777), bytes.Buffer{}
	for {
		n, err := io.ReadFull(body, buf)
		if n > 0 {
			line.Reset()
			fmt.Fprintf(&line, "%x\r\n", n)
			line.Write(buf[:n])
			line.WriteString("\r\n")
			if _, err := e.conn.Write(line.Bytes()); err != nil {
				return err
			}
		}
		if err != nil {
			_, err := io.WriteString(e.conn, "0\r\n\r\n")
			return err
		}
	}
}

func (e *exchanger) check(x exchange) error {
	resp, err := http.ReadResponse(e.r, &http.Request{Method: x.method})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	status := http.StatusOK
	if x.status != "" {
		status, _ = strconv.Atoi(x.status)
	}
	h := resp.Header
	if by, n := h.Get(lab.ServedBy), h.Get("X-Number"); resp.StatusCode != status || by != x.want || n != strconv.Itoa(x.number) {
		return fmt.Errorf("status %d, served by %q as number %s, want %s", resp.StatusCode, by, n, x.want)
	}
	got := hashOf(resp.Body)
	if h.Get("X-Length") != strconv.FormatInt(x.body, 10) || h.Get("X-Sha256") != hashOf(noise(x.body, x.body)) {
		return fmt.Errorf("the server got a body of %s bytes with hash %s, sent were %d", h.Get("X-Length"), h.Get("X-Sha256"), x.body)
	}
	if x.method == "HEAD" || status != http.StatusOK {
		return nil
	}
	if x.sizeChunked != (len(resp.TransferEncoding) > 0) {
		return fmt.Errorf("the response's Transfer-Encoding is %q", resp.TransferEncoding)
	}
	if want := hashOf(noise(x.size, x.size)); got != want {
		return fmt.Errorf("the response's body has the hash %s, want %s", got, want)
	}
	return nil
}

// TestBodiesOfAllSizesComeThrough by Content-Length and in chunks, there and
// back, over one connection that goes on.
func TestBodiesOfAllSizesComeThrough(t *testing.T) {
	sizes := []int64{0, 1, 1459, 4096, 16383, 16384, 16385, 65535, 65536, 131073, 1 << 20}
	if !testing.Short() {
		sizes = append(sizes, 64<<20)
	}
	both(t, func(t *testing.T, s *shop) {
		s.serveEcho()
		for _, tg := range []tag{{"baseline", nil}, {s.want("fork-a"), []string{"baggage: sidetrack=" + keyA}}} {
			t.Run(tg.want, func(t *testing.T) {
				conn, err := s.client.Dial("tcp", webIP+":80")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				e := newExchanger(conn)
				for i, size := range sizes {
					for j, x := range []exchange{
						{method: "POST", body: size}, {method: "POST", body: size, chunked: true},
						{method: "GET", size: size}, {method: "GET", size: size, sizeChunked: true},
						{method: "POST", body: size, size: size / 2},
					} {
						x.number, x.want, x.headers = 10*i+j, tg.want, tg.headers
						if err := e.do(x); err != nil {
							t.Fatalf("%+v: %v", x, err)
						}
					}
				}
			})
		}
	})
}
