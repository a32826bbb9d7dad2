// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// Outlook is how far a pod is that is to run a command.
type Outlook struct {
	// State says it in words.
	State string
	// Started: the command runs, or has run.
	Started bool
	// Over: it will not.
	Over bool
	// Hopeless says what waiting does not help against, such as a missing image.
	Hopeless string
}

// Look reads how far a pod is whose command is that of a container.
func Look(p *corev1.Pod, container string) Outlook {
	if s := statusOf(p.Status.ContainerStatuses, container); s != nil && (s.State.Running != nil || s.State.Terminated != nil) {
		// A command that is not there is told as one that has ended.
		if t := s.State.Terminated; t != nil && (t.StartedAt.IsZero() || t.Reason == "StartError" || t.Reason == "ContainerCannotRun") {
			return Outlook{State: cmp.Or(t.Message, t.Reason), Over: true}
		}
		return Outlook{State: "runs on node " + p.Spec.NodeName, Started: true}
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			text, _ := sandbox.Trouble(s)
			switch {
			case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
				return Outlook{State: "container " + s.Name + ": " + text, Over: true}
			case s.State.Waiting != nil && text != "":
				text = "container " + s.Name + ": " + text
				return Outlook{State: text, Hopeless: text}
			}
		}
	}
	switch {
	case p.Status.Phase == corev1.PodFailed:
		return Outlook{State: cmp.Or(p.Status.Message, p.Status.Reason, "the pod has failed"), Over: true}
	case p.Spec.NodeName == "":
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return Outlook{State: "no node takes it: " + c.Message}
			}
		}
		return Outlook{State: "waits for a node"}
	}
	if s := statusOf(p.Status.InitContainerStatuses, check); s != nil && s.State.Running != nil {
		return Outlook{State: "waits until its traffic is covered on node " + p.Spec.NodeName}
	}
	return Outlook{State: "is being created on node " + p.Spec.NodeName}
}
