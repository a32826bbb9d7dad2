// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// afterlife is the agent's way from snapshots to tables, without the rest of it.
type afterlife struct {
	*testing.T
	gone  gone
	table *routing.Table
	now   time.Time
}

var labelled = routing.Name{Namespace: "shop", Name: "fork"}

// say compiles what the agent would for these sandboxes. runner says whether a pod
// with pr-42's label is on this node.
func (a *afterlife) say(runner bool, sandboxes ...routing.Sandbox) {
	in := routing.Input{Services: []routing.Service{shopService}}
	var wanted []pods.Pod
	if runner {
		wanted = []pods.Pod{{Name: labelled, Sandbox: "pr-42"}}
		in.Pods = []routing.Pod{{Name: labelled, Sandbox: "pr-42", Netns: 8}}
	}
	in.Sandboxes = a.gone.with(sandboxes, wanted, a.now)
	a.table, _ = routing.Compile(in, a.table)
}

var route = netip.MustParseAddrPort("10.96.0.7:80")

func (a *afterlife) wantFlow(when string, verdict routing.Verdict) {
	a.Helper()
	if got := a.table.LookupFlow(8, route, routing.TCP).Verdict; got != verdict {
		a.Errorf("%s a flow of its pod: %s, want %s", when, got, verdict)
	}
}

func (a *afterlife) want(when string, verdict routing.Verdict, identified bool) {
	a.Helper()
	a.wantFlow(when, verdict)
	if got := a.table.Identity(8).Sandbox != 0; got != identified {
		a.Errorf("%s the pod has an identity: %t", when, got)
	}
	if verdict != routing.Refuse {
		return
	}
	d, ok := a.table.LookupDest(route, routing.TCP)
	if !ok {
		a.Fatalf("%s the destination is not known", when)
	}
	// On a connection through the router that is kept alive.
	if got := a.table.DecideRequest(8, d.ID, &routing.KeySet{}); got.Verdict != routing.Refuse || got.Refused != deletedSandbox {
		a.Errorf("%s a request of its pod: %+v", when, got)
	}
	if a.table.SandboxOf([]byte("0123456789")) != nil {
		a.Errorf("%s its key is still known", when)
	}
	if d.Captured {
		a.Errorf("%s connections are steered to the router for a key that nobody has", when)
	}
}

func TestPodsOfADeletedSandboxDoNotReachTheBaseline(t *testing.T) {
	a := &afterlife{T: t, now: time.Now()}
	a.say(true, sandbox("0123456789"))
	a.want("before,", routing.ToFork, true)
	a.say(true)
	a.want("when it is deleted", routing.Refuse, true)
	a.now = a.now.Add(24 * time.Hour)
	a.say(true)
	a.want("a day later", routing.Refuse, true)
	a.say(false)
	a.now = a.now.Add(time.Minute)
	a.say(true)
	a.want("when another pod of it comes a minute after the last", routing.Refuse, true)
	a.say(false)
	a.now = a.now.Add(2 * remembered)
	a.say(false)
	if n := len(a.gone.past); n != 0 {
		t.Errorf("%d sandboxes are remembered for ever", n)
	}
	a.say(true)
	a.want("after all that", routing.ToBaseline, false)
}

func TestAPodThatIsTooLateForItsSandboxDoesNotReachTheBaseline(t *testing.T) {
	a := &afterlife{T: t, now: time.Now()}
	a.say(false, sandbox("0123456789"))
	a.say(false)
	a.say(true)
	a.want("deleted before the pod came,", routing.Refuse, true)
}

func TestASandboxThatIsCreatedAgainTakesOver(t *testing.T) {
	a := &afterlife{T: t, now: time.Now()}
	a.say(true, sandbox("0123456789"))
	a.say(true)
	// Its object is there, but nobody has resolved its redirects yet.
	empty := sandbox("")
	empty.Redirects = nil
	a.say(true, empty)
	a.want("without a status", routing.Refuse, true)
	a.say(true)
	a.want("deleted again before it had one", routing.Refuse, true)
	a.say(true, empty)
	a.say(true, sandbox("another-key"))
	a.want("with its redirects", routing.ToFork, true)
	if a.table.SandboxOf([]byte("another-key")) == nil {
		t.Error("its key is not known")
	}
	// It may redirect nothing, if that is its owner's wish.
	without := sandbox("another-key")
	without.Redirects = nil
	a.say(true, without)
	a.want("without redirects", routing.ToBaseline, true)
}

func TestASandboxesDeletionIsNotItsGroups(t *testing.T) {
	a := &afterlife{T: t, now: time.Now()}
	group := sandbox("key-of-group")
	group.Group = true
	a.say(true, sandbox("0123456789"), group)
	a.say(true, group)
	a.wantFlow("with a group of its name", routing.Refuse)
	if sb := a.table.SandboxOf([]byte("key-of-group")); sb == nil || !sb.Group {
		t.Errorf("the group's key is %+v's", sb)
	}
}

func TestTheAgentRefusesWhatADeletedSandboxRedirected(t *testing.T) {
	r := rehearseWith(t, func(c *Config) { c.PodsOutlive = true })
	cookie, err := r.runner.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	// The agent says more than tables; each of these comes after a while at most.
	soon := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	flow := func(want routing.Verdict) func() bool {
		return func() bool {
			t := r.agent.State().Table
			return t != nil && t.LookupFlow(routing.Cookie(cookie), route, routing.TCP).Verdict == want
		}
	}
	r.say("inject", sandbox("0123456789"))
	soon("its flows go to the fork", flow(routing.ToFork))
	r.say("inject")
	soon("deleted, they are refused", flow(routing.Refuse))
	soon("the log says so", func() bool { return r.log.count("Sandbox shop/pr-42 has been deleted") > 0 })
	r.say("untagged")
	soon("without the label they reach the baseline", flow(routing.ToBaseline))
	soon("the log says that it is solved", func() bool { return r.log.count("msg=solved") > 0 })
}
