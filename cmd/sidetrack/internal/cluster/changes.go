// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"

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
		_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ObjectType:    k.Object,
			ListerWatcher: listerWatcher(ctx, c, k.List, client.ListOptions{Namespace: k.Namespace}),
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
