// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// capturedAddress returns the address of a Service that a sandbox redirects or observes:
// connections to it are captured in every pod that is covered. Empty where there is none,
// or the user may not look: then nothing tells of a pod that is no sandbox's whether it is
// covered.
func capturedAddress(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) string {
	var services corev1.ServiceList
	if err := c.Objects.List(ctx, &services, client.InNamespace(sb.Namespace)); err != nil {
		return ""
	}
	var headless []string
	for _, r := range sb.Status.Redirects {
		port := ""
		if r.From.Port != nil {
			port = r.From.Port.String()
		}
		for i := range services.Items {
			if s := &services.Items[i]; s.Name == r.From.Service && !r.Refused {
				if address := addressOf(s, port); address != "" {
					return address
				}
				headless = append(headless, s.Name)
			}
		}
	}
	for i := range services.Items {
		s := &services.Items[i]
		if slices.Contains(sb.Spec.Observe, s.Name) || slices.Contains(sb.Spec.Observe, v1alpha1.ObserveAll) {
			if address := addressOf(s, ""); address != "" {
				return address
			}
			headless = append(headless, s.Name)
		}
	}
	for _, name := range headless {
		if address := endpointOf(ctx, c, sb.Namespace, name); address != "" {
			return address
		}
	}
	return ""
}

// addressOf is a Service's cluster IP with a TCP port of it: the one that is named by name
// or number, or any. Empty where it has none.
func addressOf(s *corev1.Service, port string) string {
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.Type == corev1.ServiceTypeExternalName {
		return ""
	}
	for _, p := range s.Spec.Ports {
		number := strconv.Itoa(int(p.Port))
		if (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") && (port == "" || port == p.Name || port == number) {
			return net.JoinHostPort(s.Spec.ClusterIP, number)
		}
	}
	return ""
}

// endpointOf is the address of a pod behind a Service, which is captured as well.
func endpointOf(ctx context.Context, c *cluster.Cluster, namespace, service string) string {
	var all discoveryv1.EndpointSliceList
	if err := c.Objects.List(ctx, &all, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service}); err != nil {
		return ""
	}
	for _, s := range all.Items {
		for _, p := range s.Ports {
			if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, e := range s.Endpoints {
				if len(e.Addresses) > 0 && s.AddressType != discoveryv1.AddressTypeFQDN {
					return net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port)))
				}
			}
		}
	}
	return ""
}
