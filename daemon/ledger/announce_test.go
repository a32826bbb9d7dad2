// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// twoNodes are the ledgers of two nodes that tell each other of traces: the tester is
// on the first, cart's pod on the second.
func twoNodes(t *testing.T, change ...func(*routing.Input)) (first, second *Ledger, table *routing.Table, told chan Announcement) {
	t.Helper()
	first, table = shop(t, change...)
	second, _ = shop(t, change...)
	told = make(chan Announcement, 100)
	first.Announce(func(a Announcement) { told <- a })
	second.Announce(func(Announcement) {})
	first.SetTable(table)
	second.SetTable(table)
	return first, second, table, told
}

func TestWhoLosesAKeyOnAnotherNodeIsNamed(t *testing.T) {
	for _, late := range []bool{false, true} {
		first, second, table, told := twoNodes(t)
		call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
		var word Announcement
		select {
		case word = <-told:
		default:
			t.Fatal("nothing is announced")
		}
		if !late {
			second.Heard(word)
		}
		e, d := call(t, second, table, cart, "route", "", trace1)
		if e == nil || d.Verdict != routing.ToBaseline || d.Inject != "" {
			t.Fatalf("cart's call: %+v, decided %+v", e, d)
		}
		second.Finish(e)
		if late {
			if n := len(second.Read(Owner{Name: name("pr-42")}, Query{}).Entries); n != 0 {
				t.Fatalf("%d records before anybody has said that the trace is a tagged one", n)
			}
			second.Heard(word)
			second.Heard(word)
		}
		list, _ := second.List(Owner{Name: name("pr-42")}, Query{})
		if len(list.Items) != 1 || !list.Items[0].LostKey || list.Items[0].LostBy != "Deployment/cart" || list.Items[0].LatencyNanos <= 0 {
			t.Errorf("word comes late %t: records %+v", late, list.Items)
		}
	}
}

func TestCallsOfOtherTracesAreForgotten(t *testing.T) {
	first, second, table, told := twoNodes(t)
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	word := <-told
	for range 10 * maxOfTrace {
		e, _ := call(t, second, table, cart, "route", "", trace2)
		second.Finish(e)
	}
	if e, _ := call(t, second, table, other, "route", "", trace1); e != nil {
		t.Error("a call of a pod that nobody could have sent the key to is kept")
	}
	second.Heard(word)
	if n := len(second.Read(Owner{Name: name("pr-42")}, Query{}).Entries); n != 0 {
		t.Errorf("%d records", n)
	}
	if all, _ := second.pending.calls.get(ParseTraceID(trace2)); len(all.calls) > maxOfTrace {
		t.Errorf("%d calls of one trace are kept", len(all.calls))
	}
	second.pending.calls.turn(time.Now().Add(3 * pendingWindow))
	if n := second.pending.calls.len(); n != 0 {
		t.Errorf("%d traces are kept for ever", n)
	}
}

func TestATaggedRequestWaitsForOtherNodesToBeToldWhereAKeyIsHealed(t *testing.T) {
	first, second, table, told := twoNodes(t, func(in *routing.Input) { in.Sandboxes[0].Propagate = true })
	const pod = "10.244.1.6:8080"
	_, _, until := callTo(t, first, table, tester, "cart", "key-of-pr-42", trace1, pod)
	if until == nil {
		t.Fatal("it waits for nothing")
	}
	// Another request of the trace to the same pod is not announced again, and waits as
	// well.
	if _, _, until := callTo(t, first, table, tester, "cart", "key-of-pr-42", trace1, pod); until == nil {
		t.Error("the second one waits for nothing")
	}
	word := <-told
	if len(told) > 0 {
		t.Error("it is announced twice")
	}
	second.Heard(word)
	word.Told()
	<-until
	if _, _, until := callTo(t, first, table, tester, "cart", "key-of-pr-42", trace1, pod); until != nil {
		t.Error("it waits for what has been told")
	}
	if _, d := call(t, second, table, cart, "route", "", trace1); d.Verdict != routing.ToFork || d.Inject != "key-of-pr-42" {
		t.Errorf("cart's call on the other node: %+v", d)
	}

	// Nobody answers: it goes on after a moment.
	_, _, until = callTo(t, first, table, tester, "cart", "key-of-pr-42", trace2, pod)
	select {
	case <-until:
	case <-time.After(time.Minute):
		t.Error("it waits for ever")
	}
}

func TestNothingIsAnnouncedThatNobodyWantsToKnow(t *testing.T) {
	first, _, table, told := twoNodes(t, func(in *routing.Input) {
		in.Sandboxes[0].Observe = nil
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{Name: name("watcher"), Key: "key-of-watcher", Observe: []string{"cart"}})
	})
	_, _, until := callTo(t, first, table, tester, "cart", "key-of-pr-42", trace1, "")
	if len(told) > 0 || until != nil {
		t.Error("a trace of a sandbox that does not watch is announced")
	}
	call(t, first, table, tester, "cart", "", trace2)
	call(t, first, table, tester, "cart", "key-of-watcher", "")
	if len(told) > 0 {
		t.Error("what is no tagged trace is announced")
	}
	if _, _, until := callTo(t, first, table, tester, "cart", "key-of-watcher", trace2, ""); len(told) != 1 || until != nil {
		t.Error("a trace that is watched is announced, and its request waits for nothing")
	}
	// What another node says of a sandbox that does not watch is not believed.
	first.Heard(Announcement{Trace: ParseTraceID(trace1[:31] + "0"), Owner: Owner{Name: name("pr-42")}, Service: name("cart")})
	if tr := first.traces.lookup(ParseTraceID(trace1[:31] + "0")); tr != nil {
		t.Errorf("heard: %+v", tr)
	}
}

func TestCallsThatWaitForTheirTracesWordAreBoundedByBytes(t *testing.T) {
	_, l, _, _ := twoNodes(t)
	path := "/" + strings.Repeat("p", maxPath)
	for i := range 3 * maxPending {
		id := TraceID{1, byte(i >> 8), byte(i)}
		for range maxOfTrace {
			e := &Entry{At: time.Now(), Source: cart, Trace: id}
			e.Ask([]byte("GET"), []byte("route.shop"), []byte(path))
			l.Finish(e)
		}
	}
	var bytes int64
	for _, w := range []map[TraceID]waiting{l.pending.calls.now, l.pending.calls.older} {
		for _, all := range w {
			bytes += all.size()
		}
	}
	if bytes < maxPendingBytes/2 || bytes > 2*maxPendingBytes {
		t.Errorf("%d bytes of calls wait, want at most %d", bytes, 2*maxPendingBytes)
	}
}
