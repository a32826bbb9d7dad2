// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"cmp"
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// NamesOfPods returns a function that replaces the names and addresses of a
// namespace's pods by their workloads', and those of a fork's pods by the baseline's:
// which of several pods has answered is a matter of chance, and of connections that
// are kept.
func NamesOfPods(ctx context.Context, c *cluster.Cluster, namespace string) (func(string) string, error) {
	var list corev1.PodList
	if err := c.Objects.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, cluster.Explain(err, "list the pods")
	}
	return namesOf(list.Items), nil
}

// address is an address with or without a port, or what looks like one.
var address = regexp.MustCompile(`(\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\])(:\d{1,5})?`)

func namesOf(pods []corev1.Pod) func(string) string {
	type name struct{ pod, workload string }
	var names []name
	addresses := map[netip.Addr]string{}
	for i := range pods {
		p := &pods[i]
		w := "<pod of " + workloadOf(p) + ">"
		names = append(names, name{p.Name, w})
		if p.Spec.HostNetwork {
			continue // The address is the node's.
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				addresses[a] = w
			}
		}
	}
	// One name may begin with another.
	slices.SortFunc(names, func(a, b name) int { return cmp.Compare(len(b.pod), len(a.pod)) })
	var pairs []string
	for _, n := range names {
		pairs = append(pairs, n.pod, n.workload)
	}
	replacer := strings.NewReplacer(pairs...)
	return func(s string) string {
		s = address.ReplaceAllStringFunc(s, func(found string) string {
			host := address.FindStringSubmatch(found)[1]
			a, err := netip.ParseAddr(strings.Trim(host, "[]"))
			if w := addresses[a.Unmap()]; err == nil && w != "" {
				return w
			}
			return found
		})
		return replacer.Replace(s)
	}
}

// workloadOf names what a pod is one of.
func workloadOf(p *corev1.Pod) string {
	if from := sandbox.ForkedFrom(p); from != p.Name {
		return from
	}
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return "Pod/" + p.Name
	}
	if hash := p.Labels[appsv1.DefaultDeploymentUniqueLabelKey]; owner.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return "Deployment/" + name
		}
	}
	return owner.Kind + "/" + owner.Name
}
