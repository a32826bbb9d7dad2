// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func client(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAControlPlaneKnowsItsUsersAndSurvivesAnOutage(t *testing.T) {
	plane := StartControlPlane(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	if out, err := plane.Kubectl(ctx, "get", "namespaces", "-o", "name"); err != nil || !strings.Contains(out, "namespace/default") {
		t.Errorf("kubectl get namespaces: %q, %v", out, err)
	}
	if err := plane.ApplyYAML(ctx, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: readers}
- {kind: ServiceAccount, name: agent, namespace: shop}
`); err != nil {
		t.Fatal(err)
	}
	agent, err := plane.ServiceAccount(ctx, "shop", "agent")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cfg     *rest.Config
		allowed bool
	}{
		"a user of the group":       {plane.User("jane", "readers"), true},
		"a user without the group":  {plane.User("joe"), false},
		"a bound service account":   {agent, true},
		"an administrator":          {plane.Admin(), true},
		"somebody without a ticket": {plane.anonymous(), false},
	} {
		_, err := client(t, tc.cfg).CoreV1().Pods("shop").List(ctx, metav1.ListOptions{})
		if allowed := err == nil; allowed != tc.allowed || (err != nil && !apierrors.IsForbidden(err)) {
			t.Errorf("%s lists pods: %v", name, err)
		}
		_, err = client(t, tc.cfg).CoreV1().Secrets("shop").List(ctx, metav1.ListOptions{})
		if (err == nil) != (name == "an administrator") {
			t.Errorf("%s lists secrets: %v", name, err)
		}
	}

	admin := client(t, plane.Admin())
	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"a": "b"}}
	if _, err := admin.CoreV1().ConfigMaps("shop").Create(ctx, kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().ConfigMaps("shop").Get(ctx, "kept", metav1.GetOptions{}); err == nil {
		t.Error("the API server answers although it is stopped")
	}
	if err := plane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := admin.CoreV1().ConfigMaps("shop").Get(ctx, "kept", metav1.GetOptions{}); err != nil || got.Data["a"] != "b" {
		t.Errorf("after the outage: %v, %v", got, err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	plane, err := NewControlPlane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	processes := []*Process{plane.etcd, plane.apiserver}
	for _, p := range processes {
		if !p.running() {
			t.Errorf("%s does not run", p.Name)
		}
	}
	if err := plane.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if p.running() {
			t.Errorf("%s runs still", p.Name)
		}
	}
	if _, err := os.Stat(plane.Dir); !os.IsNotExist(err) {
		t.Errorf("its folder is still there: %v", err)
	}
}
