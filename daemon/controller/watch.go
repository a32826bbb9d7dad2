// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// Names of the cache's indexes.
const (
	// indexKey finds objects by the routing key that they want or have.
	indexKey = "routingKey"
	// indexTarget finds them by "namespace/name" of the Services that they redirect
	// to, as spec and status say.
	indexTarget = "target"
	// indexGrants finds them by the namespaces, other than their own, that they
	// refer to.
	indexGrants = "grants"
)

// addIndexes must be called before the cache is started.
func addIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	for _, i := range []struct {
		object client.Object
		name   string
		values func(client.Object) []string
	}{
		{&v1alpha1.Sandbox{}, indexKey, keysOf},
		{&v1alpha1.RouteGroup{}, indexKey, keysOf},
		{&v1alpha1.Sandbox{}, indexTarget, targetsOf},
		{&v1alpha1.RouteGroup{}, indexTarget, targetsOf},
		{&v1alpha1.Sandbox{}, indexGrants, grantNamespaces},
	} {
		if err := indexer.IndexField(ctx, i.object, i.name, i.values); err != nil {
			return err
		}
	}
	return nil
}

func keysOf(o client.Object) []string {
	var spec, status string
	switch o := o.(type) {
	case *v1alpha1.Sandbox:
		spec, status = o.Spec.RoutingKey, o.Status.RoutingKey
	case *v1alpha1.RouteGroup:
		spec, status = o.Spec.RoutingKey, o.Status.RoutingKey
	}
	return distinct(spec, status)
}

func targetsOf(o client.Object) []string {
	var out []string
	add := func(to v1alpha1.RedirectTo) {
		if to.Service != "" {
			out = append(out, cmp.Or(to.Namespace, o.GetNamespace())+"/"+to.Service)
		}
	}
	var status []v1alpha1.RedirectStatus
	switch o := o.(type) {
	case *v1alpha1.Sandbox:
		for _, r := range o.Spec.Redirects {
			add(r.To)
		}
		status = o.Status.Redirects
	case *v1alpha1.RouteGroup:
		status = o.Status.Redirects
	}
	for _, r := range status {
		add(r.To)
	}
	return distinct(out...)
}

func grantNamespaces(o client.Object) []string {
	var out []string
	for _, r := range o.(*v1alpha1.Sandbox).Spec.Redirects {
		if r.To.Namespace != o.GetNamespace() {
			out = append(out, r.To.Namespace)
		}
	}
	return distinct(out...)
}

func distinct(in ...string) []string {
	var out []string
	seen := map[string]bool{"": true}
	for _, s := range in {
		if !seen[s] {
			out = append(out, s)
		}
		seen[s] = true
	}
	return out
}

func requestOf(o client.Object) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}}
}

// enqueuer turns other objects' events into requests.
type enqueuer struct {
	reader client.Reader
	log    *slog.Logger
}

type mapper func(context.Context, client.Object) []reconcile.Request

func (m mapper) handler() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(handler.MapFunc(m))
}

func (e *enqueuer) sandboxes(ctx context.Context, options ...client.ListOption) []reconcile.Request {
	var all v1alpha1.SandboxList
	if err := e.reader.List(ctx, &all, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		e.log.Error("cannot find the Sandboxes that an event concerns", "error", err)
		return nil
	}
	out := make([]reconcile.Request, len(all.Items))
	for i := range all.Items {
		out[i] = requestOf(&all.Items[i])
	}
	return out
}

func (e *enqueuer) groups(ctx context.Context, options ...client.ListOption) []reconcile.Request {
	var all v1alpha1.RouteGroupList
	if err := e.reader.List(ctx, &all, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		e.log.Error("cannot find the RouteGroups that an event concerns", "error", err)
		return nil
	}
	out := make([]reconcile.Request, len(all.Items))
	for i := range all.Items {
		out[i] = requestOf(&all.Items[i])
	}
	return out
}

// others are those that want the same key: one of them may get it now.
func others(list func(context.Context, ...client.ListOption) []reconcile.Request) mapper {
	return func(ctx context.Context, o client.Object) (out []reconcile.Request) {
		for _, key := range keysOf(o) {
			out = append(out, list(ctx, client.MatchingFields{indexKey: key})...)
		}
		return out
	}
}

func ofNamespace(list func(context.Context, ...client.ListOption) []reconcile.Request) mapper {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return list(ctx, client.InNamespace(o.GetNamespace()))
	}
}

// ofService are those to whom a Service matters: all of its namespace, where
// forks may stand in for it, and those elsewhere that redirect to it.
func ofService(list func(context.Context, ...client.ListOption) []reconcile.Request) mapper {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return append(list(ctx, client.InNamespace(o.GetNamespace())),
			list(ctx, client.MatchingFields{indexTarget: o.GetNamespace() + "/" + o.GetName()})...)
	}
}

func ofSlice(list func(context.Context, ...client.ListOption) []reconcile.Request) mapper {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		service := o.GetLabels()[discoveryv1.LabelServiceName]
		if service == "" {
			return nil
		}
		return list(ctx, client.MatchingFields{indexTarget: o.GetNamespace() + "/" + service})
	}
}

func ofPod(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetLabels()[v1alpha1.SandboxLabel]
	if name == "" || o.GetLabels()[forkLabel] == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

// specChanged leaves out changes of a status.
var specChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() || ended(e)
	},
}

// serviceChanged is the same for Services, which have no generation.
var serviceChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		old, ok1 := e.ObjectOld.(*corev1.Service)
		now, ok2 := e.ObjectNew.(*corev1.Service)
		return !ok1 || !ok2 || ended(e) || !equality.Semantic.DeepEqual(old.Spec, now.Spec)
	},
}

func ended(e event.UpdateEvent) bool {
	return (e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
}

// notOurs leaves out what forks consist of.
var notOurs = predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetLabels()[forkLabel] == "" })

// signals tell reconcilers about what is no object.
type signals struct {
	// all asks to look at every object again: nodes have come, gone or fallen
	// silent.
	allSandboxes, allGroups chan event.GenericEvent
	grants                  chan event.GenericEvent
}

// addSandboxes starts following everything that Sandboxes depend on.
func addSandboxes(m manager.Manager, r *sandboxes, s signals, log *slog.Logger, workers int) error {
	e := &enqueuer{reader: m.GetClient(), log: log}
	named := ofNamespace(e.sandboxes)
	b := builder.ControllerManagedBy(m).Named("sandbox").
		For(&v1alpha1.Sandbox{}).
		Owns(&appsv1.Deployment{}).Owns(&batchv1.Job{}).Owns(&corev1.Service{}, builder.WithPredicates(serviceChanged)).
		Watches(&v1alpha1.Sandbox{}, others(e.sandboxes).handler()).
		Watches(&v1alpha1.RouteGroup{}, others(e.sandboxes).handler()).
		Watches(&corev1.Pod{}, mapper(ofPod).handler()).
		Watches(&corev1.Service{}, ofService(e.sandboxes).handler(), builder.WithPredicates(notOurs, serviceChanged)).
		Watches(&discoveryv1.EndpointSlice{}, ofSlice(e.sandboxes).handler())
	for _, o := range []client.Object{&corev1.ReplicationController{}, &appsv1.Deployment{}, &appsv1.StatefulSet{}, &appsv1.DaemonSet{}, &appsv1.ReplicaSet{}, &batchv1.CronJob{}, &batchv1.Job{}, &policyv1.PodDisruptionBudget{}} {
		b = b.Watches(o, named.handler(), builder.WithPredicates(notOurs, specChanged))
	}
	return b.
		Watches(&v1alpha1.NodeState{}, waiters(r.memory).handler()).
		WatchesRawSource(source.Channel(s.allSandboxes, everything(r.memory).handler())).
		WatchesRawSource(source.Channel(s.grants, mapper(func(ctx context.Context, o client.Object) []reconcile.Request {
			return e.sandboxes(ctx, client.MatchingFields{indexGrants: o.GetNamespace()})
		}).handler())).
		WithOptions(options(workers)).
		Complete(r)
}

// addGroups starts following everything that RouteGroups depend on.
func addGroups(m manager.Manager, r *groups, s signals, log *slog.Logger, workers int) error {
	e := &enqueuer{reader: m.GetClient(), log: log}
	return builder.ControllerManagedBy(m).Named("routegroup").
		For(&v1alpha1.RouteGroup{}).
		Watches(&v1alpha1.RouteGroup{}, others(e.groups).handler()).
		Watches(&v1alpha1.Sandbox{}, mapper(func(ctx context.Context, o client.Object) []reconcile.Request {
			return append(ofNamespace(e.groups)(ctx, o), others(e.groups)(ctx, o)...)
		}).handler()).
		Watches(&corev1.Service{}, ofService(e.groups).handler(), builder.WithPredicates(serviceChanged)).
		Watches(&discoveryv1.EndpointSlice{}, ofSlice(e.groups).handler()).
		Watches(&v1alpha1.NodeState{}, waiters(r.memory).handler()).
		WatchesRawSource(source.Channel(s.allGroups, everything(r.memory).handler())).
		WithOptions(options(workers)).
		Complete(r)
}

func options(workers int) controller.Options {
	warm := true
	return controller.Options{MaxConcurrentReconciles: workers, EnableWarmup: &warm}
}

func waiters(m *memory) mapper {
	return func(context.Context, client.Object) []reconcile.Request { return m.waiters() }
}

func everything(m *memory) mapper {
	return func(context.Context, client.Object) []reconcile.Request { return m.all() }
}

// nodeWatch looks at nodes and their agents, and has everything looked at again
// when one of them becomes covered or uncovered: falling silent is no event.
type nodeWatch struct {
	base
	every time.Duration
	ask   time.Duration // how often the API server is asked whether it is there
	out   []chan event.GenericEvent
	log   *slog.Logger
}

const (
	askEvery  = 5 * time.Second
	askWithin = 3 * time.Second
)

// there reports whether the API server answers: while it does not, that agents
// are silent says nothing of them.
func (n *nodeWatch) there(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return n.live.List(ctx, &v1alpha1.NodeStateList{}, client.Limit(1)) == nil
}

// Start looks until the context ends.
func (n *nodeWatch) Start(ctx context.Context) error {
	last := ""
	var asked time.Time
	tick := time.NewTicker(n.every)
	defer tick.Stop()
	for {
		if n.now().Sub(asked) >= n.ask {
			if asked = n.now(); !n.there(ctx) {
				n.beats.pause(n.now())
			}
		}
		v := view{ctx: ctx, reader: n.client}
		c := v.cluster(n.beats, n.nodes, n.now())
		switch now := c.signature(); {
		case v.err != nil:
			n.log.Warn("cannot look at the nodes", "error", v.err)
		case now != last:
			last = now
			for _, ch := range n.out {
				select {
				case ch <- event.GenericEvent{Object: &corev1.Node{}}:
				case <-ctx.Done():
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
