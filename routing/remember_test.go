// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"testing"
)

// TestAnotherProcessAnswersForRememberedDestinations: connections go on under
// their old ids, whether their destination is in the new table or not.
func TestAnotherProcessAnswersForRememberedDestinations(t *testing.T) {
	service := func(name, ip string) Service {
		return Service{Name: Name{"shop", name}, Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Ports: []ServicePort{{Port: 80, Protocol: TCP}}}
	}
	redirect := func(name, key, from string) Sandbox {
		return Sandbox{Name: Name{"shop", name}, Key: key, Redirects: []Redirect{{
			From: ServiceRef{Service: from}, To: Target{Address: netip.MustParseAddr("10.9.9.9")}, Field: "spec.redirects[0]",
		}}}
	}
	in := Input{
		Services:  []Service{service("first", "10.0.0.1"), service("second", "10.0.0.2"), service("third", "10.0.0.3")},
		Sandboxes: []Sandbox{redirect("a", "key-of-a", "second"), redirect("b", "key-of-b", "third")},
	}
	old, problems := compileBothWays(t, in, nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	id := func(tab *Table, ip string) DestID {
		d, ok := tab.LookupDest(netip.MustParseAddrPort(ip+":80"), TCP)
		if !ok {
			t.Fatalf("%s is in no table", ip)
		}
		return d.ID
	}
	second, third := id(old, "10.0.0.2"), id(old, "10.0.0.3")
	var all []Remembered
	for _, id := range []DestID{second, third} {
		r, ok := old.Remember(id)
		if !ok {
			t.Fatalf("destination %d is not known", id)
		}
		all = append(all, r)
	}
	if _, ok := old.Remember(MaxDestID); ok {
		t.Error("a destination that never was is remembered")
	}

	// The new process numbers in its own way, and third has lost its redirect.
	in.Sandboxes = []Sandbox{redirect("a", "key-of-a", "second"), redirect("c", "key-of-c", "first")}
	now, problems := compileBothWays(t, in, Recall(all))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if d := id(now, "10.0.0.1"); d == second || d == third {
		t.Errorf("the id %d of a remembered destination was given to another", d)
	}
	ask := func(dest DestID, key string) Decision {
		names, keys := DefaultKeyNames(), KeySet{}
		keys.Add(&names, InHeader, []byte(key))
		return now.DecideRequest(1, dest, &keys)
	}
	for _, tc := range []struct {
		name    string
		dest    DestID
		key     string
		verdict Verdict
		reason  Reason
	}{
		{"its own key", second, "key-of-a", ToFork, Redirected},
		{"a key of another Service", second, "key-of-c", ToBaseline, NoRedirect},
		{"no redirect any more", third, "key-of-a", ToBaseline, NoRedirect},
		{"a sandbox that is gone", third, "key-of-b", ToBaseline, UnknownKey},
		{"a destination nobody remembers", MaxDestID, "key-of-a", Refuse, UnknownDest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := ask(tc.dest, tc.key); d.Verdict != tc.verdict || d.Reason != tc.reason {
				t.Errorf("%v, %v; want %v, %v", d.Verdict, d.Reason, tc.verdict, tc.reason)
			}
		})
	}

	// And back: the redirect of third returns, under whatever class.
	in.Sandboxes = append(in.Sandboxes, redirect("b", "key-of-b", "third"))
	now, _ = compileBothWays(t, in, now)
	if d := ask(third, "key-of-b"); d.Verdict != ToFork {
		t.Errorf("%v, %v; want fork", d.Verdict, d.Reason)
	}
}

func TestRecallLeavesOutWhatCannotBe(t *testing.T) {
	port := []RememberedPort{{Service: Name{"shop", "a"}, Port: 80, Protocol: TCP}}
	key := DestKey{netip.MustParseAddr("10.0.0.1"), 80, TCP}
	for _, r := range []Remembered{{ID: 0, Dest: key, Ports: port}, {ID: MaxDestID + 1, Dest: key, Ports: port}, {ID: 7, Dest: key}} {
		if tab := Recall([]Remembered{r}); len(tab.byID) > 0 {
			t.Errorf("%+v is in the table", r)
		}
	}
}
