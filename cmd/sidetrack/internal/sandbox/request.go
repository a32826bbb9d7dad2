// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Request is a sandbox in the short form in which people ask for one. Its strings
// are those of the flags of "sandbox create".
type Request struct {
	// Namespace is the connection's when it is empty.
	Namespace string
	Name      string
	// Forks are workloads: NAME of a Deployment, or KIND/NAME.
	Forks []string
	// Images are IMAGE, where there is one container to choose from, or
	// CONTAINER=IMAGE, or [KIND/]WORKLOAD/CONTAINER=IMAGE.
	Images []string
	// Env are NAME=VALUE, or NAME- to remove a variable, with CONTAINER/ or
	// [KIND/]WORKLOAD/CONTAINER/ in front where there is more than one to choose
	// from.
	Env []string
	// Redirects are SERVICE[:PORT]=TARGET[:PORT], where TARGET is a Service,
	// NAMESPACE/SERVICE, or an IP address.
	Redirects []string
	// Unavailable is what happens to the traffic of Redirects while their target
	// has no ready endpoint: Reject, which is the default, or Baseline.
	Unavailable string
	// TTL is a duration such as 2h. The sandbox stays until it is deleted when it is
	// empty.
	TTL string
	// RoutingKey is made by the controller when it is empty.
	RoutingKey string
	// ExistingConnections is Idle, All or Leave; empty is the API's default.
	ExistingConnections string
	// Observe are Services in whose traffic it is looked for workloads that have lost
	// the key; * is all of the namespace, and ObserveNone alone none. Where it is empty
	// they are those that are redirected anyway, as far as the user may list Services.
	Observe []string
	// Propagate is what stands for a key that has been lost: TraceID, or nothing.
	Propagate string
	Labels    map[string]string
}

// Build makes the object. Where the request leaves open which container is meant
// it looks at the workloads in the cluster. Nothing is written.
func (r Request) Build(ctx context.Context, c *cluster.Cluster) (*v1alpha1.Sandbox, error) {
	namespace := r.Namespace
	if namespace == "" {
		namespace = c.Namespace
	}
	sb := &v1alpha1.Sandbox{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.SandboxKind},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: r.Name, Labels: r.Labels},
		Spec: v1alpha1.SandboxSpec{
			RoutingKey: r.RoutingKey, ExistingConnections: v1alpha1.ExistingConnections(r.ExistingConnections),
			Propagate: v1alpha1.Propagate(r.Propagate),
		},
	}
	if r.TTL != "" {
		d, err := time.ParseDuration(r.TTL)
		if err != nil {
			return nil, task.Usagef("the ttl %q is not a duration: write one such as 90s, 30m or 2h", r.TTL)
		}
		sb.Spec.TTL = &metav1.Duration{Duration: d}
	}
	for _, text := range r.Redirects {
		redirect, err := parseRedirect(text)
		if err != nil {
			return nil, err
		}
		redirect.Unavailable = v1alpha1.Unavailable(r.Unavailable)
		sb.Spec.Redirects = append(sb.Spec.Redirects, redirect)
	}
	plan, err := r.plan(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	for _, w := range plan.workloads {
		sb.Spec.Forks = append(sb.Spec.Forks, v1alpha1.Fork{Workload: w.ref, Containers: w.overrides})
	}
	sb.Spec.Observe, err = r.observed(ctx, c, sb, plan)
	return sb, err
}

func (r Request) plan(ctx context.Context, c *cluster.Cluster, namespace string) (*plan, error) {
	plan := &plan{}
	for _, text := range r.Forks {
		ref, err := ParseWorkload(text)
		if err != nil {
			return nil, err
		}
		w, err := readWorkload(ctx, c, namespace, ref)
		if err != nil {
			return nil, err
		}
		plan.workloads = append(plan.workloads, w)
	}
	for _, text := range r.Images {
		if err := plan.image(text); err != nil {
			return nil, err
		}
	}
	for _, text := range r.Env {
		if err := plan.env(text); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// plan is what becomes of the forks while images and variables are given to
// their containers.
type plan struct{ workloads []*workload }

// target is a container of one of the forks.
type target struct {
	w    *workload
	name string
}

func (p *plan) image(text string) error {
	where, image, named := strings.Cut(text, "=")
	if !named {
		where, image = "", text
	}
	if image == "" {
		return task.Usagef("image %q names no image: write IMAGE or CONTAINER=IMAGE", text)
	}
	t, err := p.find("image", text, where, "CONTAINER=IMAGE")
	if err != nil {
		return err
	}
	o := t.override()
	if o.Image != "" {
		return task.Usagef("container %s of %s gets two images: %s and %s", t.name, Name(t.w.ref), o.Image, image)
	}
	o.Image = image
	return nil
}

func (p *plan) env(text string) error {
	what, value, set := strings.Cut(text, "=")
	if !set && !strings.HasSuffix(what, "-") {
		return task.Usagef("env %q is neither NAME=VALUE nor NAME- to remove one", text)
	}
	where, name := "", what
	if i := strings.LastIndex(what, "/"); i >= 0 {
		where, name = what[:i], what[i+1:]
	}
	t, err := p.find("env", text, where, "CONTAINER/NAME=VALUE")
	if err != nil {
		return err
	}
	o := t.override()
	if set {
		o.Env = append(o.Env, corev1.EnvVar{Name: name, Value: value})
	} else {
		o.RemoveEnv = append(o.RemoveEnv, strings.TrimSuffix(name, "-"))
	}
	return nil
}

// find finds the container that is meant: by its name; by that of its workload,
// where that has one container; and without any name the only one there is, or the
// only one that has been given an image.
func (p *plan) find(flag, text, where, form string) (target, error) {
	if len(p.workloads) == 0 {
		return target{}, task.Usagef("%s %q is for a fork, and nothing is forked: add --fork WORKLOAD", flag, text)
	}
	var all, found []target
	workload, container := cutLast(where)
	for _, w := range p.workloads {
		if workload != "" && !w.is(workload) {
			continue
		}
		for _, name := range w.containers {
			all = append(all, target{w, name})
			if name == container {
				found = append(found, target{w, name})
			}
		}
		if container == "" || slices.Contains(w.containers, container) {
			continue
		}
		switch {
		case slices.Contains(w.inits, container):
			found = append(found, target{w, container})
		case workload == "" && w.ref.Name == container && len(w.containers) == 1:
			found = append(found, target{w, w.containers[0]})
		}
	}
	if where == "" {
		found = all
		if len(all) > 1 {
			if changed := slices.DeleteFunc(slices.Clone(all), func(t target) bool { return !t.hasImage() }); flag != "image" && len(changed) == 1 {
				found = changed
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return target{}, task.Usagef("%s %q: no forked workload has such a container: there are %s", flag, text, p.names())
	}
	return target{}, task.Usagef("%s %q may mean several containers: write %s, or WORKLOAD/%s; there are %s", flag, text, form, form, p.names())
}

func (p *plan) names() string {
	var names []string
	for _, w := range p.workloads {
		for _, c := range slices.Concat(w.containers, w.inits) {
			names = append(names, w.ref.Name+"/"+c)
		}
	}
	return strings.Join(names, ", ")
}

func (t target) hasImage() bool {
	return slices.ContainsFunc(t.w.overrides, func(o v1alpha1.ContainerOverride) bool { return o.Name == t.name && o.Image != "" })
}

func (t target) override() *v1alpha1.ContainerOverride {
	for i := range t.w.overrides {
		if t.w.overrides[i].Name == t.name {
			return &t.w.overrides[i]
		}
	}
	t.w.overrides = append(t.w.overrides, v1alpha1.ContainerOverride{Name: t.name})
	return &t.w.overrides[len(t.w.overrides)-1]
}

// cutLast cuts the last part of a path off.
func cutLast(path string) (before, last string) {
	if i := strings.LastIndex(path, "/"); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// parseRedirect reads SERVICE[:PORT]=TARGET[:PORT].
func parseRedirect(text string) (v1alpha1.Redirect, error) {
	var r v1alpha1.Redirect
	from, to, ok := strings.Cut(text, "=")
	if !ok || from == "" || to == "" {
		return r, task.Usagef("redirect %q is not SERVICE[:PORT]=TARGET[:PORT], such as postgres:5432=postgres-pr-42", text)
	}
	r.From.Service, r.From.Port = cutPort(from)
	if a, err := netip.ParseAddr(to); err == nil {
		r.To.Address = a.String()
		return r, nil
	}
	if a, err := netip.ParseAddrPort(to); err == nil {
		port := intstr.FromInt32(int32(a.Port()))
		r.To.Address, r.To.Port = a.Addr().String(), &port
		return r, nil
	}
	service, port := cutPort(to)
	if namespace, name, ok := strings.Cut(service, "/"); ok {
		r.To.Namespace, service = namespace, name
	}
	r.To.Service, r.To.Port = service, port
	return r, nil
}

// cutPort cuts a port, by number or by name, off a Service's name.
func cutPort(text string) (string, *intstr.IntOrString) {
	name, port, ok := strings.Cut(text, ":")
	if !ok {
		return name, nil
	}
	p := intstr.Parse(port)
	return name, &p
}

// Name is how a workload is named to people, as in status.redirects[].fork.
func Name(ref v1alpha1.WorkloadRef) string {
	if ref.Kind == "" {
		return "Deployment/" + ref.Name
	}
	return fmt.Sprintf("%s/%s", ref.Kind, ref.Name)
}
