// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func agents(namespace, image string) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sidetrack-agent", Labels: AgentLabels}}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: image}}
	return d
}

func TestNobodysDaemonSetStandsForTheAgents(t *testing.T) {
	t.Setenv(imageVariable, "")
	for _, c := range []struct {
		sets []*appsv1.DaemonSet
		want string
	}{
		{[]*appsv1.DaemonSet{agents("a-tenant", "evil:1"), agents(SystemNamespace, "ours:1")}, "ours:1"},
		{[]*appsv1.DaemonSet{agents("platform", "ours:2")}, "ours:2"},
		{nil, released + "1.2.3"},
	} {
		b := fake.NewClientBuilder()
		for _, d := range c.sets {
			b.WithObjects(d)
		}
		if got := (&Cluster{Objects: b.Build()}).AgentImage(t.Context(), "v1.2.3"); got != c.want {
			t.Errorf("the image is %s, want %s", got, c.want)
		}
	}
}
