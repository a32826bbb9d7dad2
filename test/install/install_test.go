// SPDX-License-Identifier: Apache-2.0

// Package install tries what deploy/ installs on a real API server without
// nodes: who may do what then, and what admission refuses. It starts one control
// plane for itself.
package install

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

const (
	ours     = "sidetrack-system"
	manifest = "../../deploy/install.yaml"
)

var (
	nodeStates = schema.GroupVersionResource{Group: "sidetrack.dev", Version: "v1alpha1", Resource: "nodestates"}
	sandboxes  = schema.GroupVersionResource{Group: "sidetrack.dev", Version: "v1alpha1", Resource: "sandboxes"}
)

// installed is a real API server with install.yaml in it.
type installed struct {
	*testing.T
	ctx   context.Context
	plane *cluster.ControlPlane
	admin kubernetes.Interface
}

func (s *installed) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *installed) refused(err error, why string) {
	s.Helper()
	if err == nil {
		s.Errorf("it is allowed, want %q", why)
	} else if !strings.Contains(err.Error(), why) {
		s.Errorf("got %v, want %q", err, why)
	}
}

func TestInstalledOnARealAPIServer(t *testing.T) {
	plane := cluster.StartControlPlane(t)
	s := &installed{T: t, ctx: t.Context(), plane: plane}
	var err error
	s.admin, err = kubernetes.NewForConfig(plane.Admin())
	s.must(err)
	s.must(plane.Apply(s.ctx, manifest))

	for name, test := range map[string]func(*installed){
		"applied again it changes nothing":                              (*installed).again,
		"the agent may do what it has to and nothing more":              (*installed).agentsRights,
		"the ledger's collector may do what it has to and nothing more": (*installed).ledgersRights,
		"an agent speaks for its own node only":                         (*installed).ownNode,
		"the controller may do what it has to and nothing more":         (*installed).controllersRights,
		"the controller touches only what belongs to a sandbox":         (*installed).ownObjects,
		"users write sandboxes and not their status":                    (*installed).users,
		"addresses are for those who may":                               (*installed).addresses,
		"the pods are as privileged as is said and no more":             (*installed).podSecurity,
		"what replaces the agents before an uninstallation is taken":    (*installed).uninstall,
	} {
		t.Run(name, func(t *testing.T) {
			sub := *s
			sub.T = t
			test(&sub)
		})
	}
}

func (s *installed) again() {
	versions := func() string {
		out, err := s.plane.Kubectl(s.ctx, "get", "-f", manifest, "-o", `jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation}{"\n"}{end}`)
		s.must(err)
		return out
	}
	before := versions()
	s.must(s.plane.Apply(s.ctx, manifest))
	if diff := cmp.Diff(before, versions()); diff != "" {
		s.Errorf("generations (-before +after):\n%s", diff)
	}
}

// may asks the API server what a service account is allowed.
func (s *installed) may(account, verb, resource, namespace string) bool {
	s.Helper()
	group := ""
	if i := strings.IndexByte(resource, '.'); i >= 0 {
		resource, group = resource[:i], resource[i+1:]
	}
	resource, sub, _ := strings.Cut(resource, "/")
	group, name, _ := strings.Cut(group, "=")
	review, err := s.admin.AuthorizationV1().SubjectAccessReviews().Create(s.ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               "system:serviceaccount:" + ours + ":" + account,
			Groups:             []string{"system:serviceaccounts", "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Subresource: sub, Namespace: namespace, Name: name},
		},
	}, metav1.CreateOptions{})
	s.must(err)
	return review.Status.Allowed
}

// rights compares what an account may do with what is listed: every verb on
// every resource that the API server has.
func (s *installed) rights(account, namespace string, want map[string]string) {
	s.Helper()
	for resource, verbs := range want {
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} {
			listed := strings.Contains(" "+verbs+" ", " "+verb+" ")
			if got := s.may(account, verb, resource, namespace); got != listed {
				s.Errorf("%s: %s %s: allowed is %v, want %v", account, verb, resource, got, listed)
			}
		}
	}
}

func (s *installed) agentsRights() {
	s.rights("sidetrack-agent", "shop", map[string]string{
		"pods":                                   "list watch",
		"services":                               "list watch",
		"endpointslices.discovery.k8s.io":        "list watch",
		"sandboxes.sidetrack.dev":                "list watch",
		"routegroups.sidetrack.dev":              "list watch",
		"sandboxes/status.sidetrack.dev":         "",
		"routegroups/status.sidetrack.dev":       "",
		"nodestates.sidetrack.dev":               "get create patch",
		"nodestates/status.sidetrack.dev":        "patch",
		"nodes":                                  "get",
		"nodes/status":                           "",
		"nodes/proxy":                            "",
		"secrets":                                "",
		"configmaps":                             "",
		"pods/exec":                              "",
		"pods/log":                               "",
		"serviceaccounts/token":                  "",
		"events":                                 "",
		"deployments.apps":                       "",
		"leases.coordination.k8s.io":             "",
		"clusterroles.rbac.authorization.k8s.io": "",
		"nodes/questions.ledger.sidetrack.dev":   "watch",
		"nodes/answers.ledger.sidetrack.dev":     "create",
		"nodes/traces.ledger.sidetrack.dev":      "create",
		"sandboxes/records.ledger.sidetrack.dev": "get watch", // as everybody: the collector refuses it
		"ui.ledger.sidetrack.dev":                "get",       // as everybody: files
	})
}

func (s *installed) ledgersRights() {
	s.rights("sidetrack-ledger", "shop", map[string]string{
		"subjectaccessreviews.authorization.k8s.io": "create",
		"tokenreviews.authentication.k8s.io":        "",
		"nodestates.sidetrack.dev":                  "list",
		"sandboxes.sidetrack.dev":                   "",
		"routegroups.sidetrack.dev":                 "",
		"apiservices.apiregistration.k8s.io":        "",
		"nodes/questions.ledger.sidetrack.dev":      "",
		"nodes/answers.ledger.sidetrack.dev":        "",
		"nodes":                                     "",
		"pods":                                      "",
		"services":                                  "",
		"secrets":                                   "",
		"configmaps":                                "",
		"serviceaccounts/token":                     "",
		"roles.rbac.authorization.k8s.io":           "",
	})
	if !s.may("sidetrack-ledger", "patch", "apiservices.apiregistration.k8s.io=v1alpha1.ledger.sidetrack.dev", "") {
		s.Error("it may not say what its certificate is")
	}
	if s.may("sidetrack-ledger", "patch", "apiservices.apiregistration.k8s.io=v1beta1.metrics.k8s.io", "") {
		s.Error("it may change another APIService")
	}
}

func (s *installed) controllersRights() {
	s.rights("sidetrack-controller", "shop", map[string]string{
		"sandboxes.sidetrack.dev":                   "list watch delete",
		"sandboxes/status.sidetrack.dev":            "patch",
		"routegroups.sidetrack.dev":                 "list watch",
		"routegroups/status.sidetrack.dev":          "patch",
		"nodestates.sidetrack.dev":                  "list watch",
		"nodestates/status.sidetrack.dev":           "",
		"deployments.apps":                          "list watch create patch delete",
		"jobs.batch":                                "list watch create delete",
		"services":                                  "list watch create patch delete",
		"statefulsets.apps":                         "list watch",
		"daemonsets.apps":                           "list watch",
		"replicasets.apps":                          "list watch",
		"replicationcontrollers":                    "list watch",
		"cronjobs.batch":                            "list watch",
		"poddisruptionbudgets.policy":               "list watch",
		"endpointslices.discovery.k8s.io":           "list watch",
		"referencegrants.gateway.networking.k8s.io": "list watch",
		"pods":                            "list watch",
		"nodes":                           "list watch",
		"nodes/status":                    "",
		"nodes/proxy":                     "",
		"events":                          "list",
		"events.events.k8s.io":            "create patch",
		"secrets":                         "",
		"configmaps":                      "",
		"serviceaccounts":                 "",
		"serviceaccounts/token":           "",
		"pods/exec":                       "",
		"persistentvolumeclaims":          "",
		"leases.coordination.k8s.io":      "",
		"roles.rbac.authorization.k8s.io": "",
		"mutatingwebhookconfigurations.admissionregistration.k8s.io": "",
	})
	if s.may("sidetrack-controller", "update", "leases.coordination.k8s.io=somebody", ours) {
		s.Error("it may take another's lease")
	}
	if !s.may("sidetrack-controller", "update", "leases.coordination.k8s.io=sidetrack-controller", ours) {
		s.Error("it may not renew its lease")
	}
}

// token returns what the kubelet would give to a pod on a node, or, without a
// node, what anybody who may ask for tokens gets.
func (s *installed) token(account, node string) *rest.Config {
	s.Helper()
	config, err := s.plane.Token(s.ctx, ours, account, node)
	s.must(err)
	return config
}

func (s *installed) node(name string) {
	s.Helper()
	_, err := s.admin.CoreV1().Nodes().Create(s.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	s.must(err)
}

func nodeState(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "sidetrack.dev/v1alpha1", "kind": "NodeState", "metadata": map[string]any{"name": name},
	}}
}

func (s *installed) ownNode() {
	s.node("one")
	s.node("two")
	client, err := dynamic.NewForConfig(s.token("sidetrack-agent", "one"))
	s.must(err)
	agent := client.Resource(nodeStates)
	apply := metav1.ApplyOptions{FieldManager: "sidetrackd", Force: true}

	// The policy is in force a moment after it has been stored.
	s.eventually(func() error {
		if _, err := agent.Apply(s.ctx, "two", nodeState("two"), apply); !apierrors.IsForbidden(err) {
			return fmt.Errorf("for another node: %w", err)
		}
		return nil
	})
	_, err = agent.Apply(s.ctx, "two", nodeState("two"), apply)
	s.refused(err, "an agent writes the NodeState of its own node, one, and not that of two")
	_, err = agent.Create(s.ctx, nodeState("two"), metav1.CreateOptions{})
	s.refused(err, "not that of two")

	_, err = agent.Apply(s.ctx, "one", nodeState("one"), apply)
	s.must(err)
	status := nodeState("one")
	s.must(unstructured.SetNestedField(status.Object, "v1", "status", "agentVersion"))
	_, err = agent.ApplyStatus(s.ctx, "one", status, apply)
	s.must(err)

	// What another node's agent has written is out of reach, too.
	other, err := dynamic.NewForConfig(s.token("sidetrack-agent", "two"))
	s.must(err)
	_, err = other.Resource(nodeStates).ApplyStatus(s.ctx, "one", status, apply)
	s.refused(err, "its own node, two, and not that of one")

	// A token that names no node is not one that a pod has.
	loose, err := dynamic.NewForConfig(s.token("sidetrack-agent", ""))
	s.must(err)
	_, err = loose.Resource(nodeStates).Apply(s.ctx, "one", nodeState("one"), apply)
	s.refused(err, "names no node")
}

func (s *installed) eventually(try func() error) {
	s.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			s.Fatal(err)
		}
	}
}

func deployment(name, extra string) string {
	return fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s%s},
  spec: {selector: {matchLabels: {a: %s}}, template: {metadata: {labels: {a: %s}}, spec: {containers: [{name: c, image: i}]}}}}`, name, extra, name, name)
}

func (s *installed) ownObjects() {
	config := s.token("sidetrack-controller", "")
	client, err := kubernetes.NewForConfig(config)
	s.must(err)
	for _, ns := range []string{"shop"} {
		_, err := s.admin.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		s.must(err)
	}
	labels := `, labels: {app.kubernetes.io/managed-by: sidetrack, sidetrack.dev/sandbox: pr-42}`
	owned := labels + `, ownerReferences: [{apiVersion: sidetrack.dev/v1alpha1, kind: Sandbox, name: pr-42, uid: 7a3e6f3e-0000-4000-8000-000000000000, controller: true, blockOwnerDeletion: true}]`
	force := metav1.PatchOptions{FieldManager: "sidetrack-controller", Force: new(bool)}
	*force.Force = true
	apply := func(ns, name, extra string) error {
		_, err := client.AppsV1().Deployments(ns).Patch(s.ctx, name, "application/apply-patch+yaml", []byte(deployment(name, extra)), force)
		return err
	}
	s.eventually(func() error {
		if err := apply("shop", "probe", ""); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a Deployment that is nobody's: %w", err)
		}
		return nil
	})
	s.refused(apply("shop", "fork", ""), "carries the labels")
	s.refused(apply("shop", "fork", labels), "what a Sandbox owns")
	s.refused(apply(ours, "fork", owned), "own namespace")
	s.must(apply("shop", "fork", owned))
	s.must(apply("shop", "fork", owned))

	_, err = s.admin.AppsV1().Deployments("shop").Patch(s.ctx, "baseline", "application/apply-patch+yaml", []byte(deployment("baseline", "")), force)
	s.must(err)
	s.refused(apply("shop", "baseline", owned), "carries the labels")
	s.refused(client.AppsV1().Deployments("shop").Delete(s.ctx, "baseline", metav1.DeleteOptions{}), "carries the labels")
	s.must(client.AppsV1().Deployments("shop").Delete(s.ctx, "fork", metav1.DeleteOptions{}))

	_, err = client.CoreV1().Services("shop").Create(s.ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	s.refused(err, "carries the labels")
}

func (s *installed) users() {
	_, err := s.plane.KubectlInput(s.ctx, strings.NewReader(`
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: edit, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}, {apiGroup: rbac.authorization.k8s.io, kind: User, name: joe}]
`), "apply", "-f", "-")
	s.must(err)
	as := func(user string) dynamic.ResourceInterface {
		client, err := dynamic.NewForConfig(s.plane.User(user))
		s.must(err)
		return client.Resource(sandboxes).Namespace("team")
	}
	sandbox := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "sidetrack.dev/v1alpha1", "kind": "Sandbox", "metadata": map[string]any{"name": "pr-1"},
		"spec": map[string]any{"redirects": []any{map[string]any{"from": map[string]any{"service": "a"}, "to": map[string]any{"service": "b"}}}},
	}}
	s.eventually(func() error {
		_, err := as("jane").Create(s.ctx, sandbox, metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	})
	_, err = as("joe").Create(s.ctx, sandbox, metav1.CreateOptions{})
	s.refused(err, "forbidden")
	made, err := as("jane").Create(s.ctx, sandbox, metav1.CreateOptions{})
	s.must(err)
	_, err = as("joe").Get(s.ctx, "pr-1", metav1.GetOptions{})
	s.must(err)
	s.must(unstructured.SetNestedField(made.Object, "forged-key", "status", "routingKey"))
	_, err = as("jane").UpdateStatus(s.ctx, made, metav1.UpdateOptions{})
	s.refused(err, "forbidden")
	// Nor by the way of the object itself.
	after, err := as("jane").Update(s.ctx, made, metav1.UpdateOptions{})
	s.must(err)
	if key, _, _ := unstructured.NestedString(after.Object, "status", "routingKey"); key != "" {
		s.Errorf("a user has set status.routingKey to %s", key)
	}
	s.must(as("jane").Delete(s.ctx, "pr-1", metav1.DeleteOptions{}))
}

func (s *installed) addresses() {
	s.must(s.plane.ApplyYAML(s.ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: wide}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: edit, namespace: wide}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: ann}, {apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: addresses, namespace: wide}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-addresses}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: bob}]
`))
	apply := func(user, to, extra string) error {
		client, err := dynamic.NewForConfig(s.plane.User(user))
		s.must(err)
		text := fmt.Sprintf(`{apiVersion: sidetrack.dev/v1alpha1, kind: Sandbox, metadata: {name: pr-1 %s}, spec: {redirects: [{from: {service: a}, to: %s}]}}`, extra, to)
		force := true
		_, err = client.Resource(sandboxes).Namespace("wide").Patch(s.ctx, "pr-1", "application/apply-patch+yaml", []byte(text),
			metav1.PatchOptions{FieldManager: "test", Force: &force})
		return err
	}
	s.eventually(func() error {
		if err := apply("ann", "{address: 10.0.0.9, port: 80}", ""); !apierrors.IsForbidden(err) {
			return fmt.Errorf("an address without the right: %w", err)
		}
		return apply("bob", "{address: 10.0.0.9, port: 80}", "")
	})
	s.refused(apply("ann", "{address: 10.0.0.10, port: 80}", ""), "ann needs the verb redirect-to-address on sandboxes in namespace wide")
	s.refused(apply("ann", "{address: 10.0.0.9, port: 22}", ""), "redirect-to-address")
	// What is there already she may keep, and give up.
	s.must(apply("ann", "{address: 10.0.0.9, port: 80}", ", labels: {a: b}"))
	s.must(apply("ann", "{service: b}", ""))
	s.refused(apply("ann", "{address: 10.0.0.9, port: 80}", ""), "redirect-to-address")
}

// podSecurity asks PodSecurity admission what it thinks of the pods.
func (s *installed) podSecurity() {
	try := func(level string, template corev1.PodTemplateSpec) error {
		ns, err := s.admin.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			GenerateName: level + "-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": level},
		}}, metav1.CreateOptions{})
		s.must(err)
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Name = "try"
		// A matter of the namespace, not of security.
		pod.Spec.PriorityClassName = ""
		_, err = s.admin.CoreV1().Pods(ns.Name).Create(s.ctx, pod, metav1.CreateOptions{DryRun: []string{"All"}})
		return err
	}
	agent, err := s.admin.AppsV1().DaemonSets(ours).Get(s.ctx, "sidetrack-agent", metav1.GetOptions{})
	s.must(err)
	controller, err := s.admin.AppsV1().Deployments(ours).Get(s.ctx, "sidetrack-controller", metav1.GetOptions{})
	s.must(err)
	s.must(try("restricted", controller.Spec.Template))
	ledger, err := s.admin.AppsV1().Deployments(ours).Get(s.ctx, "sidetrack-ledger", metav1.GetOptions{})
	s.must(err)
	s.must(try("restricted", ledger.Spec.Template))
	s.must(try("privileged", agent.Spec.Template))
	err = try("baseline", agent.Spec.Template)
	if err == nil {
		s.Fatal("the agent's pod is taken as baseline")
	}
	_, got, _ := strings.Cut(err.Error(), "violates PodSecurity ")
	want := strings.Join([]string{
		`"baseline:latest": forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined")`,
		`non-default capabilities (container "agent" must not include "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE" in securityContext.capabilities.add)`,
		`host namespaces (hostNetwork=true, hostPID=true)`,
		`hostPath volumes (volumes "bpffs", "cgroup", "run")`,
		`seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "spc_t")`,
	}, ", ")
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("what more than baseline it has (-want +got):\n%s", diff)
	}
}

func (s *installed) uninstall() {
	out, err := s.plane.Kubectl(s.ctx, "apply", "--server-side", "--dry-run=server", "-f", "../../deploy/uninstall.yaml", "-o",
		"jsonpath={.spec.updateStrategy.rollingUpdate.maxSurge} {.spec.updateStrategy.rollingUpdate.maxUnavailable} {.spec.template.spec.containers[*].name} {.spec.template.spec.hostPID}")
	s.must(err)
	// Server-side apply of the same manager takes away what is no longer said.
	if want := "0 100% wait "; out != want {
		s.Errorf("got %q, want %q", out, want)
	}
}
