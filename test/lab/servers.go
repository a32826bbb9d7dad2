// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Seen is what a server of ServeHTTP says it saw of a request.
type Seen struct {
	Server string // the name given to ServeHTTP
	Pod    string
	Remote string // the client's address, as the server sees it
	Local  string
	Method string
	Target string
	Host   string
	Header http.Header
	Body   int // bytes

	Status int `json:"-"` // of the response
}

// ServedBy is the response header that carries Seen.Server.
const ServedBy = "X-Served-By"

// ServeHTTP starts an HTTP/1 server in the pod on each address ("10.0.0.1:80",
// ":80"). It answers every request with Seen as JSON and reads every body.
func (p *Pod) ServeHTTP(name string, addrs ...string) error {
	h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(rw, "reading the body: "+err.Error(), http.StatusBadRequest)
			return
		}
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		s := Seen{
			Server: name, Pod: p.Name, Remote: r.RemoteAddr, Method: r.Method, Target: r.RequestURI,
			Host: r.Host, Header: r.Header, Body: int(n),
		}
		if local != nil {
			s.Local = local.String()
		}
		b, err := json.Marshal(s)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set(ServedBy, name)
		// The client may have gone; there is nobody to tell.
		_, _ = rw.Write(append(b, '\n'))
	})
	return p.ServeHandler(h, addrs...)
}

// ServeHandler starts an HTTP/1 server in the pod with a handler of the
// caller's.
func (p *Pod) ServeHandler(h http.Handler, addrs ...string) error {
	for _, a := range addrs {
		l, err := p.Listen("tcp", a)
		if err != nil {
			return err
		}
		s := &http.Server{Handler: h}
		p.onClose(s.Close)
		go func() {
			// Serve always ends in an error: Close's.
			_ = s.Serve(l)
		}()
	}
	return nil
}

// ReadSeen reads the response of a server of ServeHTTP. Of any other response
// it returns the status alone.
func ReadSeen(resp *http.Response) (Seen, error) {
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return Seen{}, fmt.Errorf("read the response: %w", err)
	}
	s := Seen{}
	if resp.Header.Get(ServedBy) != "" {
		if err := json.Unmarshal(b, &s); err != nil {
			return Seen{}, fmt.Errorf("read the response: %w", err)
		}
	}
	s.Status = resp.StatusCode
	return s, nil
}

// ServeTCP starts a TCP server in the pod on each address. It speaks first: its
// name and a line feed. Then it sends back what it gets.
func (p *Pod) ServeTCP(name string, addrs ...string) error {
	return p.ServeConns(func(c net.Conn) {
		defer c.Close()
		if _, err := io.WriteString(c, name+"\n"); err != nil {
			return
		}
		// What ends the copy ends the connection, whichever side it was. Without the
		// two structs Go would splice, through pipes that it keeps for later and a
		// check for leaks would find.
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}, addrs...)
}

// ServeConns accepts TCP connections in the pod and calls handle for each in a
// goroutine. They are closed with the pod.
func (p *Pod) ServeConns(handle func(net.Conn), addrs ...string) error {
	for _, a := range addrs {
		l, err := p.Listen("tcp", a)
		if err != nil {
			return err
		}
		var mu sync.Mutex
		conns, closed := map[net.Conn]bool{}, false
		p.onClose(func() error {
			err := l.Close()
			mu.Lock()
			defer mu.Unlock()
			closed = true
			for c := range conns {
				c.Close()
			}
			return err
		})
		go func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue // a connection that was reset before it was accepted
				}
				mu.Lock()
				if closed {
					c.Close()
				}
				conns[c] = true
				mu.Unlock()
				go func() {
					handle(c)
					mu.Lock()
					defer mu.Unlock()
					delete(conns, c)
				}()
			}
		}()
	}
	return nil
}

// ServeUDP starts a UDP server in the pod on each address; an address without a
// host means one socket for each of the pod's addresses, so that an answer
// comes from where the question went. It answers a datagram with its name, a
// line feed, and the datagram.
func (p *Pod) ServeUDP(name string, addrs ...string) error {
	for _, a := range addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return fmt.Errorf("serve UDP: %w", err)
		}
		on := []string{a}
		if host == "" {
			on = nil
			for _, ip := range p.Addrs() {
				on = append(on, net.JoinHostPort(ip.String(), port))
			}
		}
		for _, a := range on {
			c, err := p.ListenPacket("udp", a)
			if err != nil {
				return err
			}
			p.onClose(c.Close)
			go answer(c, name)
		}
	}
	return nil
}

func answer(c net.PacketConn, name string) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		// An answer that cannot be sent is a lost datagram to the client.
		_, _ = c.WriteTo(bytes.Join([][]byte{[]byte(name), buf[:n]}, []byte("\n")), from)
	}
}

// HostPort joins an address and a port as net.Dial wants it.
func HostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
