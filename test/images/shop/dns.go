// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers for Services that it is told of, SERVICE.NAMESPACE=ADDRESS, in
// the domain svc.cluster.local. It speaks UDP alone.
func nameServer(ctx context.Context, args []string) error {
	known := map[string]netip.Addr{}
	for _, arg := range args {
		name, address, _ := strings.Cut(arg, "=")
		a, err := netip.ParseAddr(address)
		if err != nil || !a.Is4() {
			return fmt.Errorf("%q is not SERVICE.NAMESPACE=ADDRESS", arg)
		}
		known[name+".svc.cluster.local."] = a
	}
	conn, err := net.ListenPacket("udp", ":5353")
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buffer := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if answer, err := answerName(known, buffer[:n]); err == nil {
			// Who has asked may be gone, and asks again.
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

func answerName(known map[string]netip.Addr, query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Additionals, m.Answers = nil, nil
	for _, q := range m.Questions {
		a, ok := known[strings.ToLower(q.Name.String())]
		switch {
		case !ok:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: a.As4()},
			})
		}
	}
	return m.Pack()
}
