// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

func TestWhatIsKeptIsWhatWasSaid(t *testing.T) {
	owner := &routing.SandboxInfo{ID: 3, Name: name("pr-42")}
	full := Entry{
		At: time.Unix(1_790_000_000, 123_456_789), Latency: 17 * time.Millisecond, Hook: AtSendMsg, Protocol: Opaque,
		Owner: owner, Source: 1 << 60, Dialled: netip.MustParseAddrPort("[fd00::1]:443"), Service: name("route"), Port: 65535,
		Verdict: routing.Refuse, Reason: routing.Unavailable, Target: "Service shop/route-pr-42", Answer: netip.MustParseAddrPort("10.1.2.3:1"),
		Method: []byte("GET"), Authority: []byte("route.shop"), Path: []byte("/\uFFFD"), Status: 999,
		GRPCStatus: -7, HasGRPC: true, Sent: 1 << 50, Received: 1 << 51,
		Trace: ParseTraceID(trace1), Parent: SpanID{1, 2, 3}, Lost: true, Healed: true, Error: "no answer", Flow: 1 << 63, Open: true,
		seq: 1 << 40, caller: &Pod{Name: name("cart-0"), Workload: "Deployment/cart", Sandbox: "pr-7"}, answering: name("route-0"),
	}
	for _, e := range []Entry{full, {At: time.Unix(0, 1), Owner: owner}, {At: time.Unix(0, 1), Owner: owner, Flow: 7}, {
		At: time.Unix(-1, 0), Owner: owner, caller: &Pod{}, Dialled: netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"), Answer: netip.MustParseAddrPort("[::]:0"),
	}} {
		kept := e.put([]byte("what was there"))[len("what was there"):]
		if len(kept) > e.size() {
			t.Errorf("it takes %d bytes, and %d were reckoned with", len(kept), e.size())
		}
		got := keptEntry(kept, owner)
		if diff := cmp.Diff(&e, got, cmp.AllowUnexported(Entry{}), cmpopts.EquateComparable(netip.AddrPort{}),
			cmpopts.EquateEmpty(), cmp.Comparer(func(a, b *routing.SandboxInfo) bool { return a == b })); diff != "" {
			t.Errorf("(-said +kept):\n%s", diff)
		}
	}
}

func TestABookIsReadWhileItGrowsAndShrinks(t *testing.T) {
	l, table := shop(t)
	l.cfg.MaxSandboxBytes = 100_000
	owner := Owner{Name: name("pr-42")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		dest, _ := table.LookupDest(netip.MustParseAddrPort("10.96.0.7:80"), routing.TCP)
		sb := table.SandboxNamed(owner.Name, false)
		for i := range 5000 {
			e := &Entry{At: time.Now(), Owner: sb, Status: i % 1000, dest: dest.ID}
			e.Ask([]byte("GET"), []byte("h"), []byte("/"+strings.Repeat("p", rand.IntN(1500))))
			l.Add(e)
		}
	}()
	var after, missed uint64
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		p := l.Read(owner, Query{After: after})
		for _, e := range p.Entries {
			if e.seq <= after || e.Status != int(e.seq-1)%1000 || len(e.Path) == 0 {
				t.Fatalf("after record %d comes %d, with status %d", after, e.seq, e.Status)
			}
			missed += e.seq - after - 1
			after = e.seq
		}
	}
	if after != 5000 {
		t.Errorf("the last record read is %d", after)
	}
	if s := l.Stats(); missed > s.Dropped || s.Bytes > l.cfg.MaxSandboxBytes {
		t.Errorf("missed %d: %+v", missed, s)
	}
}

// TestAListHasAFlowOnce: by its end, if that is known. Whoever reads on gets the end.
func TestAListHasAFlowOnce(t *testing.T) {
	l, table := shop(t)
	f := Flow{
		At: time.Now(), Source: tester, Sandbox: table.SandboxNamed(name("pr-42"), false).ID, Dialled: netip.MustParseAddrPort("10.96.0.7:80"),
		Protocol: routing.TCP, Open: true,
	}
	long, short, other, plain := f, f, f, f
	long.ID, short.ID, other.ID = l.FlowID(), l.FlowID(), l.FlowID()
	plain.Open = false
	for _, f := range []Flow{long, other, plain} {
		l.AddFlow(f)
	}
	short.Open = false
	l.AddFlow(short)
	owner := Owner{Name: name("pr-42")}
	list, next := l.List(owner, Query{})
	if len(list.Items) != 4 {
		t.Fatalf("%d records of flows, want 4", len(list.Items))
	}
	long.Open, long.Lasted, long.Sent, long.Received, long.Error = false, time.Second, 3, 4, "reset"
	long.Answer = netip.MustParseAddrPort("10.244.2.9:8080")
	l.AddFlow(long)
	id := strconv.FormatUint(long.ID, 36)
	check := func(what string, items []ledgerv1alpha1.Record, want int) {
		t.Helper()
		found := 0
		for _, r := range items {
			if r.Flow != id {
				continue
			}
			found++
			if r.Open || r.LatencyNanos != 1e9 || r.SentBytes != 3 || r.ReceivedBytes != 4 || r.Error != "reset" || r.Answer == nil || r.Answer.Address != "10.244.2.9:8080" {
				t.Errorf("%s: %+v", what, r)
			}
		}
		if found != 1 || len(items) != want {
			t.Errorf("%s: %d records, %d of the flow; want %d and 1", what, len(items), found, want)
		}
	}
	list, _ = l.List(owner, Query{})
	check("all", list.Items, 4)
	// What is left out is not counted as more.
	list, _ = l.List(owner, Query{Limit: 4})
	check("with a limit", list.Items, 4)
	if n := list.Nodes[0].Omitted; n != 0 {
		t.Errorf("%d are said to be omitted", n)
	}
	list, _ = l.List(owner, Query{After: next})
	check("what is new", list.Items, 1)
}

func TestAnEntryIsNotFinishedTwice(t *testing.T) {
	l, table := shop(t)
	e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
	l.Finish(e)
	defer func() {
		if recover() == nil {
			t.Error("it is: the record of another request may be what it is now")
		}
	}()
	l.Finish(e)
}

func TestWhatAnEntrySaidIsNotTheNextOnes(t *testing.T) {
	l, table := shop(t)
	owner := table.SandboxNamed(name("pr-42"), false)
	var spare *Entry
	open := func(traceparent string) *Entry {
		e := l.Open(&Call{Table: table, Source: tester, Keyed: true, Traceparent: []byte(traceparent), Spare: spare}, &routing.Decision{Sandbox: owner})
		if spare != nil && e != spare {
			t.Fatal("the spare entry is not used")
		}
		return e
	}
	finish := func(e *Entry) {
		if !l.Finish(e) {
			t.Fatal("an entry may not be used again")
		}
		spare = e
	}
	for range 100 {
		e := open("00-" + trace1 + "-" + parent + "-01")
		e.Ask([]byte("POST"), []byte("first.shop"), []byte("/first"))
		e.Fail("the first one's")
		finish(e)
		e = open("")
		e.Ask([]byte("GET"), nil, []byte("/2"))
		finish(e)
	}
	p := l.Read(Owner{Name: name("pr-42")}, Query{})
	if len(p.Entries) != 200 {
		t.Fatalf("%d records", len(p.Entries))
	}
	for i, e := range p.Entries {
		want := "POST first.shop /first the first one's " + trace1
		if i%2 == 1 {
			want = "GET  /2  "
		}
		if got := strings.Join([]string{string(e.Method), string(e.Authority), string(e.Path), e.Error, e.Trace.String()}, " "); got != want {
			t.Errorf("record %d: %q, want %q", i, got, want)
		}
	}
}
