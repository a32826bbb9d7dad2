// SPDX-License-Identifier: Apache-2.0

// Package clustertest makes clusters for tests of what is made of a ledger's answers, which
// a real one does not give on demand.
package clustertest

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// WithLedger is a cluster that has some objects, and whose ledger is what h answers. Its
// namespace is shop.
func WithLedger(t *testing.T, h http.Handler, objects ...client.Object) *cluster.Cluster {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	core, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	return &cluster.Cluster{Core: core, Objects: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build(), Namespace: "shop"}
}
