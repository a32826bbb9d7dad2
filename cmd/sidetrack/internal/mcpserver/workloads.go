// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// mostRows is how long a list is unless all of it is asked for.
const mostRows = 40

type workloadsInput struct {
	Namespace string `json:"namespace,omitempty" jsonschema:"Kubernetes namespace to look in; the one of the server's kubeconfig when left out"`
	Contains  string `json:"contains,omitempty" jsonschema:"only workloads with this in their name"`
	Detail    detail `json:"detail,omitempty" jsonschema:"short lists at most 40 workloads, full lists all, and containers that run before the others start"`
}

type workloadsReply struct {
	Namespace string         `json:"namespace"`
	Workloads []workloadItem `json:"workloads"`
	Omitted   int            `json:"omitted,omitempty" jsonschema:"how many more there are"`
	// Namespaces are given where there is nothing in this one.
	Namespaces []string `json:"namespaces,omitempty" jsonschema:"namespaces to look in instead"`
}

type workloadItem struct {
	Workload   string          `json:"workload" jsonschema:"what to name it in create_sandbox, such as Deployment/route"`
	Containers []containerItem `json:"containers"`
	URLs       []string        `json:"urls,omitempty" jsonschema:"where its Services are reached inside the cluster"`
}

type containerItem struct {
	Name  string `json:"name"`
	Image string `json:"image" jsonschema:"what everybody else runs"`
	Init  bool   `json:"init,omitempty" jsonschema:"it runs before the others start"`
}

func listWorkloads() tool {
	return define("list_workloads", "List what can be forked", "what can be forked",
		`List the workloads (Deployments, StatefulSets, DaemonSets, ReplicaSets, CronJobs) of a Kubernetes namespace that a sandbox can fork, with their containers, images and the URLs of their Services. Start here: create_sandbox takes the names.`,
		reads, tuneDetail, func(ctx context.Context, c call, in workloadsInput) (*workloadsReply, error) {
			r := &workloadsReply{Namespace: in.Namespace, Workloads: []workloadItem{}}
			if r.Namespace == "" {
				r.Namespace = c.Namespace
			}
			all, err := sandbox.Workloads(ctx, c.Cluster, r.Namespace)
			if err != nil {
				return nil, err
			}
			var services corev1.ServiceList
			// Without them it is still known what can be forked.
			_ = c.Objects.List(ctx, &services, client.InNamespace(r.Namespace))
			for _, w := range all {
				if !strings.Contains(w.Ref.Name, in.Contains) {
					continue
				}
				if in.Detail != full && len(r.Workloads) == mostRows {
					r.Omitted++
					continue
				}
				r.Workloads = append(r.Workloads, workloadOf(w, services.Items, in.Detail))
			}
			if len(all) == 0 {
				r.Namespaces = otherNamespaces(ctx, c, r.Namespace)
			}
			return r, nil
		})
}

func workloadOf(w sandbox.Workload, services []corev1.Service, d detail) workloadItem {
	item := workloadItem{Workload: sandbox.Name(w.Ref), Containers: []containerItem{}}
	for _, c := range w.Containers {
		if !c.Init || d == full {
			item.Containers = append(item.Containers, containerItem{c.Name, c.Image, c.Init})
		}
	}
	for i := range services {
		s := &services[i]
		if !slices.Contains(w.Services, s.Name) {
			continue
		}
		for _, p := range s.Spec.Ports {
			item.URLs = append(item.URLs, urlOf(s, p))
		}
	}
	return item
}

// urlOf is where a Service's port is reached. A port that is no HTTP as far as its
// number and name tell has no scheme.
func urlOf(s *corev1.Service, p corev1.ServicePort) string {
	host := s.Name + "." + s.Namespace
	protocol := p.Name
	if p.AppProtocol != nil {
		protocol = *p.AppProtocol
	}
	switch {
	case p.Protocol != corev1.ProtocolTCP && p.Protocol != "":
		return fmt.Sprintf("%s:%d/%s", host, p.Port, strings.ToLower(string(p.Protocol)))
	case p.Port == 80:
		return "http://" + host
	case p.Port == 443 || strings.HasPrefix(protocol, "https"):
		return fmt.Sprintf("https://%s:%d", host, p.Port)
	case strings.Contains(protocol, "http") || strings.Contains(protocol, "web"):
		return fmt.Sprintf("http://%s:%d", host, p.Port)
	}
	return fmt.Sprintf("%s:%d", host, p.Port)
}

// otherNamespaces are those that a namespace without workloads may be mistaken
// for. Nobody has to be allowed to list them.
func otherNamespaces(ctx context.Context, c call, but string) []string {
	var list corev1.NamespaceList
	if err := c.Objects.List(ctx, &list, client.Limit(200)); err != nil {
		return nil
	}
	var names []string
	for i := range list.Items {
		if n := list.Items[i].Name; n != but && !strings.HasPrefix(n, "kube-") {
			names = append(names, n)
		}
	}
	return names
}

func (r *workloadsReply) text() string {
	if len(r.Workloads) == 0 {
		s := "Nothing that can be forked in namespace " + r.Namespace + "."
		if len(r.Namespaces) > 0 {
			s += " Other namespaces: " + strings.Join(r.Namespaces, ", ")
		}
		return s
	}
	var b strings.Builder
	fmt.Fprintf(&b, "In namespace %s can be forked:\n", r.Namespace)
	for _, w := range r.Workloads {
		var containers []string
		for _, c := range w.Containers {
			containers = append(containers, c.Name+" ("+c.Image+")")
		}
		fmt.Fprintf(&b, "- %s: %s", w.Workload, strings.Join(containers, ", "))
		if len(w.URLs) > 0 {
			b.WriteString("; " + strings.Join(w.URLs, ", "))
		}
		b.WriteString("\n")
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "and %d more: narrow it down with contains, or ask with detail: full\n", r.Omitted)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
