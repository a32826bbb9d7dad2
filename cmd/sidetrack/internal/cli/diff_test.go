// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/compare"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func TestNoDifferenceIsASuccessOnlyWhereForksHaveAnswered(t *testing.T) {
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42"}}
	same := compare.Result{Request: "GET http://front.shop/", BaselineStatus: 200, SandboxStatus: 200, Verified: true}
	lost := compare.Result{Request: "GET http://front.shop/", BaselineStatus: 200, SandboxStatus: 200, TraceID: "4bf9", NotVerified: []string{"cart called route without the routing key"}}
	other := compare.Result{Verified: true, Differences: []compare.Difference{{Where: "status", Baseline: "200", Sandbox: "500"}}}
	nobody := compare.Result{BaselineError: "x", SandboxError: "x"}
	for _, c := range []struct {
		name    string
		results []compare.Result
		want    int
		says    string
	}{
		{"forks have answered", []compare.Result{same, same}, exitOK, ""},
		{"one of two is not verified", []compare.Result{same, lost}, exitUnverified, "not verified that a fork answered 1 of 2 requests\nnext: see sidetrack explain pr-42 -n shop --trace 4bf9"},
		{"there is a difference beside it", []compare.Result{lost, other}, exitDifferent, ""},
		{"answers that do not end", []compare.Result{{BaselineError: "x", SandboxError: "x", TimedOut: true}}, exitFailed, "give them more with --timeout"},
		{"nobody has answered", []compare.Result{lost, nobody, other}, exitFailed, "1 of 3 requests were answered by nobody"},
	} {
		err := outcome(c.results, sb)
		var said bytes.Buffer
		if err != nil {
			complain(&said, "sidetrack", err)
		}
		if got := status(err); got != c.want || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: exit status %d, it says %q: want %d and %q", c.name, got, said.String(), c.want, c.says)
		}
	}
	for _, c := range []struct {
		result compare.Result
		want   string
	}{
		{same, "GET http://front.shop/: no difference (200)\n  verified: a fork answered each of the sandbox's requests\n"},
		{lost, "GET http://front.shop/: no difference (200)\n  NOT VERIFIED that a fork answered:\n    cart called route without the routing key\n"},
	} {
		var out bytes.Buffer
		if writeDiff(&out, &c.result); out.String() != c.want {
			t.Errorf("it prints %q, want %q", out.String(), c.want)
		}
	}
	var out bytes.Buffer
	o := resultOutput()
	o.format = "json"
	if err := o.check(newProgram(t.Context(), "sidetrack", "test", genericiooptions.NewTestIOStreamsDiscard()).diffCommand()); err != nil {
		t.Fatal(err)
	}
	if _, err := o.result(&out, []compare.Result{lost}); err != nil || !strings.Contains(out.String(), `"verified": false`) || !strings.Contains(out.String(), `"notVerified": [`) {
		t.Errorf("%v: in JSON it is %s", err, out.String())
	}
}

func TestHeadersGoWithEachRequestOfAFile(t *testing.T) {
	streams, in, _, _ := genericiooptions.NewTestIOStreams()
	p := newProgram(t.Context(), "sidetrack", "test", streams)
	in.WriteString("- http://front.shop/\n- {url: http://cart.shop/, headers: {x-user: own}}\n")
	got, err := p.requests(&requestFlags{headers: []string{"Authorization: Bearer t", "X-User: 7"}}, "-", nil)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	for i, user := range []string{"7", "own"} {
		if h := got[i].Header; h.Get("Authorization") != "Bearer t" || h.Get("X-User") != user {
			t.Errorf("request %d has %v", i+1, h)
		}
	}
	// None of these makes a pod first.
	in.WriteString("- http://front.shop/\n- ftp://front.shop/\n")
	if _, err := p.requests(&requestFlags{}, "-", nil); task.KindOf(err) != task.Usage || !strings.Contains(err.Error(), "request 2: ") {
		t.Errorf("a URL of the file that is none: %v", err)
	}
	if _, err := p.requests(&requestFlags{}, "", []string{"ftp://front.shop/"}); task.KindOf(err) != task.Usage {
		t.Errorf("a URL that is none: %v", err)
	}
	for _, flags := range [][]string{{"-d", "x"}, {"-X", "PUT"}, {"--timeout", "0s"}} {
		cmd := p.diffCommand()
		cmd.SetArgs(append([]string{"--sandbox", "pr-42", "-f", "-"}, flags...))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		if err := cmd.Execute(); status(err) != exitUsage {
			t.Errorf("%v: %v, want wrong usage", flags, err)
		}
	}
}
