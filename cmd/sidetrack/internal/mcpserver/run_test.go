// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
)

func TestTestsThatReachNoForkAreNotAGreen(t *testing.T) {
	r := runReply{Passed: true, Output: "ok\n"}
	r.account(proof.Verdict{Doubts: []string{"no call to a fork is on record while it ran"}})
	if text := r.text(); !strings.Contains(text, "NOT VERIFIED that this is your change:\n- no call to a fork is on record") || !strings.Contains(text, "next: call send_request") {
		t.Errorf("it says\n%s", text)
	}
	r = runReply{Passed: true, Output: "ok\n"}
	r.account(proof.Verdict{Reached: []string{"route"}})
	if text := r.text(); r.Next != "" || !strings.Contains(text, "Forks answered at route meanwhile.") || strings.Contains(text, "NOT VERIFIED") {
		t.Errorf("it says\n%s", text)
	}
}
