// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// The words of SOCKS5 (RFC 1928, sections 3 to 6).
const (
	noAuthentication = 0x00
	noneAcceptable   = 0xff

	commandConnect = 1

	addressIPv4   = 1
	addressDomain = 3
	addressIPv6   = 4

	replySucceeded          = 0
	replyFailure            = 1
	replyUnreachable        = 3
	replyHostUnreachable    = 4
	replyRefused            = 5
	replyExpired            = 6
	replyCommandUnsupported = 7
	replyAddressUnsupported = 8
)

// socks serves one client, who wants one connection.
func (p *Proxy) socks(ctx context.Context, client *peeked) {
	if client.SetDeadline(time.Now().Add(time.Minute)) != nil {
		return
	}
	address, reply, err := ask(client)
	if err != nil {
		return // It does not speak the protocol.
	}
	var server net.Conn
	if reply == replySucceeded {
		if server, err = p.Dialer.DialContext(ctx, "tcp", address); err != nil {
			reply = replyTo(err)
		} else {
			defer server.Close()
		}
	}
	// The address that the server sees is not known here; it is zero then.
	if _, err := client.Write([]byte{socksVersion, reply, 0, addressIPv4, 0, 0, 0, 0, 0, 0}); err != nil || server == nil {
		return
	}
	if client.SetDeadline(time.Time{}) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	join(client, server)
}

var errNotSocks = errors.New("not SOCKS5")

// ask negotiates and reads where the client wants to. reply is what is wrong with
// that, if anything is.
func ask(client io.ReadWriter) (address string, reply byte, err error) {
	// Version, number of methods, methods.
	var head [2]byte
	if _, err := io.ReadFull(client, head[:]); err != nil {
		return "", 0, err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(client, methods); err != nil {
		return "", 0, err
	}
	method := byte(noneAcceptable)
	for _, m := range methods {
		if m == noAuthentication {
			method = noAuthentication
		}
	}
	if _, err := client.Write([]byte{socksVersion, method}); err != nil {
		return "", 0, err
	}
	if method == noneAcceptable {
		return "", 0, errNotSocks
	}
	// Version, command, reserved, kind of address.
	var request [4]byte
	if _, err := io.ReadFull(client, request[:]); err != nil {
		return "", 0, err
	}
	if request[0] != socksVersion {
		return "", 0, errNotSocks
	}
	var host string
	switch request[3] {
	case addressIPv4, addressIPv6:
		ip := make(net.IP, net.IPv4len)
		if request[3] == addressIPv6 {
			ip = make(net.IP, net.IPv6len)
		}
		if _, err := io.ReadFull(client, ip); err != nil {
			return "", 0, err
		}
		host = ip.String()
	case addressDomain:
		var n [1]byte
		if _, err := io.ReadFull(client, n[:]); err != nil {
			return "", 0, err
		}
		name := make([]byte, n[0])
		if _, err := io.ReadFull(client, name); err != nil {
			return "", 0, err
		}
		host = string(name)
	default:
		return "", replyAddressUnsupported, nil
	}
	var port [2]byte
	if _, err := io.ReadFull(client, port[:]); err != nil {
		return "", 0, err
	}
	if request[1] != commandConnect {
		return "", replyCommandUnsupported, nil
	}
	return net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(port[:])))), replySucceeded, nil
}

func replyTo(err error) byte {
	var dial *tunnel.DialError
	if !errors.As(err, &dial) {
		return replyFailure
	}
	switch dial.Word {
	case "refused":
		return replyRefused
	case "unresolved":
		return replyHostUnreachable
	case "unreachable":
		return replyUnreachable
	case "timeout":
		return replyExpired
	}
	return replyFailure
}
