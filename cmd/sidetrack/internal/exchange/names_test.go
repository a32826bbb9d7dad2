// SPDX-License-Identifier: Apache-2.0

package exchange

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func TestAKeyIsFoundWhereTheRouterLooks(t *testing.T) {
	for _, c := range []struct {
		names  Names
		header string
		want   bool
	}{
		{Names{}, "Baggage: a=1,sidetrack=key", true},
		{Names{}, "Baggage: sidetrack = key ;p=1", true},
		{Names{}, "Baggage: sd-routing-key=key", true},
		{Names{}, "Tracestate: sidetrack=key", true},
		{Names{}, "X-Sidetrack-Key: key", true},
		{Names{}, "Baggage: mysidetrack=key", false},
		{Names{}, "Baggage: sidetrack=", false},
		{Names{}, "Baggage: sidetrack", false},
		{Names{}, "X-Other: sidetrack=key", false},
		{Names{Members: []string{"acme"}, Header: "x-acme"}, "Baggage: acme=key", true},
		{Names{Members: []string{"acme"}, Header: "x-acme"}, "X-Acme: key", true},
		{Names{Members: []string{"acme"}, Header: "x-acme"}, "Baggage: sidetrack=key", false},
		{Names{Members: []string{"acme"}, Header: "x-acme"}, "X-Sidetrack-Key: key", false},
		{Names{Members: []string{"acme"}}, "X-Sidetrack-Key: key", false},
	} {
		name, value, _ := strings.Cut(c.header, ": ")
		if got := c.names.In(http.Header{name: {value}}); got != c.want {
			t.Errorf("%s under %+v: %t, want %t", c.header, c.names, got, c.want)
		}
	}
	h := http.Header{"Baggage": {"sidetrack=other"}}
	if (Names{}).Tag(h, "mine"); len(h["Baggage"]) != 1 {
		t.Errorf("a second key is added: %v", h)
	}
	if (Names{Members: []string{"acme", "sidetrack"}}).Tag(h, "mine"); len(h["Baggage"]) != 1 {
		t.Errorf("a second key is added: %v", h)
	}
	// What the nodes do not look for is no key.
	if (Names{Members: []string{"acme"}}).Tag(h, "mine"); strings.Join(h["Baggage"], " ") != "sidetrack=other acme=mine" {
		t.Errorf("baggage %v", h)
	}
}

func TestTheNamesAreThoseThatAllNodesKnow(t *testing.T) {
	sb := &v1alpha1.Sandbox{}
	if n, err := NamesOf(sb); err != nil || n.Baggage("k") != "sidetrack=k" {
		t.Errorf("where no agent says: %+v, %v", n, err)
	}
	sb.Status.KeyNames = &v1alpha1.CommonKeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"}
	if n, err := NamesOf(sb); err != nil || n.Baggage("k") != "acme=k" || n.Header != "x-acme" {
		t.Errorf("%+v, %v", n, err)
	}
	sb.Status.KeyNames = &v1alpha1.CommonKeyNames{Split: true, Header: "x-acme", Message: "--baggage-member differs on nodes a and b"}
	if _, err := NamesOf(sb); task.KindOf(err) != task.NotReady || !strings.Contains(err.Error(), "--baggage-member differs on nodes a and b") {
		t.Errorf("with nothing in common: %v", err)
	}
}
