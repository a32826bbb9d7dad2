// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"os"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// imageVariable names the agents' image for users who may not look at them.
	imageVariable = "SIDETRACK_AGENT_IMAGE"
	// released is what a release's images are called.
	released = "ghcr.io/sidetrack-dev/sidetrackd:"
	// latest is the tag for a program that is no release.
	latest = "0.1.0"
)

// AgentImage returns the image of the agents, which is on every node already: what
// SIDETRACK_AGENT_IMAGE says, else the agents' DaemonSet where the user may look at
// it, else that of the release which this program is of. It fails where there are
// several DaemonSets that say they are the agents', and nothing tells which is.
func (c *Cluster) AgentImage(ctx context.Context, version string) (string, error) {
	if image := os.Getenv(imageVariable); image != "" {
		return image, nil
	}
	var sets appsv1.DaemonSetList
	if err := c.Objects.List(ctx, &sets, client.MatchingLabels(AgentLabels)); err == nil {
		// Whoever may not look, or asks in vain, has the release's.
		i, err := Ours(ctx, c, Agents, sets.Items)
		if err != nil {
			return "", err
		}
		if i >= 0 {
			if all := sets.Items[i].Spec.Template.Spec.Containers; len(all) > 0 {
				return all[0].Image, nil
			}
		}
	}
	version = strings.TrimPrefix(version, "v")
	if version == "" || strings.ContainsAny(version, "-+()") || version == "unknown" || version == "test" {
		version = latest
	}
	return released + version, nil
}

// OwnContainer returns a container of Sidetrack's image, which asks for nothing
// that the strictest namespace does not allow.
func OwnContainer(name, image string, args ...string) corev1.Container {
	yes, no, nobody := true, false, int64(65532)
	return corev1.Container{
		Name: name, Image: image, Args: args,
		ImagePullPolicy: corev1.PullIfNotPresent,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &nobody, RunAsGroup: &nobody,
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}
