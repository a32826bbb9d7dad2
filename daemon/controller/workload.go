// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// workload is what a fork needs of a baseline, whatever its kind.
type workload struct {
	ref      v1alpha1.WorkloadRef
	template corev1.PodTemplateSpec
	// claims are a StatefulSet's.
	claims []corev1.PersistentVolumeClaim
	// job is a CronJob's.
	job *batchv1.JobSpec
	// pods are the labels that its pods carry. A StatefulSet's differ, and
	// Services may select one of them.
	pods []labels.Set
	// fork is set when the workload is a fork itself.
	fork bool
}

// maxOrdinals bounds for how many of a StatefulSet's pods a Service of their own
// is looked for.
const maxOrdinals = 64

// newObject returns an empty object of a workload's kind, nil for an unknown
// kind.
func newObject(kind string) client.Object {
	switch kind {
	case "Deployment":
		return &appsv1.Deployment{}
	case "StatefulSet":
		return &appsv1.StatefulSet{}
	case "DaemonSet":
		return &appsv1.DaemonSet{}
	case "ReplicaSet":
		return &appsv1.ReplicaSet{}
	case "CronJob":
		return &batchv1.CronJob{}
	}
	return nil
}

// readWorkload takes what is needed of a baseline. The result shares nothing
// with it.
func readWorkload(ref v1alpha1.WorkloadRef, o client.Object) workload {
	w := workload{ref: ref, fork: o.GetLabels()[forkLabel] != ""}
	w.ref.Kind = workloadKind(ref)
	switch o := o.(type) {
	case *appsv1.Deployment:
		w.template = *o.Spec.Template.DeepCopy()
	case *appsv1.ReplicaSet:
		w.template = *o.Spec.Template.DeepCopy()
	case *appsv1.DaemonSet:
		w.template = *o.Spec.Template.DeepCopy()
	case *appsv1.StatefulSet:
		o = o.DeepCopy()
		w.template, w.claims = o.Spec.Template, o.Spec.VolumeClaimTemplates
		w.pods = ordinals(o)
	case *batchv1.CronJob:
		w.job = o.Spec.JobTemplate.Spec.DeepCopy()
		w.template = w.job.Template
	}
	if w.pods == nil {
		w.pods = []labels.Set{w.template.Labels}
	}
	return w
}

func ordinals(o *appsv1.StatefulSet) []labels.Set {
	first, n := int32(0), int32(1)
	if o.Spec.Ordinals != nil {
		first = o.Spec.Ordinals.Start
	}
	if o.Spec.Replicas != nil {
		n = max(1, min(*o.Spec.Replicas, maxOrdinals))
	}
	var out []labels.Set
	for i := first; i < first+n; i++ {
		set := labels.Set{}
		maps.Copy(set, o.Spec.Template.Labels)
		set[appsv1.StatefulSetPodNameLabel] = fmt.Sprintf("%s-%d", o.Name, i)
		set[appsv1.PodIndexLabel] = fmt.Sprint(i)
		out = append(out, set)
	}
	return out
}

// selectedBy reports whether a selector matches some of the workload's pods.
func (w *workload) selectedBy(s labels.Selector) bool {
	for _, set := range w.pods {
		if s.Matches(set) {
			return true
		}
	}
	return false
}
