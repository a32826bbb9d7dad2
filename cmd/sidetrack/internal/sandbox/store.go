// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/csaupgrade"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Create creates a sandbox, which must not be there yet. The API server validates
// it, and sets its defaults in sb. With dryRun nothing is stored.
func Create(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, dryRun bool) error {
	options := []client.CreateOption{client.FieldOwner(cluster.FieldManager)}
	if dryRun {
		options = append(options, client.DryRunAll)
	}
	err := c.Objects.Create(ctx, sb, options...)
	if apierrors.IsAlreadyExists(err) {
		return &task.Failure{
			Message: fmt.Sprintf("there is a sandbox %s in namespace %s already", sb.Name, sb.Namespace),
			Remedy:  "change it with --update, delete it first, or take another name", Err: err,
		}
	}
	return cluster.Explain(err, "create sandbox "+sb.Name)
}

// Apply creates a sandbox or changes the one that is there into it, by
// server-side apply: fields that it does not have, and that this program has set
// before, are removed; those of other field managers are kept, and taken over
// where both set them. A routing key, which cannot be changed, stays when sb has
// none. sb becomes what the API server has made of it.
func Apply(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, dryRun bool) error {
	doing := "apply sandbox " + sb.Name
	var live v1alpha1.Sandbox
	err := c.Objects.Get(ctx, client.ObjectKeyFromObject(sb), &live)
	if err != nil && (!apierrors.IsNotFound(err) || isMissing(err)) {
		return cluster.Explain(err, doing)
	}
	want := sb.DeepCopy()
	if err == nil {
		if want.Spec.RoutingKey == "" {
			want.Spec.RoutingKey = live.Spec.RoutingKey
		}
		if err := ownCreated(ctx, c, &live, dryRun); err != nil {
			return cluster.Explain(err, doing)
		}
	}
	u, err := intent(want)
	if err != nil {
		return err
	}
	options := []client.ApplyOption{client.FieldOwner(cluster.FieldManager), client.ForceOwnership}
	if dryRun {
		options = append(options, client.DryRunAll)
	}
	if err := c.Objects.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), options...); err != nil {
		return cluster.Explain(err, doing)
	}
	var got v1alpha1.Sandbox
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &got); err != nil {
		return fmt.Errorf("read sandbox %s: %w", sb.Name, err)
	}
	*sb = got
	return nil
}

// ownCreated has what Create has set count as applied: else apply would leave for
// ever what is not wanted any more.
func ownCreated(ctx context.Context, c *cluster.Cluster, live *v1alpha1.Sandbox, dryRun bool) error {
	patch, err := csaupgrade.UpgradeManagedFieldsPatch(live, sets.New(cluster.FieldManager), cluster.FieldManager)
	if err != nil || len(patch) == 0 || dryRun {
		return err
	}
	err = c.Objects.Patch(ctx, live, client.RawPatch(types.JSONPatchType, patch))
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile
	}
	return err
}

// intent is what somebody wants of an object: its name and its spec, without what
// is empty.
func intent(sb *v1alpha1.Sandbox) (*unstructured.Unstructured, error) {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&sb.Spec)
	if err != nil {
		return nil, fmt.Errorf("write sandbox %s: %w", sb.Name, err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind))
	u.SetNamespace(sb.Namespace)
	u.SetName(sb.Name)
	u.SetLabels(sb.Labels)
	u.SetAnnotations(sb.Annotations)
	return u, nil
}

// Get reads a sandbox. An empty namespace is the connection's.
func Get(ctx context.Context, c *cluster.Cluster, namespace, name string) (*v1alpha1.Sandbox, error) {
	key := keyOf(c, namespace, name)
	var sb v1alpha1.Sandbox
	if err := c.Objects.Get(ctx, key, &sb); err != nil {
		return nil, explainGet(ctx, c, err, key)
	}
	return &sb, nil
}

func keyOf(c *cluster.Cluster, namespace, name string) client.ObjectKey {
	if namespace == "" {
		namespace = c.Namespace
	}
	return client.ObjectKey{Namespace: namespace, Name: name}
}

// explainGet names the sandboxes that there are when one is not there.
func explainGet(ctx context.Context, c *cluster.Cluster, err error, key client.ObjectKey) error {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !asStatus(err, &status) || status.Status().Details == nil || status.Status().Details.Name == "" {
		return cluster.Explain(err, "read sandbox "+key.Name)
	}
	return notThere(ctx, c, err, key)
}

func notThere(ctx context.Context, c *cluster.Cluster, err error, key client.ObjectKey) error {
	all, _ := List(ctx, c, key.Namespace, "")
	return c.NotThere(ctx, err, "sandbox", key, join(namesOf(all), 10))
}

// List lists the sandboxes of a namespace, or of all namespaces where it is
// metav1.NamespaceAll, which match a label selector.
func List(ctx context.Context, c *cluster.Cluster, namespace, selector string) ([]v1alpha1.Sandbox, error) {
	var list v1alpha1.SandboxList
	err := c.Objects.List(ctx, &list, client.InNamespace(namespace), &client.ListOptions{Raw: &metav1.ListOptions{LabelSelector: selector}})
	if err != nil {
		return nil, cluster.Explain(err, "list the sandboxes")
	}
	return list.Items, nil
}

// Delete deletes a sandbox; its forks go with it. It does not wait.
func Delete(ctx context.Context, c *cluster.Cluster, namespace, name string) error {
	key := keyOf(c, namespace, name)
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	err := c.Objects.Delete(ctx, sb, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if apierrors.IsNotFound(err) {
		return explainGet(ctx, c, err, key)
	}
	return cluster.Explain(err, "delete sandbox "+name)
}
