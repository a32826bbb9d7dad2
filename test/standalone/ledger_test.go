// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const (
	traceA = "4bf92f3577b34da6a3ce929d0e0e4736"
	traceB = "4bf92f3577b34da6a3ce929d0e0e4737"
)

func traceparent(trace string) string { return "traceparent: 00-" + trace + "-00f067aa0ba902b7-01" }

// startWithLedger starts the agent with a ledger that can be read.
func (s *shop) startWithLedger(extra ...string) {
	s.t.Helper()
	// The folder has to be root's alone.
	s.run = filepath.Join(s.t.TempDir(), "run")
	if err := os.Mkdir(s.run, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.start(append([]string{"--ledger-socket", s.ledgerSocket()}, extra...)...)
}

func (s *shop) ledgerSocket() string { return filepath.Join(s.run, "ledger.sock") }

// ledger is what `sidetrackd ledger` prints of a sandbox.
func (s *shop) ledger(name string, args ...string) (list ledgerv1alpha1.RecordList) {
	s.t.Helper()
	cmd := exec.Command(binary(s.t), append([]string{"ledger", "--socket", s.ledgerSocket(), "shop/" + name}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("sidetrackd ledger: %v: %s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &list); err != nil {
		s.t.Fatalf("%v in %s", err, out)
	}
	for _, key := range []string{keyA, keyB} {
		if bytes.Contains(out, []byte(key)) {
			s.t.Errorf("the ledger shows a routing key: %s", out)
		}
	}
	return list
}

// awaitRecords waits for n records.
func (s *shop) awaitRecords(name string, n int) []ledgerv1alpha1.Record {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list := s.ledger(name)
		if len(list.Items) == n {
			return list.Items
		}
		if len(list.Items) > n || time.Now().After(end) {
			var all []string
			for i := range list.Items {
				all = append(all, hop(&list.Items[i]))
			}
			s.t.Fatalf("%d records, want %d:\n%s", len(list.Items), n, strings.Join(all, "\n"))
		}
	}
}

// hop is a record in words.
func hop(r *ledgerv1alpha1.Record) string {
	s := fmt.Sprintf("%s %s from %s", r.Hook, r.Protocol, r.Source.Pod)
	if r.Service != nil {
		s += fmt.Sprintf(" to %s:%d", r.Service.Name, r.Service.Port)
	}
	if r.Request != nil {
		s += " " + r.Request.Method + " " + r.Request.Path
	}
	s += fmt.Sprintf(" %s %s", r.Decision, r.Reason)
	if r.Answer != nil {
		s += " by " + r.Answer.Pod
	}
	if r.Status != 0 {
		s += fmt.Sprintf(" %d", r.Status)
	}
	if r.LostKey {
		s += " lost by " + r.LostBy
	}
	if r.Healed {
		s += " healed"
	}
	return s
}

func hops(all []ledgerv1alpha1.Record) (out []string) {
	for i := range all {
		out = append(out, hop(&all[i]))
	}
	return out
}

func TestTheLedgerSaysWhereTaggedTrafficWentAndNothingOfTheRest(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeUDP(name, ":53", ":5353") })
	s.startWithLedger()
	url := "http://" + webIP + "/cart?card=secret"
	s.client.MustGet(url)
	s.client.MustGet(url, "baggage: sidetrack=nobody-has-this")
	s.client.MustGet(url, "baggage: sidetrack="+keyA, traceparent(traceA))
	s.awaitRecords("a", 1)
	s.runner.MustGet(url)
	s.awaitRecords("a", 2)
	s.tester.MustGet(url)
	s.awaitRecords("a", 3)
	s.tester.MustReach("udp4", lab.HostPort(netip.MustParseAddr(dnsIP), 53), "fork-a")
	s.client.MustReach("udp4", lab.HostPort(netip.MustParseAddr(dnsIP), 53), "baseline")
	s.awaitRecords("a", 4)
	// An unconnected socket: two datagrams of one are one record.
	socket, err := s.tester.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for range 2 {
		if _, err := socket.WriteTo([]byte("name?\n"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(dnsIP), 53))); err != nil {
			t.Fatal(err)
		}
	}
	got := s.awaitRecords("a", 5)
	want := []string{
		"Router http/1.1 from client to web:80 GET /cart fork redirected by fork-a 200",
		"Router http/1.1 from runner to web:80 GET /cart fork redirected by fork-a 200",
		"Connect tcp from tester to web:80 fork redirected by fork-a",
		"Connect udp from tester to dns:53 fork redirected by fork-a",
		"SendMsg udp from tester to dns:53 fork redirected by fork-a",
	}
	if diff := cmp.Diff(want, hops(got)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	r := got[0]
	if r.TraceID != traceA || r.Dialled != webIP+":80" || r.Answer.Address != lab.HostPort(s.forkA.IPv4, 8080) || r.Source.Sandbox != "" ||
		r.SentBytes == 0 || r.ReceivedBytes == 0 || r.LatencyNanos <= 0 || got[1].Source.Sandbox != "a" {
		t.Errorf("records %+v, %+v", r, got[1])
	}
	// The flow of TCP has an end, or is going to; those of UDP are told of as they begin.
	if got[2].Flow == "" || got[3].Flow != "" || got[4].Flow != "" || !got[2].Open && (got[2].SentBytes == 0 || got[2].ReceivedBytes == 0) {
		t.Errorf("flows %+v, %+v, %+v", got[2], got[3], got[4])
	}
	if endsHeard(t, s.tester) == 0 || endsHeard(t, s.client) != 0 {
		t.Error("ends are not heard of in the sandbox's pod, or are elsewhere")
	}
	if n := len(s.ledger("b").Items); n != 0 {
		t.Errorf("%d records of a sandbox without traffic", n)
	}
	if list := s.ledger("a", "--trace", traceA); len(list.Items) != 1 || list.Items[0].TraceID != traceA {
		t.Errorf("of one trace: %+v", list.Items)
	}
	if list := s.ledger("a", "--limit", "1"); len(list.Items) != 1 || list.Nodes[0].Omitted != 4 {
		t.Errorf("the newest: %+v", list)
	}
	// It is root's alone.
	if info, err := os.Stat(s.ledgerSocket()); err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket: %v, %v", info, err)
	}
	s.agent.stop()
	if _, err := os.Stat(s.ledgerSocket()); err == nil {
		t.Error("the socket is left behind")
	}
}

// TestWithoutFlowEndsNobodyListens: a flow has the one record of its beginning.
func TestWithoutFlowEndsNobodyListens(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.startWithLedger("--flow-ends=false")
	for range 3 {
		s.tester.MustGet("http://" + webIP + "/")
	}
	for _, r := range s.awaitRecords("a", 3) {
		if r.Flow != "" || r.Open || r.ReceivedBytes != 0 || r.Hook != ledgerv1alpha1.HookConnect || r.Answer == nil {
			t.Errorf("%+v", r)
		}
	}
	if n := endsHeard(t, s.tester); n != 0 {
		t.Errorf("%d sockets hear of ends", n)
	}
}

// endsHeard is how many sockets hear of sockets' ends in a pod's namespace.
func endsHeard(t *testing.T, p *lab.Pod) (n int) {
	t.Helper()
	err := p.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netlink")
		for line := range strings.Lines(string(text)) {
			// sk Eth Pid Groups; only who listens is in a group.
			if f := strings.Fields(line); len(f) > 3 && f[1] == strconv.Itoa(unix.NETLINK_SOCK_DIAG) && f[3] != "00000000" {
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

func TestTheLedgerIsFollowed(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.startWithLedger()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), "ledger", "--socket", s.ledgerSocket(), "--follow", "shop/a")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed
	}()
	lists := json.NewDecoder(out)
	var list ledgerv1alpha1.RecordList
	if err := lists.Decode(&list); err != nil || len(list.Items) != 0 {
		t.Fatalf("it begins with %+v, %v", list, err)
	}
	for i := range 3 {
		s.client.MustGet(fmt.Sprintf("http://%s/%d", webIP, i), "x-sidetrack-key: "+keyA)
		list = ledgerv1alpha1.RecordList{}
		if err := lists.Decode(&list); err != nil || len(list.Items) != 1 || list.Items[0].Request.Path != fmt.Sprintf("/%d", i) {
			t.Fatalf("record %d comes as %+v, %v", i, list, err)
		}
	}
}

func TestALostKeyIsNamedAndHealedWhereTheSandboxAsksForIt(t *testing.T) {
	for _, heal := range []bool{false, true} {
		t.Run(fmt.Sprintf("propagate %t", heal), func(t *testing.T) {
			s := newShop(t)
			s.serveSeen()
			spec := []string{"observe: [plain]"}
			if heal {
				spec = append(spec, "propagate: TraceID")
			}
			s.putSandbox("a", keyA, spec...)
			s.startWithLedger()
			plain, web := "http://"+plainIP+":81/", "http://"+webIP+"/"
			// The pod base is behind the Service plain, which the sandbox only observes.
			if got := s.client.MustGet(plain, "x-sidetrack-key: "+keyA, traceparent(traceA)); got.Server != "baseline" {
				t.Fatalf("plain was answered by %s", got.Server)
			}
			s.awaitRecords("a", 1)
			got := s.base.MustGet(web, traceparent(traceA))
			want := "baseline"
			if heal {
				want = "fork-a"
			}
			if got.Server != want {
				t.Errorf("the call without the key was answered by %s, want %s", got.Server, want)
			}
			if has := strings.Contains(strings.Join(got.Header["Baggage"], ","), "sidetrack="+keyA); has != heal {
				t.Errorf("it arrived with %v", got.Header)
			}
			s.awaitRecords("a", 2)
			// What is of no trace, of another one, or from a pod that never had the key.
			for _, headers := range [][]string{nil, {traceparent(traceB)}} {
				if got := s.base.MustGet(web, headers...); got.Server != "baseline" || got.Header["Baggage"] != nil {
					t.Errorf("with %v: answered by %s, which saw %v", headers, got.Server, got.Header)
				}
			}
			if got := s.client.MustGet(web, traceparent(traceA)); got.Server != "baseline" || got.Header["Baggage"] != nil {
				t.Errorf("a pod that never had the key: answered by %s, which saw %v", got.Server, got.Header)
			}
			if got := s.client.MustGet(plain); got.Server != "baseline" {
				t.Errorf("an untagged request to what is observed was answered by %s", got.Server)
			}
			line := "Router http/1.1 from base to web:80 GET / baseline untagged by  200 lost by Pod/base"
			if heal {
				line = "Router http/1.1 from base to web:80 GET / fork redirected by fork-a 200 lost by Pod/base healed"
			}
			// Here cluster IPs are addresses of the pod base, and nobody chooses.
			if diff := cmp.Diff([]string{"Router http/1.1 from client to plain:81 GET / baseline no_redirect by  200", line}, hops(s.awaitRecords("a", 2))); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheLedgerIsBoundedUnderLoad(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.startWithLedger("--ledger-sandbox-bytes", "65536", "--ledger-bytes", "1048576")
	const requests = 500
	c := s.client.Client()
	began := time.Now()
	for i := range requests {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/%d", webIP, i), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-sidetrack-key", keyA)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if seen, err := lab.ReadSeen(resp); err != nil || seen.Server != "fork-a" {
			t.Fatalf("answered by %s, %v", seen.Server, err)
		}
		resp.Body.Close()
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		list := s.ledger("a")
		n, node := len(list.Items), list.Nodes[0]
		if n+int(node.Dropped) == requests {
			if n < 50 || n > 400 || list.Items[n-1].Request.Path != fmt.Sprintf("/%d", requests-1) || node.Since == nil || node.Since.After(list.Items[n-1].Time.Time) || node.Since.Time.Before(began) {
				t.Errorf("%d records are kept, since %s, the first of %s, the last %s of %s", n, node.Since, list.Items[0].Time, list.Items[n-1].Time, list.Items[n-1].Request.Path)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records and %d dropped, want %d", n, node.Dropped, requests)
		}
		time.Sleep(20 * time.Millisecond)
	}
	_, text, err := s.agent.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{fmt.Sprintf("sidetrack_ledger_records_total %d\n", requests), "sidetrack_ledger_untold_flows_total 0\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("no line %q in the metrics", line)
		}
	}
}
