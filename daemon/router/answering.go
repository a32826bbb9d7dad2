// SPDX-License-Identifier: Apache-2.0

package router

import (
	"iter"
	"net/netip"
)

// Behind a Service's own address somebody chooses a pod. For records it is found out
// which, once for a connection, where one is made of what passes it: connections with
// untagged requests alone never ask.

// notNamed is logged where connection tracking cannot be asked.
const notNamed = "the pod behind a Service's own address is named only where a socket load balancer has chosen it"

// answering returns who u, which is connected, is connected to: where its address is
// translated on the way, or while connecting, the endpoint that was chosen. It is the
// address itself where that is an endpoint, and where nobody can tell.
func (u *upstream) answering() netip.AddrPort {
	if !u.answers.IsValid() {
		if u.state != connected {
			return u.addr
		}
		u.answers = u.addr
		if _, endpoint := u.conn.table().PodAt(u.addr); !u.fork && !endpoint {
			u.answers = u.conn.chosen(u)
		}
	}
	return u.answers
}

// known is answering where u is connected, and the zero AddrPort where nobody can know
// yet.
func (u *upstream) known() netip.AddrPort {
	if u.state != connected {
		return netip.AddrPort{}
	}
	return u.answering()
}

// chosen finds out which endpoint somebody has chosen for a connection to a Service's
// own address. kube-proxy's rules, and IPVS, translate on the way, in the host's
// namespace. A socket load balancer rewrites where the socket connects to, and then it
// is that address which is tracked.
func (c *conn) chosen(u *upstream) netip.AddrPort {
	l := c.loop
	from := localAddr(u.sock.fd)
	if !from.IsValid() || from.Addr().Is4() != u.addr.Addr().Is4() {
		return u.addr
	}
	if l.conntrack != nil {
		if to, err := l.conntrack.Answering(from, u.addr); err == nil {
			return to
		}
	}
	if l.enter(c.ns) != noError {
		return u.addr
	}
	candidates := func(yield func(netip.AddrPort) bool) {
		// Nearly always nobody has rewritten anything.
		if yield(u.addr) {
			c.table().Endpoints(c.dest)(yield)
		}
	}
	if to, err := connectedTo(u.sock.fd, from, iter.Seq[netip.AddrPort](candidates)); err == nil {
		return to
	}
	return u.addr
}
