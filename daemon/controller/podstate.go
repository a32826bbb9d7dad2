// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// forkState is how far a fork's pods are.
type forkState struct {
	status v1alpha1.ForkStatus
	ready  bool
	// reason and message say what it waits for, or what is wrong.
	reason  string
	message string
	// failing: time alone will not help.
	failing bool
	// invalid: the API server does not take what the spec makes of the workload.
	invalid bool
	// silent is a pod that is not ready and does not say why: its events may.
	silent *corev1.Pod
}

// observeFork looks at what a fork's Deployment or Job and its pods say of
// themselves. live is nil where there is none yet.
func observeFork(f *fork, applied error, live any, pods []corev1.Pod) forkState {
	s := forkState{status: v1alpha1.ForkStatus{Workload: f.ref, Name: f.name, Replicas: 1}}
	if f.orphan && live == nil {
		s.status.Name = ""
	}
	switch {
	case f.refusal != nil && !f.orphan:
		s.status.Name, s.status.Replicas = "", 0
		s.fail(f.refusal.reason, f.refusal.message)
		return s
	case applied != nil:
		s.invalid = apierrors.IsInvalid(applied) || apierrors.IsBadRequest(applied)
		s.fail(reasonRejected, fmt.Sprintf("the API server refuses it: %s", short(applied.Error(), maxMessage)))
		return s
	}
	switch live := live.(type) {
	case *appsv1.Deployment:
		s.observeDeployment(live)
	case *batchv1.Job:
		s.observeJob(live)
	default:
		s.wait("has just been written")
	}
	if !s.ready && !s.failing {
		s.observePods(pods)
	}
	if f.orphan && s.ready {
		s.message = f.refusal.message + "; the fork goes on as it is"
	}
	return s
}

// unmade is the state of a fork that nothing is made of.
func unmade(f *fork, message string) forkState {
	return forkState{status: v1alpha1.ForkStatus{Workload: f.ref}, message: message, reason: reasonForksRefused}
}

func (s *forkState) fail(reason, message string) {
	s.reason, s.message, s.failing = reason, message, true
}

func (s *forkState) wait(format string, args ...any) {
	s.reason, s.message = reasonStarting, fmt.Sprintf(format, args...)
}

func (s *forkState) observeDeployment(d *appsv1.Deployment) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s.status.Replicas, s.status.Ready = want, d.Status.ReadyReplicas
	if d.Status.ObservedGeneration < d.Generation {
		s.wait("has just been changed")
		return
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue && d.Status.Replicas < want {
			s.fail(reasonNotCreated, fmt.Sprintf("its pods are not created: %s: make room for it, or change the fork", short(c.Message, maxMessage)))
			return
		}
	}
	// All of the present template, and none from before it.
	s.ready = d.Status.UpdatedReplicas >= want && d.Status.ReadyReplicas >= want && d.Status.Replicas <= d.Status.UpdatedReplicas
	if !s.ready {
		s.wait("%d of %d pods are ready", d.Status.ReadyReplicas, want)
	}
}

func (s *forkState) observeJob(j *batchv1.Job) {
	want := int32(1)
	if j.Spec.Completions != nil {
		want = *j.Spec.Completions
	} else if j.Spec.Parallelism != nil {
		want = *j.Spec.Parallelism
	}
	ready := int32(0)
	if j.Status.Ready != nil {
		ready = *j.Status.Ready
	}
	s.status.Replicas, s.status.Ready = want, ready+j.Status.Succeeded
	for _, c := range j.Status.Conditions {
		switch {
		case c.Status != corev1.ConditionTrue:
		case c.Type == batchv1.JobComplete:
			s.ready = true
			return
		case c.Type == batchv1.JobFailed, c.Type == batchv1.JobFailureTarget:
			s.fail(reasonJobFailed, fmt.Sprintf("the job has failed (%s): %s: see kubectl logs of its pods; change the fork, or delete the Job, to run it again",
				c.Reason, short(c.Message, maxMessage)))
			return
		}
	}
	if s.ready = ready+j.Status.Succeeded > 0; !s.ready {
		s.wait("the job's pod is not ready yet")
	}
}

// observePods finds the pod that says most about why the fork is not ready.
func (s *forkState) observePods(pods []corev1.Pod) {
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil || isReady(p) || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		if reason, message := podFailure(p); reason != "" {
			s.fail(reason, fmt.Sprintf("pod %s: %s", p.Name, message))
			return
		}
		if s.silent == nil {
			s.silent = p
			if waiting := podWaits(p); waiting != "" {
				s.wait("pod %s: %s", p.Name, waiting)
			}
		}
	}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// podFailure returns what a pod suffers from, in its own words.
func podFailure(p *corev1.Pod) (reason, message string) {
	if p.Status.Phase == corev1.PodFailed {
		if r, m := containersFailure(p); r != "" {
			return r, m
		}
		return reasonCrashing, fmt.Sprintf("it has failed (%s): %s", cmp.Or(p.Status.Reason, "no reason given"), short(p.Status.Message, maxMessage))
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason != corev1.PodReasonSchedulingGated {
			return reasonUnschedulable, fmt.Sprintf("no node takes it: %s: make room, or change requests and placement with patch", strings.TrimSuffix(short(c.Message, maxMessage), "."))
		}
	}
	return containersFailure(p)
}

func containersFailure(p *corev1.Pod) (reason, message string) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if reason, message = containerFailure(p, &list[i]); reason != "" {
				return reason, message
			}
		}
	}
	return "", ""
}

func containerFailure(p *corev1.Pod, c *corev1.ContainerStatus) (reason, message string) {
	if w := c.State.Waiting; w != nil {
		own := short(cmp.Or(w.Message, w.Reason), maxMessage)
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			return reasonImage, fmt.Sprintf("container %s has no image: %s: correct the image, or its pull secret", c.Name, own)
		case "CreateContainerConfigError":
			return reasonConfigMissing, fmt.Sprintf("container %s is not created: %s: create what is missing, or correct its name", c.Name, own)
		case "CreateContainerError", "RunContainerError":
			return reasonCrashing, fmt.Sprintf("container %s does not start: %s", c.Name, own)
		}
	}
	if c.Ready {
		return "", ""
	}
	end := c.State.Terminated
	if end == nil {
		end = c.LastTerminationState.Terminated
	}
	crashLoop := c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
	if end == nil || (end.ExitCode == 0 && !crashLoop) {
		return "", ""
	}
	message = fmt.Sprintf("container %s has ended with exit code %d", c.Name, end.ExitCode)
	if end.Reason != "" && end.Reason != "Error" {
		message += " (" + end.Reason + ")"
	}
	if c.RestartCount > 0 {
		message += fmt.Sprintf(", restarted %s", times(c.RestartCount))
	}
	if own := tail(end.Message, maxMessage/2); own != "" {
		message += ": " + own
	}
	return reasonCrashing, fmt.Sprintf("%s: see kubectl logs -n %s %s -c %s --previous", message, p.Namespace, p.Name, c.Name)
}

func times(n int32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// podWaits says what a pod that suffers from nothing waits for.
func podWaits(p *corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return "waits for a node"
	}
	for _, c := range p.Status.InitContainerStatuses {
		if !c.Ready && c.State.Running != nil {
			return fmt.Sprintf("init container %s runs", c.Name)
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		switch {
		case c.Ready:
		case c.State.Running != nil:
			return fmt.Sprintf("container %s runs and is not ready yet: its startup or readiness probe has not succeeded", c.Name)
		case c.State.Waiting != nil:
			return strings.TrimSpace(fmt.Sprintf("container %s waits (%s) %s", c.Name, c.State.Waiting.Reason, short(c.State.Waiting.Message, maxMessage)))
		}
	}
	return "is being started"
}

// tells reports whether a warning is about a pod's not being ready; others come
// and go with pods that run well.
func tells(reason string) bool {
	switch reason {
	case "Unhealthy", "ProbeError", "NetworkNotReady", "BackOff", "HostPortConflict", "InspectFailed", "Evicted", "Preempting", "NodeNotReady":
		return true
	}
	return strings.HasPrefix(reason, "Failed")
}

// explain adds what an event says of a pod that does not itself.
func (s *forkState) explain(warning *corev1.Event) {
	if warning == nil || s.silent == nil {
		return
	}
	s.fail(reasonNotReady, fmt.Sprintf("pod %s: %s: %s", s.silent.Name, warning.Reason, short(warning.Message, maxMessage)))
}
