// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// grantPoll is how often the API server is asked for a resource that it does not
// have.
const grantPoll = 10 * time.Second

// grants follows ReferenceGrants, which a cluster need not have: they are looked
// for until they are there.
type grants struct {
	mapper meta.RESTMapper
	cache  cache.Cache
	poll   time.Duration
	log    *slog.Logger
	events chan event.GenericEvent

	kind  atomic.Pointer[schema.GroupVersionKind] // set once they are followed
	asked atomic.Bool                             // the API server has said whether there are any
}

// Start follows them until the context ends.
func (g *grants) Start(ctx context.Context) error {
	for {
		mapping, err := g.mapper.RESTMapping(schema.GroupKind{Group: gatewayv1.GroupName, Kind: "ReferenceGrant"})
		switch {
		case meta.IsNoMatchError(err):
			g.asked.Store(true)
		case err != nil:
			g.log.Warn("cannot ask for the kind ReferenceGrant", "error", err)
		default:
			return g.follow(ctx, mapping.GroupVersionKind)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(g.poll):
		}
	}
}

func (g *grants) follow(ctx context.Context, kind schema.GroupVersionKind) error {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(kind)
	informer, err := g.cache.GetInformer(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("follow ReferenceGrants: %w", err)
	}
	send := func(o any) {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if o, ok := o.(client.Object); ok {
			select {
			case g.events <- event.GenericEvent{Object: o}:
			case <-ctx.Done():
			}
		}
	}
	g.kind.Store(&kind)
	g.asked.Store(true)
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    send,
		UpdateFunc: func(_, o any) { send(o) },
		DeleteFunc: send,
	}); err != nil {
		return fmt.Errorf("follow ReferenceGrants: %w", err)
	}
	g.log.Info("follows ReferenceGrants", "version", kind.Version)
	<-ctx.Done()
	return nil
}

// known reports whether list can be believed.
func (g *grants) known() bool { return g.asked.Load() }

// list returns the grants of a namespace, and whether the cluster has the kind.
func (g *grants) list(ctx context.Context, namespace string) ([]gatewayv1.ReferenceGrant, bool, error) {
	kind := g.kind.Load()
	if kind == nil {
		return nil, false, nil
	}
	var all unstructured.UnstructuredList
	all.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	if err := g.cache.List(ctx, &all, client.InNamespace(namespace)); err != nil {
		return nil, true, fmt.Errorf("list ReferenceGrants of %s: %w", namespace, err)
	}
	out := make([]gatewayv1.ReferenceGrant, len(all.Items))
	for i := range all.Items {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(all.Items[i].Object, &out[i]); err != nil {
			return nil, true, fmt.Errorf("read ReferenceGrant %s/%s: %w", namespace, all.Items[i].GetName(), err)
		}
	}
	return out, true, nil
}
