// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// Options are what a Server needs to know.
type Options struct {
	// Version is the program's.
	Version string
	// Connect makes the clients of the cluster. It is called by the first call of a
	// tool, and again by the next one for as long as it fails.
	Connect func() (*cluster.Cluster, error)
	// AgentImage is Sidetrack's own image, for pods that requests are sent from. Empty:
	// the one that the agents have.
	AgentImage string
	// ServiceAccount is that of these pods; no token of it is mounted. Empty: the
	// namespace's default one.
	ServiceAccount string
}

// Server serves Sidetrack's tools.
type Server struct {
	server *mcp.Server

	o       Options
	mu      sync.Mutex
	cluster *cluster.Cluster
	tunnels tunnels
	calls   *calls
	// beat is how often a client hears of a call that has nothing new to tell.
	beat time.Duration
}

// instructions are what a model is told before it calls anything.
const instructions = `Sidetrack runs your change beside a shared Kubernetes cluster's real services. A sandbox holds forks: copies of workloads with your image or variables. Only requests with the sandbox's routing key reach the forks; everybody else's traffic stays as it is.

The loop: `

// New makes a server.
func New(o Options) *Server { return newServer(o, nil) }

// newServer makes a server whose protocol options tune may change, when it is not nil:
// what is around the tools can be tried with other people's tools, too.
func newServer(o Options, tune func(*mcp.ServerOptions)) *Server {
	s := &Server{o: o, tunnels: tunnels{open: map[tunnelKey]*shared{}}, calls: newCalls(), beat: beat}
	var loop []string
	for _, t := range tools() {
		if t.step != "" {
			loop = append(loop, t.name+" ("+t.step+")")
		}
	}
	protocol := &mcp.ServerOptions{
		Instructions: instructions + strings.Join(loop, ", ") + ". A sandbox's handle is namespace/name and holds in later sessions.",
		// The tools do not change while it runs, and it has no logs for the client.
		Capabilities: &mcp.ServerCapabilities{Tools: &mcp.ToolCapabilities{}},
	}
	if tune != nil {
		tune(protocol)
	}
	s.server = mcp.NewServer(&mcp.Implementation{Name: "sidetrack", Title: "Sidetrack", Version: o.Version}, protocol)
	s.server.AddReceivingMiddleware(withArguments, s.calls.count)
	for _, t := range tools() {
		t.add(s)
	}
	return s
}

// withArguments has a call whose arguments are null be one without arguments, which
// some clients mean by it. The library (v1.8.0) panics over it.
func withArguments(next mcp.MethodHandler) mcp.MethodHandler {
	return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
		if call, ok := req.(*mcp.CallToolRequest); ok && call.Params != nil && string(bytes.TrimSpace(call.Params.Arguments)) == "null" {
			call.Params.Arguments = nil
		}
		return next(ctx, method, req)
	}
}

// Stdio serves one session until the client closes in, or the context ends. The
// server cannot be used afterwards.
func (s *Server) Stdio(ctx context.Context, in io.Reader, out io.Writer) error {
	defer s.tunnels.close()
	defer s.calls.wait()
	defer context.AfterFunc(ctx, s.calls.end)()
	err := s.server.Run(ctx, &mcp.IOTransport{Reader: io.NopCloser(in), Writer: nopWriteCloser{out}})
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

// reach returns the clients of the cluster.
func (s *Server) reach() (*cluster.Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster != nil {
		return s.cluster, nil
	}
	c, err := s.o.Connect()
	if err == nil {
		s.cluster = c
	}
	return c, err
}

// ownImage is Sidetrack's own image.
func (s *Server) ownImage(ctx context.Context, c *cluster.Cluster) (string, error) {
	if s.o.AgentImage != "" {
		return s.o.AgentImage, nil
	}
	return c.AgentImage(ctx, s.o.Version)
}

// patience is how long a call may take beyond what it was told to wait.
const patience = time.Minute
