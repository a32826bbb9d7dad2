// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// writeStatus applies a status, if the object is still the one that it was
// decided from, and returns the object's new resource version.
func writeStatus(ctx context.Context, c client.Client, kind schema.GroupVersionKind, o metav1.Object, status any) (string, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return "", fmt.Errorf("convert the status of %s %s: %w", kind.Kind, o.GetName(), err)
	}
	withoutNulls(content)
	u := &unstructured.Unstructured{Object: map[string]any{"status": content}}
	u.SetGroupVersionKind(kind)
	u.SetNamespace(o.GetNamespace())
	u.SetName(o.GetName())
	u.SetUID(o.GetUID())
	u.SetResourceVersion(o.GetResourceVersion())
	if err := c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
		return "", fmt.Errorf("write the status of %s %s/%s: %w", kind.Kind, o.GetNamespace(), o.GetName(), err)
	}
	return u.GetResourceVersion(), nil
}
