// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// selecting is an object that selects pods.
type selecting struct {
	kind, name string
	selector   labels.Selector
}

func (s selecting) String() string { return s.kind + "/" + s.name }

// selectorOf returns what an object selects pods by; false when it selects none,
// or when it has been made for forks.
func selectorOf(o client.Object) (selecting, bool) {
	if o.GetLabels()[forkLabel] != "" {
		return selecting{}, false
	}
	var kind string
	var s *metav1.LabelSelector
	switch o := o.(type) {
	case *corev1.Service:
		// A Service without a selector, or that is a name only, has no pods.
		if len(o.Spec.Selector) == 0 || o.Spec.Type == corev1.ServiceTypeExternalName {
			return selecting{}, false
		}
		kind, s = "Service", &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
	case *corev1.ReplicationController:
		if len(o.Spec.Selector) == 0 {
			return selecting{}, false
		}
		kind, s = "ReplicationController", &metav1.LabelSelector{MatchLabels: o.Spec.Selector}
	case *appsv1.Deployment:
		kind, s = "Deployment", o.Spec.Selector
	case *appsv1.ReplicaSet:
		kind, s = "ReplicaSet", o.Spec.Selector
	case *appsv1.StatefulSet:
		kind, s = "StatefulSet", o.Spec.Selector
	case *appsv1.DaemonSet:
		kind, s = "DaemonSet", o.Spec.Selector
	case *batchv1.Job:
		kind, s = "Job", o.Spec.Selector
	case *policyv1.PodDisruptionBudget:
		// An empty selector is every pod of the namespace.
		kind, s = "PodDisruptionBudget", o.Spec.Selector
	}
	if s == nil {
		return selecting{}, false
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || wantsForks(selector) {
		return selecting{}, false
	}
	return selecting{kind, o.GetName(), selector}, true
}

// wantsForks reports whether a selector names a label that only Sidetrack's pods
// have: whoever has written it means them.
func wantsForks(s labels.Selector) bool {
	requirements, _ := s.Requirements()
	return slices.ContainsFunc(requirements, func(r labels.Requirement) bool {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals, selection.Exists:
			return strings.HasPrefix(r.Key(), labelPrefix)
		}
		return false
	})
}

// forkPodLabels are the labels that a fork's pods will carry: those of the
// template and the ones that are added on the way.
func forkPodLabels(template map[string]string, job string) labels.Set {
	set := labels.Set{}
	maps.Copy(set, template)
	if job != "" {
		set[batchv1.JobNameLabel], set["job-name"] = job, job
		set[batchv1.ControllerUidLabel], set["controller-uid"] = "any", "any"
		return set
	}
	set[appsv1.DefaultDeploymentUniqueLabelKey] = "any"
	return set
}

// selectedByOthers refuses a fork whose pods one of the namespace's objects would
// take for its own.
func selectedByOthers(pod labels.Set, all []selecting) *refusal {
	var by []string
	for _, s := range all {
		if s.selector.Matches(pod) {
			by = append(by, fmt.Sprintf("%s (%s)", s, describeSelector(s.selector)))
		}
	}
	if by == nil {
		return nil
	}
	slices.Sort(by)
	return refuse(reasonSelected, "its pods would be selected by %s and taken for the baseline's: "+
		"set labels with patch.metadata.labels that this does not match, or have it leave out pods with the label %s",
		join(by, ", "), forkLabel)
}

func describeSelector(s labels.Selector) string {
	if s.Empty() {
		return "every pod"
	}
	return s.String()
}
