// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"
	"testing"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

func TestThatNobodyLosesTheKeyHoldsOnlyWhereRequestsWereSeenByAll(t *testing.T) {
	kept := ledger.Record{Decision: ledger.DecisionFork}
	lost := ledger.Record{Decision: ledger.DecisionBaseline, LostKey: true, LostBy: "Deployment/cart", Service: &ledger.Service{Namespace: "shop", Name: "route", Port: 80}}
	for what, c := range map[string]struct {
		records []ledger.Record
		gaps    bool
		want    Verdict
		says    string
	}{
		"nothing was seen":       {nil, false, Unknown, "there are 0"},
		"a node has not told":    {[]ledger.Record{kept}, true, Unknown, "some may be missing"},
		"all is known":           {[]ledger.Record{kept}, false, Holds, ""},
		"somebody loses the key": {[]ledger.Record{kept, lost}, true, Fails, "Deployment/cart, calling "},
	} {
		e := explainer{sb: &v1alpha1.Sandbox{Spec: v1alpha1.SandboxSpec{Observe: []string{"*"}}}}
		e.propagation(c.records, c.gaps)
		if s := e.out.Steps; len(s) != 1 || s[0].Verdict != c.want || !strings.Contains(s[0].Detail, c.says) {
			t.Errorf("%s: %+v, want %s and %q", what, s, c.want, c.says)
		}
	}
}
