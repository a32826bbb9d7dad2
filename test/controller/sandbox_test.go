// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

func TestASandboxBecomesReadyWhenItsForkAndItsNodesAre(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "route")
	catchUp := nodes.fallsBehind(t)
	sb := forking(ns, "pr-1", "route")

	// What nodes are told, as it comes.
	watch, err := api.Watch(t.Context(), &v1alpha1.SandboxList{}, client.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	create(t, sb)
	told := ""
	for event := range watch.ResultChan() {
		if o, ok := event.Object.(*v1alpha1.Sandbox); ok && redirectOf(o.Status.Redirects, "route") != nil && o.Status.RoutingKey != "" {
			told = o.ResourceVersion
			break
		}
	}

	d := forkOf(t, sb, "route")
	if c, err := resourceversion.CompareResourceVersion(told, d.ResourceVersion); err != nil || c >= 0 {
		t.Errorf("the redirect is told at %s, after the fork was made at %s (%v)", told, d.ResourceVersion, err)
	}
	if c := d.Spec.Template.Spec.Containers; c[0].Image != "route:pr-1" || c[1].Image != "proxy:1" {
		t.Errorf("containers %+v", c)
	}
	if d.Spec.Template.Labels["app"] != "" || d.Spec.Template.Labels[v1alpha1.SandboxLabel] != "pr-1" {
		t.Errorf("labels %v", d.Spec.Template.Labels)
	}
	env := map[string]string{}
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	if env["SIDETRACK_SANDBOX"] != "pr-1" || env["SIDETRACK_ROUTING_KEY"] != sb.Status.RoutingKey || env["SIDETRACK_BASELINE"] != "Deployment/route" {
		t.Errorf("env %v", env)
	}
	r := redirectOf(sb.Status.Redirects, "route")
	if r == nil || r.Fork != "Deployment/route" || r.Unavailable != v1alpha1.UnavailableReject {
		t.Fatalf("redirects %+v", sb.Status.Redirects)
	}
	condition(t, sb, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "Accepted", "")
	condition(t, sb, v1alpha1.ConditionForksReady, metav1.ConditionFalse, "", "fork of Deployment/route")
	condition(t, sb, v1alpha1.ConditionReady, metav1.ConditionFalse, "", "")

	runs(t, sb, "route", "10.1.0.1")
	condition(t, sb, v1alpha1.ConditionForksReady, metav1.ConditionTrue, "ForksReady", "")
	condition(t, sb, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, "", "")
	condition(t, sb, v1alpha1.ConditionReady, metav1.ConditionFalse, "NotProgrammed", "n1")
	catchUp()
	ready(t, sb)
	if n := sb.Status.Nodes; n == nil || n.Programmed != 1 || n.Total != 1 {
		t.Errorf("nodes %+v", n)
	}
	if r := redirectOf(sb.Status.Redirects, "route"); r.Endpoints != 1 || r.Message != "" {
		t.Errorf("redirect %+v", r)
	}
	steady(t, sb, time.Second)
}

func TestABrokenImageIsSaidInTheContainersOwnWords(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "route")
	sb := forking(ns, "pr-1", "route")
	create(t, sb)
	const own = `failed to pull image "route:pr-1": not found`
	pod(t, forkOf(t, sb, "route"), corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "app", Image: "route:pr-1", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: own}},
	}}})
	condition(t, sb, v1alpha1.ConditionForksReady, metav1.ConditionFalse, "ImageNotPulled", own)
	condition(t, sb, v1alpha1.ConditionReady, metav1.ConditionFalse, "ForksNotReady", own)
}

func TestTheBaselinesChangesReachTheForkUnlessOverridden(t *testing.T) {
	ns := namespace(t)
	d := baseline(t, ns, "route")
	sb := forking(ns, "pr-1", "route")
	create(t, sb)
	fork := forkOf(t, sb, "route")
	change(t, d, func(d *appsv1.Deployment) {
		c := d.Spec.Template.Spec.Containers
		c[0].Image, c[1].Image = "route:2", "proxy:2"
		c[0].Env = []corev1.EnvVar{{Name: "NEW", Value: "1"}}
	})
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(fork), fork); err != nil {
			return err
		}
		c := fork.Spec.Template.Spec.Containers
		if c[0].Image != "route:pr-1" {
			t.Fatalf("the overridden image has become %s", c[0].Image)
		}
		if e := c[0].Env; c[1].Image != "proxy:2" || e[len(e)-1].Name != "NEW" {
			return fmt.Errorf("containers %+v", c)
		}
		return nil
	})

	// A port that the Service gets later is redirected, too.
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "route"}}
	change(t, s, func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "grpc", Port: 81})
	})
	own := &corev1.Service{}
	eventually(t, func() error {
		r := redirectOf(sb.Status.Redirects, "route")
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: r.To.Service}, own); err != nil {
			return err
		}
		if len(own.Spec.Ports) != 2 {
			return fmt.Errorf("ports %+v", own.Spec.Ports)
		}
		return nil
	})
	// What somebody changes by hand is put right.
	change(t, fork, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "by-hand:1" })
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(fork), fork); err != nil {
			return err
		}
		if i := fork.Spec.Template.Spec.Containers[0].Image; i != "route:pr-1" {
			return fmt.Errorf("image %s", i)
		}
		return nil
	})
}

func TestAServiceThatIsMadeAnewIsNeverWithoutItsRedirect(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "route")
	sb := forking(ns, "pr-1", "route")
	create(t, sb)
	forkOf(t, sb, "route")
	before := *redirectOf(sb.Status.Redirects, "route")
	own := &corev1.Service{}
	eventually(t, func() error {
		return api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: before.To.Service}, own)
	})
	uid := own.UID
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "route"}}
	remove(t, s)
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); err != nil {
			return err
		}
		r := redirectOf(sb.Status.Redirects, "route")
		if r == nil || r.To.Service != before.To.Service {
			t.Fatalf("redirects %+v", sb.Status.Redirects)
		}
		if !strings.Contains(r.Message, "no Service route any more") {
			return fmt.Errorf("redirect %+v", r)
		}
		return nil
	})
	service(t, ns, "route")
	eventually(t, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); err != nil {
			return err
		}
		if r := redirectOf(sb.Status.Redirects, "route"); r == nil || r.Message != "" {
			return fmt.Errorf("redirect %+v", r)
		}
		return nil
	})
	if err := api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: before.To.Service}, own); err != nil || own.UID != uid {
		t.Errorf("the fork's Service has been removed meanwhile: %v", err)
	}
}

func TestASandboxEndsWhenItsTimeIsOver(t *testing.T) {
	ns := namespace(t)
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "short"}}
	sb.Spec.TTL = &metav1.Duration{Duration: 10 * time.Second}
	create(t, sb)
	made := sb.CreationTimestamp.Time
	condition(t, sb, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "", "")
	if at := sb.Status.ExpiresAt; at == nil || !at.Time.Equal(made.Add(10*time.Second)) {
		t.Errorf("expires at %v, made at %s", at, made)
	}
	eventually(t, func() error {
		err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is still there: %v", err)
	})
	if lived := time.Since(made); lived < 9*time.Second {
		t.Errorf("it has lived for %s only", lived)
	}
}

func TestAnotherNamespacesServiceTakesAGrantThatHolds(t *testing.T) {
	ns, other := namespace(t), namespace(t)
	baseline(t, ns, "route")
	service(t, other, "stub")
	endpoints(t, other, "stub", "10.1.0.9")
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pr-1"}}
	sb.Spec.Redirects = []v1alpha1.Redirect{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "stub", Namespace: other}}}
	create(t, sb)
	refused := func() {
		t.Helper()
		condition(t, sb, v1alpha1.ConditionAccepted, metav1.ConditionFalse, "RefNotPermitted", "create a ReferenceGrant in namespace "+other)
		if r := redirectOf(sb.Status.Redirects, "route"); r == nil || !r.Refused {
			t.Errorf("redirect %+v", r)
		}
	}
	refused()
	grant := &gatewayv1.ReferenceGrant{ObjectMeta: metav1.ObjectMeta{Namespace: other, Name: "stub"}}
	grant.Spec.From = []gatewayv1.ReferenceGrantFrom{{Group: v1alpha1.Group, Kind: v1alpha1.SandboxKind, Namespace: gatewayv1.Namespace(ns)}}
	name := gatewayv1.ObjectName("stub")
	grant.Spec.To = []gatewayv1.ReferenceGrantTo{{Kind: "Service", Name: &name}}
	create(t, grant)
	ready(t, sb)
	if r := redirectOf(sb.Status.Redirects, "route"); r.Refused || r.Endpoints != 1 {
		t.Errorf("redirect %+v", r)
	}
	remove(t, grant)
	refused()
}

func TestPodsThatStayUncoveredEndReady(t *testing.T) {
	ns := namespace(t)
	service(t, ns, "route")
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pr-1"}}
	sb.Spec.Redirects = []v1alpha1.Redirect{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Address: "10.1.0.9"}}}
	create(t, sb)
	ready(t, sb)
	nodes.uncovered.Store(2)
	t.Cleanup(func() { nodes.uncovered.Store(0) })
	condition(t, sb, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, "PodsNotCovered", "n1 (2 of its 5 pods): ") // what is wrong with which is another namespace's
	condition(t, sb, v1alpha1.ConditionReady, metav1.ConditionFalse, "NotProgrammed", "PodsNotCovered")
	nodes.uncovered.Store(0)
	ready(t, sb)
}

func TestTheNamesThatNodesGoByAreInTheStatusAndEndReadyWhereTheyDiffer(t *testing.T) {
	ns := namespace(t)
	service(t, ns, "route")
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pr-1"}}
	sb.Spec.Redirects = []v1alpha1.Redirect{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Address: "10.1.0.9"}}}
	create(t, sb)
	group := &v1alpha1.RouteGroup{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "all"}, Spec: v1alpha1.RouteGroupSpec{Sandboxes: []v1alpha1.SandboxRef{{Name: "pr-1"}}}}
	create(t, group)
	ready(t, sb)
	ready(t, group)
	if sb.Status.KeyNames != nil || group.Status.KeyNames != nil {
		t.Errorf("where no agent says its names: %+v, %+v", sb.Status.KeyNames, group.Status.KeyNames)
	}
	names := func(want *v1alpha1.CommonKeyNames) {
		t.Helper()
		eventually(t, func() error {
			for _, o := range []client.Object{sb, group} {
				if err := api.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
					return err
				}
			}
			for _, got := range []*v1alpha1.CommonKeyNames{sb.Status.KeyNames, group.Status.KeyNames} {
				if !reflect.DeepEqual(got, want) {
					return fmt.Errorf("status.keyNames is %+v, want %+v", got, want)
				}
			}
			return nil
		})
	}
	nodes.names.Store(&v1alpha1.KeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"})
	t.Cleanup(func() { nodes.names.Store(nil) })
	names(&v1alpha1.CommonKeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"})
	ready(t, sb)
	// A sandbox has them from the first on.
	late := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pr-2"}}
	changes, err := api.Watch(t.Context(), &v1alpha1.SandboxList{}, client.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	create(t, late)
	for {
		e, ok := <-changes.ResultChan()
		if !ok {
			t.Fatal("the watch has ended")
		}
		if got, ok := e.Object.(*v1alpha1.Sandbox); ok && got.Name == late.Name && got.Status.RoutingKey != "" {
			if got.Status.KeyNames == nil {
				t.Errorf("the first status with a key has no names: %+v", got.Status)
			}
			break
		}
	}

	// Another node, with an agent that has been given others.
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}
	create(t, other)
	t.Cleanup(func() { // before the server's end, and whatever has failed
		_ = api.Delete(context.Background(), other)
		_ = api.Delete(context.Background(), &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
	})
	create(t, &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
	says := func(members ...string) {
		t.Helper()
		eventually(t, func() error {
			var s v1alpha1.NodeState
			if err := api.Get(t.Context(), client.ObjectKey{Name: "n2"}, &s); err != nil {
				return err
			}
			const newest = "1000000000000000000"
			now := metav1.NowMicro()
			s.Status = v1alpha1.NodeStateStatus{
				BootID: "boot-of-n2", Instance: "two", HeartbeatTime: &now, Pods: v1alpha1.PodCoverage{Covered: 1},
				Applied:  &v1alpha1.AppliedVersions{Sandboxes: newest, RouteGroups: newest, Services: newest, EndpointSlices: newest},
				KeyNames: &v1alpha1.KeyNames{Members: members, Header: "x-acme"},
			}
			return api.Status().Update(t.Context(), &s)
		})
	}
	says("sidetrack")
	other.Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", BootID: "boot-of-n2"}
	other.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	say(t, other)
	for _, o := range []client.Object{sb, group} {
		condition(t, o, v1alpha1.ConditionReady, metav1.ConditionFalse, "KeyNamesDiffer",
			"--baggage-member is acme,sidetrack on node n1, which adds the first of them to requests, and sidetrack on node n2, which does not look for that one")
	}
	if got := sb.Status.KeyNames; got == nil || !reflect.DeepEqual(got.Members, []string{"sidetrack"}) || !got.Split {
		t.Errorf("status.keyNames %+v", got)
	}
	says("sidetrack", "acme")
	names(&v1alpha1.CommonKeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"})
	ready(t, sb)
	ready(t, group)
	// Tests after this one find things as they were before it.
	remove(t, other)
	remove(t, &v1alpha1.NodeState{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
	nodes.names.Store(nil)
	names(nil)
}

func TestConnectionsFromBeforeShowInTheStatusUntilTheyAreGone(t *testing.T) {
	ns := namespace(t)
	service(t, ns, "route")
	sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pr-1"}}
	sb.Spec.Redirects = []v1alpha1.Redirect{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Address: "10.1.0.9"}}}
	create(t, sb)
	ready(t, sb)
	counted := func(want int64) {
		t.Helper()
		eventually(t, func() error {
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); err != nil {
				return err
			}
			if got := sb.Status.UncoveredConnections; got != want {
				return fmt.Errorf("status.uncoveredConnections is %d, want %d", got, want)
			}
			return nil
		})
	}
	nodes.connections.Store(&v1alpha1.ServiceConnections{Namespace: ns, Service: "route", Uncovered: 3})
	t.Cleanup(func() { nodes.connections.Store(nil) })
	counted(3)
	ready(t, sb)
	nodes.connections.Store(nil)
	counted(0)
}

func TestTwoSandboxesForkOneWorkload(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "route")
	one, two := forking(ns, "pr-1", "route"), forking(ns, "pr-2", "route")
	create(t, one)
	create(t, two)
	a, b := forkOf(t, one, "route"), forkOf(t, two, "route")
	if a.Name == b.Name || one.Status.RoutingKey == two.Status.RoutingKey {
		t.Errorf("forks %s and %s, the same key: %v", a.Name, b.Name, one.Status.RoutingKey == two.Status.RoutingKey)
	}
	runs(t, one, "route", "10.1.0.1")
	ready(t, one)
	condition(t, two, v1alpha1.ConditionReady, metav1.ConditionFalse, "ForksNotReady", "")
	runs(t, two, "route", "10.1.0.2")
	ready(t, two)
	if redirectOf(one.Status.Redirects, "route").To.Service == redirectOf(two.Status.Redirects, "route").To.Service {
		t.Error("both forks are reached by one Service")
	}
}

func TestAKeyThatIsInUseIsRefusedUntilItIsFree(t *testing.T) {
	ns, other := namespace(t), namespace(t)
	const key = "one-key-for-two"
	first := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: other, Name: "first"}}
	first.Spec.RoutingKey = key
	create(t, first)
	condition(t, first, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "", "")
	baseline(t, ns, "route")
	second := forking(ns, "second", "route")
	second.Spec.RoutingKey = key
	create(t, second)
	condition(t, second, v1alpha1.ConditionAccepted, metav1.ConditionFalse, "KeyInUse", "in use")
	// The redirects hold for its own pods, which carry no key.
	if second.Status.RoutingKey != "" || redirectOf(second.Status.Redirects, "route") == nil {
		t.Errorf("status %+v", second.Status)
	}
	for _, c := range second.Status.Conditions {
		if strings.Contains(c.Message, other) || strings.Contains(c.Message, "first") {
			t.Errorf("it says whose the key is: %s", c.Message)
		}
	}
	var made appsv1.DeploymentList
	if err := api.List(t.Context(), &made, client.InNamespace(ns), client.MatchingLabels{v1alpha1.SandboxLabel: "second"}); err != nil || len(made.Items) != 0 {
		t.Errorf("forks of a refused sandbox: %v %v", made.Items, err)
	}
	remove(t, first)
	condition(t, second, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "", "")
	forkOf(t, second, "route")
	if second.Status.RoutingKey != key {
		t.Error("it has no key though the key is free")
	}
}

func TestEverythingThatIsMadeGoesWithItsSandbox(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "route")
	cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "nightly"}, Spec: batchv1.CronJobSpec{
		Schedule: "0 0 * * *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "app", Image: "nightly:1"}},
		}}}},
	}}
	create(t, cron)
	sb := forking(ns, "pr-1", "route")
	sb.Spec.Forks = append(sb.Spec.Forks, v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Kind: "CronJob", Name: "nightly"}})
	create(t, sb)
	made := func() (all []client.Object) {
		var deployments appsv1.DeploymentList
		var jobs batchv1.JobList
		var services corev1.ServiceList
		for _, list := range []client.ObjectList{&deployments, &jobs, &services} {
			if err := api.List(t.Context(), list, client.InNamespace(ns), client.MatchingLabels{v1alpha1.SandboxLabel: "pr-1"}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range deployments.Items {
			all = append(all, &deployments.Items[i])
		}
		for i := range jobs.Items {
			all = append(all, &jobs.Items[i])
		}
		for i := range services.Items {
			all = append(all, &services.Items[i])
		}
		return all
	}
	eventually(t, func() error {
		if n := len(made()); n != 3 {
			return fmt.Errorf("%d objects", n)
		}
		return nil
	})
	for _, o := range made() {
		owners := o.GetOwnerReferences()
		if len(owners) != 1 || owners[0].UID != sb.UID || owners[0].Kind != v1alpha1.SandboxKind || len(o.GetFinalizers()) > 0 && !isJob(o) {
			t.Errorf("%T %s: owners %+v, finalizers %v", o, o.GetName(), owners, o.GetFinalizers())
		}
	}
	// A fork that the spec does not ask for any more goes before.
	change(t, sb, func(sb *v1alpha1.Sandbox) { sb.Spec.Forks = sb.Spec.Forks[1:] })
	eventually(t, func() error {
		for _, o := range made() {
			if !isJob(o) && o.GetDeletionTimestamp() == nil {
				return fmt.Errorf("%T %s is still there", o, o.GetName())
			}
		}
		return nil
	})
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); err != nil || len(sb.Finalizers) != 0 {
		t.Fatalf("finalizers %v %v", sb.Finalizers, err)
	}
	if r := redirectOf(sb.Status.Redirects, "route"); r != nil {
		t.Errorf("redirect %+v", r)
	}
	remove(t, sb)
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(sb), sb); !apierrors.IsNotFound(err) {
		t.Errorf("it lingers: %v", err)
	}
}

// isJob: Jobs have a finalizer of Kubernetes' own where its controllers run.
func isJob(o client.Object) bool {
	_, ok := o.(*batchv1.Job)
	return ok
}

func TestARouteGroupJoinsItsMembers(t *testing.T) {
	ns := namespace(t)
	baseline(t, ns, "cart")
	baseline(t, ns, "route")
	one, two := forking(ns, "pr-1", "route"), forking(ns, "pr-2", "cart", "route")
	two.Labels = map[string]string{"team": "a"}
	create(t, one)
	create(t, two)
	runs(t, one, "route", "10.1.0.1")
	runs(t, two, "cart", "10.1.0.2")
	runs(t, two, "route", "10.1.0.3")
	g := &v1alpha1.RouteGroup{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "release"}}
	g.Spec.Sandboxes = []v1alpha1.SandboxRef{{Name: "pr-1"}}
	g.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	create(t, g)
	ready(t, g)
	if k := g.Status.RoutingKey; k == "" || k == one.Status.RoutingKey || k == two.Status.RoutingKey {
		t.Error("the group has no key of its own")
	}
	if got := strings.Join(g.Status.Sandboxes, " "); got != "pr-1 pr-2" {
		t.Errorf("members %s", got)
	}
	for service, member := range map[string]string{"route": "pr-1", "cart": "pr-2"} {
		if r := redirectOf(g.Status.Redirects, service); r == nil || r.Sandbox != member {
			t.Errorf("Service %s: %+v", service, r)
		}
	}
	condition(t, g, v1alpha1.ConditionAccepted, metav1.ConditionTrue, "", "gives way to Sandbox pr-1")
	remove(t, one)
	condition(t, g, v1alpha1.ConditionAccepted, metav1.ConditionFalse, "SandboxNotFound", "pr-1")
	if r := redirectOf(g.Status.Redirects, "route"); r == nil || r.Sandbox != "pr-2" {
		t.Errorf("redirect %+v", r)
	}
}
