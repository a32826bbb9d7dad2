// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// SystemNamespace is where Sidetrack is installed unless somebody says otherwise.
	SystemNamespace = "sidetrack-system"
	// imageVariable names the agents' image for users who may not look at them.
	imageVariable = "SIDETRACK_AGENT_IMAGE"
	// released is what a release's images are called.
	released = "ghcr.io/sidetrack-dev/sidetrackd:"
	// latest is the tag for a program that is no release.
	latest = "0.1.0"
)

// AgentLabels are those of the agents' DaemonSet and of its pods.
var AgentLabels = map[string]string{"app.kubernetes.io/name": "sidetrack", "app.kubernetes.io/component": "agent"}

// AgentImage returns the image of the agents, which is on every node already: what
// SIDETRACK_AGENT_IMAGE says, else the agents' DaemonSet where the user may look at
// it, else that of the release which this program is of.
func (c *Cluster) AgentImage(ctx context.Context, version string) string {
	if image := os.Getenv(imageVariable); image != "" {
		return image
	}
	if container, err := c.Agent(ctx); err == nil && container != nil {
		return container.Image
	}
	version = strings.TrimPrefix(version, "v")
	if version == "" || strings.ContainsAny(version, "-+()") || version == "unknown" || version == "test" {
		version = latest
	}
	return released + version
}

// Agent returns the agents' container, as their DaemonSet has it; nil where there is
// none. The error is the API server's.
func (c *Cluster) Agent(ctx context.Context) (*corev1.Container, error) {
	var sets appsv1.DaemonSetList
	if err := c.Objects.List(ctx, &sets, client.MatchingLabels(AgentLabels)); err != nil {
		return nil, err
	}
	// Anybody may label a DaemonSet of his own namespace like this: the usual
	// installation goes before whatever is elsewhere.
	slices.SortStableFunc(sets.Items, func(a, b appsv1.DaemonSet) int {
		return cmp.Compare(elsewhere(&a), elsewhere(&b))
	})
	for i := range sets.Items {
		if all := sets.Items[i].Spec.Template.Spec.Containers; len(all) > 0 {
			return &all[0], nil
		}
	}
	return nil, nil
}

func elsewhere(d *appsv1.DaemonSet) int {
	if d.Namespace == SystemNamespace {
		return 0
	}
	return 1
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
