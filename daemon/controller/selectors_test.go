// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

func namespaceWith(t *testing.T, w ctrl.Object, objects ...string) namespaceView {
	t.Helper()
	view := namespaceView{baseline: func(ref v1alpha1.WorkloadRef) (workload, bool) {
		if w == nil || ref.Name != w.GetName() {
			return workload{}, false
		}
		return readWorkload(ref, w), true
	}}
	var services []corev1.Service
	for _, text := range objects {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
			t.Fatal(err)
		}
		var o ctrl.Object
		switch kind.Kind {
		case "Service":
			s := parse[corev1.Service](t, text)
			services = append(services, s)
			o = &s
		case "PodDisruptionBudget":
			o = parse[*policyv1.PodDisruptionBudget](t, text)
		case "ReplicaSet":
			o = parse[*appsv1.ReplicaSet](t, text)
		case "ReplicationController":
			o = parse[*corev1.ReplicationController](t, text)
		default:
			t.Fatalf("kind %q", kind.Kind)
		}
		if s, ok := selectorOf(o); ok {
			view.selecting = append(view.selecting, s)
		}
	}
	view.services = baselineServices(services)
	return view
}

func sandbox(name string) *v1alpha1.Sandbox {
	return &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "uid-of-" + "pr-42", Generation: 1}}
}

func TestForkStandsInForEveryServiceOfTheBaseline(t *testing.T) {
	d := deployment(t, baseline)
	view := namespaceWith(t, d,
		`{kind: Service, metadata: {name: route}, spec: {selector: {app: route}, ipFamilies: [IPv6, IPv4], ports: [{name: http, port: 80, targetPort: http, nodePort: 30000, appProtocol: h2c}, {name: alt, port: 81, targetPort: 9}], clusterIP: 10.0.0.1, type: LoadBalancer, externalIPs: [1.2.3.4], sessionAffinity: ClientIP}}`,
		`{kind: Service, metadata: {name: all-web}, spec: {selector: {tier: web}, ipFamilies: [IPv4], clusterIP: None, ports: [{port: 53, protocol: UDP}]}}`,
		`{kind: Service, metadata: {name: other}, spec: {selector: {app: other}, ports: [{port: 1}]}}`,
		`{kind: Service, metadata: {name: no-selector}, spec: {ports: [{port: 1}]}}`,
		`{kind: Service, metadata: {name: alias}, spec: {type: ExternalName, externalName: x, selector: {app: route}}}`,
		`{kind: Service, metadata: {name: a-forks, labels: {sidetrack.dev/fork: x}}, spec: {selector: {app: route}, ports: [{port: 1}]}}`,
	)
	f := planFork(sandbox("pr-42"), "the-key-of-pr-42", v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Name: "route"}}, view)
	if f.refusal != nil {
		t.Fatal(f.refusal.message)
	}
	var from []string
	for _, s := range f.services {
		from = append(from, s.from)
		o := s.object
		if o.Spec.ClusterIP != "None" || o.Spec.Type != corev1.ServiceTypeClusterIP || o.Spec.PublishNotReadyAddresses || o.Spec.ExternalIPs != nil {
			t.Errorf("Service %s is reachable from outside of the nodes' tables: %+v", o.Name, o.Spec)
		}
		if len(o.Name) > 63 || !metav1.IsControlledBy(o, sandbox("pr-42")) {
			t.Errorf("Service %s: owner %v", o.Name, o.OwnerReferences)
		}
		if !labels.SelectorFromSet(o.Spec.Selector).Matches(labels.Set(f.object.(*appsv1.Deployment).Spec.Template.Labels)) {
			t.Errorf("Service %s does not select the fork's pods", o.Name)
		}
	}
	if diff := cmp.Diff([]string{"all-web", "route"}, from); diff != "" {
		t.Fatalf("Services (-want +got):\n%s", diff)
	}
	h2c := "h2c"
	want := []corev1.ServicePort{
		{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http"), AppProtocol: &h2c},
		{Name: "alt", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(9)},
	}
	if diff := cmp.Diff(want, f.services[1].object.Spec.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if got := f.services[1].object.Spec; *got.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack || got.IPFamilies[0] != corev1.IPv6Protocol {
		t.Errorf("families %v %v", *got.IPFamilyPolicy, got.IPFamilies)
	}
	got := f.object.(*appsv1.Deployment)
	if *got.Spec.Replicas != 1 || got.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		t.Errorf("spec %+v", got.Spec)
	}
	if len(got.Finalizers) != 0 || !metav1.IsControlledBy(got, sandbox("pr-42")) {
		t.Errorf("metadata %+v", got.ObjectMeta)
	}
}

func TestNamedTargetPortIsFoundUnderTheNameThatIsKept(t *testing.T) {
	d := deployment(t, `
metadata: {labels: {app: route}}
spec: {containers: [{name: app, ports: [{name: http, containerPort: 8080}, {name: web, containerPort: 8080}]}]}
`)
	view := namespaceWith(t, d, `{kind: Service, metadata: {name: route}, spec: {selector: {app: route}, ports: [{port: 80, targetPort: web}]}}`)
	f := planFork(sandbox("pr-42"), "k", v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Name: "route"}}, view)
	if got := f.services[0].object.Spec.Ports[0].TargetPort; got.StrVal != "http" {
		t.Errorf("target port %s, want http", got.String())
	}
}

func TestForksPodsAreNobodyElses(t *testing.T) {
	for _, tt := range []struct {
		name, object, patch string
		selected            bool
	}{
		{"a Service by a label that the patch adds", `{kind: Service, metadata: {name: s}, spec: {selector: {team: a}}}`, `metadata: {labels: {team: a}}`, true},
		{"a Service that wants one label more", `{kind: Service, metadata: {name: s}, spec: {selector: {team: a, b: c}}}`, `metadata: {labels: {team: a}}`, false},
		{"a Service by the baseline's labels", `{kind: Service, metadata: {name: s}, spec: {selector: {app: route}}}`, "", false},
		{"a PodDisruptionBudget of the whole namespace", `{kind: PodDisruptionBudget, metadata: {name: p}, spec: {selector: {}}}`, "", true},
		{"a PodDisruptionBudget of nothing", `{kind: PodDisruptionBudget, metadata: {name: p}, spec: {}}`, "", false},
		{"a PodDisruptionBudget of all that is not something", `{kind: PodDisruptionBudget, metadata: {name: p}, spec: {selector: {matchExpressions: [{key: app, operator: NotIn, values: [batch]}]}}}`, "", true},
		{"a PodDisruptionBudget that a label of the patch keeps away", `{kind: PodDisruptionBudget, metadata: {name: p}, spec: {selector: {matchExpressions: [{key: app, operator: NotIn, values: [batch]}]}}}`, `metadata: {labels: {app: batch}}`, false},
		{"a PodDisruptionBudget that leaves forks out", `{kind: PodDisruptionBudget, metadata: {name: p}, spec: {selector: {matchExpressions: [{key: sidetrack.dev/fork, operator: DoesNotExist}]}}}`, "", false},
		{"a ReplicaSet without a label", `{kind: ReplicaSet, metadata: {name: r}, spec: {selector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}}`, "", true},
		{"a ReplicationController by a label that the patch adds", `{kind: ReplicationController, metadata: {name: r}, spec: {selector: {team: a}}}`, `metadata: {labels: {team: a}}`, true},
		{"a fork's own ReplicaSet", `{kind: ReplicaSet, metadata: {name: r, labels: {sidetrack.dev/fork: x}}, spec: {selector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}}`, "", false},
		{"a Service that somebody made for this sandbox", `{kind: Service, metadata: {name: s}, spec: {selector: {sidetrack.dev/sandbox: pr-42}}}`, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Name: "route"}}
			if tt.patch != "" {
				spec.Patch = patchOf(t, tt.patch)
			}
			f := planFork(sandbox("pr-42"), "k", spec, namespaceWith(t, deployment(t, baseline), tt.object))
			if got := f.refusal != nil; got != tt.selected {
				t.Errorf("selected %v, want %v: %+v", got, tt.selected, f.refusal)
			}
			if tt.selected && (f.refusal.reason != reasonSelected || f.object != nil) {
				t.Errorf("refusal %+v, object %v", f.refusal, f.object)
			}
		})
	}
}
