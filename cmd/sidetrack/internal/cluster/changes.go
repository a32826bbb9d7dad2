// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Kind is what Changes watches: empty objects, and a namespace or "" for all.
type Kind struct {
	Object    client.Object
	List      client.ObjectList
	Namespace string
}

// Changes tells of changes of these kinds' objects until the context ends, and once of
// what there is: who is slow to receive is told once of several. It goes on when the
// connection to the API server is lost; what goes wrong meanwhile is for whoever looks
// at the objects to find.
func Changes(ctx context.Context, c *Cluster, kinds ...Kind) <-chan struct{} {
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for _, k := range kinds {
		options := func(o metav1.ListOptions) *client.ListOptions {
			return &client.ListOptions{Namespace: k.Namespace, Raw: &o}
		}
		_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ObjectType: k.Object,
			ListerWatcher: &cache.ListWatch{
				ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
					got, _ := k.List.DeepCopyObject().(client.ObjectList)
					err := c.Objects.List(ctx, got, options(o))
					return got, err
				},
				WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
					got, _ := k.List.DeepCopyObject().(client.ObjectList)
					return c.Objects.Watch(ctx, got, options(o))
				},
			},
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { tell() },
				UpdateFunc: func(any, any) { tell() },
				DeleteFunc: func(any) { tell() },
			},
		})
		go informer.RunWithContext(ctx)
	}
	return changed
}
