// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// overHTTP serves until the test ends.
func overHTTP(t *testing.T, o HTTPOptions) string {
	t.Helper()
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	return serveUntilTheEnd(t, nowhere(), o)
}

func serveUntilTheEnd(t *testing.T, s *Server, o HTTPOptions) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	url, done := make(chan string, 1), make(chan error, 1)
	go func() { done <- s.HTTP(ctx, o, func(u string) { url <- u }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case u := <-url:
		return u
	case err := <-done:
		done <- err
		t.Fatal(err)
		return ""
	}
}

func TestEveryVersionOfTheProtocolIsSpokenOverHTTP(t *testing.T) {
	url := overHTTP(t, HTTPOptions{})
	for _, version := range mcp.SupportedProtocolVersions() {
		t.Run(version, func(t *testing.T) {
			cs := connect(t, &mcp.StreamableClientTransport{Endpoint: url}, version)
			if got := cs.InitializeResult().ProtocolVersion; got != version {
				t.Errorf("version %s is spoken", got)
			}
			if n := len(toolsOf(t, cs)); n != len(tools()) {
				t.Errorf("%d tools", n)
			}
			mustFail(t, cs, "list_sandboxes", nil, "there is no cluster")
		})
	}
}

// knock sends an initialization with these headers and returns the status.
func knock(t *testing.T, url string, header map[string]string) int {
	t.Helper()
	return knockBy(t, http.MethodPost, url, header)
}

func knockBy(t *testing.T, method, url string, header map[string]string) int {
	t.Helper()
	body := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}`
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	for name, value := range header {
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestAPageFromElsewhereIsRefused(t *testing.T) {
	url := overHTTP(t, HTTPOptions{Origins: []string{"https://tools.example.com"}})
	for _, c := range []struct {
		header map[string]string
		want   int
	}{
		{nil, 200},
		{map[string]string{"Origin": "http://localhost:6274"}, 200},
		{map[string]string{"Origin": "http://127.0.0.1:1"}, 200},
		{map[string]string{"Origin": "http://[::1]:1"}, 200},
		{map[string]string{"Origin": "https://tools.example.com"}, 200},
		{map[string]string{"Origin": "https://evil.example.com"}, 403},
		{map[string]string{"Origin": "https://tools.example.com:444"}, 403},
		{map[string]string{"Origin": "http://localhost.evil.example.com"}, 403},
		{map[string]string{"Origin": "null"}, 403},
		{map[string]string{"Origin": ""}, 403},
		{map[string]string{"Host": "evil.example.com"}, 403},
		{map[string]string{"Host": "evil.example.com:80", "Origin": "http://localhost"}, 403},
		{map[string]string{"Host": "localhost"}, 200},
		{map[string]string{"Host": "[::1]:7"}, 200},
	} {
		if got := knock(t, url, c.header); got != c.want {
			t.Errorf("%v: status %d, want %d", c.header, got, c.want)
		}
	}
	// A stream is opened by GET, which browsers think safe.
	if got := knockBy(t, http.MethodGet, url, map[string]string{"Origin": "https://evil.example.com"}); got != 403 {
		t.Errorf("GET: status %d", got)
	}
	if got := knock(t, strings.TrimSuffix(url, Path), nil); got != 404 {
		t.Errorf("another path: status %d", got)
	}
}

func TestATokenIsAskedFor(t *testing.T) {
	const token = "0123456789abcdef"
	url := overHTTP(t, HTTPOptions{Address: "0.0.0.0:0", Token: token})
	url = strings.Replace(strings.Replace(url, "0.0.0.0", "127.0.0.1", 1), "[::]", "127.0.0.1", 1)
	for value, want := range map[string]int{
		"": 401, "Bearer": 401, "Bearer ": 401, "Bearer 0123456789abcdeF": 401, "Basic " + token: 401, "Bearer " + token: 200, "bearer " + token: 200,
	} {
		if got := knock(t, url, map[string]string{"Authorization": value}); got != want {
			t.Errorf("%q: status %d, want %d", value, got, want)
		}
	}
	if got := knock(t, url, map[string]string{"Authorization": "Bearer " + token, "Origin": "https://evil.example.com"}); got != 403 {
		t.Errorf("with the token, from a page elsewhere: status %d", got)
	}
}

func TestOtherMachinesNeedAToken(t *testing.T) {
	for _, address := range []string{"0.0.0.0:8080", ":8080", "[::]:8080", "192.0.2.1:8080", "example.com:8080"} {
		err := nowhere().HTTP(t.Context(), HTTPOptions{Address: address}, nil)
		if err == nil || !strings.Contains(err.Error(), "--http-token-file") {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, o := range []HTTPOptions{{Address: "8080"}, {Address: "127.0.0.1:0", Origins: []string{"example.com"}}, {Address: "127.0.0.1:0", Origins: []string{"https://a/b"}}} {
		if err := nowhere().HTTP(t.Context(), o, nil); err == nil || !strings.Contains(err.Error(), "--http") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
