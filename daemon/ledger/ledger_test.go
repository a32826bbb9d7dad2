// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	cart   routing.Cookie = 5
	tester routing.Cookie = 6
	other  routing.Cookie = 7

	parent = "00f067aa0ba902b7"
	trace1 = "4bf92f3577b34da6a3ce929d0e0e4736"
	trace2 = "4bf92f3577b34da6a3ce929d0e0e4737"
)

func name(n string) routing.Name { return routing.Name{Namespace: "shop", Name: n} }

// shop is a table with two Services: route is redirected, cart observed. Pods of
// this node are cart's, one of nobody's, and a test runner.
func shop(t testing.TB, change ...func(*routing.Input)) (*Ledger, *routing.Table) {
	t.Helper()
	ports := []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}
	slice := func(service, pod, addr string) routing.EndpointSlice {
		return routing.EndpointSlice{
			Name: name(service + "-1"), Service: service, Ports: []routing.EndpointPort{{Name: "http", Port: 8080, Protocol: routing.TCP}},
			Endpoints: []routing.Endpoint{{Addr: netip.MustParseAddr(addr), Ready: true, Pod: pod}},
		}
	}
	in := routing.Input{
		Services: []routing.Service{
			{Name: name("route"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: ports},
			{Name: name("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.8")}, Ports: ports},
			{Name: name("route-pr-42"), Ports: ports},
		},
		Slices: []routing.EndpointSlice{
			slice("route", "route-0", "10.244.1.5"), slice("cart", "cart-0", "10.244.1.6"), slice("route-pr-42", "route-pr-42-0", "10.244.2.9"),
		},
		Sandboxes: []routing.Sandbox{{
			Name: name("pr-42"), Key: "key-of-pr-42", Observe: []string{"cart"},
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "route"}, To: routing.Target{Service: "route-pr-42"}, Field: "spec.redirects[0]"}},
		}},
	}
	for _, f := range change {
		f(&in)
	}
	table, problems := routing.Compile(in, nil)
	for _, p := range problems {
		t.Error(p)
	}
	l := New(Config{Node: "node-a"})
	l.SetTable(table)
	l.SetPods(map[routing.Cookie]*Pod{
		cart:   {Name: name("cart-0"), Workload: "Deployment/cart"},
		tester: {Name: name("tester")},
	})
	return l, table
}

// call is a request as the router sees it, which a Service's own address leads to whom
// nobody knows.
func call(t *testing.T, l *Ledger, table *routing.Table, source routing.Cookie, service, key, trace string) (*Entry, routing.Decision) {
	t.Helper()
	e, d, _ := callTo(t, l, table, source, service, key, trace, "")
	return e, d
}

// callTo is call where it is known which endpoint it leads to. It returns what it has
// to wait for as well.
func callTo(t *testing.T, l *Ledger, table *routing.Table, source routing.Cookie, service, key, trace, to string) (*Entry, routing.Decision, <-chan struct{}) {
	t.Helper()
	dialled := netip.MustParseAddrPort(map[string]string{"route": "10.96.0.7:80", "cart": "10.96.0.8:80"}[service])
	dest, ok := table.LookupDest(dialled, routing.TCP)
	if !ok {
		t.Fatalf("%s is not in the table", service)
	}
	var keys routing.KeySet
	if key != "" {
		names := routing.DefaultKeyNames()
		keys.Add(&names, routing.InHeader, []byte(key))
	}
	d := table.DecideRequest(source, dest.ID, &keys)
	c := &Call{Table: table, Source: source, Dest: dest.ID, Dialled: dialled, Keyed: keys.Seen()}
	if trace != "" {
		c.Traceparent = []byte("00-" + trace + "-" + parent + "-01")
	}
	if !l.Concerns(table, dest.ID, &d) {
		return nil, d, nil
	}
	e, at := l.Open(c, &d), dialled
	if d.Verdict == routing.ToFork {
		at = d.Endpoints[0]
	}
	if to != "" {
		at = netip.MustParseAddrPort(to)
	}
	return e, d, l.Going(table, e, &d, at)
}

func TestARecordSaysWhoWhereAndWhy(t *testing.T) {
	l, table := shop(t)
	e, _ := call(t, l, table, tester, "route", "key-of-pr-42", trace1)
	e.Ask([]byte("GET"), []byte("route.shop"), []byte("/orders/7?token=secret"))
	e.Answer, e.Status, e.Sent, e.Received = netip.MustParseAddrPort("10.244.2.9:8080"), 200, 120, 340
	l.Finish(e)
	list, _ := l.List(Owner{Name: name("pr-42")}, Query{})
	if len(list.Items) != 1 {
		t.Fatalf("%d records", len(list.Items))
	}
	got := list.Items[0]
	if time.Since(got.Time.Time) > time.Minute || got.LatencyNanos <= 0 {
		t.Errorf("time %s, latency %d", got.Time, got.LatencyNanos)
	}
	got.Time, got.LatencyNanos = ledgerv1alpha1.Record{}.Time, 0
	want := ledgerv1alpha1.Record{
		Node: "node-a", Hook: "Router", Protocol: "http/1.1",
		Tag:     ledgerv1alpha1.Tag{Kind: "Sandbox", Namespace: "shop", Name: "pr-42"},
		Source:  ledgerv1alpha1.Source{Namespace: "shop", Pod: "tester"},
		Service: &ledgerv1alpha1.Service{Namespace: "shop", Name: "route", Port: 80},
		Dialled: "10.96.0.7:80", Decision: "fork", Reason: "redirected", Target: "Service shop/route-pr-42 port 80",
		Answer:  &ledgerv1alpha1.Answer{Address: "10.244.2.9:8080", Namespace: "shop", Pod: "route-pr-42-0"},
		Request: &ledgerv1alpha1.Request{Method: "GET", Authority: "route.shop", Path: "/orders/7"},
		Status:  200, SentBytes: 120, ReceivedBytes: 340, TraceID: trace1, ParentID: parent,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if n := list.Nodes[0]; n.Node != "node-a" || !n.Answered || n.Since == nil || n.Dropped != 0 {
		t.Errorf("the node's answer: %+v", n)
	}
}

func TestQueriesAreNotKeptHoweverTheyAreWritten(t *testing.T) {
	for _, tc := range []struct{ target, host, authority, path string }{
		{"/a?b=c", "h", "h", "/a"},
		{"/a#b", "h", "h", "/a"},
		{"/a?b=http://x/y", "h", "h", "/a"},
		{"http://user:pw@other:80/a?b", "h", "other:80", "/a"},
		{"http://other?b", "h", "other", ""},
		{"http://other", "h", "other", ""},
		{"*", "h", "h", "*"},
		{"h:443", "h:443", "h:443", "h:443"},
		{"/\xff", "", "", "/\uFFFD"},
	} {
		var e Entry
		e.Ask([]byte("GET"), []byte(tc.host), []byte(tc.target))
		if string(e.Authority) != tc.authority || string(e.Path) != tc.path {
			t.Errorf("%q of %q: authority %q, path %q; want %q, %q", tc.target, tc.host, e.Authority, e.Path, tc.authority, tc.path)
		}
	}
	var e Entry
	e.Ask([]byte("GET"), nil, []byte("/"+strings.Repeat("a", 5000)))
	if len(e.Path) != maxPath {
		t.Errorf("a path of %d bytes is kept", len(e.Path))
	}
}

func TestUntaggedRequestsCostNothing(t *testing.T) {
	l, table := shop(t)
	dest, _ := table.LookupDest(netip.MustParseAddrPort("10.96.0.7:80"), routing.TCP)
	var keys routing.KeySet
	untagged := func() {
		d := table.DecideRequest(other, dest.ID, &keys)
		if l.Concerns(table, dest.ID, &d) {
			t.Fatal("the ledger is concerned with an untagged request")
		}
	}
	if n := testing.AllocsPerRun(100, untagged); n > 0 {
		t.Errorf("%v allocations for an untagged request", n)
	}
	// Once a trace is known, traces are looked at; that allocates nothing either.
	call(t, l, table, tester, "route", "key-of-pr-42", trace1)
	c := Call{Table: table, Source: other, Dest: dest.ID, Traceparent: []byte("00-" + trace2 + "-" + parent + "-01")}
	if n := testing.AllocsPerRun(100, func() {
		d := table.DecideRequest(other, dest.ID, &keys)
		if l.Open(&c, &d) != nil {
			t.Fatal("an untagged request has a record")
		}
	}); n > 0 {
		t.Errorf("%v allocations for an untagged request of another trace", n)
	}
}

func TestUntaggedRequestsCostNothingWhereNoSandboxWantsToKnow(t *testing.T) {
	l, table := shop(t, func(in *routing.Input) {
		pay := in.Services[0]
		pay.Name, pay.Addresses = name("pay"), []netip.Addr{netip.MustParseAddr("10.96.0.9")}
		in.Services = append(in.Services, pay)
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{
			Name: name("pr-43"), Key: "key-of-pr-43",
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "pay"}, To: routing.Target{Service: "route-pr-42"}, Field: "spec.redirects[0]"}},
		})
	})
	l.Announce(func(Announcement) {})
	l.SetTable(table)
	var keys routing.KeySet
	for addr, want := range map[string]bool{"10.96.0.7:80": true, "10.96.0.8:80": true, "10.96.0.9:80": false} {
		dest, ok := table.LookupDest(netip.MustParseAddrPort(addr), routing.TCP)
		if !ok || !dest.Captured {
			t.Fatalf("%s is not captured", addr)
		}
		if n := testing.AllocsPerRun(100, func() {
			d := table.DecideRequest(cart, dest.ID, &keys)
			if got := l.Concerns(table, dest.ID, &d); got != want {
				t.Fatalf("the ledger is concerned with an untagged request to %s: %t, want %t", addr, got, want)
			}
		}); n > 0 {
			t.Errorf("%v allocations for an untagged request to %s", n, addr)
		}
		c := Call{Table: table, Source: cart, Dest: dest.ID, Traceparent: []byte("00-" + trace1 + "-" + parent + "-01")}
		d := table.DecideRequest(cart, dest.ID, &keys)
		if e := l.Open(&c, &d); (e != nil) != want {
			t.Errorf("cart's untagged call to %s waits for word of its trace: %t, want %t", addr, e != nil, want)
		}
	}
}

// TestRecordsOfOldFlowsDoNotHideWhatIsDropped: what is dropped was made before Since at the
// latest, however long the flows had lasted whose records are kept.
func TestRecordsOfOldFlowsDoNotHideWhatIsDropped(t *testing.T) {
	l, table := shop(t)
	l.cfg.MaxSandboxBytes = 20_000
	sb := table.SandboxNamed(name("pr-42"), false)
	var made []time.Time
	for i := range 1000 {
		l.AddFlow(Flow{At: time.Now().Add(-time.Duration(1+i%7) * time.Hour), Sandbox: sb.ID, Dialled: netip.MustParseAddrPort("10.0.0.1:80"), Protocol: routing.TCP, ID: uint64(i + 1)})
		made = append(made, time.Now())
	}
	p := l.Read(Owner{Name: name("pr-42")}, Query{})
	if p.Dropped == 0 || int(p.Dropped) >= len(made) {
		t.Fatalf("%d records are dropped", p.Dropped)
	}
	last := int(p.Dropped) - 1
	if p.Since.Before(made[last-1]) || p.Since.After(made[last]) {
		t.Errorf("the ledger is said to begin at %s; the newest record that is dropped was made between %s and %s", p.Since, made[last-1], made[last])
	}
}

func TestTheOldestRecordsGoAndAreCounted(t *testing.T) {
	l, table := shop(t)
	l.cfg.MaxSandboxBytes = 20_000
	var began time.Time // when the 500th was
	for i := range 1000 {
		if i == 500 {
			began = time.Now()
		}
		e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
		e.Status = i
		l.Finish(e)
	}
	p := l.Read(Owner{Name: name("pr-42")}, Query{})
	if n := len(p.Entries); n < 20 || n+int(p.Dropped) != 1000 || p.Entries[n-1].Status != 999 || p.Entries[0].Status != 1000-n {
		t.Errorf("%d kept, %d dropped, first %d, last %d", n, p.Dropped, p.Entries[0].Status, p.Entries[n-1].Status)
	}
	if p.Since.After(p.Entries[0].At) || p.Since.Before(began) {
		t.Errorf("the ledger says that it begins at %s; its first record is of %s", p.Since, p.Entries[0].At)
	}
	s := l.Stats()
	if s.Bytes > l.cfg.MaxSandboxBytes || s.Added != 1000 || int64(s.Dropped) != p.Dropped || s.Records != int64(len(p.Entries)) {
		t.Errorf("figures %+v", s)
	}
}

func TestWhoFloodsTheNodeLosesItsOwnRecords(t *testing.T) {
	l, table := shop(t, func(in *routing.Input) {
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{Name: name("quiet"), Key: "key-of-the-quiet"})
	})
	l.cfg.MaxBytes = 20_000
	e, _ := call(t, l, table, tester, "route", "key-of-the-quiet", "")
	l.Finish(e)
	for range 1000 {
		e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
		l.Finish(e)
	}
	if p := l.Read(Owner{Name: name("quiet")}, Query{}); len(p.Entries) != 1 || p.Dropped != 0 {
		t.Errorf("of the quiet sandbox %d records are left, %d dropped", len(p.Entries), p.Dropped)
	}
	if s := l.Stats(); s.Bytes > l.cfg.MaxBytes || s.Dropped == 0 {
		t.Errorf("figures %+v", s)
	}
}

func TestALedgerGoesWithItsSandbox(t *testing.T) {
	var input routing.Input
	l, table := shop(t, func(in *routing.Input) { input = *in })
	e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
	late, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
	l.Finish(e)
	input.Sandboxes[0].Existing = routing.All
	next, _ := routing.Compile(input, table)
	l.SetTable(next)
	if n := l.Stats().Records; n != 1 {
		t.Fatalf("%d records after a change of the sandbox", n)
	}
	box := input.Sandboxes
	input.Sandboxes = nil
	without, _ := routing.Compile(input, next)
	l.SetTable(without)
	if s := l.Stats(); s.Records != 0 || s.Bytes != 0 {
		t.Errorf("left of a deleted sandbox: %+v", s)
	}
	// One of the same name is somebody else's.
	input.Sandboxes = box
	again, _ := routing.Compile(input, without)
	l.SetTable(again)
	e, _ = call(t, l, again, tester, "route", "key-of-pr-42", "")
	l.Finish(e)
	l.Finish(late)
	if n := len(l.Read(Owner{Name: name("pr-42")}, Query{}).Entries); n != 1 {
		t.Errorf("%d records of the new sandbox, want its own alone", n)
	}
}

func TestAPageHasWhatIsAskedFor(t *testing.T) {
	l, table := shop(t)
	var middle time.Time
	for i := range 10 {
		trace := trace1
		if i%2 == 1 {
			trace = trace2
		}
		if i == 5 {
			// Apart, since a record's time follows the wall's clock, which may be slewed.
			time.Sleep(time.Millisecond)
			middle = time.Now()
			time.Sleep(time.Millisecond)
		}
		e, _ := call(t, l, table, tester, "route", "key-of-pr-42", trace)
		e.Status = i
		l.Finish(e)
	}
	for _, tc := range []struct {
		name    string
		q       Query
		want    []int
		omitted int64
	}{
		{"all", Query{}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0},
		{"the newest", Query{Limit: 3}, []int{7, 8, 9}, 7},
		{"since then", Query{Since: middle}, []int{5, 6, 7, 8, 9}, 0},
		{"of a trace", Query{Trace: ParseTraceID(trace2), Limit: 2}, []int{7, 9}, 3},
		{"after what is known", Query{After: 8}, []int{8, 9}, 0},
		{"nothing new", Query{After: 10}, nil, 0},
	} {
		p := l.Read(Owner{Name: name("pr-42")}, tc.q)
		var got []int
		for _, e := range p.Entries {
			got = append(got, e.Status)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || p.Omitted != tc.omitted || p.Next != 10 {
			t.Errorf("%s: omitted %d, next %d (-want +got):\n%s", tc.name, p.Omitted, p.Next, diff)
		}
	}
	if p := l.Read(Owner{Name: name("pr-42"), Group: true}, Query{}); len(p.Entries) != 0 {
		t.Error("a group of the same name has a sandbox's records")
	}
}

func TestWaitersLearnOfARecord(t *testing.T) {
	l, table := shop(t)
	var waiters sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 3 {
		waiters.Go(func() {
			if err := l.Wait(ctx, 0); err != nil {
				t.Error(err)
			}
		})
	}
	e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
	l.Finish(e)
	waiters.Wait()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Wait(gone, 1); err == nil {
		t.Error("it returned without a record")
	}
}
