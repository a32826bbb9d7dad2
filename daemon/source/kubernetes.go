// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// gather is how long a change waits for those that come with it: who makes a
	// Service makes its EndpointSlice too.
	gather = 2 * time.Millisecond
	// lagInterval is how often versions are told that no change waits for.
	lagInterval = 5 * time.Second
)

// Kubernetes follows the objects of a cluster through its API server: Services,
// EndpointSlices, Sandboxes and RouteGroups of all namespaces, and the pods of
// one node. It keeps of each only what routing needs. While the server cannot be
// reached nothing changes; when it is back, whatever has happened meanwhile is
// one change.
type Kubernetes struct {
	node string
	log  *slog.Logger

	mu     sync.Mutex
	pods   *watched[*corev1.Pod, pods.Pod]
	svcs   *watched[*corev1.Service, routing.Service]
	slices *watched[*discoveryv1.EndpointSlice, routing.EndpointSlice]
	boxes  *watched[*v1alpha1.Sandbox, routing.Sandbox]
	groups *watched[*v1alpha1.RouteGroup, routing.Sandbox]
	// concerned are the Services that sandboxes name, and how often; all says that a
	// pod here wants every Service known.
	concerned map[routing.Name]int
	all       bool
	// since is when the oldest change was seen that no snapshot has. fresh says that
	// there is one, told that only versions differ, lag that these can wait.
	since      time.Time
	fresh, lag bool
	told       Versions          // of the last snapshot
	failing    map[string]string // by kind, what was last said

	wake    chan struct{}
	out     chan Snapshot
	cancel  context.CancelFunc
	stopped sync.WaitGroup
}

// OpenKubernetes begins to follow a cluster; node is the name of the Node object
// that stands for this machine. It returns before the server has answered: the
// first Snapshot comes when everything is known.
func OpenKubernetes(cfg *rest.Config, node string, log *slog.Logger) (*Kubernetes, error) {
	core, err := restClient(cfg, corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	discovery, err := restClient(cfg, discoveryv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	ours, err := restClient(cfg, v1alpha1.GroupVersion)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &Kubernetes{
		node:    node,
		log:     log,
		failing: map[string]string{},
		wake:    make(chan struct{}, 1),
		out:     make(chan Snapshot),
		cancel:  cancel,
	}
	k.make()
	follow(ctx, k, k.pods, core, "pods", &corev1.Pod{}, fields.OneTermEqualSelector("spec.nodeName", node))
	follow(ctx, k, k.svcs, core, "services", &corev1.Service{}, nil)
	follow(ctx, k, k.slices, discovery, "endpointslices", &discoveryv1.EndpointSlice{}, nil)
	follow(ctx, k, k.boxes, ours, "sandboxes", &v1alpha1.Sandbox{}, nil)
	follow(ctx, k, k.groups, ours, "routegroups", &v1alpha1.RouteGroup{}, nil)
	k.stopped.Go(func() { k.run(ctx) })
	return k, nil
}

// Snapshots is where each change arrives. Changes that come while nobody takes one
// are in the next.
func (k *Kubernetes) Snapshots() <-chan Snapshot { return k.out }

// Close ends it. No Snapshot comes afterwards.
func (k *Kubernetes) Close() error {
	k.cancel()
	k.stopped.Wait()
	return nil
}

// restClient talks to one API group, with no limit of its own: watches are few.
func restClient(cfg *rest.Config, gv schema.GroupVersion) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("kubernetes: register kinds: %w", err)
		}
	}
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion = &gv
	cfg.APIPath = "/apis"
	if gv.Group == "" {
		cfg.APIPath = "/api"
	}
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.QPS = -1
	if gv.Group != v1alpha1.Group {
		// Custom resources have no protobuf.
		cfg.ContentType = runtime.ContentTypeProtobuf
		cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return c, nil
}

func (k *Kubernetes) make() {
	k.concerned = map[routing.Name]int{}
	service := func(name routing.Name) bool {
		return k.all || k.concerned[name] > 0 || k.concerned[everyService(name.Namespace)] > 0
	}
	k.pods = &watched[*corev1.Pod, pods.Pod]{
		of: k, name: "Pods", objects: map[routing.Name]entry[pods.Pod]{},
		convert: func(o *corev1.Pod) (pods.Pod, bool, []routing.Problem) {
			p, alive := convertClusterPod(o)
			return p, alive, podAdvice(o)
		},
		concerns: func(routing.Name, *pods.Pod) bool { return true },
	}
	k.svcs = &watched[*corev1.Service, routing.Service]{
		of: k, name: "Services", objects: map[routing.Name]entry[routing.Service]{},
		convert: func(o *corev1.Service) (routing.Service, bool, []routing.Problem) {
			s, errs := convertService(o)
			return s, true, objectProblems("Service", s.Name, errs)
		},
		concerns: func(name routing.Name, _ *routing.Service) bool { return service(name) },
		counted:  true,
	}
	k.slices = &watched[*discoveryv1.EndpointSlice, routing.EndpointSlice]{
		of: k, name: "EndpointSlices", objects: map[routing.Name]entry[routing.EndpointSlice]{},
		convert: func(o *discoveryv1.EndpointSlice) (routing.EndpointSlice, bool, []routing.Problem) {
			s, useful, errs := convertSlice(o)
			return s, useful, objectProblems("EndpointSlice", s.Name, errs)
		},
		concerns: func(name routing.Name, s *routing.EndpointSlice) bool {
			return service(routing.Name{Namespace: name.Namespace, Name: s.Service})
		},
		counted: true,
	}
	k.boxes = &watched[*v1alpha1.Sandbox, routing.Sandbox]{
		of: k, name: "Sandboxes", objects: map[routing.Name]entry[routing.Sandbox]{},
		convert: func(o *v1alpha1.Sandbox) (routing.Sandbox, bool, []routing.Problem) {
			return convertClusterSandbox(o), true, nil
		},
		concerns: func(routing.Name, *routing.Sandbox) bool { return true },
		names:    concernedBy,
		revision: func(o *v1alpha1.Sandbox) int64 { return o.Status.Revision },
	}
	k.groups = &watched[*v1alpha1.RouteGroup, routing.Sandbox]{
		of: k, name: "RouteGroups", objects: map[routing.Name]entry[routing.Sandbox]{},
		convert: func(o *v1alpha1.RouteGroup) (routing.Sandbox, bool, []routing.Problem) {
			return convertClusterGroup(o), true, nil
		},
		concerns: func(routing.Name, *routing.Sandbox) bool { return true },
		names:    concernedBy,
		revision: func(o *v1alpha1.RouteGroup) int64 { return o.Status.Revision },
	}
}

func objectProblems(kind string, name routing.Name, errs field.ErrorList) []routing.Problem {
	var out []routing.Problem
	for _, err := range errs {
		out = append(out, routing.Problem{Kind: kind, Object: name, Field: err.Field, Message: err.Detail})
	}
	return out
}

// follow keeps w as the server has it until ctx is over.
func follow[O metav1.Object, V any](ctx context.Context, k *Kubernetes, w *watched[O, V], c rest.Interface, resource string, example runtime.Object, which fields.Selector) {
	if which == nil {
		which = fields.Everything()
	}
	lw := cache.NewListWatchFromClient(c, resource, metav1.NamespaceAll, which)
	// What goes wrong is said by heard, once, and not at each attempt.
	silence := klog.Logger(logr.Discard())
	ctx = klog.NewContext(ctx, silence)
	told := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContext(ctx, o)
			k.heard(ctx, w.name, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			events, err := lw.WatchWithContext(ctx, o)
			k.heard(ctx, w.name, err)
			return events, err
		},
	}
	r := cache.NewReflectorWithOptions(told, example, w, cache.ReflectorOptions{
		Name:   "sidetrack " + resource,
		Logger: &silence,
		// Not client-go's 30 to 60 seconds: for so long after an outage the node
		// would act by what was.
		Backoff: &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.6, Jitter: 0.5, Steps: 7, Cap: 4 * time.Second},
	})
	k.stopped.Go(func() { r.RunWithContext(ctx) })
}

// heard says once what keeps a kind from being followed, and once that it is again.
func (k *Kubernetes) heard(ctx context.Context, kind string, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // what is known is out of date, so all of it is listed
	}
	var text string
	switch {
	case err == nil:
	case apierrors.IsNotFound(err):
		text = "the API server does not know " + kind + ": install the CRDs, Helm chart sidetrack-crds"
	case apierrors.IsForbidden(err):
		text = "the agent may not list and watch " + kind + ": give its service account the ClusterRole of the installation"
	default:
		// Without the address, which is different each time.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		text = err.Error()
	}
	k.mu.Lock()
	was := k.failing[kind]
	k.failing[kind] = text
	k.mu.Unlock()
	switch {
	case text == was:
	case text == "":
		k.log.Info("API server is followed again", "kind", kind)
	default:
		k.log.Warn("API server cannot be followed, what is in force stays; trying again", "kind", kind, "reason", text)
	}
}

// note takes in a change. The caller holds the lock.
func (k *Kubernetes) note(now time.Time, matters bool) {
	if !matters {
		k.lag = true
		return
	}
	k.fresh = true
	k.tell(now)
}

// tell has a snapshot made. The caller holds the lock.
func (k *Kubernetes) tell(now time.Time) {
	if k.since.IsZero() {
		k.since = now
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run makes snapshots until ctx is over. What comes while one waits to be taken
// replaces it.
func (k *Kubernetes) run(ctx context.Context) {
	lag := time.NewTicker(lagInterval)
	defer lag.Stop()
	var next *Snapshot
	for {
		var out chan<- Snapshot
		var s Snapshot
		if next != nil {
			out, s = k.out, *next
		}
		select {
		case <-ctx.Done():
			return
		case out <- s:
			next = nil
			continue
		case <-lag.C:
			if !k.lags() {
				continue
			}
		case <-k.wake:
			select {
			case <-time.After(gather):
			case <-ctx.Done():
				return
			}
		}
		if made, ok := k.snapshot(); ok {
			if next != nil {
				made.Same = made.Same && next.Same
				if !next.Since.IsZero() && next.Since.Before(made.Since) || made.Since.IsZero() {
					made.Since = next.Since
				}
			}
			next = &made
		}
	}
}

func (k *Kubernetes) lags() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lag
}

// snapshot returns what is known, or false before everything is.
func (k *Kubernetes) snapshot() (Snapshot, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.pods.synced || !k.svcs.synced || !k.slices.synced || !k.boxes.synced || !k.groups.synced {
		return Snapshot{}, false
	}
	s := Snapshot{
		Pods:  k.pods.values(),
		Since: k.since,
		Same:  !k.fresh,
		Versions: Versions{
			Sandboxes:      k.boxes.version,
			RouteGroups:    k.groups.version,
			Services:       k.svcs.version,
			EndpointSlices: k.slices.version,
		},
	}
	if s.Same && s.Versions == k.told {
		k.since, k.lag = time.Time{}, false
		return Snapshot{}, false
	}
	if (k.told == Versions{}) {
		s.Since = time.Time{} // how long a list takes says nothing about changes
	}
	k.told = s.Versions
	s.Input = routing.Input{
		Services:  k.svcs.values(),
		Slices:    k.slices.values(),
		Sandboxes: slices.Concat(k.boxes.values(), k.groups.values()),
	}
	s.Problems = slices.Concat(k.pods.problems(), k.svcs.problems(), k.slices.problems())
	k.since, k.fresh, k.lag = time.Time{}, false, false
	k.all = slices.ContainsFunc(s.Pods, func(p pods.Pod) bool { return p.Inject && p.Sandbox != "" })
	return s, true
}

// everyService stands for all Services of a namespace: none has this name.
func everyService(namespace string) routing.Name {
	return routing.Name{Namespace: namespace, Name: v1alpha1.ObserveAll}
}
