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

// A call with a key that is nobody's, or another sandbox's, has not the trace's.
func TestACallWithAnotherKeyIsAStray(t *testing.T) {
	for _, key := range []string{"key-of-nobody", "key-of-pr-43"} {
		first, second, table, told := twoNodes(t, func(in *routing.Input) {
			in.Sandboxes = append(in.Sandboxes, routing.Sandbox{Name: name("pr-43"), Key: "key-of-pr-43", Observe: []string{"cart"}})
		})
		call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
		second.Heard(<-told)
		if _, d := call(t, second, table, cart, "route", key, trace1); d.Verdict != routing.ToBaseline {
			t.Fatalf("decided %+v", d)
		}
		if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) {
			t.Errorf("cart has called with %s: strays went to %q", key, got)
		}
		if got := strayedTo(t, second, Owner{Name: name("pr-43")}); got != nil {
			t.Errorf("another sandbox is told of strays to %q", got)
		}
	}
	_, second, table, _ := twoNodes(t)
	call(t, second, table, cart, "route", "key-of-pr-42", trace1)
	if got := strayedTo(t, second, ofPR42); len(got) > 0 {
		t.Errorf("a call with the trace's own key is called a stray to %q", got)
	}
}

// The key of a trace does not count in requests of another sandbox's own pod: they go
// where that sandbox has them go, which is no fork of the trace's, unless the trace is a
// group's, and the sandbox one of its members.
func TestACallOfAnotherSandboxsOwnPodIsAStray(t *testing.T) {
	own := func(in *routing.Input) {
		in.Pods = append(in.Pods, routing.Pod{Name: name("runner"), Netns: other, Sandbox: "pr-43", Inject: true})
	}
	first, second, table, told := twoNodes(t, own, func(in *routing.Input) {
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{Name: name("pr-43"), Key: "key-of-pr-43", Observe: []string{"cart"}})
	})
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	second.Heard(<-told)
	if _, d := call(t, second, table, other, "route", "", trace1); d.Verdict != routing.ToBaseline || d.Sandbox == nil || d.Sandbox.Name != name("pr-43") {
		t.Fatalf("decided %+v", d)
	}
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) {
		t.Errorf("strays went to %q", got)
	}
	group := Owner{Name: name("both"), Group: true}
	for _, redirects := range []bool{false, true} {
		first, second, table, told := twoNodes(t, own, func(in *routing.Input) {
			member := routing.Sandbox{Name: name("pr-43"), Key: "key-of-pr-43", Observe: []string{"cart"}}
			if redirects {
				member.Redirects = in.Sandboxes[0].Redirects
			}
			in.Sandboxes = append(in.Sandboxes, member, routing.Sandbox{
				Name: group.Name, Group: true, Key: "key-of-both", Members: []string{"pr-42", "pr-43"}, Observe: []string{"cart"}, Redirects: in.Sandboxes[0].Redirects,
			})
		})
		call(t, first, table, tester, "cart", "key-of-both", trace1)
		second.Heard(<-told)
		_, d := call(t, second, table, other, "route", "", trace1)
		if got := strayedTo(t, second, group); len(got) == 0 != (d.Verdict == routing.ToFork) || redirects != (len(got) == 0) {
			t.Errorf("a member redirects route itself: %t; decided %+v, strays went to %q", redirects, d, got)
		}
	}
}

// Where a call went that the table does not know any more nobody can tell.
func TestACallToWhatIsForgottenLeavesADoubt(t *testing.T) {
	_, second, _, _ := twoNodes(t)
	second.began = time.Now().Add(-2 * time.Hour)
	_, answer := second.Settle(ofPR42, ParseTraceID(trace1), nil)
	if time.Duration(answer.KnownNanos) < time.Hour {
		t.Fatalf("before that it says %+v", answer)
	}
	second.strays.add(stray{trace: ParseTraceID(trace1), source: other, dest: 12345, at: time.Since(second.began)})
	if _, answer = second.Settle(ofPR42, ParseTraceID(trace1), nil); time.Duration(answer.KnownNanos) > time.Hour {
		t.Errorf("it says that it knows all: %+v", answer)
	}
}

// A pod gets requests before this node knows that it is a Service's: its call is not
// among those that wait to be named, and never will be.
func TestAPodThatTurnsOutToServeIsAStrayStill(t *testing.T) {
	first, second, table, told := twoNodes(t)
	call(t, first, table, tester, "cart", "key-of-pr-42", trace1)
	word := <-told
	_, before := shop(t, func(in *routing.Input) {
		in.Slices = slices.DeleteFunc(in.Slices, func(s routing.EndpointSlice) bool { return s.Service == "cart" })
	})
	second.SetTable(before)
	if e, _ := call(t, second, before, cart, "route", "", trace1); e != nil {
		t.Fatalf("cart serves nobody yet, and its call is kept: %+v", e)
	}
	second.SetTable(table)
	second.Heard(word)
	if got := strayedTo(t, second, ofPR42); !slices.Equal(got, []string{"shop/route"}) || len(lost(second)) > 0 {
		t.Errorf("strays went to %q, lost by %q", got, lost(second))
	}
}

func TestStraysAreForgottenOldestFirstAndItIsKnownSinceWhen(t *testing.T) {
	var s strays
	id := func(n uint64) (t TraceID) {
		binary.BigEndian.PutUint64(t[8:], n)
		return t
	}
	add := func(trace TraceID, source routing.Cookie, at time.Duration, waits bool) {
		s.add(stray{trace: trace, source: source, dest: 7, at: at, waits: waits})
	}
	for i := range strayWays {
		add(id(1), routing.Cookie(i), time.Duration(i+1), true)
	}
	add(id(1), 0, 100, true) // again
	if calls, since := s.of(id(1)); len(calls) != strayWays || since != 0 {
		t.Errorf("%d calls since %d", len(calls), since)
	}
	add(id(1), 100, 50, true)
	calls, since := s.of(id(1))
	if len(calls) != strayWays || since != 3 || slices.ContainsFunc(calls, func(c stray) bool { return c.source == 1 }) {
		t.Errorf("calls %+v since %d: the oldest is to be forgotten, which was at 2", calls, since)
	}
	s.drop(id(1), 100, 7)
	if calls, _ := s.of(id(1)); len(calls) != strayWays-1 {
		t.Errorf("one is dropped, and there are %d", len(calls))
	}
	add(id(1), 101, 60, true)
	if _, again := s.of(id(1)); again != since {
		t.Errorf("there was room, and something is forgotten")
	}
	// What is on record is those that have waited.
	add(id(1), 101, 61, false)
	s.drop(id(1), 101, 7)
	if calls, _ := s.of(id(1)); len(calls) != strayWays {
		t.Errorf("a call that nobody will name is dropped")
	}
	for n := range uint64(10 * strayBuckets * strayWays) {
		add(id(n+2), 1, time.Duration(n+1000), false)
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
		s.add(stray{trace: id, source: routing.Cookie(i % 7), dest: 7, at: time.Duration(i)})
	}
}
