// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	api "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/conntrack"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const (
	stockVIP = "10.96.0.20"
	dbVIP    = "10.96.0.10"
)

// scene is a node with a follower. Pod runner is sandbox pr-1's, which redirects Service
// db to pod fork; Service stock is somebody else's business, and pod stock answers there. Servers
// do what the first line says that they are sent.
type scene struct {
	*testing.T
	w                          *lab.World
	runner, other, fork, stock *lab.Pod
	ledger                     *ledger.Ledger
	table                      *routing.Table
	input                      routing.Input
	k                          *loader.Kernel
	f                          *Follower
	spaces                     []pods.Namespace
}

func name(s string) routing.Name { return routing.Name{Namespace: "shop", Name: s} }

func newScene(t *testing.T, change func(*Config)) *scene {
	t.Helper()
	s := &scene{T: t, w: lab.New(t)}
	s.runner, s.other, s.fork, s.stock = s.w.MustPod("runner"), s.w.MustPod("other"), s.w.MustPod("fork"), s.w.MustPod("stock", stockVIP)
	for _, p := range []*lab.Pod{s.fork, s.stock} {
		s.must(p.ServeConns(serve, ":5432"))
		p.MustServeUDP("datagrams", ":53")
	}
	s.w.MustMoveSelf()
	ports := []routing.ServicePort{{Name: "sql", Port: 5432, Protocol: routing.TCP}, {Name: "dns", Port: 53, Protocol: routing.UDP}, {Name: "none", Port: 9, Protocol: routing.TCP}}
	service := func(n, vip string) routing.Service {
		s := routing.Service{Name: name(n), Ports: ports}
		if vip != "" {
			s.Addresses = []netip.Addr{netip.MustParseAddr(vip)}
		}
		return s
	}
	endpoint := func(of string, p *lab.Pod) routing.EndpointSlice {
		e := routing.EndpointSlice{Name: name(of), Service: of, Endpoints: []routing.Endpoint{{Addr: p.IPv4, Ready: true, Pod: p.Name}}}
		for _, port := range ports {
			e.Ports = append(e.Ports, routing.EndpointPort{Name: port.Name, Port: port.Port, Protocol: port.Protocol})
		}
		return e
	}
	redirect := func(from, to string) []routing.Redirect {
		return []routing.Redirect{{From: routing.ServiceRef{Service: from}, To: routing.Target{Service: to}, Field: "spec.redirects[0]"}}
	}
	s.input = routing.Input{
		Services: []routing.Service{service("db", dbVIP), service("db-pr-1", ""), service("stock", stockVIP), service("none", "")},
		Slices:   []routing.EndpointSlice{endpoint("db-pr-1", s.fork), endpoint("stock", s.stock)},
		Sandboxes: []routing.Sandbox{
			{Name: name("pr-1"), Key: "0123456789abcdef", Redirects: redirect("db", "db-pr-1")},
			{Name: name("pr-2"), Key: "fedcba9876543210", Redirects: redirect("stock", "none")},
		},
	}
	known := map[routing.Cookie]*ledger.Pod{}
	for p, sandbox := range map[*lab.Pod]string{s.runner: "pr-1", s.other: ""} {
		c, err := p.Cookie()
		s.must(err)
		ns, err := os.Open(p.Path)
		s.must(err)
		t.Cleanup(func() { ns.Close() })
		s.input.Pods = append(s.input.Pods, routing.Pod{Name: name(p.Name), Netns: routing.Cookie(c), Sandbox: sandbox})
		s.spaces = append(s.spaces, pods.Namespace{Cookie: routing.Cookie(c), FD: int(ns.Fd()), Name: p.Path})
		known[routing.Cookie(c)] = &ledger.Pod{Name: name(p.Name), Sandbox: sandbox}
	}
	cfg := loader.DefaultConfig()
	cfg.Cgroup, cfg.BPFFS = s.w.Cgroup, s.w.BPFFS
	cfg.MaxFlowRoutes, cfg.MaxDestinations, cfg.MaxBackends, cfg.MaxIdentities, cfg.MaxNamespaces, cfg.MaxUDPPeers = 64, 64, 64, 64, 64, 64
	k, err := loader.Open(cfg)
	s.must(err)
	t.Cleanup(func() { k.Close() })
	s.k = k
	r, err := k.Flows()
	s.must(err)
	s.ledger = ledger.New(ledger.Config{Node: "node"})
	s.ledger.SetPods(known)
	c := Config{Reader: r, Ledger: s.ledger, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&c)
	}
	s.f = New(c)
	t.Cleanup(func() {
		if err := s.f.Close(); err != nil {
			t.Error(err)
		}
	})
	s.apply()
	return s
}

// apply brings the input into force, as the agent does.
func (s *scene) apply() {
	s.Helper()
	t, problems := routing.Compile(s.input.Clone(), s.table)
	for _, p := range problems {
		s.Fatalf("compile: %s", p)
	}
	s.table = t
	s.ledger.SetTable(t)
	s.f.Watch(t, s.spaces, func(routing.Cookie) bool { return false })
	s.must(s.k.Apply(t))
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// serve reads a line of what to do, and does it: "N answer" sends N bytes and waits for
// the client to close, "N close" closes then, "N reset" resets.
func serve(c net.Conn) {
	defer c.Close()
	var n int
	var what string
	if _, err := fmt.Fscanln(c, &n, &what); err != nil {
		return
	}
	if _, err := c.Write(make([]byte, n)); err != nil {
		return
	}
	switch what {
	case "answer":
		_, _ = c.Read(make([]byte, 1))
	case "reset":
		// Once the client has it all.
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	}
}

func (s *scene) dial(address string) net.Conn {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	c, err := s.runner.DialContext(ctx, "tcp4", address)
	s.must(err)
	s.Cleanup(func() { c.Close() })
	return c
}

// ask has the server do something, and reads n bytes.
func (s *scene) ask(c net.Conn, n int, what string) (sent int64) {
	s.Helper()
	line := fmt.Sprintf("%d %s\n", n, what)
	_, err := io.WriteString(c, line)
	s.must(err)
	_, err = io.ReadFull(c, make([]byte, n))
	s.must(err)
	return int64(len(line))
}

// records waits until a condition holds of the sandbox's records, and returns them.
func (s *scene) records(until func([]api.Record) bool) []api.Record {
	s.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		list, _ := s.ledger.List(ledger.Owner{Name: name("pr-1")}, ledger.Query{})
		if until(list.Items) {
			return list.Items
		}
		if time.Now().After(end) {
			s.Fatalf("records: %+v", list.Items)
		}
	}
}

// last waits for n flows to be on record, and the last of them to be over.
func (s *scene) last(n int) api.Record {
	s.Helper()
	all := s.records(func(all []api.Record) bool { return len(all) == n && !all[n-1].Open })
	return all[n-1]
}

func TestAFlowsRecordSaysWhatItCarried(t *testing.T) {
	s := newScene(t, nil)
	db, stock := dbVIP+":5432", stockVIP+":5432"
	began := time.Now()
	for i, tc := range []struct {
		name     string
		do       func() (sent int64)
		decision api.Decision
		answer   string
		received int64
		err      string
	}{
		{"to a fork, the client closes", func() int64 {
			c := s.dial(db)
			defer c.Close()
			return s.ask(c, 1234, "answer")
		}, api.DecisionFork, s.fork.IPv4.String() + ":5432 fork", 1234, ""},
		{"to a fork, the server closes", func() int64 {
			c := s.dial(db)
			defer c.Close()
			n := s.ask(c, 55_555, "close")
			_, err := c.Read(make([]byte, 1))
			if !errors.Is(err, io.EOF) {
				t.Errorf("the server has not closed: %v", err)
			}
			return n
		}, api.DecisionFork, s.fork.IPv4.String() + ":5432 fork", 55_555, ""},
		{"to a fork, the server resets", func() int64 {
			c := s.dial(db)
			defer c.Close()
			n := s.ask(c, 10, "reset")
			_, err := io.WriteString(c, "x")
			s.must(err)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the server has not reset: %v", err)
			}
			return n + 1
		}, api.DecisionFork, s.fork.IPv4.String() + ":5432 fork", 10, "aborted"},
		{"to the baseline", func() int64 {
			c := s.dial(stock)
			defer c.Close()
			return s.ask(c, 7, "answer")
		}, api.DecisionBaseline, stock, 7, ""},
		{"that nobody accepts", func() int64 {
			if c, err := s.runner.Dial("tcp4", stockVIP+":9"); err == nil {
				c.Close()
				t.Error("it is accepted")
			}
			return 0
		}, api.DecisionBaseline, stockVIP + ":9", 0, "refused"},
		{"without a byte", func() int64 { s.dial(stock).Close(); return 0 }, api.DecisionBaseline, stock, 0, ""},
	} {
		// Nobody else's leave any.
		c, err := s.other.Dial("tcp4", stock)
		s.must(err)
		c.Close()
		sent := tc.do()
		r := s.last(i + 1)
		answer := ""
		if a := r.Answer; a != nil {
			answer = strings.TrimSpace(a.Address + " " + a.Pod)
		}
		if r.Hook != api.HookConnect || r.Decision != tc.decision || answer != tc.answer || r.SentBytes != sent || r.ReceivedBytes != tc.received ||
			!strings.Contains(r.Error, tc.err) || (r.Error == "") != (tc.err == "") || r.Flow == "" || r.Source.Pod != "runner" {
			t.Errorf("a flow %s: %d bytes sent and %d received of %s, error %q, want %d and %d of %s, %q; all: %+v",
				tc.name, r.SentBytes, r.ReceivedBytes, answer, r.Error, sent, tc.received, tc.answer, tc.err, r)
		}
		if lasted := time.Duration(r.LatencyNanos); lasted <= 0 || lasted > time.Since(began) {
			t.Errorf("a flow %s lasted %s of %s", tc.name, lasted, time.Since(began))
		}
	}
	list, _ := s.ledger.List(ledger.Owner{Name: name("pr-1")}, ledger.Query{})
	if n := list.Nodes[0].MissedEnds; n != 0 {
		t.Errorf("%d ends were missed", n)
	}
}

func TestALongFlowIsOnRecordWhileItLasts(t *testing.T) {
	s := newScene(t, nil)
	c := s.dial(dbVIP + ":5432")
	sent := s.ask(c, 100, "answer")
	open := s.records(func(all []api.Record) bool { return len(all) == 1 })[0]
	if !open.Open || open.Flow == "" || open.LatencyNanos != 0 || open.SentBytes != 0 || open.Answer == nil || open.Answer.Pod != "fork" {
		t.Errorf("while it lasts: %+v", open)
	}
	c.Close()
	r := s.last(1)
	if r.Flow != open.Flow || r.SentBytes != sent || r.ReceivedBytes != 100 || !r.Time.Time.Equal(open.Time.Time) {
		t.Errorf("when it is over: %+v, and %+v before", r, open)
	}
	if got := time.Duration(r.LatencyNanos); got < hold {
		t.Errorf("it lasted %s", got)
	}
	// Datagrams, and what is refused at once, have no end.
	s.runner.MustReach("udp4", dbVIP+":53", "datagrams")
	if r := s.records(func(all []api.Record) bool { return len(all) == 2 })[1]; r.Flow != "" || r.Open || r.Protocol != api.ProtocolUDP {
		t.Errorf("datagrams: %+v", r)
	}
	s.input.Slices = s.input.Slices[1:]
	s.apply()
	if _, err := s.runner.Dial("tcp4", dbVIP+":5432"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without an endpoint: %v", err)
	}
	if r := s.records(func(all []api.Record) bool { return len(all) == 3 })[2]; r.Flow != "" || r.Open || r.Decision != api.DecisionReject {
		t.Errorf("refused: %+v", r)
	}
}

// behindNode has pods' connections to Service stock translated on the way.
func (s *scene) behindNode() {
	s.Helper()
	node := s.w.MustPod("node")
	service := netip.MustParseAddrPort("10.96.0.30:5432")
	err := node.ForwardDNAT("tcp", service, netip.AddrPortFrom(s.stock.IPv4, 5432))
	if errors.Is(err, lab.ErrNoNFT) {
		s.Skip(err)
	}
	s.must(err)
	s.must(s.runner.RouteVia(service.Addr(), node))
	var table *conntrack.Table
	s.must(node.Do(func() (err error) { table, err = conntrack.Open(); return err }))
	s.f.tracks.Lock()
	if s.f.conntrack != nil {
		s.f.conntrack.Close()
	}
	s.f.conntrack = table
	s.f.tracks.Unlock()
	s.input.Services[2].Addresses = append(s.input.Services[2].Addresses, service.Addr())
	s.apply()
}

func TestThePodBehindAServicesAddressIsNamed(t *testing.T) {
	s := newScene(t, nil)
	s.behindNode()
	want := s.stock.IPv4.String() + ":5432 stock"
	check := func(r api.Record, open bool) {
		t.Helper()
		if r.Open != open || r.Answer == nil || r.Answer.Address+" "+r.Answer.Pod != want || r.Dialled != "10.96.0.30:5432" {
			t.Errorf("%+v and answer %+v, want %s", r, r.Answer, want)
		}
	}
	// Whom a connection leads to whose SYN is not on the way yet is not taken for known.
	if by, sure := s.f.answering(s.table, netip.AddrPortFrom(s.runner.IPv4, 1), netip.MustParseAddrPort("10.96.0.30:5432")); sure {
		t.Errorf("a connection that there is not is answered by %s", by)
	}
	// Short ones by what the kernel says of their end, long ones while they last.
	c := s.dial("10.96.0.30:5432")
	s.ask(c, 1, "answer")
	c.Close()
	check(s.last(1), false)
	c = s.dial("10.96.0.30:5432")
	s.ask(c, 1, "answer")
	check(s.records(func(all []api.Record) bool { return len(all) == 2 && all[1].Open })[1], true)
	c.Close()
	check(s.last(2), false)
}

// TestNobodyElseIsListenedTo: not in a pod that is no sandbox's, nor when it is none any
// more, nor where a router decides.
func TestNobodyElseIsListenedTo(t *testing.T) {
	s := newScene(t, nil)
	if n := diagSockets(t, s.runner); n == 0 {
		t.Error("there is no socket in the sandbox's pod")
	}
	if n := diagSockets(t, s.other); n != 0 {
		t.Errorf("%d sockets in a pod of no sandbox", n)
	}
	c := s.dial(stockVIP + ":5432")
	s.ask(c, 1, "answer")
	s.records(func(all []api.Record) bool { return len(all) == 1 })
	for i := range s.input.Pods {
		s.input.Pods[i].Sandbox = ""
	}
	s.apply()
	if r := s.last(1); !strings.Contains(r.Error, "its pod is gone, or is the sandbox's no more") {
		t.Errorf("%+v", r)
	}
	none := func(what string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); diagSockets(t, s.runner) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("there are sockets in a pod %s", what)
			}
		}
	}
	none("of no sandbox")
	for i := range s.input.Pods {
		if s.input.Pods[i].Name == name("runner") {
			s.input.Pods[i].Sandbox, s.input.Pods[i].Inject = "pr-1", true
		}
	}
	s.apply()
	if diagSockets(t, s.runner) == 0 {
		t.Error("there is no socket where no router decides yet")
	}
	s.f.Watch(s.table, s.spaces, func(routing.Cookie) bool { return true })
	none("whose connections a router decides about")
}

// diagSockets is how many sockets for sock_diag processes have in a pod's namespace.
func diagSockets(t *testing.T, p *lab.Pod) (n int) {
	t.Helper()
	err := p.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(text)) {
			// sk Eth Pid Groups; the kernel's own has no Pid.
			if f := strings.Fields(line); len(f) > 3 && f[1] == fmt.Sprint(unix.NETLINK_SOCK_DIAG) && f[2] != "0" {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTooManyOpenFlowsAreLetGoOf(t *testing.T) {
	const most = 8
	s := newScene(t, func(c *Config) { c.Most = most })
	var conns []net.Conn
	for range 3 * most {
		conns = append(conns, s.dial(dbVIP+":5432"))
	}
	s.records(func(all []api.Record) bool { return len(all) == 3*most })
	s.f.mu.Lock()
	if len(s.f.known) != most || s.f.order.Len() != most {
		t.Errorf("%d and %d flows are remembered, want %d", len(s.f.known), s.f.order.Len(), most)
	}
	s.f.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	all := s.records(func(all []api.Record) bool {
		return len(all) == 3*most && !all[3*most-1].Open && !slices.ContainsFunc(all[2*most:], func(r api.Record) bool { return r.Open })
	})
	for i, r := range all {
		if r.Open != (i < 2*most) {
			t.Errorf("flow %d: %+v", i, r)
		}
	}
	list, _ := s.ledger.List(ledger.Owner{Name: name("pr-1")}, ledger.Query{})
	if n := list.Nodes[0].MissedEnds; n != 2*most {
		t.Errorf("%d ends are said to be missed, want %d", n, 2*most)
	}
}

// TestEndsThatWereNotToldAreFound: each flow has its last record, and which of them do
// not say what they carried is counted.
func TestEndsThatWereNotToldAreFound(t *testing.T) {
	s := newScene(t, func(c *Config) { c.Buffer, c.gather, c.grace = 1, 500*time.Millisecond, time.Millisecond })
	stays := s.dial(dbVIP + ":5432")
	s.ask(stays, 1, "answer")
	total := 1
	missed := func() int64 {
		list, _ := s.ledger.List(ledger.Owner{Name: name("pr-1")}, ledger.Query{})
		return list.Nodes[0].MissedEnds
	}
	for end := time.Now().Add(time.Minute); missed() == 0; {
		if time.Now().After(end) {
			t.Fatal("nothing is missed")
		}
		var conns []net.Conn
		for range 50 {
			conns = append(conns, s.dial(dbVIP+":5432"))
		}
		for _, c := range conns {
			c.Close()
		}
		total += len(conns)
		time.Sleep(late)
	}
	all := s.records(func(all []api.Record) bool {
		open := 0
		for _, r := range all {
			if r.Open {
				open++
			}
		}
		return len(all) == total && open == 1
	})
	slices.SortFunc(all, func(a, b api.Record) int { return cmp.Compare(a.Time.UnixNano(), b.Time.UnixNano()) })
	silent := int64(0)
	for i, r := range all {
		if r.Open != (i == 0) {
			t.Errorf("flow %d: %+v", i, r)
		}
		if strings.Contains(r.Error, "too many were at once") {
			silent++
		}
	}
	if n := missed(); n != silent {
		t.Errorf("%d records say that an end was not told, and %d are counted", silent, n)
	}
}

// BenchmarkEnd is what it costs to hear of one connection's end, besides making and ending
// the connection.
func BenchmarkEnd(b *testing.B) {
	pod := lab.New(b).MustPod("pod")
	ns, err := os.Open(pod.Path)
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	e, err := sockdiag.OpenEnds(int(ns.Fd()), 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	d, err := sockdiag.Open(int(ns.Fd()))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	b.Run("of a socket", func(b *testing.B) {
		told := 0
		for told < b.N {
			b.StopTimer()
			for range 1000 {
				l, err := pod.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
			time.Sleep(10 * time.Millisecond)
			b.StartTimer()
			ends, err := e.ReadNow(nil)
			for err == nil && len(ends) > 0 {
				told += len(ends)
				ends, err = e.ReadNow(ends[:0])
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("looking at sockets of a port", func(b *testing.B) {
		for range b.N {
			if err := d.ListTo(5432, false, func(*sockdiag.Socket) {}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
