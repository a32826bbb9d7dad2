// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func TestWhoReceivedTheKeyAndCallsWithoutItIsNamed(t *testing.T) {
	l, table := shop(t)
	// The tester calls cart with the key; whichever pod of cart's has got it.
	e, _ := call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	l.Finish(e)
	e, d := call(t, l, table, cart, "route", "", trace1)
	if e == nil || !e.Lost || e.Healed || d.Verdict != routing.ToBaseline || d.Inject != "" {
		t.Fatalf("cart's call without the key: %+v, decided %+v", e, d)
	}
	l.Finish(e)
	list, _ := l.List(Owner{Name: name("pr-42")}, Query{})
	r := list.Items[len(list.Items)-1]
	if !r.LostKey || r.LostBy != "Deployment/cart" || r.Source.Pod != "cart-0" || r.Decision != "baseline" || r.Reason != "untagged" {
		t.Errorf("the record: %+v", r)
	}
}

func TestWhatIsNoLossIsNotCalledOne(t *testing.T) {
	l, table := shop(t)
	call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	for _, tc := range []struct {
		name            string
		source          routing.Cookie
		key, trace      string
		record, verdict bool
	}{
		{name: "cart's call with the key", source: cart, key: "key-of-pr-42", trace: trace1, record: true},
		{name: "cart's call of another trace", source: cart, trace: trace2},
		{name: "cart's call without a trace", source: cart},
		{name: "cart's call with somebody else's key", source: cart, key: "key-of-nobody", trace: trace1},
		{name: "a call of who never had the key: it sends untagged requests as well", source: tester, trace: trace1},
		{name: "a call from a pod that nobody knows", source: other, trace: trace1},
	} {
		e, d := call(t, l, table, tc.source, "route", tc.key, tc.trace)
		if (e != nil) != tc.record || e != nil && e.Lost || d.Inject != "" {
			t.Errorf("%s: %+v, decided %+v", tc.name, e, d)
		}
	}
}

func TestALostKeyIsHealedWhereTheSandboxAsksForIt(t *testing.T) {
	l, table := shop(t, func(in *routing.Input) { in.Sandboxes[0].Propagate = true })
	if _, d := call(t, l, table, cart, "route", "", trace1); d.Verdict != routing.ToBaseline || d.Sandbox != nil {
		t.Errorf("a trace that nobody has seen: %+v", d)
	}
	call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	e, d := call(t, l, table, cart, "route", "", trace1)
	if e == nil || !e.Lost || !e.Healed || d.Verdict != routing.ToFork || d.Inject != "key-of-pr-42" || e.Verdict != routing.ToFork {
		t.Fatalf("cart's call: %+v, decided %+v", e, d)
	}
	// The fork has the key now, and so it is known to have received it.
	l.SetPods(map[routing.Cookie]*Pod{other: {Name: name("route-pr-42-0")}})
	if e, _ := call(t, l, table, other, "cart", "", trace1); e == nil || !e.Lost {
		t.Errorf("the fork's call without the key: %+v", e)
	}
	// A key of somebody else's, even an unknown one, is an answer of its own.
	if e, d := call(t, l, table, cart, "route", "key-of-nobody", trace1); e != nil || d.Verdict != routing.ToBaseline {
		t.Errorf("a call with another key: %+v, decided %+v", e, d)
	}
}

func TestOnlyWhoHasReceivedTheKeyIsHealed(t *testing.T) {
	const zero, one = "10.244.1.6:8080", "10.244.1.7:8080"
	for _, tc := range []struct {
		name, to string
		healed   bool // the call of pod cart-0
	}{
		{"the pod is known", zero, true},
		{"another pod of the Service is known", one, false},
		{"an endpoint is known, of which nobody knows the pod", "10.244.9.9:8080", false},
		{"which pod it was is not known", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, table := shop(t, func(in *routing.Input) {
				in.Sandboxes[0].Propagate = true
				s := &in.Slices[1]
				s.Endpoints = append(s.Endpoints, routing.Endpoint{Addr: netip.MustParseAddr("10.244.1.7"), Ready: true, Pod: "cart-1"})
			})
			// Who knows the key and somebody's trace sends both to cart.
			callTo(t, l, table, other, "cart", "key-of-pr-42", trace1, tc.to)
			e, d := call(t, l, table, cart, "route", "", trace1)
			if healed := e != nil && e.Healed && e.Lost && d.Verdict == routing.ToFork && d.Inject == "key-of-pr-42"; healed != tc.healed {
				t.Errorf("cart-0's call: %+v, decided %+v", e, d)
			}
			// The tester has never received anything, and a process that is nobody's has not.
			for _, source := range []routing.Cookie{tester, other} {
				if e, d := call(t, l, table, source, "route", "", trace1); e != nil || d.Verdict != routing.ToBaseline || d.Inject != "" {
					t.Errorf("a call of %d, which has not received the key: %+v, decided %+v", source, e, d)
				}
			}
		})
	}
}

func TestADeletedSandboxHealsNothing(t *testing.T) {
	var input routing.Input
	l, table := shop(t, func(in *routing.Input) { in.Sandboxes[0].Propagate = true; input = *in })
	call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	input.Sandboxes = append(input.Sandboxes[:0:0], routing.Sandbox{
		Name: name("pr-43"), Key: "key-of-pr-43", Observe: []string{"cart"}, Redirects: input.Sandboxes[0].Redirects,
	})
	next, _ := routing.Compile(input, table)
	l.SetTable(next)
	if e, d := call(t, l, next, cart, "route", "", trace1); e != nil || d.Verdict != routing.ToBaseline || d.Inject != "" {
		t.Errorf("cart's call: %+v, decided %+v", e, d)
	}
}

func TestATraceStaysItsFirstOwners(t *testing.T) {
	var input routing.Input
	l, table := shop(t, func(in *routing.Input) {
		in.Sandboxes[0].Propagate = true
		in.Sandboxes = append(in.Sandboxes, routing.Sandbox{
			Name: name("pr-43"), Key: "key-of-pr-43", Observe: []string{"cart"}, Propagate: true, Redirects: in.Sandboxes[0].Redirects,
		})
		input = *in
	})
	l.Announce(func(Announcement) {})
	call(t, l, table, tester, "cart", "key-of-pr-42", trace1)
	// Somebody who knows the trace's id sends it with a key of his own, and so does
	// somebody on another node.
	if e, d, until := callTo(t, l, table, other, "route", "key-of-pr-43", trace1, ""); e == nil || e.Owner.Name != name("pr-43") || d.Verdict != routing.ToFork || until != nil {
		t.Errorf("the request with another key: %+v, decided %+v", e, d)
	}
	l.Heard(Announcement{Trace: ParseTraceID(trace1), Owner: Owner{Name: name("pr-43")}, Service: name("route")})
	if e, d := call(t, l, table, cart, "route", "", trace1); e == nil || !e.Lost || !e.Healed || e.Owner.Name != name("pr-42") || d.Inject != "key-of-pr-42" {
		t.Errorf("cart's call without the key: %+v, decided %+v", e, d)
	}

	// Where its owner is gone, another may have it.
	input.Sandboxes = input.Sandboxes[1:]
	next, _ := routing.Compile(input, table)
	l.SetTable(next)
	call(t, l, next, tester, "cart", "key-of-pr-43", trace1)
	if e, d := call(t, l, next, cart, "route", "", trace1); e == nil || !e.Healed || e.Owner.Name != name("pr-43") || d.Inject != "key-of-pr-43" {
		t.Errorf("cart's call when the first sandbox is gone: %+v, decided %+v", e, d)
	}
}

func TestTracesAreForgotten(t *testing.T) {
	sb, none := &routing.SandboxInfo{ID: 1}, new(routing.Table)
	tr := traces{seen: windows[*trace]{length: traceWindow, most: maxTraces}}
	now := time.Now()
	id := func(n uint64) (t TraceID) {
		binary.BigEndian.PutUint64(t[:], n+1)
		return t
	}
	tr.note(none, id(0), sb, name("cart"), nil, false, now)
	tr.note(none, id(1), sb, name("cart"), nil, false, now.Add(traceWindow+time.Second))
	if tr.lookup(id(0)) == nil {
		t.Error("a trace is forgotten too soon")
	}
	tr.tick(now.Add(2*traceWindow + 2*time.Second))
	if tr.lookup(id(0)) != nil || tr.lookup(id(1)) == nil {
		t.Error("the older trace is to be forgotten and the newer one is not")
	}
	tr.tick(now.Add(5 * traceWindow))
	if tr.any() {
		t.Error("a trace is remembered for ever")
	}
	for n := range uint64(10 * maxTraces) {
		tr.note(none, id(n), sb, name("cart"), nil, false, now)
	}
	if n := tr.known.Load(); n > 2*maxTraces {
		t.Errorf("%d traces are remembered", n)
	}
	if tr.lookup(id(10*maxTraces-1)) == nil {
		t.Error("the newest trace is not remembered")
	}
	for n := range 100 {
		tr.note(none, id(0), sb, name("s"+strings.Repeat("x", n)), nil, false, now)
	}
	if n := len(tr.lookup(id(0)).hops); n > maxHops {
		t.Errorf("%d hops of a trace are remembered", n)
	}
}

func TestTraceparentIsReadAsW3CSays(t *testing.T) {
	const good = "00-" + trace1 + "-" + parent + "-01"
	for value, want := range map[string]bool{
		good: true,
		"cc-" + trace1 + "-" + parent + "-01-what-comes-later": true,
		"00-" + trace1 + "-" + parent + "-ff":                  true,
		good + "-more":                                         false, // version 00 has four fields
		"cc" + good[2:] + "more":                               false,
		"ff" + good[2:]:                                        false,
		strings.ToUpper(good):                                  false,
		good[:len(good)-1]:                                     false,
		"":                                                     false,
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": false,
		"00-" + trace1 + "-" + strings.Repeat("0", 16) + "-01": false,
		"00_" + good[3:]:                      false,
		"00-" + trace1 + "-" + parent + "-0x": false,
	} {
		id, span := parseTraceparent([]byte(value))
		if got := id.String() == trace1 && span.String() == parent; got != want || !want && (id != TraceID{} || span != SpanID{}) {
			t.Errorf("%q: %s, %s", value, id, span)
		}
	}
	if ParseTraceID(trace1).String() != trace1 || ParseTraceID(trace1[1:]) != (TraceID{}) || ParseTraceID("x"+trace1[1:]) != (TraceID{}) {
		t.Error("a trace id is not read as it is written")
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add([]byte("00-" + trace1 + "-" + parent + "-01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, span := parseTraceparent(b)
		if (id == TraceID{}) != (span == SpanID{}) {
			t.Errorf("%q has one id: %s, %s", b, id, span)
		}
		if (id != TraceID{}) && !strings.Contains(string(b), id.String()) {
			t.Errorf("%q has not the id %s", b, id)
		}
	})
}
