// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

var haproxyAddr = netip.MustParseAddrPort("127.0.0.1:8080")

// haproxyConfig has one rule, of the cheapest kind that finds the member. The
// pool of connections to the servers is shared as far as HAProxy can. Nothing is
// logged, added to requests, checked or compressed.
const haproxyConfig = `global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    http-reuse always
frontend f
    bind %s
    use_backend fork if { req.fhdr(baggage) -m sub sidetrack=%s }
    default_backend baseline
backend baseline
    server s %s
backend fork
    server s %s
`

// haproxyMore does the same for HTTP/2 without TLS, at another port.
const haproxyMore = `frontend f%[1]d
    bind %[2]s proto h2
    use_backend fork%[1]d if { req.fhdr(baggage) -m sub sidetrack=%[3]s }
    default_backend baseline%[1]d
backend baseline%[1]d
    server s %[4]s proto h2
backend fork%[1]d
    server s %[5]s proto h2
`

// startHAProxy starts it in the client's pod, so that a request's way through it
// is the way through our router: lo, the proxy, the pod's interface, the server.
func (s *scene) startHAProxy() error {
	config := filepath.Join(s.world.Dir(), "haproxy.cfg")
	text := fmt.Sprintf(haproxyConfig, haproxyAddr, routingKey,
		netip.AddrPortFrom(s.base.IPv4, port), netip.AddrPortFrom(s.forked.IPv4, port))
	for _, o := range others {
		text += fmt.Sprintf(haproxyMore, o.port, o.haproxy, routingKey,
			netip.AddrPortFrom(s.base.IPv4, o.port), netip.AddrPortFrom(s.forked.IPv4, o.port))
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure HAProxy: %w", err)
	}
	var err error
	if s.haproxy, err = s.start(s.client, otherCore, s.outside, "haproxy", "-db", "-q", "-f", config); err != nil {
		return err
	}
	return s.await(s.client, haproxyAddr, s.haproxy)
}

// haproxyVersion is the first line that HAProxy says of itself.
func haproxyVersion() string {
	out, err := exec.Command("haproxy", "-v").Output()
	if err != nil {
		return "HAProxy of unknown version"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	version, _, _ := strings.Cut(line, " - ")
	return version
}
