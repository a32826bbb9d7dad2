// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Apiserver is the address of the API server's Service, which every pod has in its
// environment. It is redirected for nobody, so that only pods whose requests are
// tagged by themselves have their connections to it captured.
func Apiserver() (string, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return "", errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; name an address")
	}
	return net.JoinHostPort(host, port), nil
}

// Covered waits until this pod's connections to a Service's address are captured,
// which a connection tells by its own address: it is one of loopback then. Nothing
// is sent. The error says how it was when the context has ended.
func Covered(ctx context.Context, address string) error {
	last := errors.New("no connection has been tried")
	for {
		captured, err := isCaptured(ctx, address)
		switch {
		case captured:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("this pod's traffic is not covered: %w: is there a working agent on its node?", last)
		case err != nil:
			last = err
		default:
			last = fmt.Errorf("a connection to %s goes there directly", address)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func isCaptured(ctx context.Context, address string) (bool, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	return ok && local.IP.IsLoopback(), nil
}
