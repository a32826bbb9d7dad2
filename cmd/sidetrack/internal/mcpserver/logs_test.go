// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestThatThereIsNoLogHasTheRemedyOfItsCause(t *testing.T) {
	ran := map[string]bool{"app": true, "sidecar": true}
	for _, c := range []struct {
		in   logsInput
		seen map[string]bool
		says []string
	}{
		{logsInput{Container: "ap"}, ran, []string{"no container ap", "there are app, sidecar"}},
		{logsInput{Container: "ap", Previous: true}, ran, []string{"no container ap", "there are app, sidecar"}},
		{logsInput{Container: "app", Previous: true}, ran, []string{"started again", "leave previous out"}},
		{logsInput{Previous: true}, ran, []string{"started again", "leave previous out"}},
		{logsInput{Previous: true}, nil, []string{"has run yet", "sandbox_status"}},
		{logsInput{Container: "app"}, nil, []string{"has run yet", "sandbox_status"}},
	} {
		got := c.in.nothing("shop/pr-42", c.seen).Error()
		for _, w := range c.says {
			if !strings.Contains(got, w) {
				t.Errorf("%+v: %q, want %q", c.in, got, w)
			}
		}
	}
}

func TestOnlyWhatWasStartedAgainHasARunBefore(t *testing.T) {
	p := &corev1.Pod{Status: corev1.PodStatus{
		InitContainerStatuses: []corev1.ContainerStatus{{Name: "setup", RestartCount: 1}},
		ContainerStatuses:     []corev1.ContainerStatus{{Name: "app", RestartCount: 2}, {Name: "sidecar"}},
	}}
	for name, want := range map[string]int32{"setup": 1, "app": 2, "sidecar": 0, "other": 0} {
		if got := restarts(p, name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
