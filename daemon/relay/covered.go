// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
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
// is sent, and nobody has to answer. The error says how it was when the context has
// ended.
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

// isCaptured begins to connect. Where to is decided then, in the program that connect(2)
// runs, and the socket has its own address before anybody answers (connect(2), getsockname(2)):
// a baseline that refuses, or does not answer, is no hindrance.
func isCaptured(ctx context.Context, address string) (bool, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return false, err
	}
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: ips[0].As16()})
	if ip := ips[0].Unmap(); ip.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: ip.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return false, fmt.Errorf("connect to %s: %w", address, err)
	}
	from, err := unix.Getsockname(fd)
	if err != nil {
		return false, os.NewSyscallError("getsockname", err)
	}
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(from.Addr).IsLoopback(), nil
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(from.Addr).Unmap().IsLoopback(), nil
	}
	return false, nil
}
