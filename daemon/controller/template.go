// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// Variables of every container of a fork.
const (
	envSandbox    = "SIDETRACK_SANDBOX"
	envRoutingKey = "SIDETRACK_ROUTING_KEY"
	envBaseline   = "SIDETRACK_BASELINE"
)

// forkID is whose fork it is.
type forkID struct {
	sandbox    string
	routingKey string
	hash       string
}

func (id forkID) labels() map[string]string {
	return map[string]string{
		v1alpha1.SandboxLabel: id.sandbox,
		forkLabel:             id.hash,
		managedByLabel:        managedBy,
	}
}

// forkPod is the pod template of a fork.
type forkPod struct {
	template corev1.PodTemplateSpec
	// ports says under which name a container port is found whose own name is not
	// in the template.
	ports map[string]string
	// notes say what of the baseline the fork does without.
	notes []string
}

// forkTemplate makes a fork's pod template: the baseline's without what may not
// be shared, then the sandbox's changes, then what makes it the sandbox's own.
func forkTemplate(w workload, f v1alpha1.Fork, id forkID) (forkPod, *refusal) {
	var p forkPod
	p.template = *w.template.DeepCopy()
	emptied := p.separate(w)
	if r := override(&p.template, f); r != nil {
		return p, r
	}
	patched, r := patch(p.template, f.Patch)
	if r != nil {
		return p, r
	}
	// Labels that the patch adds are whoever's wish it is; all else of the metadata
	// is no pod's.
	p.template = patched
	p.template.ObjectMeta = metav1.ObjectMeta{Labels: patched.Labels, Annotations: patched.Annotations}
	p.keepPatchedVolumes(emptied)
	p.claim(w, id)
	p.mergeDuplicates()
	return p, nil
}

// override applies what the fork says of single containers.
func override(t *corev1.PodTemplateSpec, f v1alpha1.Fork) *refusal {
	for _, o := range f.Containers {
		c := container(t, o.Name)
		if c == nil {
			return refuse(reasonContainerNotFound, "there is no container %q in it, it has %s: correct the name, or add a container with patch",
				o.Name, containerNames(t))
		}
		if o.Image != "" {
			c.Image = o.Image
		}
		c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return slices.Contains(o.RemoveEnv, e.Name) })
		for _, e := range o.Env {
			if i := slices.IndexFunc(c.Env, func(have corev1.EnvVar) bool { return have.Name == e.Name }); i >= 0 {
				c.Env[i] = e
			} else {
				c.Env = append(c.Env, e)
			}
		}
	}
	return nil
}

func container(t *corev1.PodTemplateSpec, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{t.Spec.Containers, t.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func containerNames(t *corev1.PodTemplateSpec) string {
	var names []string
	for _, list := range [][]corev1.Container{t.Spec.Containers, t.Spec.InitContainers} {
		for _, c := range list {
			names = append(names, c.Name)
		}
	}
	return join(names, ", ")
}

// eachContainer calls f for containers and init containers.
func eachContainer(t *corev1.PodTemplateSpec, f func(*corev1.Container)) {
	for i := range t.Spec.InitContainers {
		f(&t.Spec.InitContainers[i])
	}
	for i := range t.Spec.Containers {
		f(&t.Spec.Containers[i])
	}
}

// patch applies a strategic merge patch. A field that pods do not have is an
// error: left out in silence it would be a fork that is not what was asked for.
func patch(t corev1.PodTemplateSpec, raw *rawPatch) (corev1.PodTemplateSpec, *refusal) {
	if raw == nil || len(raw.Raw) == 0 || string(raw.Raw) == "null" {
		return t, nil
	}
	before, err := json.Marshal(t)
	if err != nil {
		return t, refuse(reasonInvalidPatch, "the baseline's pod template cannot be written as JSON: %v", err)
	}
	after, err := strategicpatch.StrategicMergePatch(before, raw.Raw, corev1.PodTemplateSpec{})
	if err != nil {
		return t, refuse(reasonInvalidPatch, "patch is not a strategic merge patch of a pod template: %s", short(err.Error(), maxMessage))
	}
	var out corev1.PodTemplateSpec
	decoder := json.NewDecoder(bytes.NewReader(after))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&out); err != nil {
		return t, refuse(reasonInvalidPatch, "patch does not make a pod template: %s: it is merged into the workload's spec.template, so it begins with spec or metadata",
			short(strings.TrimPrefix(err.Error(), "json: "), maxMessage))
	}
	return out, nil
}

// claim makes the pods the sandbox's own.
func (p *forkPod) claim(w workload, id forkID) {
	if p.template.Labels == nil {
		p.template.Labels = map[string]string{}
	}
	maps.Copy(p.template.Labels, id.labels())
	own := []corev1.EnvVar{
		{Name: envSandbox, Value: id.sandbox},
		{Name: envRoutingKey, Value: id.routingKey},
		{Name: envBaseline, Value: workloadName(w.ref)},
	}
	eachContainer(&p.template, func(c *corev1.Container) {
		c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.Name == envSandbox || e.Name == envRoutingKey || e.Name == envBaseline
		})
		// First, so that others may refer to them.
		c.Env = append(slices.Clone(own), c.Env...)
		// Why a container has ended is then in its status, even where it has
		// written that to its log only.
		if c.TerminationMessagePolicy == "" || c.TerminationMessagePolicy == corev1.TerminationMessageReadFile {
			c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		}
	})
}

// mergeDuplicates removes what a pod may hold twice and server-side apply may
// not: variables of one name, of which the last counts, and container ports of
// one number, which may have two names.
func (p *forkPod) mergeDuplicates() {
	type port struct {
		number   int32
		protocol corev1.Protocol
	}
	eachContainer(&p.template, func(c *corev1.Container) {
		seen := map[string]bool{}
		var env []corev1.EnvVar
		for _, e := range slices.Backward(c.Env) {
			if !seen[e.Name] {
				env = append(env, e)
			}
			seen[e.Name] = true
		}
		slices.Reverse(env)
		c.Env = env

		kept := map[port]int{}
		var ports []corev1.ContainerPort
		for _, cp := range c.Ports {
			if cp.Protocol == "" {
				cp.Protocol = corev1.ProtocolTCP
			}
			at := port{cp.ContainerPort, cp.Protocol}
			i, twice := kept[at]
			switch {
			case !twice:
				kept[at] = len(ports)
				ports = append(ports, cp)
			case ports[i].Name == "":
				ports[i].Name = cp.Name
			case cp.Name != "" && cp.Name != ports[i].Name:
				if p.ports == nil {
					p.ports = map[string]string{}
				}
				p.ports[cp.Name] = ports[i].Name
			}
		}
		c.Ports = ports
	})
}

func (p *forkPod) note(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}
