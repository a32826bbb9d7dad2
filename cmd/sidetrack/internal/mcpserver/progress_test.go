// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

type emptyReply struct{}

func (*emptyReply) text() string { return "done" }

// heard are the notifications that a client has got.
type heard struct {
	mu  sync.Mutex
	all []*mcp.ProgressNotificationParams
}

func (h *heard) add(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, r.Params)
}

// messages are what it has heard so far, of the token.
func (h *heard) messages(t *testing.T, token any) []string {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for i, p := range h.all {
		if p.ProgressToken != token {
			t.Errorf("it is told of token %v", p.ProgressToken)
		}
		if i > 0 && p.Progress <= h.all[i-1].Progress {
			t.Errorf("progress %v after %v", p.Progress, h.all[i-1].Progress)
		}
		all = append(all, p.Message)
	}
	return all
}

// withSlow is a server with a tool that works until it has the test's word, or its call
// is cancelled, and says what has become of it.
func withSlow(every time.Duration) (s *Server, goOn chan struct{}, ended chan error) {
	s = New(Options{Connect: func() (*cluster.Cluster, error) { return &cluster.Cluster{Namespace: "shop"}, nil }})
	s.beat = every
	goOn, ended = make(chan struct{}), make(chan error, 1)
	define("slow", "Slow", "", "Works for a while.", reads, nil, func(ctx context.Context, c call, _ struct{}) (*emptyReply, error) {
		c.progress.Report(task.Event{Subject: "pod x", State: "runs"})
		select {
		case <-goOn:
			ended <- nil
		case <-ctx.Done():
			ended <- ctx.Err()
			return nil, ctx.Err()
		}
		return &emptyReply{}, nil
	}).add(s)
	return s, goOn, ended
}

func listening(t *testing.T, transport mcp.Transport, version string) (*mcp.ClientSession, *heard) {
	t.Helper()
	h := &heard{}
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, &mcp.ClientOptions{ProgressNotificationHandler: h.add})
	cs, err := client.Connect(t.Context(), transport, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cs.Close() })
	return cs, h
}

// eachWay calls a test for each transport, in the oldest version and in the newest.
func eachWay(t *testing.T, every time.Duration, f func(t *testing.T, cs *mcp.ClientSession, h *heard, goOn chan struct{}, ended chan error)) {
	versions := mcp.SupportedProtocolVersions()
	for _, version := range []string{slices.Min(versions), slices.Max(versions)} {
		t.Run("stdio "+version, func(t *testing.T) {
			s, goOn, ended := withSlow(every)
			cs, h := listening(t, overStdio(t, s), version)
			f(t, cs, h, goOn, ended)
		})
		t.Run("http "+version, func(t *testing.T) {
			s, goOn, ended := withSlow(every)
			cs, h := listening(t, &mcp.StreamableClientTransport{Endpoint: serveUntilTheEnd(t, s, HTTPOptions{Address: "127.0.0.1:0"})}, version)
			f(t, cs, h, goOn, ended)
		})
	}
}

func TestAClientHearsOfALongCallAgainAndAgain(t *testing.T) {
	eachWay(t, 5*time.Millisecond, func(t *testing.T, cs *mcp.ClientSession, h *heard, goOn chan struct{}, _ chan error) {
		result := make(chan error, 1)
		go func() {
			p := &mcp.CallToolParams{Name: "slow"}
			p.SetProgressToken("of mine")
			_, err := cs.CallTool(t.Context(), p)
			result <- err
		}()
		again := func(m string) bool { return strings.HasPrefix(m, "pod x: runs (") && strings.HasSuffix(m, "s so far)") }
		var messages []string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if messages = h.messages(t, "of mine"); len(messages) > 3 && again(messages[len(messages)-1]) {
				break
			}
		}
		if !slices.Contains(messages, "pod x: runs") || !slices.ContainsFunc(messages, again) {
			t.Errorf("it has heard %q", messages)
		}
		close(goOn)
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

func TestAClientThatDoesNotAskHearsNothing(t *testing.T) {
	eachWay(t, time.Millisecond, func(t *testing.T, cs *mcp.ClientSession, h *heard, goOn chan struct{}, _ chan error) {
		time.AfterFunc(30*time.Millisecond, func() { close(goOn) })
		if _, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "slow"}); err != nil {
			t.Error(err)
		}
		if got := h.messages(t, nil); len(got) != 0 {
			t.Errorf("it hears %q", got)
		}
	})
}

func TestACancelledCallEndsAtTheServer(t *testing.T) {
	eachWay(t, 5*time.Millisecond, func(t *testing.T, cs *mcp.ClientSession, h *heard, _ chan struct{}, ended chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		result := make(chan error, 1)
		go func() {
			p := &mcp.CallToolParams{Name: "slow"}
			p.SetProgressToken("of mine")
			_, err := cs.CallTool(ctx, p)
			result <- err
		}()
		for deadline := time.Now().Add(time.Minute); len(h.messages(t, "of mine")) == 0 && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		if err := <-result; err == nil {
			t.Error("the call has a result")
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the task was not cancelled")
			}
		case <-time.After(time.Minute):
			t.Error("the task goes on")
		}
		// The session is not lost with the call.
		if _, err := cs.ListTools(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
}
