// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// view reads what decisions depend on from the cache. What it returns is the
// cache's own and must not be changed. The first error is kept, so that deciding
// need not be interrupted.
type view struct {
	ctx    context.Context
	reader client.Reader
	grants *grants
	err    error
}

func (v *view) fail(err error) {
	if v.err == nil && err != nil {
		v.err = err
	}
}

func (v *view) list(into client.ObjectList, options ...client.ListOption) bool {
	err := v.reader.List(v.ctx, into, append(options, client.UnsafeDisableDeepCopy)...)
	if err != nil {
		v.fail(fmt.Errorf("list %T: %w", into, err))
	}
	return err == nil
}

// get reports whether an object is there.
func (v *view) get(name types.NamespacedName, into client.Object) bool {
	err := v.reader.Get(v.ctx, name, into)
	if client.IgnoreNotFound(err) != nil {
		v.fail(fmt.Errorf("get %T %s: %w", into, name, err))
	}
	return err == nil
}

// namespace reads what forks of a namespace depend on.
func (v *view) namespace(namespace string) namespaceView {
	in := client.InNamespace(namespace)
	var services corev1.ServiceList
	v.list(&services, in)
	out := namespaceView{
		services: baselineServices(services.Items),
		baseline: func(ref v1alpha1.WorkloadRef) (workload, bool) {
			o := newObject(workloadKind(ref))
			if o == nil || !v.get(types.NamespacedName{Namespace: namespace, Name: ref.Name}, o) || o.GetDeletionTimestamp() != nil {
				return workload{}, false
			}
			return readWorkload(ref, o), true
		},
	}
	for _, list := range []client.ObjectList{&services, &corev1.ReplicationControllerList{}, &appsv1.DeploymentList{}, &appsv1.ReplicaSetList{}, &appsv1.StatefulSetList{}, &appsv1.DaemonSetList{}, &batchv1.JobList{}, &policyv1.PodDisruptionBudgetList{}} {
		if _, have := list.(*corev1.ServiceList); !have {
			v.list(list, in)
		}
		v.fail(meta.EachListItem(list, func(o runtime.Object) error {
			if s, ok := selectorOf(o.(client.Object)); ok {
				out.selecting = append(out.selecting, s)
			}
			return nil
		}))
	}
	return out
}

// targets reads what redirects depend on.
func (v *view) targets() targetView {
	return targetView{
		service: func(name types.NamespacedName) *corev1.Service {
			var s corev1.Service
			if !v.get(name, &s) || s.DeletionTimestamp != nil {
				return nil
			}
			return &s
		},
		slices: func(name types.NamespacedName) []*discoveryv1.EndpointSlice {
			var all discoveryv1.EndpointSliceList
			v.list(&all, client.InNamespace(name.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: name.Name})
			out := make([]*discoveryv1.EndpointSlice, len(all.Items))
			for i := range all.Items {
				out[i] = &all.Items[i]
			}
			return out
		},
		granted: func(from string, to types.NamespacedName) (bool, string) {
			all, served, err := v.grants.list(v.ctx, to.Namespace)
			if err != nil {
				v.fail(err)
				return false, err.Error()
			}
			return permitted(all, from, to), grantRemedy(from, to, served)
		},
	}
}

// forkPods returns the pods of a fork.
func (v *view) forkPods(namespace string, selector labels.Set) []corev1.Pod {
	var all corev1.PodList
	v.list(&all, client.InNamespace(namespace), client.MatchingLabels(selector))
	return all.Items
}

// owned returns what a sandbox has made.
func (v *view) owned(sb *v1alpha1.Sandbox) []client.Object {
	var out []client.Object
	for _, list := range []client.ObjectList{&appsv1.DeploymentList{}, &batchv1.JobList{}, &corev1.ServiceList{}} {
		v.list(list, client.InNamespace(sb.Namespace), client.MatchingLabels{v1alpha1.SandboxLabel: sb.Name}, client.HasLabels{forkLabel})
		v.fail(meta.EachListItem(list, func(o runtime.Object) error {
			if o := o.(client.Object); metav1.IsControlledBy(o, sb) {
				out = append(out, o)
			}
			return nil
		}))
	}
	return out
}

// cluster reads nodes and what their agents say.
func (v *view) cluster(h *heartbeats, selector labels.Selector, now time.Time) *cluster {
	var nodes corev1.NodeList
	var states v1alpha1.NodeStateList
	v.list(&nodes)
	v.list(&states)
	c := &cluster{nodes: nodes.Items, states: map[string]*v1alpha1.NodeState{}, agents: h.hear(states.Items, now), selector: selector, now: now}
	for i := range states.Items {
		c.states[states.Items[i].Name] = &states.Items[i]
	}
	return c
}

// warning returns the newest warning about a pod, by asking the API server: the
// cluster's events are too many to follow. Nil is no warning.
func warning(ctx context.Context, r client.Reader, pod *corev1.Pod) (*corev1.Event, error) {
	var all corev1.EventList
	err := r.List(ctx, &all, client.InNamespace(pod.Namespace), client.Limit(50),
		client.MatchingFields{"involvedObject.uid": string(pod.UID), "type": corev1.EventTypeWarning})
	if apierrors.IsForbidden(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the events of pod %s: %w", pod.Name, err)
	}
	var newest *corev1.Event
	for i := range all.Items {
		if e := &all.Items[i]; tells(e.Reason) && (newest == nil || eventTime(newest).Before(eventTime(e))) {
			newest = e
		}
	}
	return newest, nil
}

func eventTime(e *corev1.Event) time.Time {
	t := e.EventTime.Time
	if e.LastTimestamp.After(t) {
		t = e.LastTimestamp.Time
	}
	if e.Series != nil && e.Series.LastObservedTime.After(t) {
		t = e.Series.LastObservedTime.Time
	}
	return t
}
