// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func keysOf(t *testing.T, names KeyNames, headers ...string) []string {
	t.Helper()
	var set KeySet
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			t.Fatalf("header %q has no colon", h)
		}
		if p := names.Place([]byte(name)); p != Nowhere {
			set.Add(&names, p, []byte(value))
		}
	}
	var got []string
	set.Keys(func(k []byte) bool { got = append(got, string(k)); return true })
	if set.Seen() != (len(got) > 0) {
		got = append(got, "(seen)")
	}
	return got
}

func TestKeysAreFoundInHeaders(t *testing.T) {
	const k1, k2, k3 = "key-number-1", "key-number-2", "key-number-3"
	for _, tc := range []struct {
		name    string
		headers []string
		want    []string
	}{
		{"no header at all", nil, nil},
		{"a baggage member", []string{"baggage: sidetrack=" + k1}, []string{k1}},
		{"the other member name", []string{"baggage: sd-routing-key=" + k1}, []string{k1}},
		{"a header's name in any case", []string{"BaGGage: sidetrack=" + k1}, []string{k1}},
		{"a member among others", []string{"baggage: a=1,sidetrack=" + k1 + ",b=2"}, []string{k1}},
		{"white space around everything", []string{"baggage: \t a=1 \t, \t sidetrack \t = \t " + k1 + " \t; p = 1"}, []string{k1}},
		{"properties do not belong to the value", []string{"baggage: sidetrack=" + k1 + ";ttl=3;secret"}, []string{k1}},
		{"a property of that name is not a member", []string{"baggage: a=1;sidetrack=" + k1}, nil},
		{"percent-encoding in baggage is taken off", []string{"baggage: sidetrack=key%2Dnumber%2d1"}, []string{k1}},
		{"percent-encoding in tracestate means itself", []string{"tracestate: sidetrack=key%2Dnumber-1"}, []string{"(seen)"}},
		{"several baggage headers count as one list", []string{"baggage: a=1", "baggage: sidetrack=" + k1}, []string{k1}},
		{"a member name is case-sensitive", []string{"baggage: Sidetrack=" + k1}, nil},
		{"a longer member name is another one", []string{"baggage: sidetrack2=" + k1 + ",xsidetrack=" + k2}, nil},
		{"a tracestate member", []string{"tracestate: rojo=00f067aa0ba902b7,sidetrack=" + k1}, []string{k1}},
		{"the plain header", []string{"X-Sidetrack-Key: " + k1}, []string{k1}},
		{"the plain header, joined by an intermediary", []string{"x-sidetrack-key: " + k1 + ", " + k2}, []string{k1, k2}},
		{"baggage before tracestate before the header, whatever the order on the wire",
			[]string{"x-sidetrack-key: " + k3, "tracestate: sidetrack=" + k2, "baggage: sidetrack=" + k1}, []string{k1, k2, k3}},
		{"a value too short to be a key is seen but not kept", []string{"baggage: sidetrack=short"}, []string{"(seen)"}},
		{"a value too long", []string{"x-sidetrack-key: " + strings.Repeat("k", 65)}, []string{"(seen)"}},
		{"a value with other characters", []string{"baggage: sidetrack=abc/defgh"}, []string{"(seen)"}},
		{"an empty value", []string{"baggage: sidetrack="}, []string{"(seen)"}},
		{"no equals sign", []string{"baggage: sidetrack"}, nil},
		{"an empty header", []string{"baggage:", "x-sidetrack-key:  "}, nil},
		{"broken percent-encoding", []string{"baggage: sidetrack=key-number%2"}, []string{"(seen)"}},
		{"a Kelvin sign is not a k", []string{"x-sidetrac\u212a-key: " + k1}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, keysOf(t, DefaultKeyNames(), tc.headers...)); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeyNamesCanBeConfigured(t *testing.T) {
	names := KeyNames{Members: []string{"tenant"}, Header: "X-Tenant"}
	if err := names.Validate(); err != nil {
		t.Fatal(err)
	}
	got := keysOf(t, names, "baggage: sidetrack=not-this-one,tenant=this-one-", "x-tenant: and-this", "x-sidetrack-key: nor-this-one")
	if diff := cmp.Diff([]string{"this-one-", "and-this"}, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	for _, bad := range []KeyNames{
		{Header: "x-key"},
		{Members: []string{"Upper"}, Header: "x-key"},
		{Members: []string{"a b"}, Header: "x-key"},
		{Members: []string{"a"}, Header: "x key"},
		{Members: []string{"a"}, Header: "Baggage"},
		{Members: []string{"a"}},
		{Members: slices.Repeat([]string{"a"}, maxMembers+1), Header: "x-key"},
		{Members: []string{"a"}, Header: strings.Repeat("x", maxNameLen+1)},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid, want an error", bad)
		}
	}
}

func TestAKeySetCanBeUsedAgainWithoutAllocating(t *testing.T) {
	names := DefaultKeyNames()
	var set KeySet
	value := []byte("a=1,sidetrack=key-number-1;p,b=2")
	n := testing.AllocsPerRun(100, func() {
		set.Reset()
		set.Add(&names, names.Place([]byte("Baggage")), value)
		found := false
		set.Keys(func([]byte) bool { found = true; return false })
		if !found {
			t.Fatal("no key found")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a request, want none", n)
	}
}

func TestManyKeysAreBounded(t *testing.T) {
	got := keysOf(t, DefaultKeyNames(), "baggage: "+strings.Repeat("sidetrack=key-number-1,", 10_000))
	if len(got) != maxCandidates {
		t.Errorf("%d keys kept, want %d", len(got), maxCandidates)
	}
}

// FuzzKeySet checks that whatever the headers hold, the keys found are valid,
// and that joining the fields of one name, as an intermediary may, finds the
// same keys.
func FuzzKeySet(f *testing.F) {
	f.Add("a=1,sidetrack=key-number-1;p", "sidetrack=%6Bey-number-2", uint8(0))
	f.Add("sd-routing-key = x", " , ,", uint8(1))
	f.Add("key-number-1", "key-number-2,", uint8(2))
	names := DefaultKeyNames()
	f.Fuzz(func(t *testing.T, a, b string, place uint8) {
		p := Place(place % uint8(Nowhere))
		var apart, joined KeySet
		apart.Add(&names, p, []byte(a))
		apart.Add(&names, p, []byte(b))
		joined.Add(&names, p, []byte(a+","+b))
		var x, y []string
		apart.Keys(func(k []byte) bool { x = append(x, string(k)); return true })
		joined.Keys(func(k []byte) bool { y = append(y, string(k)); return true })
		if diff := cmp.Diff(x, y); diff != "" || apart.Seen() != joined.Seen() {
			t.Errorf("apart and joined differ: %v %v\n%s", apart.Seen(), joined.Seen(), diff)
		}
		for _, k := range x {
			if !ValidKey(k) {
				t.Errorf("%q was found and is not a key", k)
			}
		}
	})
}
