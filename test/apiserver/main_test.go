// SPDX-License-Identifier: Apache-2.0

// Package apiserver tests against a real Kubernetes API server what only one can
// tell: which objects our CRDs let through and with which words they refuse the
// others, and how the agent's Kubernetes source follows what the server says,
// also while it is not there. It needs no node and no root. Its tests share one
// server, each in a namespace of its own.
package apiserver

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

const crds = "../../deploy/charts/sidetrack-crds/templates"

var plane *cluster.ControlPlane

// withCRDs installs the CRDs before the first test.
type withCRDs struct{ *testing.M }

func (m withCRDs) Run() int {
	if err := plane.Apply(context.Background(), crds); err != nil {
		fmt.Fprintln(os.Stderr, "install the CRDs:", err)
		return 1
	}
	return m.M.Run()
}

func TestMain(m *testing.M) { os.Exit(cluster.WithControlPlane(withCRDs{m}, &plane)) }

// clients are what the tests talk to the server with.
type clients struct {
	core kubernetes.Interface
	any  dynamic.Interface
}

func connect(t *testing.T) clients {
	t.Helper()
	core, err := kubernetes.NewForConfig(plane.Admin())
	if err != nil {
		t.Fatal(err)
	}
	anything, err := dynamic.NewForConfig(plane.Admin())
	if err != nil {
		t.Fatal(err)
	}
	return clients{core, anything}
}

func (c clients) of(plural, namespace string) dynamic.ResourceInterface {
	r := c.any.Resource(schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: plural})
	if namespace == "" {
		return r
	}
	return r.Namespace(namespace)
}

var namespaces atomic.Int64

// namespace makes one for a test. Nothing deletes what is in a namespace here, so it
// goes with the server.
func (c clients) namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", namespaces.Add(1))
	_, err := c.core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func plural(kind string) string {
	if kind == v1alpha1.SandboxKind {
		return "sandboxes"
	}
	return strings.ToLower(kind) + "s"
}
