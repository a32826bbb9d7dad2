// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// lastLines is how many lines of a container's log a failure has.
const lastLines = 15

// failure is why a sandbox is not ready, with what its containers say.
func failure(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, why string) error {
	f := &task.Failure{
		Kind:    task.NotReady,
		Message: fmt.Sprintf("sandbox %s is not ready: %s", sb.Name, why),
		Remedy:  fmt.Sprintf("sidetrack logs %s -n %s has the forks' logs; mend it with sidetrack sandbox create --update", sb.Name, sb.Namespace),
	}
	because := func(condition, reason string) bool {
		c := meta.FindStatusCondition(sb.Status.Conditions, condition)
		return c != nil && c.Reason == reason
	}
	switch {
	case because(v1alpha1.ConditionReady, keyNamesDiffer):
		f.Remedy = "ask whoever runs the cluster; sidetrack doctor says what the agents have"
		return f
	case because(v1alpha1.ConditionAccepted, keyInUse):
		f.Remedy = "a sandbox's key does not change: delete it, and create it anew with another key or with none"
		return f
	case len(sb.Spec.Forks) == 0:
		f.Remedy = "mend it with sidetrack sandbox create --update"
	}
	// The time for the task may be over; this is what it is for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	pods, err := Pods(ctx, c, sb)
	if err != nil {
		f.Details = append(f.Details, "the pods of the forks cannot be looked at: "+err.Error())
		return f
	}
	for i := range pods {
		f.Details = append(f.Details, Troubles(ctx, c, &pods[i])...)
	}
	return f
}

// Pods returns the pods of a sandbox's forks, the newest of each first.
func Pods(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) ([]corev1.Pod, error) {
	selector, err := PodSelector(sb.Name)
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	err = c.Objects.List(ctx, &list, client.InNamespace(sb.Namespace), client.MatchingLabelsSelector{Selector: selector})
	if err != nil {
		return nil, cluster.Explain(err, "list the pods of sandbox "+sb.Name)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Labels[v1alpha1.ForkLabel], b.Labels[v1alpha1.ForkLabel]),
			b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return list.Items, nil
}

// PodSelector selects the pods of a sandbox's forks.
func PodSelector(sandbox string) (labels.Selector, error) {
	forks, err := labels.NewRequirement(v1alpha1.ForkLabel, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	return labels.SelectorFromSet(labels.Set{v1alpha1.SandboxLabel: sandbox}).Add(*forks), nil
}

// ForkedFrom names the workload that a fork's pod is a copy of, such as
// Deployment/route.
func ForkedFrom(p *corev1.Pod) string {
	for i := range p.Spec.Containers {
		for _, e := range p.Spec.Containers[i].Env {
			if e.Name == "SIDETRACK_BASELINE" {
				return e.Value
			}
		}
	}
	return p.Name
}

// Troubles are what the containers of a pod that is not ready say: why they wait or
// have ended, and the last lines of their logs. A pod that has not come as far as
// having containers is spoken for by its events.
func Troubles(ctx context.Context, c *cluster.Cluster, p *corev1.Pod) []string {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || isReady(p) {
		return nil
	}
	var out []string
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			text, ran := Trouble(s)
			if text == "" {
				continue
			}
			text = fmt.Sprintf("pod %s, container %s: %s", p.Name, s.Name, text)
			if ran {
				if log := lastOf(ctx, c, p, s); log != "" {
					text += "\n" + log
				}
			}
			out = append(out, text)
		}
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			out = append(out, fmt.Sprintf("pod %s: no node takes it: %s", p.Name, cond.Message))
		}
	}
	if w := warning(ctx, c, p); w != "" && len(out) == 0 {
		out = append(out, fmt.Sprintf("pod %s: %s", p.Name, w))
	}
	return out
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Trouble says what keeps a container from being ready, in the runtime's and its
// own words, and whether it has run, so that there is a log. It is empty for one that
// is ready, or that has not begun and has nothing to say.
func Trouble(s *corev1.ContainerStatus) (text string, ran bool) {
	if s.Ready {
		return "", false
	}
	end := s.State.Terminated
	if end == nil {
		end = s.LastTerminationState.Terminated
	}
	var parts []string
	if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
		parts = append(parts, sentence(w.Reason, w.Message))
	}
	switch {
	case end != nil && end.ExitCode == 0 && end.Signal == 0 && end.Reason == "Completed" && s.State.Waiting == nil:
		// An init container that has done its work, or a job's.
		return strings.Join(parts, "; "), false
	case end != nil:
		how := fmt.Sprintf("it has ended with exit code %d", end.ExitCode)
		if end.Signal != 0 {
			how = fmt.Sprintf("it has been killed by signal %d", end.Signal)
		}
		if end.Reason != "" && end.Reason != "Error" {
			how += " (" + end.Reason + ")"
		}
		if m := strings.TrimSpace(end.Message); m != "" {
			how += ": " + m
		}
		parts, ran = append(parts, how), true
	case s.State.Running != nil:
		parts, ran = append(parts, "it runs and is not ready: see its readiness probe"), true
	}
	return strings.Join(parts, "; "), ran
}

func sentence(reason, message string) string {
	switch {
	case message == "":
		return reason
	case reason == "" || strings.HasPrefix(message, reason):
		return message
	}
	return reason + ": " + message
}

// lastOf is the end of a container's log: of the last time that it has run.
func lastOf(ctx context.Context, c *cluster.Cluster, p *corev1.Pod, s *corev1.ContainerStatus) string {
	read := func(previous bool) (string, error) {
		lines, most := int64(lastLines), int64(16<<10)
		stream, err := c.Core.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
			Container: s.Name, Previous: previous, TailLines: &lines, LimitBytes: &most,
		}).Stream(ctx)
		if err != nil {
			return "", err
		}
		defer stream.Close()
		text, err := io.ReadAll(io.LimitReader(stream, most))
		return string(bytes.TrimRight(text, "\n")), err
	}
	// One that waits to be started again has its words in its last run.
	text, err := read(s.State.Waiting != nil && s.RestartCount > 0)
	if text == "" && s.RestartCount > 0 {
		text, err = read(true)
	}
	if err != nil || text == "" {
		return ""
	}
	return "  | " + strings.ReplaceAll(text, "\n", "\n  | ")
}

// warning is the last warning about a pod.
func warning(ctx context.Context, c *cluster.Cluster, p *corev1.Pod) string {
	var events corev1.EventList
	if err := c.Objects.List(ctx, &events, client.InNamespace(p.Namespace), client.MatchingFields{"involvedObject.uid": string(p.UID)}); err != nil {
		return ""
	}
	var last *corev1.Event
	for i := range events.Items {
		if e := &events.Items[i]; e.Type == corev1.EventTypeWarning && (last == nil || !e.LastTimestamp.Before(&last.LastTimestamp)) {
			last = e
		}
	}
	if last == nil {
		return ""
	}
	return sentence(last.Reason, last.Message)
}

func asStatus(err error, to *apierrors.APIStatus) bool { return errors.As(err, to) }

func isMissing(err error) bool {
	var status apierrors.APIStatus
	return asStatus(err, &status) && (status.Status().Details == nil || status.Status().Details.Name == "")
}

func namesOf(all []v1alpha1.Sandbox) []string {
	names := make([]string, 0, len(all))
	for i := range all {
		names = append(names, all[i].Name)
	}
	return names
}

// join joins the first words and says that there are more.
func join(words []string, most int) string {
	if len(words) > most {
		words = append(slices.Clone(words[:most]), "…")
	}
	return strings.Join(words, ", ")
}
