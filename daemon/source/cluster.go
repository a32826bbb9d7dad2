// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// In a cluster the controller has looked at what people wrote, and says in status
// what is to be in force. The agent believes that and nothing else.

// maxRefusal bounds a message that clients are shown.
const maxRefusal = 256

// convertClusterPod is convertPod for a node of a cluster: the pod's processes are
// found by its UID, and no annotation says where its namespace is.
func convertClusterPod(o *corev1.Pod) (pods.Pod, bool) {
	p, alive := convertPod(o)
	p.Netns = ""
	p.UID = string(o.UID)
	p.Running = o.Status.Phase == corev1.PodRunning && !atRest(&o.Status)
	// The kubelet knows a static pod by another UID than its mirror in the API has.
	// But whoever may create pods may write that annotation. So it is believed only
	// where it cannot be the UID of a pod that the API server has named, and it gives
	// no identity: nobody's label may become that of somebody else's pod.
	if uid := o.Annotations[corev1.MirrorPodAnnotationKey]; staticUID.MatchString(uid) {
		p.UID, p.Sandbox, p.Inject = uid, "", false
	}
	return p, alive
}

// atRest reports whether no container of a pod runs now, as between two starts of
// one that crashes: then it may have no process, and it has no traffic.
func atRest(s *corev1.PodStatus) bool {
	known := false
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			known = true
			if list[i].State.Running != nil {
				return false
			}
		}
	}
	return known
}

// staticUID is the form of the UIDs that the kubelet makes for static pods: a hash
// of the manifest, and never a UUID.
var staticUID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// convertClusterSandbox takes from a Sandbox what its status says.
func convertClusterSandbox(o *v1alpha1.Sandbox) routing.Sandbox {
	s := routing.Sandbox{
		Name:      routing.Name{Namespace: known(o.Namespace), Name: o.Name},
		Key:       o.Status.RoutingKey,
		Existing:  convertExisting(o.Spec.ExistingConnections),
		Redirects: convertResolved(o.Status.Redirects),
	}
	convertWatching(&s, &o.Spec)
	return s
}

// convertWatching takes what a sandbox wants to know and to have mended.
func convertWatching(s *routing.Sandbox, spec *v1alpha1.SandboxSpec) {
	if slices.Contains(spec.Observe, v1alpha1.ObserveAll) {
		s.ObserveAll = true
	} else {
		s.Observe = spec.Observe
	}
	s.Propagate = spec.Propagate == v1alpha1.PropagateTraceID
}

// convertClusterGroup takes from a RouteGroup what its status says.
func convertClusterGroup(o *v1alpha1.RouteGroup) routing.Sandbox {
	return routing.Sandbox{
		Name:      routing.Name{Namespace: known(o.Namespace), Name: o.Name},
		Group:     true,
		Key:       o.Status.RoutingKey,
		Existing:  convertExisting(o.Spec.ExistingConnections),
		Members:   o.Status.Sandboxes,
		Redirects: convertResolved(o.Status.Redirects),
	}
}

func convertExisting(e v1alpha1.ExistingConnections) routing.ExistingPolicy {
	switch e {
	case v1alpha1.ExistingAll:
		return routing.All
	case v1alpha1.ExistingLeave:
		return routing.Leave
	}
	return routing.Idle
}

func convertResolved(all []v1alpha1.RedirectStatus) []routing.Redirect {
	out := make([]routing.Redirect, 0, len(all))
	for i := range all {
		r := &all[i]
		c := convertRedirect(&r.From, &r.To, r.Unavailable)
		c.Field = known(fmt.Sprintf("status.redirects[%d]", i))
		if r.Refused {
			c.Refused = refusal(r.Message)
		}
		out = append(out, c)
	}
	return out
}

// refusal is one line of text, whatever the message is.
func refusal(message string) string {
	text := strings.TrimRight(strings.Join(strings.Fields(message), " "), ".")
	if len(text) > maxRefusal {
		text = strings.ToValidUTF8(text[:maxRefusal], "") + "…"
	}
	return cmp.Or(text, "it is refused")
}

// convertRedirect makes a redirect of what is valid.
func convertRedirect(from *v1alpha1.RedirectFrom, to *v1alpha1.RedirectTo, unavailable v1alpha1.Unavailable) routing.Redirect {
	out := routing.Redirect{
		From: routing.ServiceRef{Service: known(from.Service), Port: known(portText(from.Port))},
		To:   routing.Target{Service: to.Service, Namespace: to.Namespace, Port: known(portText(to.Port))},
	}
	if to.Address != "" {
		// One that does not parse is none, which routing refuses with words.
		out.To.Address, _ = netip.ParseAddr(to.Address)
	}
	if unavailable == v1alpha1.UnavailableBaseline {
		out.Unavailable = routing.Baseline
	}
	return out
}
