// SPDX-License-Identifier: Apache-2.0

package health

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

func TestDoctorSaysWhenTheAgentsLookForKeysElsewhere(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   []string
		result Result
		says   string
	}{
		{"as installed", []string{"run", "--kubernetes", "--node-name=n", "--baggage-member=sidetrack,sd-routing-key", "--key-header=x-sidetrack-key", "--lease=10s", "--ledger-answer"}, OK, ""},
		{"in another order", []string{"run", "--baggage-member", "sd-routing-key", "--baggage-member=sidetrack"}, OK, ""},
		{"by default", []string{"run", "--node-name", "n"}, OK, ""},
		{"members without ours", []string{"run", "--baggage-member=acme,acme-key"}, Missing, "the agents look for routing keys in baggage members acme, acme-key and header x-sidetrack-key: diff and compare_responses, which send it in the member sidetrack, compare the baseline with itself"},
		{"one more member", []string{"run", "--baggage-member=acme,sidetrack,sd-routing-key"}, Optional, "in baggage members acme, sidetrack, sd-routing-key"},
		{"another header", []string{"run", "--key-header", "x-acme"}, Optional, "and header x-acme, this program in sidetrack, sd-routing-key and x-sidetrack-key"},
	} {
		agents := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: cluster.SystemNamespace, Name: "sidetrack-agent", Labels: cluster.AgentLabels}}
		agents.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Args: c.args}}
		d := doctor{c: &cluster.Cluster{Objects: fake.NewClientBuilder().WithObjects(agents).Build()}}
		d.keyNames(t.Context())
		if len(d.checks) != 1 || d.checks[0].Result != c.result || !strings.Contains(d.checks[0].Detail, c.says) || (d.checks[0].Remedy == "") != (c.result == OK) {
			t.Errorf("%s: %+v, want %s %q", c.name, d.checks, c.result, c.says)
		}
	}
	d := doctor{c: &cluster.Cluster{Objects: fake.NewClientBuilder().Build()}}
	if d.keyNames(t.Context()); len(d.checks) != 0 {
		t.Errorf("without agents it says %+v", d.checks)
	}
}
