// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// serve runs a relay on loopback and returns its address and how it ends.
func serve(t *testing.T, r *Relay) (address string, ended chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() {
		ended <- r.Serve(ctx, l)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the relay does not end")
		}
	})
	return l.Addr().String(), ended
}

// connect asks for a connection.
func connect(t *testing.T, relay, to string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", relay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "CONNECT "+to+" HTTP/1.1\r\nHost: "+to+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), in, resp
}

func TestAConnectionGoesThroughWithItsHalfCloses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// It answers only when it has been told everything.
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn)
		_, _ = conn.Write(bytes.ToUpper(all))
	}()
	relay, _ := serve(t, &Relay{})
	conn, in, resp := connect(t, relay, l.Addr().String())
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT is answered %s", resp.Status)
	}
	text := strings.Repeat("some words ", 100_000)
	go func() {
		_, _ = io.WriteString(conn, text)
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(in)
	if err != nil || string(got) != strings.ToUpper(text) {
		t.Errorf("%d bytes come back, want %d (%v)", len(got), len(text), err)
	}
}

func TestWhyAConnectionCannotBeOpenedIsSaidInAWord(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := l.Addr().String()
	l.Close()
	relay, _ := serve(t, &Relay{})
	for to, want := range map[string]string{refusing: "refused", "no-such-name.invalid:80": "unresolved"} {
		_, _, resp := connect(t, relay, to)
		if resp.StatusCode != http.StatusBadGateway || resp.Header.Get(ErrorHeader) != want {
			t.Errorf("%s: %s, %s %q, want %q", to, resp.Status, ErrorHeader, resp.Header.Get(ErrorHeader), want)
		}
	}
	resp, err := http.Get("http://" + relay + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET / is answered %s", resp.Status)
	}
}

func TestARelayThatNobodyUsesEnds(t *testing.T) {
	idle := 300 * time.Millisecond
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	r := &Relay{Idle: idle}
	relay, ended := serve(t, r)
	conn, _, resp := connect(t, relay, server.Listener.Addr().String())
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	// An open connection counts as use, however quiet it is.
	select {
	case err := <-ended:
		t.Fatalf("it has ended while a connection was open: %v", err)
	case <-time.After(4 * idle):
	}
	conn.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it has not ended")
	}
}

func TestCoverageIsToldByTheConnectionsOwnAddress(t *testing.T) {
	// Loopback stands for a capture that is there: the client's own address is on lo.
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if err := Covered(t.Context(), server.Listener.Addr().String()); err != nil {
		t.Error(err)
	}
	// Nobody has to answer there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing := l.Addr().String()
	l.Close()
	if err := Covered(t.Context(), refusing); err != nil {
		t.Errorf("where nobody listens: %v", err)
	}
	// Nobody's: either there is no way there, or it begins at another address.
	for _, elsewhere := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "no-such-name.invalid:80"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := Covered(ctx, elsewhere); err == nil || !strings.Contains(err.Error(), "not covered") {
			t.Errorf("%s: the error is %v", elsewhere, err)
		}
		cancel()
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	if got, err := Apiserver(); got != "[fd00::1]:443" || err != nil {
		t.Errorf("the API server is at %q (%v)", got, err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Apiserver(); err == nil {
		t.Error("there is an API server where there is none")
	}
}
