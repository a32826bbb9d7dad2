// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// agentRole returns the ClusterRole that the installation gives to agents.
func agentRole(t *testing.T) *rbacv1.ClusterRole {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "install.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var role rbacv1.ClusterRole
		if bytes.Contains(doc, []byte("kind: ClusterRole\n")) && yaml.Unmarshal(doc, &role) == nil &&
			role.Kind == "ClusterRole" && role.Labels["app.kubernetes.io/component"] == "agent" {
			return &role
		}
	}
	t.Fatal("deploy/install.yaml has no ClusterRole of the agent")
	return nil
}

// agentConfig is what an agent with exactly the installation's permissions connects
// with.
func (c clients) agentConfig(t *testing.T, namespace string) *rest.Config {
	t.Helper()
	role := agentRole(t)
	role.ObjectMeta = metav1.ObjectMeta{Name: "agent-" + namespace}
	if _, err := c.core.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cfg, err := plane.ServiceAccount(t.Context(), namespace, "agent")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.core.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: "agent"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// sink is the agent's end of a source: it keeps the newest snapshot.
type sink struct {
	mu   sync.Mutex
	last source.Snapshot
	at   time.Time // when last arrived
	n    int       // snapshots that are not the same
	kick chan struct{}
}

// follow opens the agent's source and takes what it sends.
func follow(t *testing.T, cfg *rest.Config, node string, log *slog.Logger) *sink {
	t.Helper()
	k, err := source.OpenKubernetes(cfg, node, log)
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{kick: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case next := <-k.Snapshots():
				s.mu.Lock()
				s.last, s.at = next, time.Now()
				if !next.Same {
					s.n++
				}
				s.mu.Unlock()
				select {
				case s.kick <- struct{}{}:
				default:
				}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// await returns when the newest snapshot is as wanted, and when that one came.
func (s *sink) await(t *testing.T, what string, want func(*source.Snapshot) bool) time.Time {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		ok, at := want(&s.last), s.at
		s.mu.Unlock()
		if ok {
			return at
		}
		select {
		case <-s.kick:
		case <-limit:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("no snapshot with %s; the last has %d Services, %d slices, %d sandboxes, %d pods, versions %+v",
				what, len(s.last.Input.Services), len(s.last.Input.Slices), len(s.last.Input.Sandboxes), len(s.last.Pods), s.last.Versions)
		}
	}
}

func (s *sink) newest() source.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func sandboxIn(s *source.Snapshot, name routing.Name, group bool) *routing.Sandbox {
	for i := range s.Input.Sandboxes {
		if b := &s.Input.Sandboxes[i]; b.Name == name && b.Group == group {
			return b
		}
	}
	return nil
}

func serviceIn(s *source.Snapshot, name routing.Name) *routing.Service {
	for i := range s.Input.Services {
		if s.Input.Services[i].Name == name {
			return &s.Input.Services[i]
		}
	}
	return nil
}

func sliceIn(s *source.Snapshot, name routing.Name) *routing.EndpointSlice {
	for i := range s.Input.Slices {
		if s.Input.Slices[i].Name == name {
			return &s.Input.Slices[i]
		}
	}
	return nil
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// service makes a Service and an EndpointSlice of it.
func (c clients) service(t *testing.T, ns, name string, endpoints ...string) {
	t.Helper()
	_, err := c.core.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{},
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e}})
	}
	if _, err := c.core.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// endpoint replaces a slice's endpoints by one.
func (c clients) endpoint(t *testing.T, ns, slice, address string) {
	t.Helper()
	patch := `[{"op":"replace","path":"/endpoints","value":[{"addresses":["` + address + `"]}]}]`
	_, err := c.core.DiscoveryV1().EndpointSlices(ns).Patch(t.Context(), slice, types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

// sandbox makes a Sandbox and writes its status as the controller would.
func (c clients) sandbox(t *testing.T, ns, name string, status v1alpha1.SandboxStatus) string {
	t.Helper()
	return c.withStatus(t, "sandboxes", ns, &v1alpha1.Sandbox{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.SandboxKind},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: v1alpha1.SandboxSpec{
			// What the agent must not look at.
			RoutingKey:          "key-of-the-spec",
			Redirects:           []v1alpha1.Redirect{redirect("a-service-of-the-spec", "x")},
			ExistingConnections: v1alpha1.ExistingAll,
		},
	}, status)
}

func redirect(from, to string) v1alpha1.Redirect {
	return v1alpha1.Redirect{From: v1alpha1.RedirectFrom{Service: from}, To: v1alpha1.RedirectTo{Service: to}}
}

func resolved(from, to string) v1alpha1.RedirectStatus {
	return v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: from}, To: v1alpha1.RedirectTo{Service: to}, Unavailable: v1alpha1.UnavailableReject}
}

// withStatus creates an object and its status, and returns the version of the
// latter.
func (c clients) withStatus(t *testing.T, plural, ns string, o any, status any) string {
	t.Helper()
	m := objectOf(t, o)
	name := m.GetName()
	if _, err := c.of(plural, ns).Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c.setStatus(t, plural, ns, name, status)
}

func (c clients) setStatus(t *testing.T, plural, ns, name string, status any) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.of(plural, ns).Patch(t.Context(), name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	return got.GetResourceVersion()
}

// interruptible lets a test cut the agent's watches and have new ones refused.
type interruptible struct {
	http.RoundTripper
	mu     sync.Mutex
	expire int // how many watches to answer with 410 Gone
	open   []io.Closer
	lists  int
}

func (i *interruptible) RoundTrip(r *http.Request) (*http.Response, error) {
	watch := r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1"
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	i.mu.Lock()
	if r.Method == http.MethodGet && (!watch || initial) {
		i.lists++
	}
	if watch && !initial && i.expire > 0 {
		i.expire--
		i.mu.Unlock()
		body := `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}`
		return &http.Response{
			StatusCode: http.StatusGone, Status: "410 Gone", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
		}, nil
	}
	i.mu.Unlock()
	resp, err := i.RoundTripper.RoundTrip(r)
	if err == nil && watch {
		i.mu.Lock()
		i.open = append(i.open, resp.Body)
		i.mu.Unlock()
	}
	return resp, err
}

// cut ends every watch that is open, has the next n refused as expired, and
// returns how often everything had been listed before.
func (i *interruptible) cut(n int) (lists int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.expire = n
	for _, c := range i.open {
		c.Close()
	}
	i.open = nil
	return i.lists
}

func (i *interruptible) listed() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.lists
}

func objectOf(t *testing.T, o any) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: m}
	// A client sends no empty status.
	unstructured.RemoveNestedField(u.Object, "status")
	return u
}
