// SPDX-License-Identifier: Apache-2.0

// Package controller tests the controller against a real Kubernetes API server,
// with the very permissions that it is installed with. There are no nodes and no
// Kubernetes controllers: what these would say, of pods, endpoints and agents, the
// tests say themselves. Its tests share one server and one controller, each in a
// namespace of its own.
package controller

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	daemon "github.com/sidetrack-dev/sidetrack/daemon/controller"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

const (
	manifest = "../../deploy/install.yaml"
	node     = "n1"
	boot     = "boot-of-n1"
	// within is how long anything may take on a machine that is busy.
	within = 20 * time.Second
)

var (
	plane *cluster.ControlPlane
	api   client.WithWatch
	nodes *agent
)

// withController runs the controller beside the tests.
type withController struct{ *testing.M }

func (m withController) Run() int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended, err := start(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the controller:", err)
		return 1
	}
	status := m.M.Run()
	stop()
	for range cap(ended) {
		if err := <-ended; err != nil {
			fmt.Fprintln(os.Stderr, "the controller:", err)
			status = 1
		}
	}
	return status
}

func TestMain(m *testing.M) { os.Exit(cluster.WithControlPlane(withController{m}, &plane)) }

func start(ctx context.Context) (chan error, error) {
	gateway, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		return nil, fmt.Errorf("find the Gateway API's module: %w", err)
	}
	grants := filepath.Join(strings.TrimSpace(string(gateway)), "config", "crd", "standard", "gateway.networking.k8s.io_referencegrants.yaml")
	if err := plane.Apply(ctx, "../../deploy/charts/sidetrack-crds/templates", grants); err != nil {
		return nil, err
	}
	if err := plane.Apply(ctx, manifest); err != nil {
		return nil, err
	}
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, v1alpha1.AddToScheme, gatewayv1.Install} {
		if err := add(types); err != nil {
			return nil, err
		}
	}
	if api, err = client.NewWithWatch(plane.Admin(), client.Options{Scheme: types}); err != nil {
		return nil, err
	}
	nodes = &agent{}
	if err := nodes.join(ctx); err != nil {
		return nil, err
	}
	cfg := daemon.DefaultConfig()
	if cfg.REST, err = plane.ServiceAccount(ctx, "sidetrack-system", "sidetrack-controller"); err != nil {
		return nil, err
	}
	cfg.MetricsAddress, cfg.HealthAddress, cfg.LeaderElection = "0", "0", false
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	daemon.LogTo(cfg.Logger)
	ended := make(chan error, 2)
	go func() { ended <- daemon.Run(ctx, cfg) }()
	go func() { ended <- nodes.run(ctx) }()
	return ended, nil
}

// agent says what the agent of the only node would.
type agent struct {
	behind    atomic.Bool
	uncovered atomic.Int32
	// connections are those from before, to a Service.
	connections atomic.Pointer[v1alpha1.ServiceConnections]
	// names are where it looks for routing keys; nil: it does not say.
	names atomic.Pointer[v1alpha1.KeyNames]
}

func (a *agent) join(ctx context.Context) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if err := api.Create(ctx, n); err != nil {
		return err
	}
	n.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", BootID: boot}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if err := api.Status().Update(ctx, n); err != nil {
		return err
	}
	return api.Create(ctx, &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: node}})
}

// run has everything in force a moment after it has been written, unless the agent
// is to fall behind.
func (a *agent) run(ctx context.Context) error {
	last, said := "", int32(0)
	var counted *v1alpha1.ServiceConnections
	var named *v1alpha1.KeyNames
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		if a.behind.Load() {
			continue
		}
		// All versions are of one counter here.
		var all v1alpha1.SandboxList
		uncovered, connections, names := a.uncovered.Load(), a.connections.Load(), a.names.Load()
		if err := api.List(ctx, &all); err != nil || all.ResourceVersion == last && uncovered == said && connections == counted && names == named {
			continue
		}
		version := all.ResourceVersion
		var s v1alpha1.NodeState
		if err := api.Get(ctx, client.ObjectKey{Name: node}, &s); err != nil {
			continue
		}
		now := metav1.NowMicro()
		s.Status = v1alpha1.NodeStateStatus{
			BootID: boot, Instance: "one", HeartbeatTime: &now, Pods: v1alpha1.PodCoverage{Covered: 3, Uncovered: uncovered},
			Applied:  &v1alpha1.AppliedVersions{Sandboxes: version, RouteGroups: version, Services: version, EndpointSlices: version},
			KeyNames: names,
		}
		if uncovered > 0 {
			s.Status.Problems = []v1alpha1.NodeProblem{{Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "its namespace cannot be opened"}}
		}
		if connections != nil {
			s.Status.Connections = []v1alpha1.ServiceConnections{*connections}
		}
		if api.Status().Update(ctx, &s) == nil {
			last, said, counted, named = s.ResourceVersion, uncovered, connections, names
		}
	}
}

// fallsBehind has the agent take nothing over until the test calls catchUp.
func (a *agent) fallsBehind(t *testing.T) (catchUp func()) {
	a.behind.Store(true)
	catchUp = func() { a.behind.Store(false) }
	t.Cleanup(catchUp)
	return catchUp
}

var namespaces atomic.Int64

// namespace makes one for a test; it goes with the server.
func namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", namespaces.Add(1))
	create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	return name
}

func create(t *testing.T, o client.Object) {
	t.Helper()
	if err := api.Create(t.Context(), o); err != nil {
		t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
}

// say writes a status.
func say(t *testing.T, o client.Object) {
	t.Helper()
	if err := api.Status().Update(t.Context(), o); err != nil {
		t.Fatalf("write the status of %T %s: %v", o, o.GetName(), err)
	}
}

// change changes an object, again when somebody else has done so meanwhile.
func change[T client.Object](t *testing.T, o T, f func(T)) {
	t.Helper()
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		f(o)
		return api.Update(t.Context(), o)
	})
}

func remove(t *testing.T, o client.Object) {
	t.Helper()
	if err := api.Delete(t.Context(), o); err != nil {
		t.Fatalf("delete %T %s: %v", o, o.GetName(), err)
	}
}

// eventually waits until f has no error any more.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %s: %v", within, err)
		}
		time.Sleep(30 * time.Millisecond)
	}
}
