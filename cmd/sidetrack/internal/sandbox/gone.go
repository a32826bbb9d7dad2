// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Gone says, as a failure, that a sandbox is deleted, or that there is another one of its
// name; nil while it is there, and where that cannot be told. Its pods go soon after it.
func Gone(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) error {
	var now v1alpha1.Sandbox
	err := c.Objects.Get(ctx, client.ObjectKeyFromObject(sb), &now)
	switch {
	case err == nil && now.UID == sb.UID && now.DeletionTimestamp == nil:
		return nil
	case err != nil && (!apierrors.IsNotFound(err) || isMissing(err)):
		return nil
	}
	return gone(sb)
}

// AwaitGone waits until a sandbox is deleted and says so, as Gone does; nil when ctx ends
// before, and where that cannot be told.
func AwaitGone(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) error {
	err := cluster.Follow(ctx, c, &v1alpha1.Sandbox{}, &v1alpha1.SandboxList{}, client.ObjectKeyFromObject(sb), 0, func(now *v1alpha1.Sandbox) (bool, error) {
		if now != nil && now.UID == sb.UID && now.DeletionTimestamp == nil {
			sb = now // its ttl may have been changed
			return false, nil
		}
		return true, nil
	}, nil)
	if err != nil {
		return nil
	}
	return gone(sb)
}

func gone(sb *v1alpha1.Sandbox) error {
	f := &task.Failure{
		Message: fmt.Sprintf("sandbox %s is gone: somebody has deleted it", sb.Name),
		Remedy:  "create it anew: sidetrack sandbox create " + sb.Name,
	}
	// The two clocks may not agree to the second.
	if at := sb.Status.ExpiresAt; at != nil && time.Until(at.Time) < 5*time.Second {
		f.Message = fmt.Sprintf("sandbox %s is gone: its ttl was over at %s", sb.Name, at.UTC().Format(time.RFC3339))
		f.Remedy += ", with a longer --ttl"
	}
	return f
}

// AwaitPodGone waits until a pod that belongs to a sandbox is deleted or has ended, and
// says why; nil when ctx ends before, and where that cannot be told.
func AwaitPodGone(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, pod *corev1.Pod) error {
	how := ""
	err := cluster.Follow(ctx, c, &corev1.Pod{}, &corev1.PodList{}, client.ObjectKeyFromObject(pod), 0, func(p *corev1.Pod) (bool, error) {
		switch {
		case p == nil || p.UID != pod.UID || p.DeletionTimestamp != nil:
			how = "is deleted"
		case p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded:
			how = "has ended: " + cmp.Or(p.Status.Message, p.Status.Reason, lastWords(p), "nobody has used it for too long")
		default:
			return false, nil
		}
		return true, nil
	}, nil)
	if err != nil {
		return nil
	}
	return PodGone(ctx, c, sb, pod.Name, how)
}

// PodGone is the failure of whoever needed a pod that is not there any more: that of its
// sandbox, where that is gone, and otherwise what the caller says of the pod.
func PodGone(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, pod, how string) error {
	if err := Gone(context.WithoutCancel(ctx), c, sb); err != nil {
		return err
	}
	return &task.Failure{Message: fmt.Sprintf("the pod %s %s", pod, how), Remedy: "begin again"}
}

// lastWords is what a container of a pod that has ended says of that.
func lastWords(p *corev1.Pod) string {
	for i := range p.Status.ContainerStatuses {
		if end := p.Status.ContainerStatuses[i].State.Terminated; end != nil && end.Message != "" {
			return end.Message
		}
	}
	return ""
}
