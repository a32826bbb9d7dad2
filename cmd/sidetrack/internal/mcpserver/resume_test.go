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
)

// ask sends a request of a version of the protocol and returns the answer, whose body is
// open.
func ask(t *testing.T, method, url, version, body string, header map[string]string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Mcp-Protocol-Version", version)
	for name, value := range header {
		req.Header.Set(name, value)
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
	for version, meta := range map[string]string{
		"2025-11-25": "",
		// There a stream does not begin with something to resume from.
		"2025-06-18": `"_meta":{"progressToken":"p"},`,
	} {
		t.Run(version, func(t *testing.T) {
			s, goOn, _ := withSlow(time.Hour)
			url := serveUntilTheEnd(t, s, HTTPOptions{Address: "127.0.0.1:0"})
			resp := ask(t, http.MethodPost, url, version, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`, nil)
			session := map[string]string{"Mcp-Session-Id": resp.Header.Get("Mcp-Session-Id")}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || session["Mcp-Session-Id"] == "" {
				t.Fatalf("session %q: %v", session, err)
			}
			ask(t, http.MethodPost, url, version, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, session)

			resp = ask(t, http.MethodPost, url, version, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{`+meta+`"name":"slow","arguments":{}}}`, session)
			last := ""
			for lines := bufio.NewScanner(resp.Body); last == "" && lines.Scan(); {
				if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
					last = id
				}
			}
			if last == "" {
				t.Fatal("the stream has nothing to resume from")
			}
			resp.Body.Close()
			close(goOn)

			session["Last-Event-ID"] = last
			// The server has to notice first that nobody reads the stream any more.
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				resp = ask(t, http.MethodGet, url, version, "", session)
				if resp.StatusCode != http.StatusConflict || time.Now().After(deadline) {
					break
				}
			}
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				if strings.Contains(lines.Text(), "done") && strings.Contains(lines.Text(), `"id":2`) {
					return
				}
			}
			t.Errorf("status %d, and no reply", resp.StatusCode)
		})
	}
}
