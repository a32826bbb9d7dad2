// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Path is where the tools are reached over HTTP.
const Path = "/mcp"

// HTTPOptions say who may reach the tools over HTTP.
type HTTPOptions struct {
	// Address is the address and port to listen on: one of the loopback interface,
	// unless there is a Token.
	Address string
	// Token, when it is not empty, has to be in each request's Authorization header,
	// as a bearer token (RFC 6750).
	Token string
	// Origins are allowed beside those of pages from this machine, such as
	// https://tools.example.com.
	Origins []string
}

// idle is after how long a session that says nothing is forgotten. Nothing is lost
// by it: the client makes another.
const idle = time.Hour

// HTTP serves the streamable HTTP transport until the context ends. listening is
// called with the URL as soon as there is one. The server cannot be used
// afterwards.
func (s *Server) HTTP(ctx context.Context, o HTTPOptions, listening func(url string)) error {
	if err := o.validate(); err != nil {
		return err
	}
	defer s.tunnels.close()
	defer s.calls.wait()
	defer context.AfterFunc(ctx, s.calls.end)()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Address)
	if err != nil {
		return &task.Failure{Message: "cannot listen: " + err.Error(), Remedy: "choose another address with --http", Err: err}
	}
	mux := http.NewServeMux()
	mux.Handle(Path, o.guard(s.handler()))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		// Calls end with the server.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	if listening != nil {
		listening("http://" + l.Addr().String() + Path)
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	// Streams last as long as their client wants: they are ended.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := server.Shutdown(end); err != nil {
		return server.Close()
	}
	return nil
}

func (o HTTPOptions) validate() error {
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		return task.Usagef("--http %q is not an address and port, such as 127.0.0.1:8080", o.Address)
	}
	if o.Token == "" && !isLoopback(host) {
		return &task.Failure{
			Kind: task.Usage, Message: fmt.Sprintf("--http %s can be reached from other machines, and whoever reaches it acts on the cluster as you", o.Address),
			Remedy: "listen on 127.0.0.1, or ask for a token with --http-token-file",
		}
	}
	for _, origin := range o.Origins {
		if u, err := url.Parse(origin); err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" {
			return task.Usagef("--http-origin %q is not an origin, such as https://tools.example.com", origin)
		}
	}
	return nil
}

// handler serves each client in the protocol's version that it speaks: from
// 2026-07-28 on there are no sessions.
func (s *Server) handler() http.Handler {
	server := func(*http.Request) *mcp.Server { return s.server }
	sessions := mcp.NewStreamableHTTPHandler(server, &mcp.StreamableHTTPOptions{
		SessionTimeout: idle,
		// A client that has lost its connection in the middle of a long call gets the reply
		// when it is back. It holds some 10 MiB; beyond that each session's oldest replies go.
		EventStore: mcp.NewMemoryEventStore(nil),
	})
	stateless := mcp.NewStreamableHTTPHandler(server, &mcp.StreamableHTTPOptions{Stateless: true, PropagateRequestCancellation: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Versions are dates, which compare as text.
		if r.Header.Get("Mcp-Session-Id") == "" && r.Header.Get("Mcp-Protocol-Version") >= withoutSessions {
			stateless.ServeHTTP(w, r)
			return
		}
		sessions.ServeHTTP(w, r)
	})
}

// withoutSessions is the first version of the protocol that has none.
const withoutSessions = "2026-07-28"

// guard lets through what may reach the tools. A page in the user's browser can
// send requests to this machine: its Origin tells, and where it has had a name of
// its own resolve to this machine (DNS rebinding), the Host does. A token tells
// others apart from the user.
func (o HTTPOptions) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origins := r.Header.Values("Origin"); len(origins) > 0 && !slices.ContainsFunc(origins[:1], o.allowed) || len(origins) > 1 {
			http.Error(w, "this Origin may not use Sidetrack's tools: allow it with --http-origin", http.StatusForbidden)
			return
		}
		if o.Token == "" && !isLoopback(hostOf(r.Host)) {
			http.Error(w, "this Host is not this machine: use 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		if o.Token != "" && !bears(r, o.Token) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token is missing or wrong: send it as Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (o HTTPOptions) allowed(origin string) bool {
	if slices.Contains(o.Origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && isLoopback(u.Hostname())
}

// bears compares in a time that tells nothing of the token.
func bears(r *http.Request, token string) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(strings.TrimSpace(given))), sha256.Sum256([]byte(token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func hostOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	return host
}

// isLoopback reports whether a host is this machine without asking anybody.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
