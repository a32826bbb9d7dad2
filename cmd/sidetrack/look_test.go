// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// nodeState has an agent say something of its node.
func nodeState(t *testing.T, name string, status v1alpha1.NodeStateStatus) {
	t.Helper()
	s := &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: name}}
	create(t, s)
	t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(t.Context()), s) })
	s.Status = status
	if err := api.Status().Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// columns makes one space of those between columns, whose widths depend on all
// that is in them.
func columns(text string) string { return regexp.MustCompile(" {2,}").ReplaceAllString(text, " ") }

func TestDoctorNamesWhatIsMissingAndWhatToDo(t *testing.T) {
	ns := namespace(t)
	// There is neither a controller nor an agent.
	out, said := sidetrack(t, ns, 3, "doctor")
	mustSay(t, columns(out), "ok Kubernetes", "ok CRDs", "MISSING controller", "there is no Deployment of it: kubectl apply --server-side -f deploy/install.yaml",
		"MISSING agents", "optional ledger", "is not served", "ok permissions")
	mustSay(t, said, "2 of the things that are needed are missing", "next: mend the first of them")

	now, long := metav1.NowMicro(), metav1.NewMicroTime(time.Now().Add(-time.Hour))
	applied := &v1alpha1.AppliedVersions{Sandboxes: "1"}
	nodeState(t, "doctor-1", v1alpha1.NodeStateStatus{AgentVersion: "1.0", HeartbeatTime: &now, Applied: applied, Pods: v1alpha1.PodCoverage{Covered: 3}})
	nodeState(t, "doctor-2", v1alpha1.NodeStateStatus{AgentVersion: "1.1", HeartbeatTime: &long, Applied: applied})
	nodeState(t, "doctor-3", v1alpha1.NodeStateStatus{AgentVersion: "1.1", HeartbeatTime: &now, Applied: applied, Pods: v1alpha1.PodCoverage{Covered: 1, Uncovered: 2},
		Problems: []v1alpha1.NodeProblem{{Kind: "Pod", Namespace: "shop", Name: "web-0", Message: "add CAP_SYS_PTRACE"}}})
	out, _ = sidetrack(t, ns, 3, "doctor", "-o", "json")
	var checks []struct{ Name, Result, Detail, Remedy string }
	if err := json.Unmarshal([]byte(out), &checks); err != nil {
		t.Fatal(err)
	}
	said = ""
	for _, c := range checks {
		said += c.Result + " " + c.Name + ": " + c.Detail + "\n"
		if (c.Result == "ok") != (c.Remedy == "") {
			t.Errorf("%s is %s with the remedy %q", c.Name, c.Result, c.Remedy)
		}
	}
	mustSay(t, said, "MISSING node doctor-2: its agent is silent", "MISSING node doctor-3: 2 pods are not covered; Pod shop/web-0: add CAP_SYS_PTRACE", "optional versions: agents of several versions: 1.0, 1.1")

	out, _ = sidetrack(t, ns, 0, "status")
	mustSay(t, columns(out), "doctor-1 1.0", "3 of 3 covered", "1 of 3 2 pods are not covered", "problem on doctor-3: Pod shop/web-0: add CAP_SYS_PTRACE")
}

// A tenant who labels his own Deployment like the controller's is not believed.
func TestDoctorLooksAtTheInstallationAndAtNobodyElses(t *testing.T) {
	ns, home := namespace(t), namespace(t)
	controller := func(namespace, image string) {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sidetrack-controller",
			Labels: map[string]string{"app.kubernetes.io/name": "sidetrack", "app.kubernetes.io/component": "controller"}}}
		pods := map[string]string{"a": "b"}
		d.Spec = appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: pods}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: pods}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "controller", Image: image}}}}}
		create(t, d)
		t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(t.Context()), d) })
		d.Status = appsv1.DeploymentStatus{Replicas: 1, ReadyReplicas: 1, AvailableReplicas: 1}
		if err := api.Status().Update(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	controller(ns, "evil:1")
	b := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "sidetrack-controller"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "sidetrack-controller"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "sidetrack-controller", Namespace: home}}}
	create(t, b)
	t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(t.Context()), b) })
	out, _ := sidetrack(t, ns, 3, "doctor")
	mustSay(t, columns(out), "MISSING controller there is no Deployment of it; not of this installation, though the labels say so: "+ns+"/sidetrack-controller")
	controller(home, "ours:1")
	out, _ = sidetrack(t, ns, 3, "doctor")
	mustSay(t, columns(out), "ok controller "+home+"/sidetrack-controller: 1 of 1 ready, image ours:1; not of this installation, though the labels say so: "+ns+"/sidetrack-controller",
		"kubectl -n "+home+" describe daemonset sidetrack-agent")

	// Who may list Deployments and not read the binding cannot tell.
	for _, o := range []client.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "joan-views"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: []string{"list"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "joan-views"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "joan-views"},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "joan"}}},
	} {
		create(t, o)
		t.Cleanup(func() { _ = api.Delete(context.WithoutCancel(t.Context()), o) })
	}
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(config, plane.User("joan")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // the binding is in force in a moment
		r := startAs(t.Context(), t, config, ns, "", "doctor")
		r.wait(t)
		said := columns(r.out.String())
		for _, want := range []string{"unknown controller several objects say by their labels that they are Sidetrack's controller: ", ns + "/sidetrack-controller", home + "/sidetrack-controller", "you may not read ClusterRoleBinding sidetrack-controller"} {
			if !strings.Contains(said, want) {
				return fmt.Errorf("doctor does not say %q:\n%s", want, said)
			}
		}
		return nil
	})
}

func TestDoctorNamesWhatAUserMayNotDo(t *testing.T) {
	ns := namespace(t)
	config := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(config, plane.User("jack")); err != nil {
		t.Fatal(err)
	}
	r := startAs(t.Context(), t, config, ns, "", "doctor")
	if got := r.wait(t); got != 3 {
		t.Errorf("exit status %d", got)
	}
	mustSay(t, columns(r.out.String()), "unknown controller", "unknown agents", "MISSING permissions", "create sandboxes (for create, apply)", "create pods/portforward (for proxy, diff)", "ask for ClusterRole edit")
}

func TestStatusAndExplainSayWhatTheControllerSays(t *testing.T) {
	ns := namespace(t)
	deployment(t, ns, "route", "app")
	create(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "route"}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "route"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "https", Port: 443}},
	}})
	create(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "stock"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}})
	caller := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "caller", Labels: map[string]string{v1alpha1.SandboxLabel: "another"}},
		Spec: corev1.PodSpec{NodeName: "explain-1", Containers: []corev1.Container{{Name: "app", Image: "app"}}}}
	create(t, caller)
	now := metav1.NowMicro()
	nodeState(t, "explain-1", v1alpha1.NodeStateStatus{HeartbeatTime: &now, Applied: &v1alpha1.AppliedVersions{Sandboxes: "1"}})
	sidetrack(t, ns, 0, "sandbox", "create", "a", "--fork", "route", "--image", "route:2")
	out, said := sidetrack(t, ns, 3, "explain", "a", "route")
	mustSay(t, columns(out+said), "NO key the sandbox has no routing key yet")
	port := intstr.FromInt32(80)
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status = v1alpha1.SandboxStatus{
			RoutingKey: "key-of-sandbox-a", Revision: 7, Nodes: &v1alpha1.NodeCount{Programmed: 1, Total: 1},
			Forks:     []v1alpha1.ForkStatus{{Workload: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, Replicas: 1, Ready: 1}},
			Redirects: []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route", Port: &port}, To: v1alpha1.RedirectTo{Service: "route-a-x"}, Fork: "Deployment/route", Endpoints: 1}},
			Conditions: []metav1.Condition{
				condition("Accepted", true, "Accepted", "all is there"), condition("ForksReady", true, "ForksReady", "1 of 1"),
				condition("Programmed", true, "Programmed", "in force on 1 of 1 nodes"), condition("Ready", true, "Ready", ""),
			},
		}
	})
	out, _ = sidetrack(t, ns, 0, "status", "a")
	mustSay(t, columns(out), "a true Ready 7 1 of 1", "fork of Deployment/route: 1 of 1 ready", "redirect route:80 -> route-a-x (fork of Deployment/route), 1 endpoints")

	out, _ = sidetrack(t, ns, 0, "explain", "a", "http://route."+ns+".svc/path")
	mustSay(t, columns(out), "ok service redirect route:80 -> route-a-x", "ok fork 1 ready endpoints answer", "unknown ledger", "nothing is known that keeps tagged requests to route from the fork")
	if strings.Contains(out, "key-of-sandbox-a") {
		t.Errorf("it tells the key:\n%s", out)
	}
	for args, want := range map[string]string{
		"stock":                    "the sandbox does not redirect Service stock: tagged requests to it are answered by the baseline, as meant; it redirects route",
		"https://route/":           "the sandbox does not redirect Service route",
		"nothing":                  "there is no Service nothing in namespace " + ns,
		"route:80 --from caller":   "caller is sandbox another's",
		"route --from nobody":      "there is no pod nobody in namespace " + ns,
		"route --from sts/nothing": "there is no pod sts/nothing",
	} {
		out, _ := sidetrack(t, ns, 3, append([]string{"explain", "a"}, strings.Fields(args)...)...)
		mustSay(t, columns(out), want)
	}
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) {
		sb.Status.KeyNames = &v1alpha1.CommonKeyNames{Members: []string{"b"}, Split: true, Message: "--baggage-member is a,b on node n1 and b on node n2"}
	})
	out, said = sidetrack(t, ns, 3, "explain", "a", "route")
	mustSay(t, columns(out+said), "NO key nodes look for routing keys under different names, so that a request may lose its own on the way: --baggage-member is a,b on node n1 and b on node n2")
	says(t, ns, "a", func(sb *v1alpha1.Sandbox) { sb.Status.KeyNames = nil })
	_, said = sidetrack(t, ns, 2, "explain", "a", "http://route.elsewhere/")
	mustSay(t, said, "route.elsewhere is in namespace elsewhere, and the sandbox in "+ns)
	_, said = sidetrack(t, ns, 1, "trace", "a")
	mustSay(t, said, "this cluster serves no ledger", "next: install")
	_, said = sidetrack(t, ns, 1, "trace", "nobody")
	mustSay(t, said, "there is no sandbox nobody")
	_, said = sidetrack(t, ns, 0, "logs", "a")
	mustSay(t, said, "no such container of sandbox a has run yet")
	_, said = sidetrack(t, ns, 2, "logs", "a", "--fork", "stock")
	mustSay(t, said, "sandbox a has no fork of stock: it has Deployment/route")
}
