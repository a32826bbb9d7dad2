// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/sockdiag"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestIdleMeansThatNobodyWaits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		s     sockdiag.Socket
		http2 bool
		want  bool
	}{
		{"answered in a later tick", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 204, Last_data_recv: 200, Last_ack_recv: 200}}, false, true},
		{"answered in the same tick", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 300, Last_data_recv: 300, Last_ack_recv: 300}}, false, true},
		{"answered in the same tick, perhaps", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 200, Last_data_recv: 200, Last_ack_recv: 200}}, false, false},
		{"answered in the same tick, kept alive since", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 20000, Last_data_recv: 20000, Last_ack_recv: 5000}}, false, true},
		{"waiting for an answer", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 200, Last_data_recv: 204, Last_ack_recv: 160}}, false, false},
		{"waiting, the request followed an answer within a tick", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 200, Last_data_recv: 200, Last_ack_recv: 160}}, false, false},
		{"in use a moment ago", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 96, Last_data_recv: 92, Last_ack_recv: 92}}, false, false},
		{"an answer that has not been read", sockdiag.Socket{Unread: 1, Info: unix.TCPInfo{Last_data_sent: 204, Last_data_recv: 200, Last_ack_recv: 200}}, false, false},
		{"a request that has not arrived", sockdiag.Socket{Unsent: 1, Info: unix.TCPInfo{Last_data_sent: 204, Last_data_recv: 200, Last_ack_recv: 200}}, false, false},
		{"of HTTP/2, answered a while ago", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 1004, Last_data_recv: 1000, Last_ack_recv: 1000}}, true, true},
		{"of HTTP/2, answered a moment ago", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 904, Last_data_recv: 900, Last_ack_recv: 900}}, true, false},
		{"of HTTP/2, the client had the last word long ago", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 5000, Last_data_recv: 5004, Last_ack_recv: 5000}}, true, true},
		{"of HTTP/2, the client had the last word", sockdiag.Socket{Info: unix.TCPInfo{Last_data_sent: 2000, Last_data_recv: 2004, Last_ack_recv: 2000}}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.State = sockdiag.Established
			tt.s.Info.Bytes_received, tt.s.Info.Data_segs_out = 100, 1
			if got := idle(&tt.s, tt.http2); got != tt.want {
				t.Errorf("idle: %v, want %v", got, tt.want)
			}
		})
	}
	if !idle(&sockdiag.Socket{State: sockdiag.Established, Info: unix.TCPInfo{Last_data_sent: 200, Last_data_recv: 200}}, false) {
		t.Error("a connection that was never used is not idle")
	}
	if idle(&sockdiag.Socket{State: sockdiag.SynSent, Info: unix.TCPInfo{Last_data_sent: 200, Last_data_recv: 200}}, false) {
		t.Error("a connection that is being opened is idle")
	}
}

// scene is a client pod with connections to a baseline, and a sweeper.
type scene struct {
	t              *testing.T
	world          *lab.World
	client, server *lab.Pod
	address        netip.AddrPort
	ns             pods.Namespace
	sweeper        *sweeper
	limit          time.Duration // the sweeper's
	http2          bool          // what the server's port is declared to speak
	answer         chan struct{} // has the server give one slow answer
}

const testMark = 0x3053

func newScene(t *testing.T) *scene {
	w := lab.New(t)
	s := &scene{t: t, client: w.MustPod("client"), server: w.MustPod("server"), answer: make(chan struct{})}
	// The server answers "slow" when the test says so, everything else at once.
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	if err := s.server.ServeConns(func(c net.Conn) {
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			if lines.Text() == "slow" {
				select {
				case <-s.answer:
				case <-over:
					return
				}
			}
			io.WriteString(c, "answer\n")
		}
	}, "0.0.0.0:80", "[::]:81"); err != nil {
		t.Fatal(err)
	}
	s.address = netip.AddrPortFrom(s.server.IPv4, 80)
	fd, err := unix.Open(s.client.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	c, err := s.client.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	s.ns = pods.Namespace{Cookie: routing.Cookie(c), FD: fd, Name: s.client.Name}
	s.world = w
	s.watch("")
	return s
}

// watch starts a sweeper for a cgroup, in the place of the last.
func (s *scene) watch(cgroup string) {
	if s.sweeper != nil {
		s.sweeper.close()
	}
	s.sweeper = newSweeper(testMark, cgroup, s.limit, slog.New(slog.DiscardHandler))
	s.t.Cleanup(s.sweeper.close)
}

// redirect puts a sandbox's redirect of the server into force for requests, or,
// with tagged, for flows of the client.
func (s *scene) redirect(policy routing.ExistingPolicy, tagged bool) {
	sb := sandbox("0123456789")
	sb.Existing = policy
	pod := routing.Pod{Name: routing.Name{Namespace: "shop", Name: "client"}, Netns: s.ns.Cookie}
	if tagged {
		pod.Sandbox, sb.Key = "pr-42", ""
	}
	svc := shopService
	svc.Addresses = []netip.Addr{s.address.Addr()}
	svc.Ports = []routing.ServicePort{svc.Ports[0]}
	svc.Ports[0].HTTP2 = s.http2
	v6 := svc
	v6.Name.Name, v6.Addresses = "six", []netip.Addr{s.server.IPv6}
	v6.Ports = []routing.ServicePort{{Port: 81, Protocol: routing.TCP}}
	sb.Redirects = append(sb.Redirects, routing.Redirect{
		From: routing.ServiceRef{Service: "six"}, To: routing.Target{Address: netip.MustParseAddr("fd00::9")}, Field: "spec.redirects[1]",
	})
	table, problems := routing.Compile(routing.Input{
		Services: []routing.Service{svc, v6}, Pods: []routing.Pod{pod}, Sandboxes: []routing.Sandbox{sb},
	}, nil)
	if len(problems) > 0 {
		s.t.Fatal(problems)
	}
	s.sweeper.sweep(coverage{table, map[routing.Cookie]bool{s.ns.Cookie: !tagged}}, []pods.Namespace{s.ns})
}

func (s *scene) dial(network string) net.Conn {
	s.t.Helper()
	address := s.address.String()
	if network == "tcp6" {
		address = netip.AddrPortFrom(s.server.IPv6, 81).String()
	}
	c, err := s.client.Dial(network, address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// use sends a line and reads the answer.
func (s *scene) use(c net.Conn, line string) {
	s.t.Helper()
	io.WriteString(c, line+"\n")
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
}

// ended waits until the connection is aborted.
func (s *scene) ended(c net.Conn) {
	s.t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
		s.t.Errorf("the connection is not closed: %v", err)
	}
}

func (s *scene) lives(c net.Conn, during time.Duration) {
	s.t.Helper()
	c.SetReadDeadline(time.Now().Add(during))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) && !isTimeout(err) {
		s.t.Errorf("the connection is closed: %v", err)
	}
	c.SetReadDeadline(time.Time{})
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestIdleConnectionsFromBeforeARedirectAreClosed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tagged bool
	}{{"of everybody when requests are routed", false}, {"of a tagged pod when flows are redirected", true}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t)
			used, unused, six := s.dial("tcp4"), s.dial("tcp4"), s.dial("tcp6")
			s.use(used, "hello")
			s.use(six, "hello")
			time.Sleep(quiet + 20*time.Millisecond)
			s.redirect(routing.Idle, tt.tagged)
			s.ended(used)
			s.ended(unused)
			s.ended(six)
		})
	}
}

func TestAConnectionThroughAMappedAddressIsClosedToo(t *testing.T) {
	s := newScene(t)
	var fd int
	err := s.client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet6{Port: int(s.address.Port()), Addr: s.address.Addr().As16()})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s.redirect(routing.Idle, false)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, make([]byte, 1)); err != unix.ECONNABORTED {
		t.Errorf("the connection is not closed: %v", err)
	}
}

func TestABusyConnectionIsClosedOnceItIsIdle(t *testing.T) {
	s := newScene(t)
	c := s.dial("tcp4")
	s.use(c, "hello")
	done := make(chan error, 1)
	time.Sleep(20 * time.Millisecond) // several of the kernel's ticks
	io.WriteString(c, "slow\n")
	go func() {
		_, err := bufio.NewReader(c).ReadString('\n')
		done <- err
	}()
	s.redirect(routing.Idle, false)
	deadline := time.Now().Add(time.Minute)
	for s.sweeper.uncovered()[shopService.Name] != 1 {
		if time.Now().After(deadline) {
			t.Fatal("the busy connection is not counted")
		}
		time.Sleep(time.Millisecond)
	}
	s.answer <- struct{}{}
	if err := <-done; err != nil {
		t.Fatalf("the request under way failed: %v", err)
	}
	s.ended(c)
}

func TestAConnectionThatIsNeverIdleIsClosedAfterTheLimit(t *testing.T) {
	s := newScene(t)
	s.limit = 1500 * time.Millisecond
	s.watch("")
	c := s.dial("tcp4")
	io.WriteString(c, "slow\n") // it waits for an answer, for ever
	began := time.Now()
	s.redirect(routing.Idle, false)
	s.ended(c)
	if took := time.Since(began); took < s.limit {
		t.Errorf("a busy connection was closed after %s, before the limit", took)
	}
	// The client hears of it before it is counted.
	deadline := time.Now().Add(time.Minute)
	for s.sweeper.endings() != (metrics.ClosedConnections{Limit: 1}) {
		if time.Now().After(deadline) {
			t.Fatalf("what was closed is counted as %+v", s.sweeper.endings())
		}
		time.Sleep(time.Millisecond)
	}
	for len(s.sweeper.uncovered()) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("it is counted as uncovered still")
		}
		time.Sleep(time.Millisecond)
	}
	// Whoever is told of changes looks then, and sees the last one.
	select {
	case <-s.sweeper.changes:
	case <-time.After(time.Minute):
		t.Error("nobody is told that it is gone")
	}
}

func TestWhatCannotBeLookedAtStaysCounted(t *testing.T) {
	s := newScene(t)
	c := s.dial("tcp4")
	s.redirect(routing.Leave, false)
	counted := func(what string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for s.sweeper.uncovered()[shopService.Name] != 1 {
			if time.Now().After(deadline) {
				t.Fatalf("the connection is not counted %s", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	counted("at first")
	s.sweeper.close()
	// The sweeper's one goroutine has ended, so the test may do its work.
	p := s.sweeper.todo[s.ns.Cookie]
	if p == nil || len(p.found) != 1 {
		t.Fatalf("it is not remembered: %+v", p)
	}
	fd, err := unix.FcntlInt(uintptr(s.ns.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p.fd, p.diag = -1, nil // nothing can be opened there
	p.looks, p.rest = 1, time.Time{}
	for _, f := range p.found {
		f.next = time.Time{}
	}
	now := time.Now()
	if !s.sweeper.pass(now) || p.looks != 1 || s.sweeper.uncovered()[shopService.Name] != 1 {
		t.Errorf("after a failure: %d looks are left, %v connections counted", p.looks, s.sweeper.uncovered())
	}
	// It rests, and is counted meanwhile.
	p.fd = fd
	if !s.sweeper.pass(now.Add(time.Second)) || p.diag != nil || s.sweeper.uncovered()[shopService.Name] != 1 {
		t.Errorf("a moment later: %v connections counted", s.sweeper.uncovered())
	}
	if !s.sweeper.pass(now.Add(leaveInterval)) || p.diag == nil || p.looks != 0 || s.sweeper.uncovered()[shopService.Name] != 1 {
		t.Errorf("later: %d looks are left, %v connections counted", p.looks, s.sweeper.uncovered())
	}
	if p.diag != nil {
		p.diag.Close()
	}
	s.use(c, "hello")
}

func TestOfDeclaredHTTP2TheClientsLastWordIsNoRequest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		http2 bool
	}{{"on a port that is declared to speak HTTP/2", true}, {"on any other port", false}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t)
			s.http2 = tt.http2
			c := s.dial("tcp4")
			s.use(c, "hello")
			// As an HTTP/2 client's acknowledgement: no answer is due.
			if _, err := io.WriteString(c, "half a line"); err != nil {
				t.Fatal(err)
			}
			s.redirect(routing.Idle, false)
			if tt.http2 {
				s.ended(c)
			} else {
				s.lives(c, lastWord+2*calm)
			}
		})
	}
}

func TestPoliciesAllAndLeave(t *testing.T) {
	t.Run("All closes a busy connection at once", func(t *testing.T) {
		s := newScene(t)
		c := s.dial("tcp4")
		io.WriteString(c, "slow\n")
		s.redirect(routing.All, false)
		s.ended(c)
	})
	t.Run("Leave leaves an idle connection and counts it", func(t *testing.T) {
		s := newScene(t)
		c := s.dial("tcp4")
		s.redirect(routing.Leave, false)
		s.lives(c, 500*time.Millisecond)
		if n := s.sweeper.uncovered()[shopService.Name]; n != 1 {
			t.Errorf("%d connections are counted, want 1", n)
		}
		s.use(c, "hello")
	})
}

func TestTheRoutersOwnConnectionsStay(t *testing.T) {
	s := newScene(t)
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, testMark)
		}), err)
	}}
	c, err := s.client.DialWith(t.Context(), &d, "tcp4", s.address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.redirect(routing.All, false)
	s.lives(c, 500*time.Millisecond)
}

func TestOnlyConnectionsOfTheCgroupAreClosed(t *testing.T) {
	s := newScene(t)
	outside := s.dial("tcp4")
	s.world.MustMoveSelf()
	inside := s.dial("tcp4")
	s.watch(s.world.Cgroup)
	s.redirect(routing.All, false)
	s.ended(inside)
	s.lives(outside, 300*time.Millisecond)
}

func TestConnectionsThatWereCoveredBeforeStay(t *testing.T) {
	s := newScene(t)
	s.redirect(routing.All, false)
	time.Sleep(20 * quiet) // much longer than both looks
	// Nobody captures in this test, so this connection stands for one that the
	// programs have let pass on purpose.
	c := s.dial("tcp4")
	s.redirect(routing.All, false)
	s.lives(c, 500*time.Millisecond)
}

func TestOfAPodOnTheHostsNetworkOnlyItsOwnConnectionsAreClosed(t *testing.T) {
	s := newScene(t)
	s.ns.Cgroup = s.world.Cgroup
	outside := s.dial("tcp4")
	s.world.MustMoveSelf()
	inside := s.dial("tcp4")
	s.redirect(routing.All, false)
	s.ended(inside)
	s.lives(outside, 300*time.Millisecond)
}

func TestWhatAPodOfASandboxDialledBeforeItWasKnownIsClosedWhateverThePolicy(t *testing.T) {
	for _, tagged := range []bool{true, false} {
		s := newScene(t)
		// The agent has been at work before there was the pod.
		s.sweeper.sweep(coverage{table: &routing.Table{}}, nil)
		c := s.dial("tcp4")
		io.WriteString(c, "slow\n") // and does not wait for the answer
		s.redirect(routing.Leave, tagged)
		if tagged {
			s.ended(c)
		} else {
			s.lives(c, 300*time.Millisecond)
		}
	}
}
