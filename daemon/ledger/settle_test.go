// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

var ofPR42 = Owner{Name: name("pr-42")}

// lost are who has lost the key, as is on record.
func lost(l *Ledger) (out []string) {
	list, _ := l.List(ofPR42, Query{Trace: ParseTraceID(trace1)})
	for _, r := range list.Items {
		if r.LostKey {
			out = append(out, r.LostBy)
		}
	}
	return out
}

func TestWhoAsksForATraceDoesNotDependOnItsAnnouncement(t *testing.T) {
	first, second, table, _ := twoNodes(t)
	began := time.Now()
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	e, _ := call(t, second, table, cart, "route", "", trace1)
	second.Begin(e)
	second.Finish(e)
	// No word arrives. The second node knows nothing, and what it says of how far back
	// it would is true.
	hops, answer := second.Settle(ofPR42, ParseTraceID(trace1), nil)
	if len(hops) != 0 || answer.Open != 0 || len(lost(second)) != 0 {
		t.Fatalf("nobody has told it, and it knows of %+v, says %+v", hops, answer)
	}
	hops, answer = first.Settle(ofPR42, ParseTraceID(trace1), nil)
	if len(hops) != 1 || hops[0].Service != name("cart") || answer.Open != 0 {
		t.Fatalf("the first node knows of %+v, says %+v", hops, answer)
	}
	// What is told of another's trace, or of another sandbox, is not what was asked for.
	wrong := hops[0]
	wrong.Owner.Name.Name = "pr-43"
	second.Settle(ofPR42, ParseTraceID(trace1), []Announcement{wrong})
	if len(lost(second)) != 0 {
		t.Error("it believes what is said of another sandbox")
	}
	again, answer := second.Settle(ofPR42, ParseTraceID(trace1), hops)
	if len(again) != 1 || answer.Open != 0 || answer.Foreign || time.Duration(answer.KnownNanos) < time.Since(began)-time.Minute {
		t.Errorf("told, it knows of %+v, says %+v", again, answer)
	}
	if got := lost(second); !slices.Equal(got, []string{"Deployment/cart"}) {
		t.Errorf("the key was lost by %q", got)
	}
}

func TestACallThatIsUnderWayIsCounted(t *testing.T) {
	first, second, table, told := twoNodes(t)
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	word := <-told
	e, _ := call(t, second, table, cart, "route", "", trace1)
	second.Begin(e)
	second.Begin(e) // the same one
	if _, answer := second.Settle(ofPR42, ParseTraceID(trace1), nil); answer.Open != 0 {
		t.Errorf("whose trace it is is not known, and it says %+v", answer)
	}
	if _, answer := second.Settle(ofPR42, ParseTraceID(trace1), []Announcement{word}); answer.Open != 1 {
		t.Errorf("the call is under way, and it says %+v", answer)
	}
	if _, answer := second.Settle(Owner{Name: name("pr-43")}, ParseTraceID(trace1), nil); answer.Open != 0 || !answer.Foreign {
		t.Errorf("of another's trace it says %+v", answer)
	}
	second.Finish(e)
	if _, answer := second.Settle(ofPR42, ParseTraceID(trace1), nil); answer.Open != 0 || second.UnderWay() != 0 {
		t.Errorf("the call is over, and it says %+v; %d are under way", answer, second.UnderWay())
	}
	if got := lost(second); !slices.Equal(got, []string{"Deployment/cart"}) {
		t.Errorf("the key was lost by %q", got)
	}
}

// What a node has forgotten it does not claim to know.
func TestHowFarBackATraceIsKnown(t *testing.T) {
	hour := time.Hour
	for _, tc := range []struct {
		name   string
		change func(first, second *Ledger, table *routing.Table, word Announcement)
		known  bool // longer than an hour
	}{
		{"nothing has been forgotten", func(*Ledger, *Ledger, *routing.Table, Announcement) {}, true},
		{"calls have, before the word came", func(_, second *Ledger, _ *routing.Table, _ Announcement) {
			second.pending.calls.since = time.Now()
		}, false},
		{"calls have, after the word had come", func(_, second *Ledger, _ *routing.Table, word Announcement) {
			second.Heard(word)
			second.pending.calls.since = time.Now()
		}, true},
		{"calls of this trace have been left out", func(_, second *Ledger, table *routing.Table, _ Announcement) {
			for i := range 2 * maxOfTrace {
				second.Finish(&Entry{At: time.Now(), Source: cart, dest: routing.DestID(1000 + i), Trace: ParseTraceID(trace1)})
			}
		}, false},
		{"calls of this trace have been left out, after the word had come", func(_, second *Ledger, table *routing.Table, word Announcement) {
			second.Heard(word)
			for i := range 2 * maxOfTrace {
				second.Finish(&Entry{At: time.Now(), Source: other, dest: routing.DestID(1000 + i), Trace: ParseTraceID(trace1)})
			}
		}, false},
		{"another agent has routed before this one", func(_, second *Ledger, _ *routing.Table, word Announcement) {
			second.InForce()
		}, false},
		{"calls like others have been left out", func(_, second *Ledger, table *routing.Table, _ Announcement) {
			for range 2 * maxOfTrace {
				second.Finish(&Entry{At: time.Now(), Source: cart, dest: 1000, Trace: ParseTraceID(trace1)})
			}
		}, true},
		{"traces have, of which this may have been one", func(_, second *Ledger, _ *routing.Table, word Announcement) {
			second.traces.seen.since = time.Now()
		}, false},
		{"hops have", func(_, second *Ledger, _ *routing.Table, word Announcement) {
			for i := range maxHops {
				word.Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), uint16(i+1))}
				second.Heard(word)
			}
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			first, second, table, told := twoNodes(t)
			second.began = time.Now().Add(-2 * hour)
			call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
			word := <-told
			tc.change(first, second, table, word)
			_, answer := second.Settle(ofPR42, ParseTraceID(trace1), []Announcement{word})
			if got := time.Duration(answer.KnownNanos) > hour; got != tc.known {
				t.Errorf("it is known for %s", time.Duration(answer.KnownNanos))
			}
			// Asking again makes it no worse.
			later := answer
			if _, answer = second.Settle(ofPR42, ParseTraceID(trace1), []Announcement{word}); answer.KnownNanos < later.KnownNanos {
				t.Errorf("it is known for %s, and then for %s", time.Duration(later.KnownNanos), time.Duration(answer.KnownNanos))
			}
		})
	}
}

func TestWindowsSaySinceWhenTheyHaveForgottenNothing(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1000, 0).Add(time.Duration(s) * time.Second) }
	id := func(n int) TraceID { return TraceID{1, byte(n)} }
	for _, tc := range []struct {
		name string
		puts []int // seconds
		turn int
	}{
		{"busy", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, 13},
		{"a pause", []int{0, 1, 9}, 9},
		{"a long pause", []int{0, 1, 2, 90}, 90},
		{"nothing since", []int{0, 1, 2}, 500},
		{"too many", []int{0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2}, 2},
		{"few", []int{0, 1}, 2},
	} {
		w := windows[int]{length: 4 * time.Second, most: 3}
		for i, s := range tc.puts {
			w.turn(at(s))
			w.put(id(i), s, at(s))
		}
		w.turn(at(tc.turn))
		forgotten := 0
		for i, s := range tc.puts {
			if _, ok := w.get(id(i)); ok {
				continue
			}
			forgotten++
			// What was put at the very time may be there or not.
			if at(s).After(w.since) {
				t.Errorf("%s: what was put at second %d is gone, and nothing since %d is said to be", tc.name, s, w.since.Unix()-1000)
			}
		}
		if forgotten == 0 && !w.since.IsZero() {
			t.Errorf("%s: nothing is gone, and something before second %d is said to be", tc.name, w.since.Unix()-1000)
		}
		if n := len(tc.puts); tc.turn == n-1 && w.since.After(at(tc.turn-4)) {
			t.Errorf("%s: it remembers from second %d on only", tc.name, w.since.Unix()-1000)
		}
	}
}

// A call's loss is on record before anybody is told that nothing is under way.
func TestALossIsOnRecordWhenNothingIsUnderWay(t *testing.T) {
	for range 200 {
		first, second, table, told := twoNodes(t)
		call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
		word := <-told
		e, _ := call(t, second, table, cart, "route", "", trace1)
		second.Begin(e)
		var all sync.WaitGroup
		all.Go(func() { second.Heard(word) })
		all.Go(func() { second.Finish(e) })
		all.Go(func() {
			for {
				_, answer := second.Settle(ofPR42, ParseTraceID(trace1), []Announcement{word})
				if answer.Open > 0 {
					continue
				}
				if got := lost(second); !slices.Equal(got, []string{"Deployment/cart"}) {
					t.Errorf("nothing is under way, and the key was lost by %q", got)
				}
				return
			}
		})
		all.Wait()
	}
}

func TestRecordsOfATraceSayHowFarTheyCanBeReliedOn(t *testing.T) {
	l, table := shop(t)
	e, _ := call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	l.Begin(e)
	for open := int64(1); open >= 0; open-- {
		list, err := l.Records(t.Context(), ofPR42, ledgerv1alpha1.Options{Trace: trace1})
		if err != nil || list.Nodes[0].Trace == nil || list.Nodes[0].Trace.Open != open || len(list.Items) != int(1-open) {
			t.Errorf("%d under way: %+v, %v", open, list, err)
		}
		if open > 0 {
			l.Finish(e)
		}
	}
	if list, err := l.Records(t.Context(), ofPR42, ledgerv1alpha1.Options{}); err != nil || list.Nodes[0].Trace != nil {
		t.Errorf("no trace is asked for: %+v, %v", list, err)
	}
}

func TestHopsOfAllTracesAreBounded(t *testing.T) {
	l, table := shop(t)
	owner := table.SandboxNamed(name("pr-42"), false)
	now := time.Now()
	for i := range maxAllHops / maxHops * 3 {
		id := TraceID{2, byte(i >> 16), byte(i >> 8), byte(i)}
		for h := range maxHops {
			l.traces.note(table, id, owner, name(fmt.Sprint(h)), nil, false, now)
		}
	}
	n := 0
	for _, w := range []map[TraceID]*trace{l.traces.seen.now, l.traces.seen.older} {
		for _, tr := range w {
			n += len(tr.hops)
		}
	}
	if n < maxAllHops/2 || n > 2*maxAllHops {
		t.Errorf("%d hops are remembered, at most %d should be", n, 2*maxAllHops)
	}
	if l.traces.forgotten().IsZero() {
		t.Error("it does not know that it has forgotten some")
	}
}

// Calls that lose a key which nodes do not tell each other of are not kept, so a node
// does not claim to know of them.
func TestANodeSaysThatItDoesNotHearOfATrace(t *testing.T) {
	route := routing.ServiceRef{Service: "route"}
	input := func(in *routing.Input) {
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{
			Name: name("blind"), Key: "key-of-blind", Redirects: []routing.Redirect{{From: route, To: routing.Target{Service: "route-pr-42"}}},
		}, routing.Sandbox{
			Name: name("both"), Group: true, Key: "key-of-both", Members: []string{"pr-42", "blind"},
		}, routing.Sandbox{
			Name: name("one"), Group: true, Key: "key-of-one", Members: []string{"pr-42"},
		})
	}
	first, second, table, told := twoNodes(t, input)
	call(t, first, table, tester, "cart", "key-of-blind", trace1)
	if len(told) != 0 {
		t.Fatal("a trace of a sandbox that observes nothing is announced")
	}
	e, _ := call(t, second, table, cart, "route", "", trace1)
	second.Finish(e)
	for _, tc := range []struct {
		owner     Owner
		unwatched bool
	}{
		{ofPR42, false},
		{Owner{Name: name("blind")}, true},
		{Owner{Name: name("both"), Group: true}, true}, // one of its members is not watched
		{Owner{Name: name("one"), Group: true}, false},
		{Owner{Name: name("nobody")}, true},
	} {
		hops, _ := first.Settle(tc.owner, ParseTraceID(trace1), nil)
		_, answer := second.Settle(tc.owner, ParseTraceID(trace1), hops)
		if answer.Unwatched != tc.unwatched || (answer.KnownNanos == 0) != tc.unwatched {
			t.Errorf("of %+v it says %+v", tc.owner, answer)
		}
	}
}
