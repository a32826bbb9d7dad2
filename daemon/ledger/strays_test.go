// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// strayedTo are the Services that a node's answer says strays of the trace went to.
func strayedTo(t *testing.T, l *Ledger, o Owner, told ...Announcement) []string {
	t.Helper()
	_, answer := l.Settle(o, ParseTraceID(trace1), told)
	if answer.Strays == nil {
		return nil
	}
	out := []string{}
	for _, s := range answer.Strays.Services {
		out = append(out, s.Namespace+"/"+s.Name)
	}
	return out
}

// Whoever has received the key past all routers, and whoever never had it, call on
// without it in the same way.
func TestCallsOfWhomNobodyKnowsToHaveHadTheKeyAreStrays(t *testing.T) {
	first, second, table, told := twoNodes(t)
	call(t, first, table, tester, "route", "key-of-pr-42", trace1)
	ofRoute := <-told
	if got := strayedTo(t, second, ofPR42, ofRoute); !slices.Equal(got, []string{}) {
		t.Errorf("nothing was called, and strays went to %q", got)
	}
	for range 3 {
		e, _ := call(t, second, table, cart, "route", "", trace1)
		second.Finish(e)
		e, _ = call(t, second, table, cart, "route", "", trace2)
		second.Finish(e)
		if e, _ = call(t, second, table, cart, "route", "key-of-pr-42", trace1); e != nil {
			second.Finish(e)
		}
	}
	want := []string{"shop/route"}
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, want) || len(lost(second)) != 0 {
		t.Errorf("cart has called route without the key: strays went to %q, lost by %q", got, lost(second))
	}
	if got := strayedTo(t, second, Owner{Name: name("pr-43")}); got != nil {
		t.Errorf("another sandbox is told of strays to %q", got)
	}
	// Once it is known to have had the key it is named, or its calls are forgotten, which
	// is known as well.
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	ofCart := <-told
	for _, late := range []bool{false, true} {
		_, second, table, _ := twoNodes(t)
		second.began = time.Now().Add(-2 * time.Hour)
		second.Heard(ofRoute)
		e, _ := call(t, second, table, cart, "route", "", trace1)
		second.Finish(e)
		if late {
			second.pending.calls.turn(time.Now().Add(3 * pendingWindow))
		}
		if got := strayedTo(t, second, ofPR42); !slices.Equal(got, want) {
			t.Errorf("forgotten %t: strays went to %q", late, got)
		}
		second.Heard(ofCart)
		got, by := strayedTo(t, second, ofPR42), lost(second)
		_, answer := second.Settle(ofPR42, ParseTraceID(trace1), nil)
		if known := time.Duration(answer.KnownNanos) > time.Hour; len(got) > 0 || late != (len(by) == 0) || late == known {
			t.Errorf("cart is known to have had the key, its call forgotten %t: strays went to %q, lost by %q, all is known %t", late, got, by, known)
		}
	}
}

func TestStraysOfATraceThatNobodyHasSeenWithAKey(t *testing.T) {
	_, second, table, _ := twoNodes(t)
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{}) {
		t.Errorf("nothing was called, and strays went to %q", got)
	}
	e, _ := call(t, second, table, cart, "route", "", trace1)
	second.Finish(e)
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) {
		t.Errorf("strays went to %q", got)
	}
	// With the key the call would have gone where it went.
	e, _ = call(t, second, table, cart, "cart", "", trace1)
	second.Finish(e)
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) {
		t.Errorf("cart is observed only, and strays went to %q", got)
	}
	if got := strayedTo(t, second, Owner{Name: name("pr-43")}); got != nil {
		t.Errorf("a sandbox that nobody knows is told of strays to %q", got)
	}
	// Where there are no other nodes calls do not wait for their word.
	alone, table := shop(t)
	call(t, alone, table, tester, "route", "key-of-pr-42", trace1)
	if got := strayedTo(t, alone, ofPR42); got != nil {
		t.Errorf("of calls that are not kept it says that strays went to %q", got)
	}
}

// A caller that is behind no captured Service cannot be named, and what it has lost is
// seen all the same.
func TestWhoeverStraysIsSeen(t *testing.T) {
	first, second, table, told := twoNodes(t)
	call(t, first, table, tester, "route", "key-of-pr-42", trace1)
	second.Heard(<-told)
	if e, _ := call(t, second, table, other, "route", "", trace1); e != nil {
		t.Fatalf("a call of who is behind no Service is kept: %+v", e)
	}
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) {
		t.Errorf("strays went to %q", got)
	}
}

func TestStraysAreForgottenOldestFirstAndItIsKnownSinceWhen(t *testing.T) {
	var s strays
	id := func(n uint64) (t TraceID) {
		binary.BigEndian.PutUint64(t[8:], n)
		return t
	}
	for i := range time.Duration(strayWays) {
		s.add(id(1), routing.Cookie(i), 7, i+1)
		s.add(id(1), routing.Cookie(i), 7, i+100) // again
	}
	if calls, since := s.of(id(1)); len(calls) != strayWays || since != 0 {
		t.Errorf("%d calls since %d", len(calls), since)
	}
	s.add(id(1), 100, 7, 50)
	calls, since := s.of(id(1))
	if len(calls) != strayWays || since != 2 || slices.ContainsFunc(calls, func(c stray) bool { return c.source == 0 }) {
		t.Errorf("calls %+v since %d: the oldest is to be forgotten, which was at 1", calls, since)
	}
	s.drop(id(1), 100, 7)
	if calls, _ := s.of(id(1)); len(calls) != strayWays-1 {
		t.Errorf("one is dropped, and there are %d", len(calls))
	}
	s.add(id(1), 101, 7, 60)
	if _, again := s.of(id(1)); again != since {
		t.Errorf("there was room, and something is forgotten")
	}
	for n := range uint64(10 * strayBuckets * strayWays) {
		s.add(id(n+2), 1, 7, time.Duration(n+1000))
	}
	newest, known := 0, time.Duration(1000+10*strayBuckets*strayWays-strayBuckets)
	for n := range uint64(strayBuckets) {
		if calls, since := s.of(id(10*strayBuckets*strayWays + 1 - n)); len(calls) == 1 && since <= known {
			newest++
		}
	}
	if newest < strayBuckets*9/10 {
		t.Errorf("of the newest %d traces, with a call each, %d are there and known to be all that there were since", strayBuckets, newest)
	}
}

func BenchmarkStray(b *testing.B) {
	var s strays
	var id TraceID
	b.ReportAllocs()
	for i := range b.N {
		binary.BigEndian.PutUint64(id[8:], uint64(i)*0x9e3779b97f4a7c15)
		s.add(id, routing.Cookie(i%7), 7, time.Duration(i))
	}
}
