// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// members are the baggage members of a request, in order.
func members(h http.Header) []string {
	var all []string
	for _, line := range h["Baggage"] {
		for m := range strings.SplitSeq(line, ",") {
			if m = strings.TrimSpace(m); m != "" {
				all = append(all, m)
			}
		}
	}
	return all
}

func TestInjectAddsTheKeyToRequests(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start()
	web, plain := "http://"+webIP+"/", "http://"+plainIP+":81/"
	mine := "sidetrack=" + keyA
	for _, tt := range []struct {
		name, url, want string
		headers         []string
		baggage         []string // what the server must see
	}{
		{"a request without baggage", web, "fork-a", nil, []string{mine}},
		{"to an endpoint", "http://" + lab.HostPort(s.base.IPv4, 8080), "fork-a", nil, []string{mine}},
		{"over IPv6", "http://[" + webIP6 + "]/", "fork-a", nil, []string{mine}},
		{"a request with baggage", web, "fork-a", []string{"baggage: a=1;p=q, b=%20"}, []string{"a=1;p=q", "b=%20", mine}},
		{"a request with much baggage", web, "fork-a", []string{"baggage: a=1", "baggage: b=2", "Baggage: c=3"}, []string{"a=1", "b=2", "c=3", mine}},
		{"a request with empty baggage", web, "fork-a", []string{"baggage:"}, []string{mine}},
		{"a request with the same key", web, "fork-a", []string{"baggage: x=1,sidetrack=" + keyA}, []string{"x=1", mine}},
		{"a request with another sandbox's key", web, "fork-b", []string{"baggage: sidetrack=" + keyB}, []string{"sidetrack=" + keyB}},
		{"a request with another sandbox's key in the plain header", web, "fork-b", []string{"x-sidetrack-key: " + keyB}, nil},
		{"a request with nobody's key", web, "fork-a", []string{"baggage: sidetrack=nobody-has-this"}, []string{"sidetrack=nobody-has-this"}},
		{"to a Service without a redirect", plain, "baseline", nil, []string{mine}},
		{"to a Service without a redirect, with baggage", plain, "baseline", []string{"baggage: a=1"}, []string{"a=1", mine}},
		{"to a Service without a redirect, with another key", plain, "baseline", []string{"x-sidetrack-key: " + keyB}, nil},
		{"to an endpoint of a Service without a redirect", "http://" + lab.HostPort(s.base.IPv6, 8081), "baseline", nil, []string{mine}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.runner.MustGet(tt.url, tt.headers...)
			if got.Server != tt.want {
				t.Errorf("%s answered, want %s", got.Server, tt.want)
			}
			if m := members(got.Header); !slices.Equal(m, tt.baggage) {
				t.Errorf("the server saw the baggage %q, want %q", m, tt.baggage)
			}
		})
	}
	t.Run("an address that is no Service's is left alone", func(t *testing.T) {
		s.forkB.MustServeHTTP("elsewhere", ":9999")
		got := s.runner.MustGet("http://" + lab.HostPort(s.forkB.IPv4, 9999))
		if len(members(got.Header)) > 0 {
			t.Errorf("the server saw the baggage %q", got.Header["Baggage"])
		}
	})
	t.Run("nothing else of the head changes", func(t *testing.T) {
		n := s.nextPort()
		conns := rawServer(t, s.forkA, n)
		conn, err := s.runner.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, n))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		e := &ends{client: conn, accepts: conns}
		for _, lines := range [][]string{
			{"GET /a%20b HTTP/1.1", "hOST: web", "x-B:  1 ", "X-b: 2", "Accept:*/*"},
			{"POST / HTTP/1.1", "Host: web", "Content-Length: 5", "X-A: 1"},
			{"GET / HTTP/1.0", "X-A: 1"},
		} {
			text := strings.Join(lines, "\r\n") + "\r\n\r\n"
			body := ""
			if strings.HasPrefix(text, "POST") {
				body = "hello"
			}
			if err := send(conn, text+body, false); err != nil {
				t.Fatal(err)
			}
			server, err := e.accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = server.SetReadDeadline(time.Now().Add(patience))
			r := bufio.NewReader(server)
			var got []string
			injected := 0
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				line = strings.TrimSuffix(line, "\r\n")
				if line == "" {
					break
				}
				if strings.EqualFold(line, "baggage: "+mine) || strings.EqualFold(line, "baggage:"+mine) {
					injected++
					continue
				}
				got = append(got, line)
			}
			if !slices.Equal(got, lines) || injected != 1 {
				t.Errorf("the server got %q and %d times the key, want %q and one", got, injected, lines)
			}
			b := make([]byte, len(body))
			if _, err := io.ReadFull(r, b); err != nil || string(b) != body {
				t.Errorf("body %q, %v", b, err)
			}
			if err := send(server, ok, false); err != nil {
				t.Fatal(err)
			}
			if err := readExactly(conn, ok); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestInjectOnKeptAliveConnections: the key is in every request, whatever came
// before, and requests with other keys go their own way.
func TestInjectOnKeptAliveConnections(t *testing.T) {
	s := newShop(t)
	s.serveEcho()
	s.start()
	var asks []ask
	for i := range 300 {
		a := ask{method: "GET", url: "http://" + webIP + "/", want: "fork-a"}
		switch i % 4 {
		case 1:
			a.headers = []string{"baggage: a=1"}
		case 2:
			a.want, a.headers = "fork-b", []string{"x-sidetrack-key: " + keyB}
		case 3:
			a.method, a.body = "POST", 3000
		}
		asks = append(asks, a)
	}
	for _, kind := range []string{"requests", "Java", "Go"} {
		t.Run(kind, func(t *testing.T) { startPool(t, s.runner, kind).mustSend(5, asks) })
	}
}

// TestWithoutInjectThePodsIdentityWinsOverAHeader.
func TestWithoutInjectThePodsIdentityWinsOverAHeader(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start()
	for _, headers := range [][]string{nil, {"x-sidetrack-key: " + keyB}, {"baggage: sidetrack=" + keyB}} {
		got := s.tester.MustGet("http://"+webIP+"/", headers...)
		if got.Server != "fork-a" || len(headers) == 0 && got.Header.Get("Baggage") != "" {
			t.Errorf("%q: %s answered and saw %v", headers, got.Server, got.Header)
		}
	}
}

// TestInjectIsSwitchedByThePodsLabels while the agent runs.
func TestInjectIsSwitchedByThePodsLabels(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start()
	check := func(want ...string) {
		t.Helper()
		eventually(t, func() error {
			got, err := s.client.Get("http://" + plainIP + ":81/")
			if err == nil && !slices.Equal(members(got.Header), want) {
				err = fmt.Errorf("the server saw the baggage %q, want %q", got.Header["Baggage"], want)
			}
			return err
		})
	}
	check()
	put(t, s.dir, "client.yaml", s.client.Object("sidetrack.dev/sandbox: b", `sidetrack.dev/inject: "true"`))
	check("sidetrack=" + keyB)
	put(t, s.dir, "client.yaml", s.client.Object("sidetrack.dev/sandbox: b", `sidetrack.dev/inject: "false"`))
	check()
}
