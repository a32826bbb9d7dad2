// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// long adds a tool that goes on until it is cancelled, and then has to remove something.
func long(s *Server) (started chan struct{}, removed *atomic.Bool) {
	started, removed = make(chan struct{}), new(atomic.Bool)
	mcp.AddTool(s.server, &mcp.Tool{Name: "long"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		close(started)
		<-ctx.Done()
		time.Sleep(200 * time.Millisecond) // the API server takes a while
		removed.Store(true)
		return nil, nil, ctx.Err()
	})
	return started, removed
}

// What a call has made in the cluster, such as a pod that runs tests, it removes when
// it is cancelled: a program that ended before would leave it there.
func TestASessionEndsWithItsCallsAndNotBefore(t *testing.T) {
	for _, how := range []string{"the input ends", "the program is interrupted"} {
		s := nowhere()
		started, removed := long(s)
		ctx, interrupt := context.WithCancel(t.Context())
		in, out := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- s.Stdio(ctx, in, io.Discard) }()
		for _, line := range []string{
			`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`,
			`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
			`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"long","arguments":{}}}`,
		} {
			if _, err := io.WriteString(out, line+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-started:
		case <-time.After(time.Minute):
			t.Fatal("the call does not begin")
		}
		if how == "the input ends" {
			out.Close()
		} else {
			interrupt()
		}
		select {
		case err := <-done:
			if err != nil || !removed.Load() {
				t.Errorf("%s: %v, the call was over: %t", how, err, removed.Load())
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: the session does not end", how)
		}
		interrupt()
		out.Close()
	}
}

func TestAServerOverHTTPEndsWithItsCallsAndNotBefore(t *testing.T) {
	s := nowhere()
	started, removed := long(s)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	at, done := make(chan string, 1), make(chan error, 1)
	go func() { done <- s.HTTP(ctx, HTTPOptions{Address: "127.0.0.1:0"}, func(url string) { at <- url }) }()
	client := mcp.NewClient(&mcp.Implementation{Name: "t", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: <-at, MaxRetries: -1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{})
	asking, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		defer close(called)
		_, _ = session.CallTool(asking, &mcp.CallToolParams{Name: "long"})
	}()
	select {
	case <-started:
	case <-time.After(time.Minute):
		t.Fatal("the call does not begin")
	}
	interrupt()
	select {
	case err := <-done:
		if err != nil || !removed.Load() {
			t.Errorf("%v, the call was over: %t", err, removed.Load())
		}
	case <-time.After(time.Minute):
		t.Error("the server does not end")
	}
	stop()
	<-called
	_ = session.Close()
}
