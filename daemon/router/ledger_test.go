// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

const traceparent = "Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n"

var pr42 = ledger.Owner{Name: routing.Name{Namespace: "shop", Name: "pr-42"}}

// newLedgerWorld is a world whose router keeps a ledger that knows its pods.
func newLedgerWorld(t *testing.T, change ...func(*world)) (*world, *ledger.Ledger) {
	t.Helper()
	l := ledger.New(ledger.Config{Node: "here"})
	t.Cleanup(func() { // after the router's end
		if n := l.UnderWay(); n != 0 {
			t.Errorf("%d calls are under way when there is no router any more", n)
		}
	})
	w := newWorld(t, func(c *Config) { c.Ledger = l })
	for i, pod := range []string{"base", "fork", "fork2"} {
		w.input.Slices[i].Endpoints[0].Pod = pod
	}
	for _, f := range change {
		f(w)
	}
	w.apply()
	l.SetTable(w.table)
	l.SetPods(map[routing.Cookie]*ledger.Pod{
		cookie(t, w.client): {Name: routing.Name{Namespace: "shop", Name: "client"}, Workload: "Deployment/client"},
		cookie(t, w.runner): {Name: routing.Name{Namespace: "shop", Name: "runner"}, Sandbox: "pr-42"},
	})
	return w, l
}

// records waits until an owner's ledger has n records, and returns them in words.
func (w *world) records(l *ledger.Ledger, o ledger.Owner, n int) (out []ledgerv1alpha1.Record) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d records", n), func() bool {
		list, _ := l.List(o, ledger.Query{})
		out = list.Items
		return len(out) >= n
	})
	if len(out) != n {
		w.t.Fatalf("%d records, want %d: %s", len(out), n, words(out))
	}
	return out
}

// words are what tests look at of records: protocol, method and path, decision and
// reason, status, bytes both ways, the pod that answered, and what went wrong.
func words(all []ledgerv1alpha1.Record) []string {
	var out []string
	for _, r := range all {
		s := string(r.Protocol)
		if r.Request != nil {
			s += " " + r.Request.Method + " " + r.Request.Authority + r.Request.Path
		}
		s += fmt.Sprintf(" %s %s %d %d>%d", r.Decision, r.Reason, r.Status, r.SentBytes, r.ReceivedBytes)
		if r.Answer != nil {
			s += " " + r.Answer.Pod
		}
		if r.Error != "" {
			s += ": " + r.Error
		}
		out = append(out, s)
	}
	return out
}

func (w *world) wantRecords(l *ledger.Ledger, o ledger.Owner, want ...string) []ledgerv1alpha1.Record {
	w.t.Helper()
	got := w.records(l, o, len(want))
	if diff := cmp.Diff(want, words(got)); diff != "" {
		w.t.Errorf("records (-want +got):\n%s", diff)
	}
	return got
}

func TestEveryTaggedRequestLeavesARecordAndNoOtherDoes(t *testing.T) {
	w, l := newLedgerWorld(t)
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
	underWay := make(chan int, 10)
	chunked := "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	for _, p := range []*lab.Pod{w.base, w.fork} {
		w.script(p, func(c *peer) {
			for {
				raw, err := readRequest(c.r)
				if err != nil {
					return
				}
				if strings.Contains(string(raw), traceparent) {
					underWay <- l.UnderWay()
				}
				if strings.HasPrefix(string(raw), "POST") {
					c.send("HTTP/1.1 100 Continue\r\n\r\n" + chunked)
				} else {
					c.send(answer)
				}
			}
		})
	}
	first := "GET /a?b=secret HTTP/1.1\r\nHost: route.shop\r\n" + tagged + traceparent + "\r\n"
	post := "POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + tagged + "\r\n2\r\nhi\r\n0\r\n\r\n"
	sized := "PUT /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + tagged + "\r\nhello"
	c := w.dial(w.client)
	// All on one connection, untagged ones among them.
	c.send(first + get(untagged) + post + get(untagged) + sized + get("baggage: sidetrack=a-key-of-nobody\r\n"))
	for _, want := range []string{"200", "200", "404", "200", "200", "200"} {
		method := "GET"
		resp, _ := c.response(method)
		if resp.StatusCode == http.StatusContinue {
			resp, _ = c.response(method)
		}
		if !strings.HasPrefix(resp.Status, want) {
			t.Fatalf("answered %s, want %s", resp.Status, want)
		}
	}
	got := w.wantRecords(l, pr42,
		fmt.Sprintf("http/1.1 GET route.shop/a fork redirected 200 %d>%d fork", len(first), len(answer)),
		fmt.Sprintf("http/1.1 POST a/b fork redirected 404 %d>%d fork", len(post), len("HTTP/1.1 100 Continue\r\n\r\n"+chunked)),
		fmt.Sprintf("http/1.1 PUT a/c fork redirected 200 %d>%d fork", len(sized), len(answer)))
	if n := <-underWay; n != 1 {
		t.Errorf("%d calls of traces are under way while one is answered", n)
	}
	r := got[0]
	if r.TraceID != "4bf92f3577b34da6a3ce929d0e0e4736" || r.ParentID != "00f067aa0ba902b7" || r.Source.Workload != "Deployment/client" ||
		r.Dialled != "10.96.0.7:80" || r.Answer.Address != netip.AddrPortFrom(w.fork.IPv4, 8080).String() || r.LatencyNanos <= 0 {
		t.Errorf("the first record: %+v", r)
	}
	if got[1].TraceID != "" {
		t.Errorf("a trace id from nowhere: %+v", got[1])
	}
}

func TestWhatTheRouterAnswersItselfLeavesARecord(t *testing.T) {
	w, l := newLedgerWorld(t, func(w *world) { w.input.Slices[1] = endpoints("route-pr-42") })
	w.names(w.base)
	c := w.dial(w.client)
	c.send(get(tagged + traceparent))
	resp, _ := c.response("GET")
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("answered %s", resp.Status)
	}
	if list := (ledgerv1alpha1.RecordList{}); l.UnderWay() == 0 {
		if list, _ = l.List(pr42, ledger.Query{}); len(list.Items) == 0 {
			t.Error("a request that is answered is neither under way nor on record")
		}
	}
	// A head that cannot be framed.
	bad := "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n" + tagged + "\r\n"
	c = w.dial(w.client)
	c.send(bad)
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("answered %s", resp.Status)
	}
	got := w.records(l, pr42, 2)
	if s := words(got)[0]; !strings.HasPrefix(s, "http/1.1 GET route/who reject unavailable 503 ") {
		t.Errorf("without a fork: %s", s)
	}
	if s := words(got)[1]; !strings.HasPrefix(s, fmt.Sprintf("http/1.1 reject unavailable 400 %d>0: the request cannot be framed", len(bad))) {
		t.Errorf("a bad head: %s", s)
	}
}

func TestAForkOutOfReachIsInTheRecord(t *testing.T) {
	for _, fallBack := range []bool{false, true} {
		t.Run(fmt.Sprintf("unavailable Baseline %t", fallBack), func(t *testing.T) {
			w, l := newLedgerWorld(t, func(w *world) {
				if fallBack {
					w.input.Sandboxes[0].Redirects[0].Unavailable = routing.Baseline
				}
			})
			w.names(w.base) // nobody listens in the fork
			c := w.dial(w.client)
			c.send(get(tagged))
			c.response("GET")
			s := words(w.records(l, pr42, 1))[0]
			if fallBack && !strings.HasPrefix(s, "http/1.1 GET route/who baseline unavailable 200 ") {
				t.Errorf("the record: %s", s)
			}
			if !fallBack && !(strings.HasPrefix(s, "http/1.1 GET route/who reject unavailable 503 ") && strings.HasSuffix(s, ": no endpoint can be reached")) {
				t.Errorf("the record: %s", s)
			}
		})
	}
}

func TestAnAnswerThatNeverCameIsInTheRecord(t *testing.T) {
	w, l := newLedgerWorld(t)
	w.names(w.base)
	const begun = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
	w.script(w.fork, func(c *peer) {
		raw, err := readRequest(c.r)
		if err != nil {
			return
		}
		switch {
		case strings.HasPrefix(string(raw), "GET /cut "):
			c.send(begun)
		case strings.HasPrefix(string(raw), "GET /reset "):
			c.rst()
		case strings.HasPrefix(string(raw), "GET /close "):
			c.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
		default:
			_, _ = c.r.ReadByte() // until the caller goes
		}
	})
	for i, tc := range []struct{ path, want string }{
		{"/cut", "200 60>42 fork: the connection ended before the answer did"},
		{"/reset", "0 62>0 fork: the answering side reset the connection"},
		{"/close", "200 62>41 fork"},
		{"/gone", "0 61>0 fork: the caller reset the connection"},
	} {
		c := w.dial(w.client)
		req := "GET " + tc.path + " HTTP/1.1\r\nHost: a\r\n" + tagged + "\r\n"
		tc.want = strings.Replace(tc.want, strings.Fields(tc.want)[1], fmt.Sprintf("%d>%s", len(req), strings.Split(strings.Fields(tc.want)[1], ">")[1]), 1)
		c.send(req)
		if tc.path == "/gone" {
			w.eventually("the request is with the fork", func() bool { return w.router.Stats().Requests != nil && w.sentToFork() > i })
			c.rst()
		} else {
			_, _ = c.r.WriteTo(discard{})
		}
		got := w.records(l, pr42, i+1)
		if s := words(got)[i]; s != "http/1.1 GET a"+tc.path+" fork redirected "+tc.want {
			t.Errorf("%s: %s, want %s", tc.path, s, tc.want)
		}
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// sentToFork is how many requests were redirected.
func (w *world) sentToFork() (n int) {
	for k, v := range w.router.Stats().Requests {
		if k.Verdict == routing.ToFork {
			n += int(v)
		}
	}
	return n
}

func TestTunnelsAndOpaqueConnectionsLeaveARecordAtTheirEnd(t *testing.T) {
	w, l := newLedgerWorld(t)
	const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
	w.script(w.fork, func(c *peer) {
		b, err := c.r.Peek(1)
		if err != nil {
			return
		}
		if b[0] == 'G' {
			if _, err := readRequest(c.r); err != nil {
				return
			}
			c.send(switching)
			c.expect("ping")
			c.send("pong!")
			return
		}
		c.expect("\x00\x01binary")
		c.send("\x02answer")
	})
	w.script(w.base, func(c *peer) {
		if _, err := c.r.Peek(1); err != nil {
			return // nothing is for the baseline on this connection
		}
		c.expect("\x00\x01binary")
		c.send("\x02answer")
	})
	upgrade := "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n" + tagged + "\r\n"
	c := w.dial(w.client)
	c.send(upgrade + "ping")
	c.expect(switching + "pong!")
	c.conn.Close()
	w.wantRecords(l, pr42, fmt.Sprintf("http/1.1 GET a/ws fork redirected 101 %d>%d fork", len(upgrade)+4, len(switching)+5))

	// Not HTTP, of a pod of the sandbox.
	c = w.dial(w.runner)
	c.send("\x00\x01binary")
	c.expect("\x02answer")
	c.conn.Close()
	if got := w.records(l, pr42, 2)[1]; words([]ledgerv1alpha1.Record{got})[0] != "opaque fork redirected 0 8>7 fork" || got.Source.Sandbox != "pr-42" {
		t.Errorf("an opaque connection: %+v", got)
	}
	// And of somebody else's pod: none.
	c = w.dial(w.client)
	c.send("\x00\x01binary")
	c.expect("\x02answer")
	c.conn.Close()
	w.noConnections()
	w.records(l, pr42, 2)
}

func TestAKeyInOpaqueBytesLeavesARecord(t *testing.T) {
	w, l := newLedgerWorld(t)
	w.script(w.base, func(c *peer) { _, _ = c.r.WriteTo(discard{}) })
	c := w.dial(w.client)
	// Line feeds alone: some servers read it as HTTP, and where it ends is for them to
	// say.
	c.send("GET / HTTP/1.1\nHost: a\n\n")
	w.eventually("the connection is opaque", func() bool { return len(w.router.Stats().Opaque) > 0 })
	c.send(get(tagged))
	c.expectRST()
	s := words(w.records(l, pr42, 1))[0]
	if !strings.HasPrefix(s, "opaque reject redirected 0 ") || !strings.Contains(s, "there is a routing key in bytes that are no request") {
		t.Errorf("the record: %s", s)
	}
	if strings.Contains(s, key) {
		t.Errorf("the record shows the key: %s", s)
	}
}

func TestALostKeyIsFoundAndHealedOnTheWay(t *testing.T) {
	for _, heal := range []bool{false, true} {
		t.Run(fmt.Sprintf("propagate %t", heal), func(t *testing.T) {
			w, l := newLedgerWorld(t, func(w *world) {
				w.input.Sandboxes[0].Propagate = heal
				// The client is itself behind a Service that the sandbox observes.
				w.input.Services = append(w.input.Services, routing.Service{
					Name: routing.Name{Namespace: "shop", Name: "cart"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.8")},
					Ports: []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}},
				})
				w.input.Sandboxes[0].Observe = []string{"cart"}
				s := endpoints("cart", w.client.IPv4)
				s.Endpoints[0].Pod = "client"
				w.input.Slices = append(w.input.Slices, s)
			})
			w.echo(w.base, w.fork)
			w.echo(w.client)
			// The runner calls cart with the key; its pod is told by the Service.
			request := "GET /cart HTTP/1.1\r\nHost: cart\r\n" + traceparent + "\r\n"
			c := w.dialAt(w.runner, netip.AddrPortFrom(w.client.IPv4, 8080).String())
			c.send(request)
			if _, body := c.response("GET"); !strings.Contains(body, "sidetrack="+key) {
				t.Fatalf("cart got %q, without the key", body)
			}
			// Cart calls route, of the same trace, without it.
			c = w.dial(w.client)
			c.send("GET /route HTTP/1.1\r\nHost: route\r\n" + traceparent + "\r\n" + get(untagged))
			resp, body := c.response("GET")
			want := map[bool]string{false: "base", true: "fork"}[heal]
			if got := resp.Header.Get(lab.ServedBy); got != want {
				t.Errorf("answered by %q, want %q", got, want)
			}
			if strings.Contains(body, "baggage: sidetrack="+key+"\r\n") != heal {
				t.Errorf("the request arrived as %q", body)
			}
			// What has no trace goes to the baseline, as it came.
			if resp, body := c.response("GET"); resp.Header.Get(lab.ServedBy) != "base" || body != get(untagged) {
				t.Errorf("an untagged request: by %q, %q", resp.Header.Get(lab.ServedBy), body)
			}
			got := w.records(l, pr42, 2)
			r := got[1]
			if !r.LostKey || r.LostBy != "Deployment/client" || r.Healed != heal || r.Answer.Pod != want && r.Answer.Pod != "" {
				t.Errorf("the record: %+v", r)
			}
			if got[0].LostKey || got[0].Decision != "baseline" || got[0].Reason != "no_redirect" {
				t.Errorf("the first record: %+v", got[0])
			}
		})
	}
}
