// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Request is what is to be run.
type Request struct {
	// Namespace is the connection's when it is empty.
	Namespace string
	Sandbox   string
	Image     string
	// Command is run as it is in the place of the image's entrypoint, or given to it as
	// arguments where AsArgs is set. Empty: what the image runs by itself.
	Command []string
	AsArgs  bool
	// Env are NAME=VALUE.
	Env []string
	// Timeout is how long the command may take. Zero: an hour.
	Timeout time.Duration
	// Keep leaves the pod when it has ended.
	Keep bool
	// ServiceAccount is the namespace's default one when it is empty.
	ServiceAccount string
	// PullPolicy is Always, IfNotPresent or Never; empty is Kubernetes' default.
	PullPolicy string
	WorkingDir string
	// Patch is a strategic merge patch of the pod, in YAML or JSON, for all else. The
	// command's container is called "run".
	Patch string
	// Untagged has HTTP requests of the pod go without the routing key. Its other
	// flows are the sandbox's all the same.
	Untagged bool
	// Unchecked starts the command without waiting until the pod's traffic is
	// covered.
	Unchecked bool
	// AgentImage is Sidetrack's own image, which looks whether it is.
	AgentImage string
}

const (
	// container is the command's, check the one before it that waits for coverage.
	container = "run"
	check     = "sidetrack-covered"
	// longest is how long a command may take that has no timeout: what is forgotten
	// ends.
	longest = time.Hour
	// coverage is how long to wait for the pod to be covered.
	coverage = 30 * time.Second
	// slack is what the pod has beyond the command's timeout, for pulling images and
	// the like: the deadline is there for the case that nobody is left to end it.
	slack = 10 * time.Minute
)

// pod makes the pod of a run.
func (r *Request) pod(sb *v1alpha1.Sandbox) (*corev1.Pod, error) {
	seconds, grace := int64((r.timeout()+slack)/time.Second), int64(5)
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: sb.Namespace, GenerateName: prefix("run-" + sb.Name),
			Labels:          Labels(sb.Name, !r.Untagged),
			OwnerReferences: OwnedBy(sb),
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &seconds, TerminationGracePeriodSeconds: &grace,
			ServiceAccountName: r.ServiceAccount,
		},
	}
	main := corev1.Container{
		Name: container, Image: r.Image, ImagePullPolicy: corev1.PullPolicy(r.PullPolicy), WorkingDir: r.WorkingDir,
		Env: []corev1.EnvVar{
			{Name: "SIDETRACK_SANDBOX", Value: sb.Name},
			{Name: "SIDETRACK_ROUTING_KEY", Value: sb.Status.RoutingKey},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	command := make([]string, len(r.Command))
	for i, word := range r.Command {
		command[i] = literal(word)
	}
	switch {
	case len(command) == 0:
	case r.AsArgs:
		main.Args = command
	default:
		main.Command = command
	}
	for _, text := range r.Env {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, task.Usagef("env %q is not NAME=VALUE", text)
		}
		main.Env = append(main.Env, corev1.EnvVar{Name: name, Value: literal(value)})
	}
	p.Spec.Containers = []corev1.Container{main}
	if !r.Unchecked && !r.Untagged {
		p.Spec.InitContainers = []corev1.Container{cluster.OwnContainer(check, r.AgentImage, "covered", "--timeout="+coverage.String())}
	}
	return r.patch(p)
}

// literal has Kubernetes leave a word as it is. In commands and values of variables it
// puts a variable in the place of $(NAME), and $ in that of $$, which is a shell's process
// id.
func literal(word string) string { return strings.ReplaceAll(word, "$", "$$") }

func (r *Request) timeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return longest
}

// patch applies what the user adds. What makes the pod the sandbox's stays.
func (r *Request) patch(p *corev1.Pod) (*corev1.Pod, error) {
	if r.Patch == "" {
		return p, nil
	}
	patch, err := yaml.YAMLToJSON([]byte(r.Patch))
	if err != nil {
		return nil, task.Usagef("the patch is neither YAML nor JSON: %v", err)
	}
	before, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write the pod: %w", err)
	}
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
	if err != nil {
		return nil, task.Usagef("the patch is not a strategic merge patch of a pod: %v", err)
	}
	out := &corev1.Pod{}
	decoder := json.NewDecoder(bytes.NewReader(after))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		return nil, task.Usagef("the patch does not make a pod: %v: it begins with spec or metadata", err)
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	maps.Copy(out.Labels, p.Labels)
	out.OwnerReferences, out.Namespace = p.OwnerReferences, p.Namespace
	return out, nil
}

// Labels are those of a pod of a sandbox that is no fork.
func Labels(sandbox string, inject bool) map[string]string {
	l := map[string]string{v1alpha1.SandboxLabel: sandbox, "app.kubernetes.io/managed-by": "sidetrack"}
	if inject {
		l[v1alpha1.InjectLabel] = "true"
	}
	return l
}

// OwnedBy has a pod go with its sandbox.
func OwnedBy(sb *v1alpha1.Sandbox) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.SandboxKind, Name: sb.Name, UID: sb.UID}}
}

// prefix is the start of a name of which the API server makes the rest.
func prefix(s string) string {
	const most = 63 - 6
	if len(s) > most {
		s = s[:most]
	}
	return strings.TrimRight(s, "-") + "-"
}
