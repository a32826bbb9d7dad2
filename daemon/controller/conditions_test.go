// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

func TestEveryKindBecomesAFork(t *testing.T) {
	tpl := parse[corev1.PodTemplateSpec](t, baseline)
	three := int32(3)
	for kind, o := range map[string]ctrl.Object{
		"Deployment":  &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &three, Template: tpl}},
		"StatefulSet": &appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Replicas: &three, Template: tpl}},
		"DaemonSet":   &appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: tpl}},
		"ReplicaSet":  &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Replicas: &three, Template: tpl}},
		"CronJob":     &batchv1.CronJob{Spec: batchv1.CronJobSpec{JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: tpl}}}},
	} {
		t.Run(kind, func(t *testing.T) {
			o.SetName("route")
			if newObject(kind) == nil {
				t.Fatal("the kind is unknown")
			}
			spec := v1alpha1.Fork{
				Workload:   v1alpha1.WorkloadRef{Kind: kind, Name: "route"},
				Containers: []v1alpha1.ContainerOverride{{Name: "app", Image: "route:pr-42"}},
			}
			f := planFork(sandbox("pr-42"), "k", spec, namespaceWith(t, o,
				`{kind: Service, metadata: {name: route}, spec: {selector: {app: route}, ports: [{port: 80, targetPort: http}]}}`))
			if f.refusal != nil {
				t.Fatal(f.refusal.message)
			}
			var pod corev1.PodTemplateSpec
			switch o := f.object.(type) {
			case *appsv1.Deployment:
				pod = o.Spec.Template
				if kind == "CronJob" || *o.Spec.Replicas != 1 || len(o.Spec.Selector.MatchLabels) != 2 {
					t.Errorf("%+v", o.Spec)
				}
			case *batchv1.Job:
				pod = o.Spec.Template
				if kind != "CronJob" {
					t.Error("a Job")
				}
			}
			c := pod.Spec.Containers[0]
			if c.Image != "route:pr-42" || pod.Labels["app"] != "" || pod.Labels["tier"] != "" || pod.Labels[v1alpha1.SandboxLabel] != "pr-42" ||
				pod.Spec.ServiceAccountName != "route" || c.Env[2].Value != kind+"/route" {
				t.Errorf("template %+v", pod)
			}
			if len(f.services) != 1 || f.services[0].object.Spec.Ports[0].TargetPort.StrVal != "http" {
				t.Errorf("Services %+v", f.services)
			}
		})
	}
}

func TestWhatAForkSuffersFromIsSaid(t *testing.T) {
	const live = `{metadata: {generation: 2}, spec: {replicas: 1}, status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1}}`
	pod := func(status string) string {
		return `{metadata: {name: p, namespace: shop}, spec: {nodeName: n1}, status: ` + status + `}`
	}
	for _, tt := range []struct {
		name, live string
		job        bool
		pod        string
		applied    error
		ready      bool
		failing    bool
		reason     string
		says       string
	}{
		{name: "ready", live: `{metadata: {generation: 2}, spec: {replicas: 1}, status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, readyReplicas: 1}}`, ready: true},
		{name: "ready, but of the template before", live: `{metadata: {generation: 3}, spec: {replicas: 1}, status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, readyReplicas: 1}}`, reason: reasonStarting, says: "just been changed"},
		{name: "an old pod is still there", live: `{metadata: {generation: 2}, spec: {replicas: 1}, status: {observedGeneration: 2, replicas: 2, updatedReplicas: 1, readyReplicas: 2}}`, reason: reasonStarting},
		{name: "a quota", live: `{metadata: {generation: 2}, spec: {replicas: 1}, status: {observedGeneration: 2, conditions: [{type: ReplicaFailure, status: "True", message: "exceeded quota"}]}}`, failing: true, reason: reasonNotCreated, says: "exceeded quota"},
		{name: "no image", live: live, pod: pod(`{containerStatuses: [{name: app, state: {waiting: {reason: ErrImagePull, message: "not found"}}}]}`), failing: true, reason: reasonImage, says: "container app has no image: not found"},
		{name: "no ConfigMap", live: live, pod: pod(`{containerStatuses: [{name: app, state: {waiting: {reason: CreateContainerConfigError, message: 'configmap "x" not found'}}}]}`), failing: true, reason: reasonConfigMissing, says: `configmap "x" not found`},
		{name: "it crashes", live: live, pod: pod(`{containerStatuses: [{name: app, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 3, message: "panic: no database"}}}]}`), failing: true, reason: reasonCrashing, says: "exit code 3, restarted 2 times: panic: no database"},
		{name: "an init container crashes", live: live, pod: pod(`{initContainerStatuses: [{name: init, state: {terminated: {exitCode: 1}}}], containerStatuses: [{name: app, state: {waiting: {reason: PodInitializing}}}]}`), failing: true, reason: reasonCrashing, says: "container init"},
		{name: "no room", live: live, pod: pod(`{conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: "0/2 nodes are available."}]}`), failing: true, reason: reasonUnschedulable, says: "0/2 nodes are available:"},
		{name: "a probe", live: live, pod: pod(`{containerStatuses: [{name: app, state: {running: {}}}]}`), reason: reasonStarting, says: "readiness probe"},
		{name: "the API server refuses it", applied: apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "x", nil), failing: true, reason: reasonRejected, says: "refuses it"},
		{name: "just written", reason: reasonStarting, says: "just been written"},
		{name: "a job that runs", job: true, live: `{status: {active: 1, ready: 1}}`, ready: true},
		{name: "a job that is done", job: true, live: `{status: {succeeded: 1, conditions: [{type: Complete, status: "True"}]}}`, ready: true},
		{name: "a job that has failed", job: true, live: `{status: {failed: 1, conditions: [{type: Failed, status: "True", reason: BackoffLimitExceeded, message: "it has"}]}}`, failing: true, reason: reasonJobFailed, says: "BackoffLimitExceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fork{ref: v1alpha1.WorkloadRef{Kind: "Deployment", Name: "route"}, name: "route-fork"}
			var live any
			switch {
			case tt.job:
				live = parse[*batchv1.Job](t, tt.live)
			case tt.live != "":
				live = parse[*appsv1.Deployment](t, tt.live)
			}
			var pods []corev1.Pod
			if tt.pod != "" {
				pods = append(pods, parse[corev1.Pod](t, tt.pod))
			}
			got := observeFork(f, tt.applied, live, pods)
			if got.ready != tt.ready || got.failing != tt.failing || (!tt.ready && got.reason != tt.reason) || !strings.Contains(got.message, tt.says) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestConditionsSayWhatIsInTheWay(t *testing.T) {
	everywhere := coverage{total: 2, programmed: 2}
	lagging := coverage{total: 2, programmed: 1, behind: []string{"n2"}}
	ok := forkState{status: v1alpha1.ForkStatus{Workload: v1alpha1.WorkloadRef{Name: "route"}}, ready: true}
	waits := forkState{status: v1alpha1.ForkStatus{Workload: v1alpha1.WorkloadRef{Name: "slow"}}, reason: reasonStarting, message: "waits"}
	broken := forkState{status: v1alpha1.ForkStatus{Workload: v1alpha1.WorkloadRef{Name: "cart"}}, failing: true, reason: reasonImage, message: "no image"}
	there := []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "fork"}, Endpoints: 1}}
	empty := []v1alpha1.RedirectStatus{{From: v1alpha1.RedirectFrom{Service: "route"}, To: v1alpha1.RedirectTo{Service: "fork"}}}
	for _, tt := range []struct {
		name      string
		refusals  []refusal
		states    []forkState
		prog      programming
		wasReady  bool
		redirects []v1alpha1.RedirectStatus
		names     *v1alpha1.CommonKeyNames
		ready     string // the reason; Ready is true
		says      string
	}{
		{name: "everything is there", states: []forkState{ok}, prog: programming{coverage: everywhere, current: true}, redirects: there, ready: reasonReady},
		{name: "nothing is asked for", prog: programming{coverage: everywhere, current: true}, ready: reasonReady},
		{name: "refused", refusals: []refusal{{reasonKeyInUse, "in use"}, {reasonPortNotFound, "no port"}}, prog: programming{coverage: everywhere, current: true}, ready: reasonNotAccepted, says: "Accepted (KeyInUse): in use; no port"},
		{name: "what does not pass by itself is said first", states: []forkState{ok, waits, broken}, prog: programming{coverage: everywhere, current: true}, ready: reasonNotForked, says: "ForksReady (ImageNotPulled): fork of Deployment/cart: no image; fork of Deployment/slow: waits"},
		{name: "a node is behind", states: []forkState{ok}, prog: programming{coverage: lagging, current: true}, redirects: there, ready: reasonNotProgramed, says: "n2"},
		{name: "not even written", states: []forkState{ok}, prog: programming{coverage: everywhere}, redirects: there, ready: reasonNotProgramed, says: "0 of 2"},
		{name: "a node takes over endpoints", states: []forkState{ok}, prog: programming{coverage: lagging, current: true, graced: true}, wasReady: true, redirects: there, ready: reasonReady},
		{name: "a node takes over the first endpoints", states: []forkState{ok}, prog: programming{coverage: lagging, current: true, graced: true}, redirects: there, ready: reasonNotProgramed, says: "n2"},
		{name: "no endpoint", states: []forkState{ok}, prog: programming{coverage: everywhere, current: true}, redirects: empty, ready: reasonNoEndpoints, says: "Service route to fork"},
		{name: "nodes with one name in common", states: []forkState{ok}, prog: programming{coverage: everywhere, current: true}, redirects: there, names: &v1alpha1.CommonKeyNames{Members: []string{"a"}, Message: "headers differ"}, ready: reasonReady},
		{name: "nodes that do not know one another's names", states: []forkState{ok}, prog: programming{coverage: everywhere, current: true}, wasReady: true, redirects: there, names: &v1alpha1.CommonKeyNames{Message: "n1 and n2 differ", Split: true}, ready: reasonKeyNames, says: "n1 and n2 differ"},
		{name: "no nodes", states: []forkState{ok}, prog: programming{current: true}, redirects: there, ready: reasonNotProgramed, says: "no Ready linux node"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := conditions{generation: 7}
			c.accept(tt.refusals, nil)
			c.forks(tt.states)
			c.program(&tt.prog)
			c.ready(&tt.prog, tt.wasReady, tt.names, tt.redirects, v1alpha1.ConditionAccepted, v1alpha1.ConditionForksReady, v1alpha1.ConditionProgrammed)
			got := meta.FindStatusCondition(c.list, v1alpha1.ConditionReady)
			if got.Reason != tt.ready || (got.Status == metav1.ConditionTrue) != (tt.ready == reasonReady) || !strings.Contains(got.Message, tt.says) {
				t.Errorf("%+v", got)
			}
			for _, have := range c.list {
				if have.ObservedGeneration != 7 || have.Message == "" {
					t.Errorf("%+v", have)
				}
			}
		})
	}
	if held([]metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, ObservedGeneration: 6}}, v1alpha1.ConditionReady, 7) {
		t.Error("what was true of another generation holds")
	}
}

func TestNothingThatARedirectLeadsToIsRemoved(t *testing.T) {
	object := func(name string) ctrl.Object { return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	redirects := []v1alpha1.RedirectStatus{
		{To: v1alpha1.RedirectTo{Service: "kept"}, Fork: "Deployment/route"},
		{To: v1alpha1.RedirectTo{Service: "refused"}, Fork: "Deployment/route", Refused: true},
		{To: v1alpha1.RedirectTo{Service: "of-the-spec"}},
	}
	var names []string
	for _, o := range prunable([]ctrl.Object{object("kept"), object("refused"), object("of-the-spec"), object("old")}, nil, redirects) {
		names = append(names, o.GetName())
	}
	if got := strings.Join(names, " "); got != "refused of-the-spec old" {
		t.Errorf("removed: %s", got)
	}
	if userError(errors.New("timeout")) || !userError(apierrors.NewForbidden(schema.GroupResource{}, "x", errors.New("quota"))) {
		t.Error("what trying again helps against is not told from what it does not")
	}
}
