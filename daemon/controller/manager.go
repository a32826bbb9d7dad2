// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// leaseName is what controllers elect their leader by.
const leaseName = "sidetrack-controller"

// A controller goes on through an API server's restart: who leads has not been
// taken from it, since nobody could. It gives the lease up when it ends.
var leaseDuration, renewDeadline, retryPeriod = 60 * time.Second, 45 * time.Second, 5 * time.Second

// Config says how the controller runs.
type Config struct {
	// REST is how to reach the API server.
	REST *rest.Config
	// MetricsAddress and HealthAddress are host:port; "0" serves none.
	MetricsAddress string
	HealthAddress  string
	// LeaderElection has one of several controllers act, with a Lease in
	// LeaderElectionNamespace (empty: the pod's own).
	LeaderElection          bool
	LeaderElectionNamespace string
	// NodeSelector are the nodes that have to be covered, of those with linux.
	NodeSelector labels.Selector
	// Workers is how many objects of a kind are worked on at a time.
	Workers int
	Logger  *slog.Logger
}

// DefaultConfig returns the defaults of everything but REST.
func DefaultConfig() Config {
	return Config{
		MetricsAddress: ":9465",
		HealthAddress:  ":9466",
		LeaderElection: true,
		NodeSelector:   labels.Everything(),
		Workers:        4,
		Logger:         slog.Default(),
	}
}

// Validate reports what is wrong with it.
func (c *Config) Validate() error {
	switch {
	case c.REST == nil:
		return errors.New("no API server is given")
	case c.NodeSelector == nil:
		return errors.New("no node selector is given")
	case c.Workers < 1:
		return fmt.Errorf("%d workers do nothing: give at least 1", c.Workers)
	case c.Logger == nil:
		return errors.New("no logger is given")
	}
	return nil
}

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}

// Run acts until the context ends.
func Run(ctx context.Context, c Config) error {
	m, err := newManager(ctx, c)
	if err != nil {
		return err
	}
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("run the controller: %w", err)
	}
	return nil
}

func newManager(ctx context.Context, c Config) (manager.Manager, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	byObject, err := cached()
	if err != nil {
		return nil, err
	}
	m, err := manager.New(c.REST, manager.Options{
		Scheme:                        newScheme(),
		Logger:                        logr.FromSlogHandler(c.Logger.Handler()),
		Metrics:                       metricsserver.Options{BindAddress: c.MetricsAddress},
		HealthProbeBindAddress:        c.HealthAddress,
		LeaderElection:                c.LeaderElection,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       c.LeaderElectionNamespace,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &leaseDuration,
		RenewDeadline:                 &renewDeadline,
		RetryPeriod:                   &retryPeriod,
		Cache:                         cache.Options{ByObject: byObject, DefaultTransform: cache.TransformStripManagedFields()},
	})
	if err != nil {
		return nil, fmt.Errorf("set the controller up: %w", err)
	}
	if err := addIndexes(ctx, m.GetFieldIndexer()); err != nil {
		return nil, fmt.Errorf("index the cache: %w", err)
	}
	s := signals{allSandboxes: make(chan event.GenericEvent, 1), allGroups: make(chan event.GenericEvent, 1), grants: make(chan event.GenericEvent, 1)}
	g := &grants{mapper: m.GetRESTMapper(), cache: m.GetCache(), poll: grantPoll, log: c.Logger, events: s.grants}
	common := base{
		client: m.GetClient(), live: m.GetAPIReader(), grants: g, beats: &heartbeats{}, nodes: c.NodeSelector,
		recorder: m.GetEventRecorder(FieldManager), now: time.Now, memory: newMemory(),
	}
	sandboxBase, groupBase := common, common
	groupBase.memory = newMemory()
	if err := addSandboxes(m, &sandboxes{base: sandboxBase, applier: applier{client: m.GetClient()}}, s, c.Logger, c.Workers); err != nil {
		return nil, fmt.Errorf("follow Sandboxes: %w", err)
	}
	if err := addGroups(m, &groups{base: groupBase}, s, c.Logger, c.Workers); err != nil {
		return nil, fmt.Errorf("follow RouteGroups: %w", err)
	}
	watch := &nodeWatch{base: common, every: time.Second, ask: askEvery, out: []chan event.GenericEvent{s.allSandboxes, s.allGroups}, log: c.Logger}
	if err := errors.Join(m.Add(g), m.Add(watch), addMetrics(m),
		m.AddHealthzCheck("ping", healthz.Ping), m.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return nil, fmt.Errorf("set the controller up: %w", err)
	}
	return m, nil
}

// cached says what the cache leaves out of objects, most of which it has only to
// look at their selectors.
func cached() (map[client.Object]cache.ByObject, error) {
	ours, err := labels.NewRequirement(v1alpha1.SandboxLabel, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("select the sandboxes' pods: %w", err)
	}
	return map[client.Object]cache.ByObject{
		&corev1.Pod{}:                {Label: labels.NewSelector().Add(*ours), Transform: trimPod},
		&corev1.Node{}:               {Transform: trimNode},
		&discoveryv1.EndpointSlice{}: {Transform: trimSlice},
	}, nil
}

func trimPod(o any) (any, error) {
	if p, ok := o.(*corev1.Pod); ok {
		p.ManagedFields, p.Annotations = nil, nil
		p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName}
	}
	return o, nil
}

func trimNode(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		n.ManagedFields, n.Annotations = nil, nil
		n.Spec = corev1.NodeSpec{}
		n.Status = corev1.NodeStatus{Conditions: n.Status.Conditions, NodeInfo: corev1.NodeSystemInfo{
			BootID: n.Status.NodeInfo.BootID, OperatingSystem: n.Status.NodeInfo.OperatingSystem,
		}}
	}
	return o, nil
}

func trimSlice(o any) (any, error) {
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		s.ManagedFields, s.Annotations, s.OwnerReferences = nil, nil, nil
		for i, e := range s.Endpoints {
			s.Endpoints[i] = discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}}
		}
	}
	return o, nil
}

// LogTo has the libraries that log on their own write to one place. A program
// calls it once, before Run.
func LogTo(log *slog.Logger) {
	l := logr.FromSlogHandler(log.Handler())
	crlog.SetLogger(l)
	klog.SetLogger(l)
}
