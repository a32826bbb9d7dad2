// SPDX-License-Identifier: Apache-2.0

package controller

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// maxNote is what the API takes as an Event's note.
const maxNote = 1024

// quietReasons pass by themselves within moments, so nobody needs an Event.
var quietReasons = map[string]bool{
	reasonStarting: true, reasonWaiting: true, reasonNotAccepted: true, reasonNotForked: true, reasonNotProgramed: true, reasonNoEndpoints: true,
}

// tellConditions writes an Event for every condition whose reason has changed.
func tellConditions(r events.EventRecorder, about runtime.Object, before, after []metav1.Condition) {
	for _, c := range after {
		old := meta.FindStatusCondition(before, c.Type)
		if old != nil && old.Status == c.Status && old.Reason == c.Reason {
			continue
		}
		note := short(c.Message, maxNote-8)
		switch {
		case c.Status == metav1.ConditionTrue && c.Type == v1alpha1.ConditionReady:
			r.Eventf(about, nil, corev1.EventTypeNormal, c.Reason, "Reconcile", "%s", note)
		case c.Status == metav1.ConditionTrue && old != nil && old.Status == metav1.ConditionFalse && !quietReasons[old.Reason]:
			r.Eventf(about, nil, corev1.EventTypeNormal, c.Reason, "Reconcile", "%s", note)
		case c.Status == metav1.ConditionFalse && !quietReasons[c.Reason]:
			r.Eventf(about, nil, corev1.EventTypeWarning, c.Reason, "Reconcile", "%s", note)
		case c.Status == metav1.ConditionFalse && c.Type == v1alpha1.ConditionReady && old != nil && old.Status == metav1.ConditionTrue:
			r.Eventf(about, nil, corev1.EventTypeNormal, "NotReady", "Reconcile", "%s", note)
		}
	}
}
