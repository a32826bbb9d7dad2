// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// How Follow ends when neither its function nor the context ends it.
var (
	ErrGivenUp = errors.New("given up")
	ErrTimeout = errors.New("the time is over")
)

// Follow calls f with an object as it is and whenever it has changed, with nil
// when it is not there, until f says that it is done or fails. It goes on when the
// connection to the API server is lost meanwhile. A timeout above zero ends it with
// ErrTimeout. giveUp, which may be nil and is asked after each call, ends it with
// ErrGivenUp when what it returns fires. The error is the API server's own
// otherwise. kind and list are empty objects.
func Follow[T client.Object](ctx context.Context, c *Cluster, kind T, list client.ObjectList, key client.ObjectKey, timeout time.Duration,
	f func(T) (bool, error), giveUp func() <-chan time.Time,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A watch says nothing about what is not there, and its errors are only logged.
	now, none := kind.DeepCopyObject().(T), *new(T)
	err := c.Objects.Get(ctx, key, now)
	if apierrors.IsNotFound(err) && !isMissingKind(err) {
		now, err = none, nil
	}
	if err != nil {
		return err
	}
	if done, err := f(now); done || err != nil {
		return err
	}
	var over <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		over = t.C
	}
	store, informer, events, done := watchtools.NewIndexerInformerWatcherWithLogger(klog.FromContext(ctx), only(ctx, c, list, key), kind)
	defer func() {
		events.Stop()
		<-done
	}()
	// What was deleted before the informer's first list leaves no event.
	listed := time.NewTicker(50 * time.Millisecond)
	defer listed.Stop()
	for {
		var given <-chan time.Time
		if giveUp != nil {
			given = giveUp()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return ErrTimeout
		case <-given:
			return ErrGivenUp
		case <-listed.C:
			if !informer.HasSynced() {
				continue
			}
			listed.Stop()
			if len(store.List()) > 0 {
				continue
			}
			if done, err := f(none); done || err != nil {
				return err
			}
		case e, ok := <-events.ResultChan():
			if !ok {
				return errors.New("the API server has ended the watch")
			}
			o, _ := e.Object.(T)
			if e.Type == watch.Deleted {
				o = none
			}
			if done, err := f(o); done || err != nil {
				return err
			}
		}
	}
}

// only lists and watches one object.
func only(ctx context.Context, c *Cluster, list client.ObjectList, key client.ObjectKey) cache.ListerWatcher {
	return listerWatcher(ctx, c, list, client.ListOptions{Namespace: key.Namespace, FieldSelector: fields.OneTermEqualSelector("metadata.name", key.Name)})
}

// listerWatcher lists and watches those that of chooses, until the context ends. list is an
// empty object.
func listerWatcher(ctx context.Context, c *Cluster, list client.ObjectList, of client.ListOptions) cache.ListerWatcher {
	options := func(o metav1.ListOptions) *client.ListOptions {
		with := of
		with.Raw = &o
		return &with
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
			got, _ := list.DeepCopyObject().(client.ObjectList)
			err := c.Objects.List(ctx, got, options(o))
			return got, err
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			got, _ := list.DeepCopyObject().(client.ObjectList)
			return c.Objects.Watch(ctx, got, options(o))
		},
	}
}
