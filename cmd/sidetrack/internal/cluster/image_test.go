// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"
)

func daemonSet(namespace, image string) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sidetrack-agent", Labels: AgentLabels}}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: image}}
	return d
}

func binding(namespace string) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "sidetrack-agent"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "sidetrack-agent"}, {Kind: "ServiceAccount", Name: "sidetrack-agent", Namespace: namespace}}}
}

func TestNobodysDaemonSetStandsForTheAgents(t *testing.T) {
	t.Setenv(imageVariable, "")
	forbid := func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if _, ok := o.(*rbacv1.ClusterRoleBinding); ok {
			return apierrors.NewForbidden(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}, key.Name, errors.New("no"))
		}
		return c.Get(ctx, key, o, opts...)
	}
	const usual = SystemNamespace
	evil := daemonSet("a-tenant", "evil:1")
	for _, c := range []struct {
		name string
		may  bool // read the ClusterRoleBinding
		all  []client.Object
		want string // an image, or a part of the error
	}{
		{"as usual", true, []client.Object{binding(usual), evil, daemonSet(usual, "ours:1")}, "ours:1"},
		{"in another namespace", true, []client.Object{binding("platform"), evil, daemonSet("platform", "ours:1")}, "ours:1"},
		{"in another namespace, and somebody has made the usual one", true, []client.Object{binding("platform"), daemonSet(usual, "evil:1"), daemonSet("platform", "ours:1")}, "ours:1"},
		{"the agents are not there, and somebody's are", true, []client.Object{binding("platform"), evil}, released + "1.2.3"},
		{"installed by other means", true, []client.Object{evil, daemonSet(usual, "ours:1")}, "ours:1"},
		{"as usual, for who may not look", false, []client.Object{binding(usual), evil, daemonSet(usual, "ours:1")}, "ours:1"},
		{"the only one, for who may not look", false, []client.Object{binding("platform"), daemonSet("platform", "ours:1")}, "ours:1"},
		{"several, for who may not look", false, []client.Object{binding("platform"), evil, daemonSet("platform", "ours:1")}, "a-tenant/sidetrack-agent, platform/sidetrack-agent; none is in sidetrack-system"},
		{"none", true, nil, released + "1.2.3"},
	} {
		b := fake.NewClientBuilder().WithObjects(c.all...)
		if !c.may {
			b.WithInterceptorFuncs(interceptor.Funcs{Get: forbid})
		}
		got, err := (&Cluster{Objects: b.Build()}).AgentImage(t.Context(), "v1.2.3")
		if err != nil {
			if !strings.Contains(err.Error(), "--agent-image") {
				t.Errorf("%s: the error names no remedy: %v", c.name, err)
			}
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// Nothing is asked of the cluster where the user has said which.
	t.Setenv(imageVariable, "mine:1")
	if got, err := (&Cluster{}).AgentImage(t.Context(), ""); got != "mine:1" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// The names by which the installation is told are those that it has.
func TestTheInstallationIsToldByWhatIsInstalled(t *testing.T) {
	text, err := os.ReadFile("../../../../deploy/install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder()
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var o rbacv1.ClusterRoleBinding
		if err := yaml.Unmarshal([]byte(doc), &o); err == nil && o.Kind == "ClusterRoleBinding" && o.APIVersion == rbacv1.SchemeGroupVersion.String() {
			for i := range o.Subjects {
				o.Subjects[i].Namespace = "platform" // where nothing else leads
			}
			b.WithObjects(&o)
		}
	}
	c := &Cluster{Objects: b.Build()}
	all := []appsv1.DaemonSet{*daemonSet(SystemNamespace, "a:1"), *daemonSet("platform", "b:1")}
	for _, part := range []string{Agents, Controller} {
		if i, err := Ours(t.Context(), c, part, all); i != 1 || err != nil {
			t.Errorf("%s: %d, %v", part, i, err)
		}
	}
	if !strings.Contains(string(text), "app.kubernetes.io/component: "+Agents) || !strings.Contains(string(text), "app.kubernetes.io/component: "+Controller) {
		t.Error("the labels are others")
	}
}
