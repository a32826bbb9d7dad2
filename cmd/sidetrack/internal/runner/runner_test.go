// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

var sb = &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-42", UID: "u"}, Status: v1alpha1.SandboxStatus{RoutingKey: "key-12345"}}

func TestThePodIsTheSandboxsAndEnds(t *testing.T) {
	r := Request{Image: "tests:1", Command: []string{"npm", "test"}, Env: []string{"A=b=c"}, Timeout: time.Minute, AgentImage: "agent:1"}
	p, err := r.pod(sb)
	if err != nil {
		t.Fatal(err)
	}
	if p.Labels[v1alpha1.SandboxLabel] != "pr-42" || p.Labels[v1alpha1.InjectLabel] != "true" || p.Labels[v1alpha1.ForkLabel] != "" {
		t.Errorf("labels %v", p.Labels)
	}
	if o := p.OwnerReferences; len(o) != 1 || o[0].UID != "u" || o[0].Kind != "Sandbox" || o[0].Controller != nil {
		t.Errorf("owners %+v", o)
	}
	c := p.Spec.Containers[0]
	if c.Command[1] != "test" || c.Args != nil || c.Env[len(c.Env)-1] != (corev1.EnvVar{Name: "A", Value: "b=c"}) || c.Env[1].Value != "key-12345" {
		t.Errorf("container %+v", c)
	}
	if *p.Spec.ActiveDeadlineSeconds != 660 || p.Spec.RestartPolicy != corev1.RestartPolicyNever || p.Spec.InitContainers[0].Image != "agent:1" {
		t.Errorf("spec %+v", p.Spec)
	}
	r = Request{Image: "a", Command: []string{"x"}, AsArgs: true, Untagged: true}
	if p, err = r.pod(sb); err != nil || p.Spec.Containers[0].Command != nil || p.Spec.Containers[0].Args[0] != "x" || p.Labels[v1alpha1.InjectLabel] != "" || len(p.Spec.InitContainers) != 0 {
		t.Errorf("%v: %+v", err, p)
	}
}

// TestACommandIsRunAsItIs: what Kubernetes would put in the place of something else in it
// (k8s.io/kubernetes/third_party/forked/golang/expansion) is escaped.
func TestACommandIsRunAsItIs(t *testing.T) {
	for _, asArgs := range []bool{false, true} {
		r := Request{Image: "a", Command: []string{"sh", "-c", "kill $$; echo $(A) $A"}, AsArgs: asArgs, Env: []string{"PRICE=$$5 $(A)"}}
		p, err := r.pod(sb)
		if err != nil {
			t.Fatal(err)
		}
		c := p.Spec.Containers[0]
		if got := slices.Concat(c.Command, c.Args)[2]; got != "kill $$$$; echo $$(A) $$A" {
			t.Errorf("the command is %q", got)
		}
		if got := c.Env[len(c.Env)-1].Value; got != "$$$$5 $$(A)" {
			t.Errorf("the variable is %q", got)
		}
	}
}

func TestAPatchAddsToThePodAndDoesNotTakeItFromTheSandbox(t *testing.T) {
	r := Request{Image: "a", Unchecked: true, Patch: `
metadata: {labels: {team: x, sidetrack.dev/sandbox: other}, namespace: elsewhere}
spec:
  containers: [{name: run, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, emptyDir: {}}]
`}
	p, err := r.pod(sb)
	if err != nil {
		t.Fatal(err)
	}
	if c := p.Spec.Containers; len(c) != 1 || c[0].Image != "a" || len(c[0].VolumeMounts) != 1 {
		t.Errorf("containers %+v", c)
	}
	if p.Labels["team"] != "x" || p.Labels[v1alpha1.SandboxLabel] != "pr-42" || p.Namespace != "shop" {
		t.Errorf("metadata %+v", p.ObjectMeta)
	}
	for _, bad := range []string{"{", "spec: {colour: red}", "spec: 7"} {
		r.Patch = bad
		if _, err := r.pod(sb); task.KindOf(err) != task.Usage {
			t.Errorf("%q: %v", bad, err)
		}
	}
	r = Request{Image: "a", Env: []string{"=x"}}
	if _, err := r.pod(sb); task.KindOf(err) != task.Usage {
		t.Errorf("a variable without a name: %v", err)
	}
}

func TestHowFarAPodIsIsToldByItsContainers(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	ended := func(name string, code int32, reason, message string, started bool) corev1.ContainerStatus {
		end := &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}
		if started {
			end.StartedAt = metav1.Now()
		}
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Terminated: end}}
	}
	running := corev1.ContainerStatus{Name: container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	checking := corev1.ContainerStatus{Name: check, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	for name, c := range map[string]struct {
		init, main *corev1.ContainerStatus
		want       Outlook
	}{
		"it runs":              {main: &running, want: Outlook{State: "runs on node n1", Started: true}},
		"it has run":           {main: new(ended(container, 7, "Error", "", true)), want: Outlook{State: "runs on node n1", Started: true}},
		"no such program":      {main: new(ended(container, 128, "StartError", "no such file", true)), want: Outlook{State: "no such file", Over: true}},
		"no image":             {main: new(waiting("ErrImagePull", "not found")), want: Outlook{State: "container run: ErrImagePull: not found", Hopeless: "container run: ErrImagePull: not found"}},
		"it is being created":  {main: new(waiting("ContainerCreating", "")), want: Outlook{State: "is being created on node n1"}},
		"it waits for cover":   {init: &checking, main: new(waiting("PodInitializing", "")), want: Outlook{State: "waits until its traffic is covered on node n1"}},
		"it is not covered":    {init: new(ended(check, 1, "Error", "not covered", true)), main: new(waiting("PodInitializing", "")), want: Outlook{State: "container sidetrack-covered: it has ended with exit code 1: not covered", Over: true}},
		"nothing is known yet": {want: Outlook{State: "is being created on node n1"}},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1"}}
		if c.init != nil {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{*c.init}
		}
		if c.main != nil {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{*c.main}
		}
		if got := Look(p, container); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	p := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no room"}}}}
	if got := Look(p, container); got.State != "no node takes it: no room" {
		t.Errorf("unscheduled: %+v", got)
	}
	if got := prefix("run-" + strings.Repeat("a", 70)); len(got) > 58 || !strings.HasSuffix(got, "a-") {
		t.Errorf("a long name begins with %q", got)
	}
}
