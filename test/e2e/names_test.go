// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// otherNames has agents find routing keys by another member of baggage and tag by it, as
// docs/install.md says: it is known everywhere before the first agent tags by it. In one
// step it would be lost between two nodes, and then no sandbox is Ready.
func otherNames(t *testing.T) {
	var usual []string
	if err := json.Unmarshal([]byte(kubectl(t, "get", "-n", system, "daemonset/sidetrack-agent", "-o", "jsonpath={.spec.template.spec.containers[0].args}")), &usual); err != nil {
		t.Fatal(err)
	}
	replace := func(with ...string) {
		t.Helper()
		args := slices.Clone(usual)
		for _, flag := range with {
			name, _, _ := strings.Cut(flag, "=")
			i := slices.IndexFunc(args, func(s string) bool { return strings.HasPrefix(s, name+"=") })
			if i < 0 {
				t.Fatalf("agents run without %s: %q", name, args)
			}
			args[i] = flag
		}
		patch, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		kubectl(t, "patch", "-n", system, "daemonset/sidetrack-agent", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"agent","args":`+string(patch)+`}]}}}}`)
	}
	members := func(want ...string) {
		t.Helper()
		eventually(t, time.Minute, func(ctx context.Context) error {
			s, err := getSandbox(ctx, "pr-42")
			if err != nil {
				return err
			}
			if s.Status.KeyNames == nil || !slices.Equal(s.Status.KeyNames.Members, want) {
				return fmt.Errorf("all nodes know %+v, want members %q", s.Status.KeyNames, want)
			}
			return nil
		})
	}

	stop := watchTheWay(t)
	before := agents(t)
	replace("--baggage-member=sidetrack,pull-request")
	untilReplaced(t, before)
	members("sidetrack", "pull-request")
	before = agents(t)
	replace("--baggage-member=pull-request,sidetrack", "--key-header=x-pull-request")
	untilReplaced(t, before)
	members("pull-request", "sidetrack")
	stop()
	if err := isReady("pr-42")(t.Context()); err != nil {
		t.Error(err)
	}

	w := runners(t)[0]
	key := newKey("names")
	stockFork(t, "names", key)
	// Without it nothing is verified, see below.
	kubectl(t, "patch", "-n", shop, "sandbox/names", "--type=merge", "-p", `{"spec":{"observe":["stock"]}}`)
	untilReady(t, "names")
	by := func(member string) map[string]string {
		return map[string]string{"Baggage": "trace=1," + member + "=" + key}
	}
	for _, header := range []map[string]string{by("sidetrack"), by("pull-request"), {"X-Pull-Request": key}} {
		w.mustGet(t, stock, header, "stock pr-42")
	}
	w.mustGet(t, stock, map[string]string{"X-Sidetrack-Key": key}, "stock v1")
	w.mustGet(t, stock, by("sd-routing-key"), "stock v1")

	// In one step: as long as one node tags by what another does not know, keys may be lost.
	before = agents(t)
	replace("--baggage-member=ticket", "--key-header=x-ticket")
	eventually(t, 2*time.Minute, func(ctx context.Context) error {
		s, err := getSandbox(ctx, "names")
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady)
		if c == nil || c.Reason != "KeyNamesDiffer" || !strings.Contains(c.Message, "ticket") {
			return fmt.Errorf("it says nothing of the names: %s", conditions(s))
		}
		return nil
	})
	untilReplaced(t, before)
	untilReady(t, "names")
	members("ticket")
	w.mustGet(t, stock, by("ticket"), "stock pr-42")
	w.mustGet(t, stock, map[string]string{"X-Ticket": key}, "stock pr-42")
	w.mustGet(t, stock, by("pull-request"), "stock v1")
	// What tags by itself knows.
	out, _ := sidetrack(t, 4, "diff", "--sandbox", "names", stock)
	mustSay(t, out, `- "v1"`, `+ "pr-42"`, "  verified: a fork answered each")
	out, _ = sidetrack(t, 0, "run", "--sandbox", "names", "--image", "sidetrack.test/shop:v1", "--", "/shop", "check", stock)
	mustSay(t, out, `"Service":"stock","Version":"pr-42"`)
}
