// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

func TestAStreamsHopsAreBelowTheCallsThatTheyCameOf(t *testing.T) {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	var l Live
	wrote := func(ms int, last bool, want string) {
		t.Helper()
		var b strings.Builder
		l.Write(&b, at(ms), last)
		if d := cmp.Diff(want, b.String()); d != "" {
			t.Errorf("at %d ms (-want +got):\n%s", ms, d)
		}
	}
	head := "12:00:00.000  trace " + trace + "\n"
	front := call(0, 100, "runner", "front", "front-1")
	// What came of a call is over before it is, and is on record before.
	l.Add([]ledger.Record{call(20, 50, "cart", "route", "route-1")}, at(80))
	wrote(90, false, "")
	l.Add([]ledger.Record{call(10, 80, "front", "cart", "cart-1")}, at(100))
	l.Add([]ledger.Record{front}, at(300))
	wrote(700, false, "")
	wrote(800, false, head+`  Deployment/runner -> front.shop:80 GET /front => BASELINE front-1 (no_redirect) 200 100ms
  └─ Deployment/front -> cart.shop:80 GET /cart => BASELINE cart-1 (no_redirect) 200 80ms
     └─ Deployment/cart -> route.shop:80 GET /route => BASELINE route-1 (no_redirect) 200 50ms
`)
	wrote(5000, true, "")
	// One that is named late.
	l.Add([]ledger.Record{call(70, 5, "cart", "mail", "mail-1")}, at(6000))
	wrote(6500, false, head+`  Deployment/runner -> front.shop:80 GET /front => BASELINE front-1 (no_redirect) 200 100ms (as above)
  └─ Deployment/front -> cart.shop:80 GET /cart => BASELINE cart-1 (no_redirect) 200 80ms (as above)
     └─ Deployment/cart -> mail.shop:80 GET /mail => BASELINE mail-1 (no_redirect) 200 5ms
`)
	// A trace that is never quiet is written all the same, and at the end all is.
	busy := call(0, 1, "runner", "stock", "stock-1")
	busy.TraceID = "4bf92f3577b34da6a3ce929d0e0e4737"
	for ms := 10000; ms < 15000; ms += 400 {
		l.Add([]ledger.Record{busy}, at(ms))
		wrote(ms+100, false, "")
	}
	var b strings.Builder
	l.Write(&b, at(15000), false)
	if n := strings.Count(b.String(), "/stock"); n != 13 {
		t.Errorf("%d of a busy trace's hops are written, want 13:\n%s", n, b.String())
	}
	l.Add([]ledger.Record{busy}, at(16000))
	wrote(16001, true, "12:00:00.000  trace "+busy.TraceID+"\n  Deployment/runner -> stock.shop:80 GET /stock => BASELINE stock-1 (no_redirect) 200 1ms\n")
}

// A call that lasts is on record long after what came of it, which is written by then.
func TestACallThatComesAfterWhatCameOfItIsWrittenAboveIt(t *testing.T) {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	var l Live
	wrote := func(ms int, want string) {
		t.Helper()
		var b strings.Builder
		l.Write(&b, at(ms), false)
		if d := cmp.Diff(want, b.String()); d != "" {
			t.Errorf("at %d ms (-want +got):\n%s", ms, d)
		}
	}
	head := func(ms string) string { return "12:00:00." + ms + "  trace " + trace + "\n" }
	const (
		front = "Deployment/runner -> front.shop:80 GET /front => BASELINE front-1 (no_redirect) 200 9s"
		cart  = "Deployment/front -> cart.shop:80 GET /cart => BASELINE cart-1 (no_redirect) 200 5s"
		route = "Deployment/cart -> route.shop:80 GET /route => BASELINE route-1 (no_redirect) 200 50ms"
		stock = "Deployment/cart -> stock.shop:80 GET /stock => BASELINE stock-1 (no_redirect) 200 60ms"
	)
	l.Add([]ledger.Record{call(20, 50, "cart", "route", "route-1")}, at(100))
	l.Add([]ledger.Record{call(30, 60, "cart", "stock", "stock-1")}, at(120))
	wrote(700, head("020")+"  "+route+"\n  "+stock+"\n")
	// Whose it was is known now, and that has to be seen.
	l.Add([]ledger.Record{call(10, 5000, "front", "cart", "cart-1")}, at(5100))
	wrote(5700, head("010")+"  "+cart+"\n  ├─ "+route+" (as above)\n  └─ "+stock+" (as above)\n")
	// And of cart only that it came of front: what is below it has been seen there.
	l.Add([]ledger.Record{call(0, 9000, "runner", "front", "front-1")}, at(9100))
	wrote(9700, head("000")+"  "+front+"\n  └─ "+cart+" (as above)\n")
	wrote(20000, "")
}

// A record that lies between two moves what was written below another one.
func TestACallThatComesInBetweenTakesOverWhatCameOfIt(t *testing.T) {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	var l Live
	// Who has answered is not known: the times tell.
	front, cart := call(0, 1000, "runner", "front", ""), call(10, 900, "front", "cart", "")
	l.Add([]ledger.Record{front, call(20, 50, "cart", "route", "route-1")}, at(1000))
	var b strings.Builder
	l.Write(&b, at(1600), false)
	l.Add([]ledger.Record{cart}, at(1700))
	b.Reset()
	l.Write(&b, at(2300), false)
	want := "12:00:00.000  trace " + trace + `
  Deployment/runner -> front.shop:80 GET /front => BASELINE 10.96.0.1:80 (no_redirect) 200 1s (as above)
  └─ Deployment/front -> cart.shop:80 GET /cart => BASELINE 10.96.0.1:80 (no_redirect) 200 900ms
     └─ Deployment/cart -> route.shop:80 GET /route => BASELINE route-1 (no_redirect) 200 50ms (as above)
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestALiveStreamIsBoundedAndLosesNothing(t *testing.T) {
	var l Live
	const most = 2 * mostLive
	written := 0
	at := noon
	for i := range most {
		r := call(i, 1, "runner", "front", "front-1")
		switch i % 3 {
		case 0:
			r.TraceID = strings.Repeat("0", 26) + noon.Add(time.Duration(i)*time.Second).Format("150405")
		case 1:
			r.TraceID = ""
		}
		at = at.Add(time.Second)
		l.Add([]ledger.Record{r}, at)
		if i%10 == 9 {
			var b strings.Builder
			l.Write(&b, at, true)
			for line := range strings.Lines(b.String()) {
				if strings.Contains(line, "/front") && !strings.Contains(line, "as above") {
					written++
				}
			}
		}
		kept := 0
		for _, g := range l.groups {
			kept += len(g.records)
		}
		if kept != l.count || kept > mostLive+20 {
			t.Fatalf("%d records are remembered, and %d counted", kept, l.count)
		}
	}
	if written != most {
		t.Errorf("%d of %d hops are written", written, most)
	}
}

// TestAFlowIsWrittenByItsEndOnce, and before while it is under way.
func TestAFlowIsWrittenByItsEndOnce(t *testing.T) {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	var l Live
	wrote := func(ms int, want string) {
		t.Helper()
		var b strings.Builder
		l.Write(&b, at(ms), true)
		if d := cmp.Diff(want, b.String()); d != "" {
			t.Errorf("at %d ms (-want +got):\n%s", ms, d)
		}
	}
	flow := func(id string, took int) ledger.Record {
		r := call(40, took, "route", "postgres", "postgres-1")
		r.Hook, r.Protocol, r.Request, r.Status, r.TraceID, r.Decision = ledger.HookConnect, ledger.ProtocolTCP, nil, 0, "", ledger.DecisionFork
		r.Flow, r.Open = id, took == 0
		if took > 0 {
			r.SentBytes, r.ReceivedBytes = 12, 345
		}
		return r
	}
	const head = "12:00:00.040  without a trace\n  Deployment/route -> postgres.shop:80 tcp => FORK postgres-1 "
	want := func(rest string) string { return head + rest + "\n" }
	// Its end comes before anything was written.
	l.Add([]ledger.Record{flow("a", 0)}, at(100))
	l.Add([]ledger.Record{flow("a", 70)}, at(110))
	wrote(200, want("70ms sent 12 B, received 345 B"))
	// And after.
	l.Add([]ledger.Record{flow("b", 0), flow("c", 0)}, at(300))
	wrote(400, want("[under way]")+"  Deployment/route -> postgres.shop:80 tcp => FORK postgres-1 [under way]\n")
	other := flow("c", 90)
	other.Node = "n2" // another node's, of the same number
	l.Add([]ledger.Record{flow("b", 80), other}, at(500))
	wrote(600, want("80ms sent 12 B, received 345 B")+"  Deployment/route -> postgres.shop:80 tcp => FORK postgres-1 90ms sent 12 B, received 345 B\n")
	l.Add([]ledger.Record{flow("c", 95)}, at(700))
	wrote(800, want("95ms sent 12 B, received 345 B"))
	if l.count != 4 || len(l.groups) != 1 || len(l.groups[0].records) != 4 {
		t.Errorf("%d records are remembered, want 4", l.count)
	}
}
