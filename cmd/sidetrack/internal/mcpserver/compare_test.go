// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/compare"
)

func TestAComparisonThatIsNotVerifiedSaysSoFirst(t *testing.T) {
	res := &compare.Result{BaselineAnswers: 2, SandboxAnswers: 1, SandboxStatus: 200, TraceID: "4bf9", NotVerified: []string{"cart called route without the routing key"}}
	r := compared("shop/pr-42", res, short, strings.TrimSpace)
	if r.Verified || !r.Same || len(r.NotVerified) != 1 {
		t.Errorf("%+v", r)
	}
	want := "NOT VERIFIED that a fork answered: what everybody shares may have been compared with itself.\n- cart called route without the routing key\nnext: call explain_routing with trace_id\nNo difference"
	if text := r.text(); !strings.HasPrefix(text, want) {
		t.Errorf("it says %q, want first %q", text, want)
	}
	r = compared("shop/pr-42", &compare.Result{Verified: true}, short, strings.TrimSpace)
	if text := r.text(); !r.Verified || strings.Contains(text, "VERIFIED that") {
		t.Errorf("verified %t: %q", r.Verified, text)
	}
}
