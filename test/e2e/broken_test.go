// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// says is a check for eventually: a condition of a sandbox has this status, and
// its message has these words.
func says(name, condition string, status metav1.ConditionStatus, words ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		s, err := getSandbox(ctx, name)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(s.Status.Conditions, condition)
		if c == nil || c.Status != status || c.ObservedGeneration != s.Generation {
			return fmt.Errorf("%s of sandbox %s is not %s: %s", condition, name, status, conditions(s))
		}
		for _, word := range words {
			if !strings.Contains(c.Message, word) {
				return fmt.Errorf("%s of sandbox %s does not say %q: %s", condition, name, word, c.Message)
			}
		}
		return nil
	}
}

// crash: a fork's program ends at once, then its image is not there, then it is
// mended.
func crash(t *testing.T) {
	key := newKey("broken")
	broken := func(container string) string {
		return `
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: broken, namespace: shop}
spec:
  routingKey: ` + key + `
  forks:
  - workload: {name: stock}
` + container
	}
	apply(t, broken(`    patch: {spec: {containers: [{name: stock, args: [crash], terminationMessagePolicy: FallbackToLogsOnError}]}}`))
	deleteAfterwards(t, "-n", shop, "sandbox/broken")
	began := time.Now()
	eventually(t, time.Minute, says("broken", v1alpha1.ConditionForksReady, metav1.ConditionFalse, "stock", "the shelves have fallen over"))
	figure("a crashing fork's own message in the sandbox's conditions after", "%.1f s", time.Since(began).Seconds())
	w := runners(t)
	for _, w := range w {
		eventually(t, time.Minute, w.fails(stock, tag(key), http.StatusServiceUnavailable, "stock"))
		w.mustFail(t, stock, tag(key), http.StatusServiceUnavailable, "stock")
		w.mustGet(t, front, nil, untouched)
	}

	apply(t, broken(`    containers: [{name: stock, image: "sidetrack.test/shop:nobody-has-built-it"}]`))
	began = time.Now()
	eventually(t, time.Minute, says("broken", v1alpha1.ConditionForksReady, metav1.ConditionFalse, "nobody-has-built-it"))
	figure("a missing image in the sandbox's conditions after", "%.1f s", time.Since(began).Seconds())
	w[0].mustFail(t, stock, tag(key), http.StatusServiceUnavailable, "stock")

	apply(t, broken(`    containers: [{name: stock, image: "sidetrack.test/shop:pr-42"}]`))
	eventually(t, 2*time.Minute, w[0].gets(stock, tag(key), "stock pr-42"))
	untilReady(t, "broken")
	for _, w := range w {
		w.mustGet(t, stock, tag(key), "stock pr-42")
		w.mustGet(t, front, tag(key), "front v1, cart v1, route v1 (everybody), stock pr-42")
		w.mustGet(t, front, nil, untouched)
	}
}

// grant: the fork's database is in another namespace.
func grant(t *testing.T) {
	apply(t, `
apiVersion: v1
kind: Namespace
metadata: {name: warehouse}
---
apiVersion: v1
kind: Service
metadata: {name: postgres, namespace: warehouse}
spec: {selector: {app: postgres}, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres, namespace: warehouse, labels: {app: postgres}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: postgres
    image: sidetrack.test/postgres:1
    imagePullPolicy: Never
    args: [-c, cluster_name=another]
    readinessProbe: {tcpSocket: {port: 5432}, periodSeconds: 1}
`)
	deleteAfterwards(t, "namespace", "warehouse")
	kubectl(t, "wait", "-n", "warehouse", "--for=condition=Ready", "pod/postgres", "--timeout=120s")

	key := newKey("granted")
	apply(t, strings.Replace(strings.Replace(pr42(`
  redirects:
  - from: {service: postgres, port: 5432}
    to: {service: postgres, namespace: warehouse}
`), "name: pr-42,", "name: granted,", 1), sandboxKey, key, 1))
	deleteAfterwards(t, "-n", shop, "sandbox/granted")
	w := runners(t)

	// The kind is not even known. The fork gets no database rather than
	// everybody's.
	eventually(t, time.Minute, says("granted", v1alpha1.ConditionAccepted, metav1.ConditionFalse, "ReferenceGrant"))
	refused := w[0].fails(front, tag(key), http.StatusBadGateway, "database")
	eventually(t, 2*time.Minute, refused)
	w[0].mustGet(t, front, nil, untouched)

	if err := kube.Apply(t.Context(), gatewayCRD(t)); err != nil {
		t.Fatal(err)
	}
	grants := func(service string) string {
		return `
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: for-the-shop, namespace: warehouse}
spec:
  from: [{group: sidetrack.dev, kind: Sandbox, namespace: shop}]
  to: [{group: "", kind: Service, name: ` + service + `}]
`
	}
	apply(t, grants("something-else"))
	for range 3 {
		if err := refused(t.Context()); err != nil {
			t.Errorf("with a grant for another Service: %v", err)
		}
	}
	apply(t, grants("postgres"))
	began := time.Now()
	eventually(t, 2*time.Minute, w[0].gets(front, tag(key), grantOnWay))
	figure("a grant until the flow that it allows", "%d ms", time.Since(began).Milliseconds())
	untilReady(t, "granted")
	for _, w := range w {
		w.mustGet(t, front, tag(key), grantOnWay)
		w.mustGet(t, front, nil, untouched)
	}
	kubectl(t, "delete", "referencegrant", "-n", "warehouse", "for-the-shop")
	began = time.Now()
	eventually(t, time.Minute, refused)
	figure("its revocation until the flow is refused", "%d ms", time.Since(began).Milliseconds())
	eventually(t, time.Minute, says("granted", v1alpha1.ConditionAccepted, metav1.ConditionFalse, "ReferenceGrant"))
	for range 3 {
		if err := refused(t.Context()); err != nil {
			t.Error(err)
		}
	}
	w[0].mustGet(t, front, nil, untouched)
}
