// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/health"
)

func TestTheNamesOfAStatusAreOfWhatDiffers(t *testing.T) {
	before := &health.Status{
		Nodes:     []health.Node{{Name: "same", HeartbeatSeconds: 1}, {Name: "gone"}, {Name: "other", Covered: 1}},
		Sandboxes: []health.Sandbox{{Namespace: "shop", Name: "a"}, {Namespace: "bank", Name: "b"}, {Namespace: "shop", Name: "b"}},
	}
	now := &health.Status{
		Nodes:     []health.Node{{Name: "same", HeartbeatSeconds: 2}, {Name: "other", Covered: 2}, {Name: "new"}},
		Sandboxes: []health.Sandbox{{Namespace: "shop", Name: "a", Ready: true}, {Namespace: "shop", Name: "b"}},
	}
	hidden := &health.Status{NodesHidden: "you may not list them", Sandboxes: now.Sandboxes}
	for _, c := range []struct {
		s, last *health.Status
		want    string
	}{
		{before, nil, "node/same node/gone node/other sandbox.sidetrack.dev/a sandbox.sidetrack.dev/b sandbox.sidetrack.dev/b"},
		{now, before, "node/other node/new node/gone sandbox.sidetrack.dev/a sandbox.sidetrack.dev/b"},
		{now, now, ""},
		{hidden, now, ""}, // whether they are gone is not known
		{now, hidden, "node/same node/other node/new"},
		{&health.Status{}, now, "node/same node/other node/new sandbox.sidetrack.dev/a sandbox.sidetrack.dev/b"},
	} {
		if got := strings.Fields(strings.Join(statusNames(c.s, c.last), "")); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%q, want %s", got, c.want)
		}
	}
}
