// SPDX-License-Identifier: Apache-2.0

// Package proxy is a local HTTP and SOCKS5 proxy whose connections are opened by
// somebody else, such as a tunnel into a cluster, and which tags the HTTP requests
// that it can read.
//
// It owns the listener that it is given. One port speaks both protocols: the first
// byte tells them apart. It asks for no credentials, so it belongs on a loopback
// address. It answers no request that is not for a proxy, which is all that a web
// page could make a browser send. What is in a tunnel, by CONNECT or SOCKS5, it never
// looks at. Serve may be called concurrently.
package proxy
