// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// far is what is at the other end: it dials what it is told to, by name.
type far map[string]string

func (f far) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, ok := f[address]
	switch {
	case !ok:
		return nil, &tunnel.DialError{Word: "unresolved", Message: "lookup " + address + ": no such host"}
	case to == "":
		return nil, &tunnel.DialError{Word: "refused", Message: "connection refused"}
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to)
}

// start runs a proxy and returns its address.
func start(t *testing.T, p *Proxy) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the proxy does not end")
		}
	})
	return l.Addr().String()
}

// echo tells what it was asked.
func echo(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s %s baggage=%q forwarded=%q agent=%q encoding=%q body=%q", r.Method, r.Host, r.URL, strings.Join(r.Header.Values("Baggage"), ","),
			r.Header.Get("X-Forwarded-For"), r.UserAgent(), r.Header.Get("Accept-Encoding"), body)
	}))
	t.Cleanup(s.Close)
	return s
}

func curl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "20", "-A", "me"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s %v", out, err)
	}
	return string(out)
}

func TestCurlGetsThroughInEveryWay(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	s := echo(t)
	address := start(t, &Proxy{Dialer: far{"front.shop:80": s.Listener.Addr().String(), "10.0.0.9:80": "", "[fd00::9]:80": s.Listener.Addr().String()}, Key: "key-12345"})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--proxy", "http://" + address, "http://front.shop/a?b=c"}, `GET front.shop /a?b=c baggage="sidetrack=key-12345" forwarded="" agent="me" encoding="" body=""`},
		{[]string{"--proxy", "http://" + address, "-H", "Baggage: sidetrack=mine", "-d", "hello", "http://front.shop/"}, `POST front.shop / baggage="sidetrack=mine" forwarded="" agent="me" encoding="" body="hello"`},
		// What is in a tunnel is for the router there to tag.
		{[]string{"--proxy", "http://" + address, "--proxytunnel", "http://front.shop/"}, `GET front.shop / baggage="" forwarded="" agent="me" encoding="" body=""`},
		{[]string{"--proxy", "socks5h://" + address, "http://front.shop/"}, `GET front.shop / baggage="" forwarded="" agent="me" encoding="" body=""`},
		{[]string{"--proxy", "socks5h://" + address, "http://[fd00::9]/"}, `GET [fd00::9] / `},
		{[]string{"--proxy", "http://" + address, "-w", " %{http_code}", "http://nobody.shop/"}, "sidetrack's proxy: lookup nobody.shop:80: no such host\n 502"},
		{[]string{"--proxy", "socks5h://" + address, "http://10.0.0.9/"}, "(5)"},
		{[]string{"--proxy", "socks5h://" + address, "http://nobody.shop/"}, "(4)"},
		{[]string{"-w", " %{http_code}", "http://" + address + "/"}, "This is sidetrack's proxy: set http_proxy, https_proxy or all_proxy to its address.\n 400"},
	} {
		if got := curl(t, c.args...); !strings.Contains(got, c.want) {
			t.Errorf("curl %s: %q, want %q", strings.Join(c.args, " "), got, c.want)
		}
	}
}

func TestTheProxyTagsUnderTheNameThatNodesKnow(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	s := echo(t)
	address := start(t, &Proxy{Dialer: far{"front.shop:80": s.Listener.Addr().String()}, Key: "key-12345", Names: exchange.Names{Members: []string{"acme", "sidetrack"}}})
	for header, want := range map[string]string{"A: b": `baggage="acme=key-12345"`, "Baggage: sidetrack=mine": `baggage="sidetrack=mine"`, "Baggage: sd-routing-key=mine": `baggage="sd-routing-key=mine,acme=key-12345"`} {
		if got := curl(t, "--proxy", "http://"+address, "-H", header, "http://front.shop/"); !strings.Contains(got, want) {
			t.Errorf("with %s: %q, want %q", header, got, want)
		}
	}
}

func TestAnAnswerThatTricklesIsPassedOnAsItComes(t *testing.T) {
	more := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(rw, "first\n")
		rw.(http.Flusher).Flush()
		<-more
		fmt.Fprint(rw, "second\n")
	}))
	defer s.Close()
	address := start(t, &Proxy{Dialer: far{"a:80": s.Listener.Addr().String()}})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); line != "first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	close(more)
	if line, err := in.ReadString('\n'); line != "second\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestSOCKS5ThatIsNotSupportedIsRefusedByItsReply(t *testing.T) {
	address := start(t, &Proxy{Dialer: far{}})
	for name, c := range map[string]struct{ send, want string }{
		"authentication only":      {"\x05\x01\x02", "\x05\xff"},
		"BIND":                     {"\x05\x01\x00\x05\x02\x00\x01\x0a\x00\x00\x09\x00\x50", "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		"an address of other kind": {"\x05\x01\x00\x05\x01\x00\x02", "\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"},
		"version 4 behind 5":       {"\x05\x01\x00\x04\x01\x00\x01", "\x05\x00"},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, c.send)
		if got, err := io.ReadAll(conn); string(got) != c.want {
			t.Errorf("%s: %x (%v), want %x", name, got, err, c.want)
		}
		conn.Close()
	}
}
