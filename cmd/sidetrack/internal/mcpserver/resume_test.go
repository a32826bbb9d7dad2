// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// post sends a message of a session and returns the answer, whose body is open.
func post(t *testing.T, url, session, body string) *http.Response {
	t.Helper()
	return ask(t, http.MethodPost, url, body, map[string]string{"Mcp-Session-Id": session})
}

func ask(t *testing.T, method, url, body string, header map[string]string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Protocol-Version", "2025-11-25")
	for name, value := range header {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// A call may take a quarter of an hour, and a laptop sleeps.
func TestAReplyIsThereForAClientThatHasLostItsConnection(t *testing.T) {
	s := nowhere()
	goOn := make(chan struct{})
	mcp.AddTool(s.server, &mcp.Tool{Name: "slow"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		select {
		case <-goOn:
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "what was waited for"}}}, nil, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	})
	url := serveUntilTheEnd(t, s, HTTPOptions{Address: "127.0.0.1:0"})
	resp := post(t, url, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	session := resp.Header.Get("Mcp-Session-Id")
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || session == "" {
		t.Fatalf("session %q: %v", session, err)
	}
	post(t, url, session, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)

	resp = post(t, url, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"slow","arguments":{}}}`)
	last := ""
	for lines := bufio.NewScanner(resp.Body); last == "" && lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			last = id
		}
	}
	if last == "" {
		t.Fatal("the stream begins with nothing to resume from")
	}
	resp.Body.Close()
	close(goOn)

	resp = ask(t, http.MethodGet, url, "", map[string]string{"Mcp-Session-Id": session, "Last-Event-ID": last})
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if strings.Contains(lines.Text(), "what was waited for") && strings.Contains(lines.Text(), `"id":2`) {
			return
		}
	}
	t.Errorf("status %d, and no reply", resp.StatusCode)
}
