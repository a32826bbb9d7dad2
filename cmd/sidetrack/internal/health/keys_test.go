// SPDX-License-Identifier: Apache-2.0

package health

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

func TestDoctorSaysWhetherAllNodesKnowOneNameOfAKey(t *testing.T) {
	state := func(name, header string, members ...string) *v1alpha1.NodeState {
		now := metav1.NowMicro()
		s := &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: name}}
		s.Status = v1alpha1.NodeStateStatus{HeartbeatTime: &now, Applied: &v1alpha1.AppliedVersions{}}
		if len(members) > 0 {
			s.Status.KeyNames = &v1alpha1.KeyNames{Members: members, Header: header}
		}
		return s
	}
	gone := state("gone", "x-other", "other")
	long := metav1.NewMicroTime(time.Now().Add(-time.Hour))
	gone.Status.HeartbeatTime = &long
	ended := state("ended", "x-other", "other")
	ended.Status.Applied = nil
	for _, c := range []struct {
		name   string
		states []*v1alpha1.NodeState
		result Result // empty: nothing is said
		says   string
	}{
		{"no agents", nil, "", ""},
		{"no working agents", []*v1alpha1.NodeState{gone, ended}, "", ""},
		{"older agents", []*v1alpha1.NodeState{state("a", "")}, Optional, "it uses member sidetrack of baggage"},
		{"the same", []*v1alpha1.NodeState{state("a", "x-acme", "acme", "sidetrack"), state("b", "x-acme", "acme", "sidetrack"), state("old", ""), gone, ended}, OK, "members acme, sidetrack of baggage and tracestate, and header x-acme"},
		{"other headers", []*v1alpha1.NodeState{state("a", "x-a", "m"), state("b", "x-b", "m")}, Optional, "--key-header is x-a on node a and x-b on node b"},
		{"nothing in common", []*v1alpha1.NodeState{state("a", "x", "m"), state("b", "x", "n")}, Missing, "--baggage-member is m on node a, which adds the first of them to requests, and n on node b"},
	} {
		scheme, err := cluster.Scheme()
		if err != nil {
			t.Fatal(err)
		}
		b := fake.NewClientBuilder().WithScheme(scheme)
		for _, s := range c.states {
			b.WithObjects(s)
		}
		d := doctor{c: &cluster.Cluster{Objects: b.Build()}}
		d.keyNames(t.Context())
		if c.result == "" {
			if len(d.checks) != 0 {
				t.Errorf("%s: %+v", c.name, d.checks)
			}
			continue
		}
		if len(d.checks) != 1 || d.checks[0].Result != c.result || !strings.Contains(d.checks[0].Detail, c.says) || (d.checks[0].Remedy == "") != (c.result == OK) {
			t.Errorf("%s: %+v, want %s %q", c.name, d.checks, c.result, c.says)
		}
	}
}
