// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"encoding/json"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// namespaceView is what a fork depends on in its namespace.
type namespaceView struct {
	// baseline returns a workload, or false.
	baseline  func(v1alpha1.WorkloadRef) (workload, bool)
	services  []*corev1.Service // sorted by name
	selecting []selecting
}

// fork is one of a sandbox's forks, as far as it has come.
type fork struct {
	ref  v1alpha1.WorkloadRef
	hash string
	// name of the object that makes its pods, and that object: a Deployment, or a
	// Job that is made once. Nil where it is refused.
	name   string
	object client.Object
	// services are the fork's own, each standing in for one of the baseline's. Of
	// a refused fork they are not made, and what is redirected to them is
	// rejected: it would be the baseline's answer otherwise.
	services []forkService
	notes    []string
	refusal  *refusal
	// orphan is a fork whose baseline is gone: what it consists of stays.
	orphan bool
	// addresses are those of its ready pods.
	addresses map[string]bool
}

type forkService struct {
	from   string // the baseline's Service
	object *corev1.Service
}

func (f *fork) job() bool { return f.ref.Kind == "CronJob" }

// planFork decides what a fork is to be.
func planFork(sb *v1alpha1.Sandbox, key string, spec v1alpha1.Fork, view namespaceView) fork {
	f := fork{ref: v1alpha1.WorkloadRef{Kind: workloadKind(spec.Workload), Name: spec.Workload.Name}}
	f.hash = forkHash(sb.UID, f.ref)
	f.name = objectName(f.ref.Name, sb.Name, f.hash)
	w, ok := view.baseline(f.ref)
	switch {
	case !ok:
		f.orphan = true
		f.refusal = refuse(reasonWorkloadNotFound, "there is no such workload in namespace %s: create it or correct the name", sb.Namespace)
		return f
	case w.fork:
		f.refusal = refuse(reasonUnsupported, "it is a fork itself: name the workload that it is one of")
		return f
	}
	id := forkID{sandbox: sb.Name, routingKey: key, hash: f.hash}
	pod, r := forkTemplate(w, spec, id)
	for _, s := range view.services {
		if selector, ok := selectorOf(s); ok && w.selectedBy(selector.selector) {
			f.services = append(f.services, forkService{s.Name, serviceOfFork(sb, id, s, pod.ports)})
		}
	}
	if r != nil {
		f.refusal = r
		return f
	}
	f.notes = pod.notes
	meta := metav1.ObjectMeta{Name: f.name, Namespace: sb.Namespace, Labels: id.labels(), OwnerReferences: ownedBy(sb)}
	job := ""
	if w.job != nil {
		meta.Name = jobName(sb, spec, f.ref)
		f.name, job = meta.Name, meta.Name
	}
	if r := selectedByOthers(forkPodLabels(pod.template.Labels, job), view.selecting); r != nil {
		f.refusal = r
		return f
	}
	if w.job != nil {
		f.object = forkJob(meta, *w.job, pod.template)
	} else {
		f.object = forkDeployment(meta, id, pod.template)
	}
	return f
}

func ownedBy(sb *v1alpha1.Sandbox) []metav1.OwnerReference {
	return []metav1.OwnerReference{*metav1.NewControllerRef(sb, v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind))}
}

func forkDeployment(meta metav1.ObjectMeta, id forkID, template corev1.PodTemplateSpec) *appsv1.Deployment {
	one, none := int32(1), int32(0)
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: &one,
			// Not the labels that say more: a selector cannot be changed.
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.SandboxLabel: id.sandbox, forkLabel: id.hash}},
			Template: template,
			// A version that has been replaced never answers in the new one's place,
			// and one that wants its files for itself, as of a StatefulSet, has them.
			Strategy:             appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			RevisionHistoryLimit: &none,
		},
	}
}

// jobName has what the sandbox says of the fork in it: when that changes, the job
// runs once more. When the baseline changes it does not.
func jobName(sb *v1alpha1.Sandbox, spec v1alpha1.Fork, ref v1alpha1.WorkloadRef) string {
	spec.Workload = ref
	text, err := json.Marshal(spec)
	if err != nil { // a patch that is no JSON has not become an object
		text = nil
	}
	return objectName(ref.Name, sb.Name, shortHash(string(sb.UID), string(text)))
}

func forkJob(meta metav1.ObjectMeta, spec batchv1.JobSpec, template corev1.PodTemplateSpec) *batchv1.Job {
	spec.Template = template
	// The API server makes the selector.
	spec.Selector, spec.ManualSelector = nil, nil
	// A finished one that vanished would run once more.
	spec.TTLSecondsAfterFinished = nil
	spec.Suspend, spec.ManagedBy = nil, nil
	return &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: meta,
		Spec:       spec,
	}
}

// serviceOfFork makes the Service whose EndpointSlices nodes follow. It has no
// address: nobody is to send traffic to it by its name.
func serviceOfFork(sb *v1alpha1.Sandbox, id forkID, from *corev1.Service, renamed map[string]string) *corev1.Service {
	s := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            objectName(from.Name, sb.Name, shortHash(string(sb.UID), id.hash, from.Name)),
			Namespace:       sb.Namespace,
			Labels:          id.labels(),
			OwnerReferences: ownedBy(sb),
		},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeClusterIP,
			ClusterIP: corev1.ClusterIPNone,
			Selector:  map[string]string{v1alpha1.SandboxLabel: id.sandbox, forkLabel: id.hash},
		},
	}
	for _, p := range from.Spec.Ports {
		target := p.TargetPort
		if to, ok := renamed[target.StrVal]; ok && target.Type == intstr.String {
			target = intstr.FromString(to)
		}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name: p.Name, Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), AppProtocol: p.AppProtocol, Port: p.Port, TargetPort: target,
		})
	}
	// Both families where the baseline's Service has both; the first one is as the
	// baseline's, whatever the cluster's default.
	if len(from.Spec.IPFamilies) > 0 {
		s.Spec.IPFamilies = slices.Clone(from.Spec.IPFamilies)
		policy := corev1.IPFamilyPolicySingleStack
		if len(from.Spec.IPFamilies) > 1 {
			policy = corev1.IPFamilyPolicyPreferDualStack
		}
		s.Spec.IPFamilyPolicy = &policy
	}
	return s
}

// baselineServices sorts the Services that forks can stand in for.
func baselineServices(all []corev1.Service) []*corev1.Service {
	var out []*corev1.Service
	for i := range all {
		if s := &all[i]; s.Labels[forkLabel] == "" && s.DeletionTimestamp == nil {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ownsPods are the labels that select the fork's pods.
func (f *fork) ownsPods(sandbox string) labels.Set {
	return labels.Set{v1alpha1.SandboxLabel: sandbox, forkLabel: f.hash}
}

// objectKey names an object of a plan.
type objectKey struct{ kind, name string }

// planned is everything that the forks are to consist of.
func planned(forks []fork) map[objectKey]bool {
	keys := map[objectKey]bool{}
	for i := range forks {
		f := &forks[i]
		if f.refusal != nil {
			continue
		}
		for _, o := range f.parts() {
			keys[objectKey{kindOf(o), o.GetName()}] = true
		}
	}
	return keys
}
