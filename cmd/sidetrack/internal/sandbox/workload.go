// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// kinds are the ways to write the kinds that can be forked.
var kinds = []struct {
	kind  string
	words []string
	list  func() client.ObjectList
}{
	{"Deployment", []string{"deploy", "deployment", "deployments"}, func() client.ObjectList { return &appsv1.DeploymentList{} }},
	{"StatefulSet", []string{"sts", "statefulset", "statefulsets"}, func() client.ObjectList { return &appsv1.StatefulSetList{} }},
	{"DaemonSet", []string{"ds", "daemonset", "daemonsets"}, func() client.ObjectList { return &appsv1.DaemonSetList{} }},
	{"ReplicaSet", []string{"rs", "replicaset", "replicasets"}, func() client.ObjectList { return &appsv1.ReplicaSetList{} }},
	{"CronJob", []string{"cj", "cronjob", "cronjobs"}, func() client.ObjectList { return &batchv1.CronJobList{} }},
}

// ParseWorkload reads NAME, which is a Deployment's, or KIND/NAME, with kinds as
// kubectl has them.
func ParseWorkload(text string) (v1alpha1.WorkloadRef, error) {
	word, name, ok := strings.Cut(text, "/")
	if !ok {
		word, name = "deployment", text
	}
	if name == "" || strings.Contains(name, "/") {
		return v1alpha1.WorkloadRef{}, task.Usagef("%q does not name a workload: write NAME, or KIND/NAME such as deploy/route", text)
	}
	if kind := kindOf(word); kind != "" {
		return v1alpha1.WorkloadRef{Kind: kind, Name: name}, nil
	}
	return v1alpha1.WorkloadRef{}, task.Usagef("%q cannot be forked: use deploy, sts, ds, rs or cronjob in front of the name", word)
}

func kindOf(word string) string {
	word, _, _ = strings.Cut(strings.ToLower(word), ".")
	for _, k := range kinds {
		if slices.Contains(k.words, word) {
			return k.kind
		}
	}
	return ""
}

// workload is one that is to be forked: its containers, and what is to differ in
// them.
type workload struct {
	ref               v1alpha1.WorkloadRef
	containers, inits []string
	labels            map[string]string // of its pods
	overrides         []v1alpha1.ContainerOverride
}

// is reports whether NAME or KIND/NAME means this workload.
func (w *workload) is(text string) bool {
	kind, name := cutLast(text)
	return name == w.ref.Name && (kind == "" || kindOf(kind) == w.ref.Kind)
}

func readWorkload(ctx context.Context, c *cluster.Cluster, namespace string, ref v1alpha1.WorkloadRef) (*workload, error) {
	o := newWorkload(ref.Kind)
	err := c.Objects.Get(ctx, client.ObjectKey{Namespace: namespace, Name: ref.Name}, o)
	if apierrors.IsNotFound(err) {
		return nil, &task.Failure{
			Message: fmt.Sprintf("there is no %s in namespace %s to fork", Name(ref), namespace),
			Remedy:  suggest(ctx, c, namespace), Err: err,
		}
	}
	if err != nil {
		return nil, cluster.Explain(err, "read "+Name(ref))
	}
	w := &workload{ref: ref}
	t := template(o)
	w.labels = t.Labels
	for i := range t.Spec.Containers {
		w.containers = append(w.containers, t.Spec.Containers[i].Name)
	}
	for i := range t.Spec.InitContainers {
		w.inits = append(w.inits, t.Spec.InitContainers[i].Name)
	}
	return w, nil
}

func newWorkload(kind string) client.Object {
	switch kind {
	case "StatefulSet":
		return &appsv1.StatefulSet{}
	case "DaemonSet":
		return &appsv1.DaemonSet{}
	case "ReplicaSet":
		return &appsv1.ReplicaSet{}
	case "CronJob":
		return &batchv1.CronJob{}
	}
	return &appsv1.Deployment{}
}

func template(o client.Object) *corev1.PodTemplateSpec {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	}
	return &corev1.PodTemplateSpec{}
}

// Workload is one that can be forked.
type Workload struct {
	Ref        v1alpha1.WorkloadRef
	Containers []Container
	// Services are those that select its pods: a fork stands in for them.
	Services []string
}

// Container is a container of a workload.
type Container struct {
	Name, Image string
	Init        bool
}

// Workloads lists what can be forked in a namespace, sorted: not the forks of
// sandboxes, and not ReplicaSets that a Deployment makes. Kinds that the user may
// not list are left out; the error is about all of them.
func Workloads(ctx context.Context, c *cluster.Cluster, namespace string) ([]Workload, error) {
	var services corev1.ServiceList
	// Without them it is still known what can be forked.
	_ = c.Objects.List(ctx, &services, client.InNamespace(namespace))
	var out []Workload
	var refused error
	listed := false
	for _, k := range kinds {
		list := k.list()
		if err := c.Objects.List(ctx, list, client.InNamespace(namespace)); err != nil {
			refused = err
			continue
		}
		listed = true
		for _, o := range items(list) {
			if o.GetLabels()[v1alpha1.ForkLabel] != "" || k.kind == "ReplicaSet" && metav1.GetControllerOf(o) != nil {
				continue
			}
			out = append(out, describe(k.kind, o, services.Items))
		}
	}
	if !listed {
		return nil, cluster.Explain(refused, "list the workloads of namespace "+namespace)
	}
	slices.SortFunc(out, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Ref.Kind, b.Ref.Kind), cmp.Compare(a.Ref.Name, b.Ref.Name))
	})
	return out, nil
}

func describe(kind string, o client.Object, services []corev1.Service) Workload {
	w := Workload{Ref: v1alpha1.WorkloadRef{Kind: kind, Name: o.GetName()}}
	t := template(o)
	for _, c := range t.Spec.InitContainers {
		w.Containers = append(w.Containers, Container{c.Name, c.Image, true})
	}
	for _, c := range t.Spec.Containers {
		w.Containers = append(w.Containers, Container{c.Name, c.Image, false})
	}
	for i := range services {
		if selects(&services[i], t.Labels) {
			w.Services = append(w.Services, services[i].Name)
		}
	}
	return w
}

// selects reports whether a Service has pods with these labels behind it.
func selects(svc *corev1.Service, pod map[string]string) bool {
	s := svc.Spec.Selector
	return len(s) > 0 && labels.SelectorFromSet(s).Matches(labels.Set(pod))
}

func items(list client.ObjectList) []client.Object {
	var out []client.Object
	switch l := list.(type) {
	case *appsv1.DeploymentList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *appsv1.StatefulSetList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *appsv1.DaemonSetList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *appsv1.ReplicaSetList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	case *batchv1.CronJobList:
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
	}
	return out
}

// suggest names what could have been meant.
func suggest(ctx context.Context, c *cluster.Cluster, namespace string) string {
	all, err := Workloads(ctx, c, namespace)
	if err != nil || len(all) == 0 {
		return "look for it in other namespaces (-n), or create it first"
	}
	var names []string
	for _, w := range all {
		if len(names) == 10 {
			names = append(names, "…")
			break
		}
		names = append(names, Name(w.Ref))
	}
	return "there are " + strings.Join(names, ", ") + "; -n chooses another namespace"
}

// PodsOf returns the pods that a workload's selector matches: of NAME, which is a
// Deployment's, or of KIND/NAME. There are none where there is no such workload.
func PodsOf(ctx context.Context, c *cluster.Cluster, namespace, text string) ([]corev1.Pod, error) {
	ref, err := ParseWorkload(text)
	if err != nil {
		return nil, err
	}
	o := newWorkload(ref.Kind)
	err = c.Objects.Get(ctx, client.ObjectKey{Namespace: namespace, Name: ref.Name}, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, cluster.Explain(err, "read "+Name(ref))
	}
	var list corev1.PodList
	if err := c.Objects.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels(template(o).Labels)); err != nil {
		return nil, cluster.Explain(err, "list the pods of "+Name(ref))
	}
	return list.Items, nil
}
