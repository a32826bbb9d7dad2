// SPDX-License-Identifier: Apache-2.0

package health

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	corefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// said are checks in lines, without their remedies; a check that has to have one, or
// may not have one, is an error.
func said(t *testing.T, checks []Check) string {
	t.Helper()
	var b strings.Builder
	for _, c := range checks {
		b.WriteString(string(c.Result) + " " + c.Name + ": " + c.Detail + "\n")
		if c.Result == Missing && c.Remedy == "" || c.Result == OK && c.Remedy != "" {
			t.Errorf("the remedy of %+v", c)
		}
	}
	return b.String()
}

func TestDoctorKnowsWhichKubernetesWillDo(t *testing.T) {
	for version, want := range map[string]Result{
		"v1.37.2": OK, "v1.35.0": OK, "v1.36.1-gke.100": OK, "v1.34.9": Missing, "v1.9.0": Missing, "v2.0.0": OK,
		"nobody knows": OK, // it cannot be told
	} {
		var d doctor
		if d.kubernetes(version); len(d.checks) != 1 || d.checks[0].Result != want || !strings.Contains(said(t, d.checks), version) {
			t.Errorf("%s: %+v", version, d.checks)
		}
	}
}

func TestDoctorNamesEachNodeWithoutAWorkingAgent(t *testing.T) {
	scheme, err := cluster.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	at := metav1.NowMicro()
	state := func(name, version string, change func(*v1alpha1.NodeStateStatus)) *v1alpha1.NodeState {
		s := heard(0, func(s *v1alpha1.NodeStateStatus) { s.HeartbeatTime, s.AgentVersion, s.BootID = &at, version, "" })
		s.Name = name
		if change != nil {
			change(&s.Status)
		}
		return s
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    string
	}{
		"there is none": {nil, "MISSING agents: no node has an agent\n"},
		"all work":      {[]runtime.Object{state("n1", "1.0", nil), state("n2", "1.0", nil)}, "ok agents: on 2 of 2 nodes, version 1.0\n"},
		"an update goes on": {[]runtime.Object{state("n1", "1.0", nil), state("n2", "1.1", nil)},
			"ok agents: on 2 of 2 nodes, version 1.0, 1.1\noptional versions: agents of several versions: 1.0, 1.1\n"},
		"one is not there": {[]runtime.Object{state("n1", "1.0", nil), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}},
			"MISSING node n2: no agent: tagged requests from there reach the baseline\n"},
		"one does not see all pods": {[]runtime.Object{state("n1", "1.0", func(s *v1alpha1.NodeStateStatus) { s.Pods.Uncovered = 1 })}, "MISSING node n1: 1 pods are not covered\n"},
		"one has a problem": {[]runtime.Object{state("n1", "1.0", func(s *v1alpha1.NodeStateStatus) { s.Problems = []v1alpha1.NodeProblem{{Message: "a file is large"}} })},
			"ok agents: on 1 of 1 nodes, version 1.0\noptional node n1: a file is large\n"},
	} {
		d := doctor{home: "somewhere", checks: []Check{{}, {Result: OK}}, c: &cluster.Cluster{Objects: fake.NewClientBuilder().WithScheme(scheme).WithRuntimeObjects(c.objects...).Build()}}
		d.agents(t.Context())
		if got := said(t, d.checks[2:]); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for _, c := range d.checks[2:] {
			if c.Result == Missing && !strings.Contains(c.Remedy, "kubectl -n somewhere ") {
				t.Errorf("%s: the remedy is %q", name, c.Remedy)
			}
		}
	}
	d := doctor{checks: []Check{{}, {Result: Missing}}}
	if d.agents(t.Context()); said(t, d.checks[2:]) != "MISSING agents: without the CRDs there can be none\n" {
		t.Errorf("without the CRDs: %+v", d.checks)
	}
}

func TestDoctorNamesEachPermissionThatIsLacking(t *testing.T) {
	for name, c := range map[string]struct {
		denied    string // VERB RESOURCE
		namespace string
		want      string
	}{
		"all":           {"", "shop", "ok permissions: in namespace shop you may do all that this program does\n"},
		"one is denied": {"create pods/portforward", "shop", "MISSING permissions: in namespace shop you may not create pods/portforward (for proxy, diff)\n"},
		"no namespace": {"", "nowhere",
			"MISSING namespace: there is no namespace nowhere\nok permissions: in namespace nowhere you may do all that this program does\n"},
	} {
		core := corefake.NewSimpleClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		core.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
			review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview)
			r := review.Spec.ResourceAttributes
			what := r.Verb + " " + r.Resource
			if r.Subresource != "" {
				what += "/" + r.Subresource
			}
			review.Status.Allowed = what != c.denied && r.Namespace == c.namespace
			return true, review, nil
		})
		d := doctor{namespace: c.namespace, c: &cluster.Cluster{Core: core}}
		if err := d.permissions(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := said(t, d.checks); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if Ready(d.checks) != (c.denied == "" && c.namespace == "shop") {
			t.Errorf("%s: ready is %t", name, Ready(d.checks))
		}
	}
}

// The collector may be away while its API is registered: then the API server answers 503.
func TestDoctorTellsALedgerThatIsNotThereFromOneThatIsAway(t *testing.T) {
	for code, want := range map[int]string{
		http.StatusOK:                 "ok ledger: ledger.sidetrack.dev/v1alpha1 is served\n",
		http.StatusNotFound:           "optional ledger: ledger.sidetrack.dev/v1alpha1 is not served",
		http.StatusServiceUnavailable: "MISSING ledger: ledger.sidetrack.dev/v1alpha1 does not answer",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(code)
			_, _ = rw.Write([]byte(`{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ledger.sidetrack.dev/v1alpha1", "resources": []}`))
		}))
		defer s.Close()
		core, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		d := doctor{c: &cluster.Cluster{Core: core}}
		if d.ledger(t.Context()); !strings.HasPrefix(said(t, d.checks), want) {
			t.Errorf("%d: %+v, want %s", code, d.checks, want)
		}
	}
}
