// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const (
	key      = "key-of-pr-42"
	otherKey = "key-of-pr-43"
)

// world is a router in front of a Service "shop/route" with a baseline and forks.
// There is no kernel program here: clients dial what it would rewrite to,
// 127.a.b.c and the listener's port.
type world struct {
	t                   *testing.T
	lab                 *lab.World
	client, base        *lab.Pod
	fork, fork2, runner *lab.Pod
	router              *Router
	table               *routing.Table
	input               routing.Input
	ports               map[*lab.Pod]Ports
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	// Others may be testing on this machine as well.
	lab.NoLeaks(t, "", fmt.Sprintf("sdtest-%d-", os.Getpid()))
	w := &world{t: t, lab: lab.New(t), ports: map[*lab.Pod]Ports{}}
	w.client = w.lab.MustPod("client")
	w.runner = w.lab.MustPod("runner")
	w.base = w.lab.MustPod("base", "10.96.0.7", "fd00:96::7")
	w.fork = w.lab.MustPod("fork")
	w.fork2 = w.lab.MustPod("fork2")
	const mark = 0x3053
	cfg := Config{Loops: 2, Mark: mark, HoldSYNs: func() (*loader.SYNs, error) { return loader.NewSYNs(mark) }}
	for _, f := range change {
		f(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.router = r
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the router's counters: %+v", r.Stats())
		}
		if err := r.Close(); err != nil {
			t.Errorf("close the router: %v", err)
		}
	})
	w.input = routing.Input{
		Services: []routing.Service{
			{Name: routing.Name{Namespace: "shop", Name: "route"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00:96::7")}, Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}},
			{Name: routing.Name{Namespace: "shop", Name: "route-pr-42"}, Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}},
			{Name: routing.Name{Namespace: "shop", Name: "route-pr-43"}, Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}},
		},
		Slices: []routing.EndpointSlice{
			endpoints("route", w.base.IPv4), endpoints("route-pr-42", w.fork.IPv4), endpoints("route-pr-43", w.fork2.IPv4),
		},
		Pods: []routing.Pod{{Name: routing.Name{Namespace: "shop", Name: "runner"}, Netns: cookie(t, w.runner), Sandbox: "pr-42", Inject: true}},
		Sandboxes: []routing.Sandbox{
			sandbox("pr-42", key), sandbox("pr-43", otherKey),
		},
	}
	w.apply()
	w.listen(w.client)
	w.listen(w.runner)
	return w
}

func sandbox(name, key string) routing.Sandbox {
	return routing.Sandbox{
		Name: routing.Name{Namespace: "shop", Name: name}, Key: key, Existing: routing.Idle,
		Redirects: []routing.Redirect{{
			From: routing.ServiceRef{Service: "route"}, To: routing.Target{Service: "route-" + name}, Field: "spec.redirects[0]",
		}},
	}
}

// endpoints is a Service's EndpointSlice with ready endpoints on port 8080.
func endpoints(service string, addrs ...netip.Addr) routing.EndpointSlice {
	s := routing.EndpointSlice{
		Name: routing.Name{Namespace: "shop", Name: service + "-1"}, Service: service,
		Ports: []routing.EndpointPort{{Name: "http", Port: 8080, Protocol: routing.TCP}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, routing.Endpoint{Addr: a, Ready: true})
	}
	return s
}

func cookie(t *testing.T, p *lab.Pod) routing.Cookie {
	t.Helper()
	c, err := p.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	return routing.Cookie(c)
}

// apply compiles the input and puts the table in force.
func (w *world) apply() {
	w.t.Helper()
	// A pod whose sandbox a test has taken away is a problem, and expected.
	w.table, _ = routing.Compile(w.input.Clone(), w.table)
	table := w.table
	w.router.SetTable(table)
}

func (w *world) listen(p *lab.Pod) {
	w.t.Helper()
	f, err := os.Open(p.Path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	ports, err := w.router.Listen(Namespace{Cookie: cookie(w.t, p), FD: int(f.Fd()), Name: p.Name})
	if err != nil {
		w.t.Fatal(err)
	}
	w.ports[p] = ports
}

// setDelays changes how much time the router gives to clients from now on.
func (w *world) setDelays(change func(*delays)) {
	for _, l := range w.router.loops {
		l.call(func() { change(&l.delays) })
	}
}

// captured is where the kernel sends p's connections to the Service.
func (w *world) captured(p *lab.Pod) string { return w.capturedAt(p, "10.96.0.7:80") }

func (w *world) capturedAt(p *lab.Pod, dialled string) string {
	d, ok := w.table.LookupDest(netip.MustParseAddrPort(dialled), routing.TCP)
	if !ok {
		w.t.Fatalf("%s is not in the table", dialled)
	}
	return fmt.Sprintf("127.%d.%d.%d:%d", d.ID>>16, d.ID>>8&0xff, d.ID&0xff, w.ports[p].V4)
}

// dial opens a connection of p to the Service. The test fails when reading or
// writing takes very long.
func (w *world) dial(p *lab.Pod) *peer {
	w.t.Helper()
	return w.dialAt(p, "10.96.0.7:80")
}

// dialAt is dial to another destination that is captured.
func (w *world) dialAt(p *lab.Pod, dialled string) *peer {
	w.t.Helper()
	c, err := p.Dial("tcp", w.capturedAt(p, dialled))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return newPeer(w.t, c)
}

// peer is one end of a connection, for tests that care about bytes.
type peer struct {
	t      *testing.T
	conn   *net.TCPConn
	r      *bufio.Reader
	server bool
}

// patience is how long a test waits for what takes no time on an idle machine.
var patience = lab.Patience(20 * time.Second)

func newPeer(t *testing.T, c net.Conn) *peer {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	return &peer{t: t, conn: c.(*net.TCPConn), r: bufio.NewReader(c)}
}

func (p *peer) send(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, s); err != nil {
		if p.server {
			runtime.Goexit() // whether its client should have stayed, the client knows
		}
		p.t.Fatalf("send: %v", err)
	}
}

// sendAside sends while the test does something else.
func (p *peer) sendAside(s string) {
	go func() {
		if _, err := io.WriteString(p.conn, s); err != nil {
			p.t.Errorf("send: %v", err)
		}
	}()
}

// expect reads exactly what is wanted.
func (p *peer) expect(want string) {
	p.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(p.r, got)
	if string(got[:n]) != want {
		p.t.Fatalf("received %q (%v), want %q", got[:n], err, want)
	}
}

// expectFIN reads the end of the stream.
func (p *peer) expectFIN() {
	p.t.Helper()
	if b, err := io.ReadAll(p.r); err != nil || len(b) > 0 {
		p.t.Fatalf("received %q and %v, want FIN", b, err)
	}
}

// expectRST reads until the connection is reset and returns what came before.
func (p *peer) expectRST() []byte {
	p.t.Helper()
	b, err := io.ReadAll(p.r)
	if err == nil || !strings.Contains(err.Error(), "connection reset") {
		p.t.Fatalf("received %q and %v, want RST", b, err)
	}
	return b
}

// response reads a response and its body.
func (p *peer) response(method string) (*http.Response, string) {
	p.t.Helper()
	resp, err := http.ReadResponse(p.r, &http.Request{Method: method})
	if err != nil {
		p.t.Fatalf("read a response: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("read a response's body: %v", err)
	}
	return resp, string(body)
}

// rst closes with RST.
func (p *peer) rst() {
	p.t.Helper()
	if err := p.conn.SetLinger(0); err != nil {
		p.t.Fatal(err)
	}
	p.conn.Close()
}

// acknowledged waits until the other side's kernel has all that was sent.
func (p *peer) acknowledged() {
	p.t.Helper()
	raw, err := p.conn.SyscallConn()
	if err != nil {
		p.t.Error(err)
		return
	}
	left := 1
	for end := time.Now().Add(patience); left > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := raw.Control(func(fd uintptr) { left = unacknowledged(int32(fd)) }); err != nil {
			p.t.Error(err)
			return
		}
	}
}

// upstreams is how many connections there are to upstreams.
func (w *world) upstreams() (n int) {
	for _, l := range w.router.loops {
		l.call(func() {
			for c := l.conns.first; c != nil; c = c.next {
				n += len(c.ups)
			}
		})
	}
	return n
}

// script serves each connection to a pod's server by the test's own hand.
func (w *world) script(p *lab.Pod, serve func(*peer)) *atomic.Int32 {
	w.t.Helper()
	var count atomic.Int32
	err := p.ServeConns(func(c net.Conn) {
		defer c.Close()
		count.Add(1)
		s := newPeer(w.t, c)
		s.server = true
		serve(s)
	}, addressesOf(p)...)
	if err != nil {
		w.t.Fatal(err)
	}
	return &count
}

// addressesOf is where the servers of a pod listen: the Service's address has
// port 80, endpoints have 8080.
func addressesOf(p *lab.Pod) []string {
	if p.Name == "base" {
		return []string{":80", ":8080"}
	}
	return []string{":8080"}
}

// unreachable makes connecting from a pod to addresses of a prefix fail at once.
func (w *world) unreachable(p *lab.Pod, prefix string) {
	w.t.Helper()
	err := p.Do(func() error {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE})
	})
	if err != nil {
		w.t.Fatalf("make %s unreachable: %v", prefix, err)
	}
}

// names starts HTTP servers that answer with their pod's name.
func (w *world) names(pods ...*lab.Pod) {
	w.t.Helper()
	for _, p := range pods {
		if err := p.ServeHTTP(p.Name, addressesOf(p)...); err != nil {
			w.t.Fatal(err)
		}
	}
}

// echo starts HTTP servers that send the request back as it came: its head and
// body as bytes, in the response's body.
func (w *world) echo(pods ...*lab.Pod) {
	for _, p := range pods {
		w.script(p, func(c *peer) {
			for {
				raw, err := readRequest(c.r)
				if err != nil {
					return
				}
				fmt.Fprintf(c.conn, "HTTP/1.1 200 OK\r\nX-Served-By: %s\r\nContent-Length: %d\r\n\r\n%s", p.Name, len(raw), raw)
			}
		})
	}
}

// readRequest reads one request as bytes, empty lines before it included.
func readRequest(r *bufio.Reader) ([]byte, error) {
	var raw []byte
	line := func() (string, error) {
		l, err := r.ReadString('\n')
		raw = append(raw, l...)
		return strings.TrimRight(l, "\r\n"), err
	}
	body := func(n int64) error {
		from := len(raw)
		raw = append(raw, make([]byte, n)...)
		_, err := io.ReadFull(r, raw[from:])
		return err
	}
	var length int64
	chunked, begun := false, false
	for {
		l, err := line()
		if err != nil {
			return raw, err
		}
		if l == "" && begun {
			break
		}
		begun = begun || l != ""
		name, value, _ := strings.Cut(strings.ToLower(l), ":")
		switch name {
		case "content-length":
			if length, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				return raw, err
			}
		case "transfer-encoding":
			chunked = true
		}
	}
	if !chunked {
		return raw, body(length)
	}
	for {
		l, err := line()
		if err != nil {
			return raw, err
		}
		size, _, _ := strings.Cut(l, ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil {
			return raw, err
		}
		if n == 0 {
			break
		}
		if err := body(n + 2); err != nil {
			return raw, err
		}
	}
	for {
		if l, err := line(); l == "" || err != nil {
			return raw, err
		}
	}
}

// http returns a client of p that sends every request to the Service.
func (w *world) http(p *lab.Pod) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return p.DialContext(ctx, network, w.captured(p))
		},
		DisableCompression: true,
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

// eventually waits for something that another process or the kernel does.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	// A machine that has stood still for long has its chance all the same.
	end := time.Now().Add(patience)
	for tries := 0; !ok(); time.Sleep(2 * time.Millisecond) {
		if tries++; tries > 500 && time.Now().After(end) {
			w.t.Fatalf("waited in vain: %s; %+v", what, w.router.Stats())
		}
	}
}

func (w *world) noConnections() {
	w.t.Helper()
	w.eventually("no connection is left", func() bool { return w.router.Stats().Open == 0 })
}
