// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Listen is net.Listen in the pod.
func (p *Pod) Listen(network, address string) (l net.Listener, err error) {
	err = p.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	return l, nil
}

// ListenPacket is net.ListenPacket in the pod.
func (p *Pod) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = p.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	return c, nil
}

// Dial is net.Dial in the pod, with a limit of ten seconds (see Patience). The address must be
// numeric: a name's addresses would be dialled by other goroutines, which are
// not in the pod.
func (p *Pod) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience(10*time.Second))
	defer cancel()
	return p.DialContext(ctx, network, address)
}

// DialContext is like Dial, for a net/http.Transport.
func (p *Pod) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return p.DialWith(ctx, &net.Dialer{}, network, address)
}

// DialWith is like DialContext with a dialer of the caller's.
func (p *Pod) DialWith(ctx context.Context, d *net.Dialer, network, address string) (c net.Conn, err error) {
	err = p.Do(func() error {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	return c, nil
}

// Client returns an HTTP client in the pod with a pool of its own.
func (p *Pod) Client() *http.Client {
	t := &http.Transport{DialContext: p.DialContext}
	p.onClose(func() error { t.CloseIdleConnections(); return nil })
	return &http.Client{
		Transport: t,
		Timeout:   Patience(30 * time.Second),
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}
