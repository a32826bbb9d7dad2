// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"testing"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
)

func TestWhetherForksHaveAnsweredACommandIsSaid(t *testing.T) {
	for _, c := range []struct {
		verdict proof.Verdict
		want    string
	}{
		{proof.Verdict{Reached: []string{"route", "cart"}}, "forks answered while it ran, at: route, cart\n"},
		{proof.Verdict{Doubts: []string{"no call to a fork is on record while it ran"}},
			"NOT VERIFIED that forks answered the command wherever they should:\n  no call to a fork is on record while it ran\nnext: look\n"},
		{proof.Verdict{Reached: []string{"route"}, Doubts: []string{"cart called route without the routing key"}},
			"forks answered while it ran, at: route\nNOT VERIFIED that forks answered the command wherever they should:\n  cart called route without the routing key\nnext: look\n"},
	} {
		var out bytes.Buffer
		if writeAccount(&out, &c.verdict, "look"); out.String() != c.want {
			t.Errorf("it says %q, want %q", out.String(), c.want)
		}
	}
}
