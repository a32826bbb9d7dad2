// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// Dialer opens connections to where clients want to.
type Dialer interface {
	// DialContext resolves the address's host itself.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Proxy is a local proxy.
type Proxy struct {
	Dialer Dialer
	// Key is the routing key that requests get which have none, and Names is what it
	// is sent under. Empty: they stay as they are.
	Key   string
	Names exchange.Names
}

// Serve serves a listener until the context ends, and closes it and all
// connections.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handed := &handedOver{conns: make(chan net.Conn), done: ctx.Done(), addr: l.Addr()}
	s := &http.Server{Handler: p.handler(ctx), ReadHeaderTimeout: time.Minute}
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.Close()
	})
	defer stop()
	all.Go(func() { _ = s.Serve(handed) })
	for {
		conn, err := l.Accept()
		if err != nil {
			cancel()
			s.Close()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("serve the proxy: %w", err)
		}
		all.Go(func() { p.greet(ctx, conn, handed) })
	}
}

// socksVersion is the first byte of SOCKS5 (RFC 1928, section 3); no HTTP request
// begins with it.
const socksVersion = 5

// greet finds out which protocol a client speaks.
func (p *Proxy) greet(ctx context.Context, conn net.Conn, handed *handedOver) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	first, err := in.Peek(1)
	if err != nil {
		conn.Close()
		return
	}
	c := &peeked{conn, in}
	if first[0] == socksVersion {
		defer conn.Close()
		p.socks(ctx, c)
		return
	}
	select {
	case handed.conns <- c:
	case <-ctx.Done():
		conn.Close()
	}
}

// peeked is a connection whose first bytes have been looked at.
type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

// CloseWrite says that nothing more will be sent.
func (p *peeked) CloseWrite() error { return closeWrite(p.Conn) }

// handedOver is a listener of connections that somebody else has accepted.
type handedOver struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (h *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handedOver) Close() error   { return nil }
func (h *handedOver) Addr() net.Addr { return h.addr }

func (p *Proxy) handler(ctx context.Context) http.Handler {
	forward := &httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext: p.Dialer.DialContext, DisableCompression: true,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		},
		// Answers that trickle are passed on as they come.
		FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.Host
			// The library takes these away; a proxy on the user's own machine is no hop
			// that anybody needs to know of.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v := r.In.Header.Values(name); len(v) > 0 {
					r.Out.Header[name] = v
				}
			}
			p.Names.Tag(r.Out.Header, p.Key)
		},
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, err error) {
			refuse(rw, err)
		},
	}
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect:
			p.connect(ctx, rw, r)
		case !r.URL.IsAbs() || r.URL.Scheme != "http":
			http.Error(rw, "This is sidetrack's proxy: set http_proxy, https_proxy or all_proxy to its address.", http.StatusBadRequest)
		default:
			forward.ServeHTTP(rw, r)
		}
	})
}

// refuse tells the client why there is no answer.
func refuse(rw http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	var dial *tunnel.DialError
	if errors.As(err, &dial) {
		rw.Header().Set("Sidetrack-Error", dial.Word)
		if dial.Word == "timeout" {
			status = http.StatusGatewayTimeout
		}
	}
	http.Error(rw, "sidetrack's proxy: "+err.Error(), status)
}

func (p *Proxy) connect(ctx context.Context, rw http.ResponseWriter, r *http.Request) {
	server, err := p.Dialer.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		refuse(rw, err)
		return
	}
	defer server.Close()
	client, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		refuse(rw, err)
		return
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	join(&peeked{client, buffered.Reader}, server)
}

// join copies between two connections until both directions have ended.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil || closeWrite(to) != nil {
			to.Close()
			from.Close()
		}
	}
	both.Go(func() { pass(a, b) })
	both.Go(func() { pass(b, a) })
	both.Wait()
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}
