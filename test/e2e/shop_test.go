// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
)

// shop is the namespace of testdata/shop.yaml; these are Services in it.
const (
	shop     = "shop"
	front    = "http://10.96.10.1/"
	stock    = "http://10.96.10.4/"
	database = "10.96.10.5:5432"
	ingress  = "http://10.96.10.7/"
)

func openShop(t *testing.T) {
	if err := kube.Apply(t.Context(), "testdata/shop.yaml"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"front", "cart", "route", "stock", "postgres", "postgres-pr-42", "ingress"} {
		kubectl(t, "rollout", "status", "-n", shop, "deployment/"+d, "--timeout=120s")
	}
	kubectl(t, "wait", "-n", shop, "--for=condition=Ready", "pod/runner-1", "pod/runner-2", "--timeout=120s")
	for _, app := range []string{"front", "cart", "route", "stock"} {
		nodes := map[string]bool{}
		for _, p := range podsOf(t, ctrlclient.MatchingLabels{"app": app}) {
			nodes[p.Spec.NodeName] = true
		}
		if len(nodes) != 2 {
			t.Errorf("the pods of %s are on %v, not on both nodes", app, nodes)
		}
	}
	want := "front v1, cart v1, route v1 (everybody), stock v1"
	for _, w := range runners(t) {
		eventually(t, time.Minute, w.gets(front, nil, want))
		// A key that nobody has is no key.
		w.mustGet(t, front, tag("nobody-has-this-one"), want)
	}
	eventually(t, time.Minute, runners(t)[0].gets(ingress, nil, want))
}

func podsOf(t *testing.T, by ctrlclient.MatchingLabels) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := client.List(t.Context(), &pods, ctrlclient.InNamespace(shop), by); err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

// worker is a pod that makes requests.
type worker struct{ name, address string }

// runners are the two that are nobody's: one on each node.
func runners(t *testing.T) []worker {
	t.Helper()
	return []worker{runnerPod(t, "runner-1"), runnerPod(t, "runner-2")}
}

func runnerPod(t *testing.T, name string) worker {
	t.Helper()
	var p corev1.Pod
	if err := client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: shop, Name: name}, &p); err != nil {
		t.Fatal(err)
	}
	return worker{name, p.Status.PodIP}
}

// orders are sent from the host, which is no pod: no agent sees them.
var orders = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}

func (w worker) order(ctx context.Context, method, path string, what, into any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+w.address+":9000"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := orders.Do(req)
	if err != nil {
		return fmt.Errorf("order something of %s: %w", w.name, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("order something of %s: %s %s %w", w.name, resp.Status, answer, err)
	}
	return json.Unmarshal(answer, into)
}

// ask makes one request from inside the pod, over a new connection.
func (w worker) ask(ctx context.Context, url string, header map[string]string) (visit.Response, error) {
	var r visit.Response
	err := w.order(ctx, http.MethodPost, "/ask", visit.Request{URL: url, Header: header}, &r)
	return r, err
}

func (w worker) askDatabase(ctx context.Context) (visit.Response, error) {
	var r visit.Response
	err := w.order(ctx, http.MethodPost, "/ask", visit.Request{Database: database}, &r)
	return r, err
}

// tag is the header of a request with this routing key.
func tag(key string) map[string]string {
	return map[string]string{"Baggage": "trace=1,sidetrack=" + key}
}

// told is what a response tells of its way: each service with its version, and
// the database that it has asked.
func told(r visit.Response) (string, []visit.Visit) {
	if r.Failure != "" || r.Status != http.StatusOK {
		return fmt.Sprintf("%d %s%s", r.Status, strings.TrimSpace(r.Body), r.Failure), nil
	}
	visits, err := visit.Parse([]byte(r.Body))
	if err != nil {
		return err.Error(), nil
	}
	var way []string
	for _, v := range visits {
		s := v.Service + " " + v.Version
		if v.Database != "" {
			s += " (" + v.Database + ")"
		}
		way = append(way, s)
	}
	return strings.Join(way, ", "), visits
}

// gets returns a check for eventually: the request takes the way that is
// wanted.
func (w worker) gets(url string, header map[string]string, want string) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := w.ask(ctx, url, header)
		if err != nil {
			return err
		}
		if got, _ := told(r); got != want {
			return fmt.Errorf("%s asked %s and got %q, want %q", w.name, url, got, want)
		}
		return nil
	}
}

// mustGet asks several times, since a Service has several endpoints and each
// must be right.
func (w worker) mustGet(t *testing.T, url string, header map[string]string, want string) {
	t.Helper()
	for range 6 {
		if err := w.gets(url, header, want)(t.Context()); err != nil {
			t.Error(err)
			return
		}
	}
}

// mustFail asks several times and wants a status, and words in the body.
func (w worker) mustFail(t *testing.T, url string, header map[string]string, status int, words ...string) {
	t.Helper()
	for range 4 {
		if err := w.fails(url, header, status, words...)(t.Context()); err != nil {
			t.Error(err)
			return
		}
	}
}

func (w worker) fails(url string, header map[string]string, status int, words ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := w.ask(ctx, url, header)
		if err != nil {
			return err
		}
		if r.Status != status || slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(r.Body, s) }) {
			return fmt.Errorf("%s asked %s and got %d %q %s, want %d with %q", w.name, url, r.Status, r.Body, r.Failure, status, words)
		}
		return nil
	}
}
