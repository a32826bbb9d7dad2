// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// relay answers one connection, and returns the other end and what it was asked.
func relay(t *testing.T, answer string) (net.Conn, <-chan *http.Request) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan *http.Request, 1)
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		req, err := http.ReadRequest(in)
		if err != nil {
			t.Error(err)
			return
		}
		asked <- req
		if _, err := io.WriteString(conn, answer); err != nil {
			t.Error(err)
		}
		if strings.Contains(answer, " 200 ") {
			// What is said comes back, until no more is.
			_, _ = io.Copy(conn, in)
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, asked
}

func TestAConnectionThroughTheRelayLosesNothing(t *testing.T) {
	// The server's first words come with the relay's answer.
	conn, asked := relay(t, "HTTP/1.1 200 OK\r\n\r\n220 hello\r\n")
	through, err := connect(conn, "mail.shop:25")
	if err != nil {
		t.Fatal(err)
	}
	if req := <-asked; req.Method != http.MethodConnect || req.RequestURI != "mail.shop:25" || req.Host != "mail.shop:25" {
		t.Errorf("the relay is asked %s %s, host %s", req.Method, req.RequestURI, req.Host)
	}
	if _, err := io.WriteString(through, "QUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	// The end of what is sent is passed on, and what comes is read to its own end.
	if err := through.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(through); err != nil || string(got) != "220 hello\r\nQUIT\r\n" {
		t.Errorf("it reads %q, %v", got, err)
	}
}

func TestARelayThatCannotConnectSaysWhy(t *testing.T) {
	conn, _ := relay(t, "HTTP/1.1 502 Bad Gateway\r\n"+errorHeader+": refused\r\nContent-Length: 16\r\n\r\nnobody listens.\n")
	_, err := connect(conn, "cart.shop:80")
	var dial *DialError
	if !errors.As(err, &dial) || dial.Word != "refused" || dial.Error() != "nobody listens." {
		t.Errorf("it says %v", err)
	}
	conn, _ = relay(t, "no HTTP at all\r\n\r\n")
	if _, err := connect(conn, "cart.shop:80"); err == nil || errors.As(err, &dial) && err == error(dial) || !strings.Contains(err.Error(), "ask the relay for cart.shop:80") {
		t.Errorf("of no relay it says %v", err)
	}
}
