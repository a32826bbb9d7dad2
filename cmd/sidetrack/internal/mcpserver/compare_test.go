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
	// It does not pass for a comparison of what requests did not come to.
	r = compared("shop/pr-42", &compare.Result{Verified: true, Reached: []string{"route"}, Missed: []string{"stock"}}, short, strings.TrimSpace)
	if text := r.text(); !strings.Contains(text, "requests at route.\nThis says nothing of your change to stock") || len(r.ForksReached) != 1 || len(r.ForksNotAsked) != 1 {
		t.Errorf("one of two forks: %q", text)
	}
}

func TestWhatNobodyAnswersHasTheRemedyOfItsCause(t *testing.T) {
	for says, res := range map[string]*compare.Result{"raise timeout_seconds": {TimedOut: true}, "correct the URL": {}} {
		if err := unanswered(res, "shop"); !strings.Contains(err.Error(), says) {
			t.Errorf("%q: want %q", err, says)
		}
	}
}
