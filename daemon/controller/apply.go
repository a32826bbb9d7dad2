// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// applier writes objects, and leaves alone those that are as they should be.
type applier struct {
	client client.Client

	mu   sync.Mutex
	done map[types.UID]map[objectKey]applied // by owner
}

// applied is what became of an object that was written.
type applied struct {
	intent     [sha256.Size]byte
	uid        types.UID
	generation int64 // zero for a kind that has none
	version    string
}

// apply has an object become what is wanted. live is what the cache has of it,
// nil for nothing; it may be older than what has been written. It reports
// whether live shows what is wanted already, and whether the object is new.
func (a *applier) apply(ctx context.Context, owner types.UID, want, live client.Object) (settled, created bool, err error) {
	intent, err := toApply(want)
	if err != nil {
		return false, false, err
	}
	text, err := json.Marshal(intent)
	if err != nil {
		return false, false, fmt.Errorf("write %s %s/%s as JSON: %w", intent.GetKind(), intent.GetNamespace(), intent.GetName(), err)
	}
	key := objectKey{intent.GetKind(), intent.GetName()}
	record := applied{intent: sha256.Sum256(text)}
	if have, ok := a.record(owner, key); ok && live != nil && have.intent == record.intent && have.uid == live.GetUID() {
		switch {
		case have.generation == 0 && have.version == live.GetResourceVersion(), have.generation != 0 && have.generation == live.GetGeneration():
			return true, false, nil
		case have.generation > live.GetGeneration(), have.generation == 0 && !reached(live.GetResourceVersion(), have.version):
			return false, false, nil // the cache is behind
		}
	}
	if _, once := want.(*batchv1.Job); once {
		return a.createOnce(ctx, want, live)
	}
	if err := a.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(intent), client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
		return false, false, fmt.Errorf("apply %s %s: %w", intent.GetKind(), intent.GetName(), err)
	}
	// The client has put the answer into it.
	record.uid, record.generation, record.version = intent.GetUID(), intent.GetGeneration(), intent.GetResourceVersion()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = map[types.UID]map[objectKey]applied{}
	}
	if a.done[owner] == nil {
		a.done[owner] = map[objectKey]applied{}
	}
	_, before := a.done[owner][key]
	a.done[owner][key] = record
	unchanged := live != nil && live.GetUID() == record.uid && live.GetResourceVersion() == record.version
	return unchanged, live == nil && !before, nil
}

// createOnce makes an object that nothing of can be changed afterwards.
func (a *applier) createOnce(ctx context.Context, want, live client.Object) (settled, created bool, err error) {
	if live != nil {
		return true, false, nil
	}
	switch err := a.client.Create(ctx, want, client.FieldOwner(FieldManager)); {
	case apierrors.IsAlreadyExists(err):
		return false, false, nil
	case err != nil:
		return false, false, fmt.Errorf("create %s: %w", want.GetName(), err)
	}
	return false, true, nil
}

func (a *applier) record(owner types.UID, key objectKey) (applied, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.done[owner][key]
	return r, ok
}

func (a *applier) forget(owner types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.done, owner)
}

// version is the resource version that an object had when it was written here.
func (a *applier) version(owner types.UID, key objectKey) string {
	r, _ := a.record(owner, key)
	return r.version
}

// remove deletes one of the owner's objects, unless it is another one by now.
func (a *applier) remove(ctx context.Context, o client.Object) error {
	uid, background := o.GetUID(), metav1.DeletePropagationBackground
	err := a.client.Delete(ctx, o, &client.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete %T %s: %w", o, o.GetName(), err)
	}
	return nil
}

// toApply makes what server-side apply wants: the fields that are set, and no
// others.
func toApply(o client.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("convert %T %s: %w", o, o.GetName(), err)
	}
	delete(content, "status")
	withoutNulls(content)
	return &unstructured.Unstructured{Object: content}, nil
}

func withoutNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
				continue
			}
			withoutNulls(e)
		}
	case []any:
		for _, e := range v {
			withoutNulls(e)
		}
	}
}

// userError reports whether the API server refuses an object for what it is, so
// that trying again does not help.
func userError(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err)
}
