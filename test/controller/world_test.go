// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// baseline makes a Deployment and its Service.
func baseline(t *testing.T, ns, name string) *appsv1.Deployment {
	t.Helper()
	app := map[string]string{"app": name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: app},
				Spec: corev1.PodSpec{Containers: []corev1.Container{
					{Name: "app", Image: name + ":1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}},
					{Name: "proxy", Image: "proxy:1"},
				}},
			},
		},
	}
	create(t, d)
	service(t, ns, name)
	return d
}

func service(t *testing.T, ns, name string) *corev1.Service {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
	create(t, s)
	return s
}

// forking is a sandbox with a fork of each of the Deployments.
func forking(ns, name string, of ...string) *v1alpha1.Sandbox {
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	for _, w := range of {
		sb.Spec.Forks = append(sb.Spec.Forks, v1alpha1.Fork{
			Workload:   v1alpha1.WorkloadRef{Name: w},
			Containers: []v1alpha1.ContainerOverride{{Name: "app", Image: w + ":" + name}},
		})
	}
	return sb
}

// condition waits until one has a status, and words in its message.
func condition(t *testing.T, o client.Object, kind string, status metav1.ConditionStatus, reason, says string) {
	t.Helper()
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		var all []metav1.Condition
		switch o := o.(type) {
		case *v1alpha1.Sandbox:
			all = o.Status.Conditions
		case *v1alpha1.RouteGroup:
			all = o.Status.Conditions
		}
		c := meta.FindStatusCondition(all, kind)
		if c == nil || c.Status != status || c.ObservedGeneration != o.GetGeneration() ||
			(reason != "" && c.Reason != reason) || !strings.Contains(c.Message, says) {
			return fmt.Errorf("%s is not %s (%s) with %q: %+v", kind, status, reason, says, all)
		}
		return nil
	})
}

func ready(t *testing.T, o client.Object) {
	t.Helper()
	condition(t, o, v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready", "")
}

// forkOf waits for the fork of a Deployment.
func forkOf(t *testing.T, sb *v1alpha1.Sandbox, workload string) *appsv1.Deployment {
	t.Helper()
	d := &appsv1.Deployment{}
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); err != nil {
			return err
		}
		for _, f := range sb.Status.Forks {
			if f.Workload.Name == workload && f.Name != "" {
				return api.Get(t.Context(), client.ObjectKey{Namespace: sb.Namespace, Name: f.Name}, d)
			}
		}
		return fmt.Errorf("status.forks has no %s: %+v", workload, sb.Status)
	})
	return d
}

// redirectOf finds where a Service's tagged traffic goes.
func redirectOf(all []v1alpha1.RedirectStatus, service string) *v1alpha1.RedirectStatus {
	for i := range all {
		if all[i].From.Service == service {
			return &all[i]
		}
	}
	return nil
}

// pod makes one of the fork's pods.
func pod(t *testing.T, d *appsv1.Deployment, status corev1.PodStatus) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, Labels: d.Spec.Template.Labels},
		Spec:       *d.Spec.Template.Spec.DeepCopy(),
	}
	p.Spec.NodeName = node
	create(t, p)
	p.Status = status
	say(t, p)
	return p
}

// runs says all that is said where a fork runs: its Deployment, its pod, and the
// slices of its Services.
func runs(t *testing.T, sb *v1alpha1.Sandbox, workload, address string) {
	t.Helper()
	d := forkOf(t, sb, workload)
	pod(t, d, corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	})
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: 1, UpdatedReplicas: 1, ReadyReplicas: 1, AvailableReplicas: 1}
	say(t, d)
	for _, r := range sb.Status.Redirects {
		if r.Fork == "Deployment/"+workload {
			endpoints(t, sb.Namespace, r.To.Service, address)
		}
	}
}

func endpoints(t *testing.T, ns, service, address string) {
	t.Helper()
	name, port, yes := "http", int32(8080), true
	create(t, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	})
}

// steady reports that a status is not written for a while.
func steady(t *testing.T, sb *v1alpha1.Sandbox, d time.Duration) {
	t.Helper()
	var before, after v1alpha1.Sandbox
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), &before); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d)
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), &after); err != nil {
		t.Fatal(err)
	}
	if before.ResourceVersion != after.ResourceVersion {
		t.Errorf("the status goes on being written: %+v, then %+v", before.Status, after.Status)
	}
}
