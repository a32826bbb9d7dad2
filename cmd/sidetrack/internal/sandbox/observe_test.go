// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// What is observed where nobody says what to is what is redirected, and nothing whose
// traffic would not be captured without that.
func TestWhatIsRedirectedIsObserved(t *testing.T) {
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	service := func(name, selects string, ports ...corev1.ServicePort) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{Ports: ports}}
		if selects != "" {
			s.Spec.Selector = app(selects)
		}
		return s
	}
	http, sql := corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}
	dns := corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}
	outside := service("outside", "", http)
	outside.Spec.Type, outside.Spec.ExternalName = corev1.ServiceTypeExternalName, "db.example.com"
	elsewhere := service("route-elsewhere", "route", http)
	elsewhere.Namespace = "other"
	route := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "route"}}
	route.Spec.Template.Labels = app("route")
	route.Spec.Template.Spec.Containers = []corev1.Container{{Name: "app"}}
	theirs := &v1alpha1.Sandbox{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "theirs", ManagedFields: []metav1.ManagedFieldsEntry{
			{Manager: "kubectl", Operation: metav1.ManagedFieldsOperationApply, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:observe":{}}}`)},
		}},
		Spec: v1alpha1.SandboxSpec{Observe: []string{"*"}},
	}
	ours := theirs.DeepCopy()
	ours.Name, ours.ManagedFields[0].Manager = "ours", cluster.FieldManager
	refused := false
	objects := interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).WithObjects(route,
		service("route", "route", http, dns), service("route-too", "route", http, sql), service("front", "front", http), service("nobody", "", http),
		service("db", "db", sql), service("pair", "pair", http, sql), service("names", "names", dns), outside, elsewhere).Build(), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, o ...client.ListOption) error {
			if _, ok := list.(*corev1.ServiceList); ok && refused {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", nil)
			}
			return c.List(ctx, list, o...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if sb, ok := o.(*v1alpha1.Sandbox); ok {
				for _, there := range []*v1alpha1.Sandbox{theirs, ours} {
					if there.Name == key.Name {
						there.DeepCopyInto(sb)
						return nil
					}
				}
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
	c := &cluster.Cluster{Objects: objects, Namespace: "shop"}
	fork := []string{"route"}
	for _, tc := range []struct {
		name    string
		request Request
		refused bool
		want    []string
	}{
		{"a fork", Request{Forks: fork}, false, []string{"route", "route-too"}},
		{"a redirect", Request{Redirects: []string{"front=a"}}, false, []string{"front"}},
		{"both", Request{Forks: fork, Redirects: []string{"front=a", "route=b"}}, false, []string{"front", "route", "route-too"}},
		{"the only port, by its number", Request{Redirects: []string{"db:5432=a"}}, false, []string{"db"}},
		{"the only port, by its name", Request{Redirects: []string{"db:sql=a"}}, false, []string{"db"}},
		{"one of two ports", Request{Redirects: []string{"pair:http=a"}}, false, nil},
		{"both ports", Request{Redirects: []string{"pair:http=a", "pair:5432=b"}}, false, []string{"pair"}},
		{"what has no TCP", Request{Redirects: []string{"names=a"}}, false, nil},
		{"what has no address", Request{Redirects: []string{"outside=a"}}, false, nil},
		{"what is not there", Request{Redirects: []string{"later=a"}}, false, nil},
		{"what is asked for", Request{Forks: fork, Observe: []string{"front"}}, false, []string{"front"}},
		{"everything", Request{Forks: fork, Observe: []string{"*"}}, false, []string{"*"}},
		{"nothing", Request{Forks: fork, Observe: []string{"none"}}, false, nil},
		{"neither forks nor redirects", Request{}, false, nil},
		{"Services that may not be listed", Request{Forks: fork}, true, nil},
		{"somebody else observes everything", Request{Name: "theirs", Forks: fork}, false, nil},
		{"this program has observed everything", Request{Name: "ours", Forks: fork}, false, []string{"route", "route-too"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refused = tc.refused
			sb, err := tc.request.Build(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(sb.Spec.Observe, tc.want) {
				t.Errorf("it observes %q, want %q", sb.Spec.Observe, tc.want)
			}
		})
	}
	if _, err := (Request{Forks: fork, Observe: []string{"none", "front"}}).Build(t.Context(), c); task.KindOf(err) != task.Usage {
		t.Errorf("none beside another: %v", err)
	}
}
