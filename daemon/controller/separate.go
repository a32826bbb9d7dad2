// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

type rawPatch = runtime.RawExtension

// separate takes out of the baseline's template what would let the fork be
// taken for the baseline, disturb it, or never start beside it. It returns the
// volumes that it has made empty. A patch can bring each of these back, except
// labels by which a baseline's object would select the fork.
func (p *forkPod) separate(w workload) (emptied map[string]bool) {
	t := &p.template
	resolveLabelRefs(t, w.pods[0])
	t.Labels = nil
	emptied = p.emptyVolumes(w)

	spec := &t.Spec
	// On the node's own network, or with a port of the node, no two pods of one
	// node can listen on one port.
	if spec.HostNetwork {
		spec.HostNetwork = false
		if spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet {
			spec.DNSPolicy = corev1.DNSClusterFirst
		}
		p.note("it has a network of its own, not the node's")
	}
	eachContainer(t, func(c *corev1.Container) {
		for i := range c.Ports {
			c.Ports[i].HostPort, c.Ports[i].HostIP = 0, ""
		}
	})
	if spec.NodeName != "" {
		pinToNode(spec)
	}
	// An experiment never pushes others out.
	spec.PriorityClassName, spec.Priority, spec.PreemptionPolicy = "", nil, nil
	separateAffinity(spec, w.pods)
	// The name under which a StatefulSet's application expects to find itself.
	if w.ref.Kind == "StatefulSet" && spec.Hostname == "" && w.pods[0][podNameLabel] != "" {
		spec.Hostname = cut(w.pods[0][podNameLabel], maxName)
	}
	return emptied
}

const podNameLabel = "statefulset.kubernetes.io/pod-name"

// resolveLabelRefs replaces variables that show a label by its value, since the
// fork's pods do not carry the label.
func resolveLabelRefs(t *corev1.PodTemplateSpec, have labels.Set) {
	eachContainer(t, func(c *corev1.Container) {
		for i, e := range c.Env {
			if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil {
				continue
			}
			key, ok := strings.CutPrefix(e.ValueFrom.FieldRef.FieldPath, "metadata.labels['")
			if !ok {
				continue
			}
			if value, ok := have[strings.TrimSuffix(key, "']")]; ok {
				// A dollar sign would begin a reference.
				c.Env[i] = corev1.EnvVar{Name: e.Name, Value: strings.ReplaceAll(value, "$", "$$")}
			}
		}
	})
}

// emptyVolumes gives the fork empty volumes where the baseline has claims: two
// processes that believe to own one data directory destroy it. Claims that
// cannot be written to are shared.
func (p *forkPod) emptyVolumes(w workload) map[string]bool {
	spec := &p.template.Spec
	emptied := map[string]bool{}
	empty := func(name string) corev1.Volume {
		emptied[name] = true
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	}
	for _, c := range w.claims {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.Name })
		if i < 0 {
			i = len(spec.Volumes)
			spec.Volumes = append(spec.Volumes, corev1.Volume{})
		}
		spec.Volumes[i] = empty(c.Name)
		p.note("volume %s is empty, and its own", c.Name)
	}
	for i, v := range spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			if isShared(v.VolumeSource) && !readOnly(spec, v) {
				p.note("volume %s is the baseline's own, and both write to it: change it with patch if they must not", v.Name)
			}
			continue
		}
		if readOnly(spec, v) {
			continue
		}
		spec.Volumes[i] = empty(v.Name)
		p.note("volume %s is empty: the claim %s stays the baseline's", v.Name, v.PersistentVolumeClaim.ClaimName)
	}
	return emptied
}

// isShared reports whether pods that name the same source write to the same
// place: a node's folder, or a share or disk that is named without a claim.
func isShared(s corev1.VolumeSource) bool {
	s.EmptyDir, s.ConfigMap, s.Secret, s.DownwardAPI, s.Projected, s.Ephemeral, s.Image, s.CSI, s.GitRepo = nil, nil, nil, nil, nil, nil, nil, nil, nil
	return s != (corev1.VolumeSource{})
}

// readOnly reports whether no container can write to a volume.
func readOnly(spec *corev1.PodSpec, v corev1.Volume) bool {
	if c := v.PersistentVolumeClaim; c != nil && c.ReadOnly {
		return true
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, c := range list {
			for _, m := range c.VolumeMounts {
				if m.Name == v.Name && !m.ReadOnly {
					return false
				}
			}
			for _, d := range c.VolumeDevices {
				if d.Name == v.Name {
					return false
				}
			}
		}
	}
	return true
}

// keepPatchedVolumes lets a patch give an emptied volume another source: a
// volume has only one.
func (p *forkPod) keepPatchedVolumes(emptied map[string]bool) {
	for i := range p.template.Spec.Volumes {
		v := &p.template.Spec.Volumes[i]
		if !emptied[v.Name] || v.EmptyDir == nil {
			continue
		}
		other := v.VolumeSource
		other.EmptyDir = nil
		if other != (corev1.VolumeSource{}) {
			v.VolumeSource = other
			p.notes = slices.DeleteFunc(p.notes, func(n string) bool { return strings.HasPrefix(n, fmt.Sprintf("volume %s ", v.Name)) })
		}
	}
}

// pinToNode leaves a pod on the node that its template names, but lets the
// scheduler see whether there is room for it: the kubelet would refuse the pod,
// and its ReplicaSet make another one, without end.
func pinToNode(spec *corev1.PodSpec) {
	here := corev1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{spec.NodeName}}
	spec.NodeName = ""
	if spec.Affinity == nil {
		spec.Affinity = &corev1.Affinity{}
	}
	if spec.Affinity.NodeAffinity == nil {
		spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// What else the template requires of a node has never been looked at.
	spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{here}}},
	}
}

// separateAffinity removes what the baseline's pods want of each other: to be
// apart, together or spread. It would count pods that the fork is not one of.
func separateAffinity(spec *corev1.PodSpec, pods []labels.Set) {
	spec.TopologySpreadConstraints = slices.DeleteFunc(spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
		return matchesSome(c.LabelSelector, pods)
	})
	if spec.Affinity == nil {
		return
	}
	among := func(t corev1.PodAffinityTerm) bool { return matchesSome(t.LabelSelector, pods) }
	amongWeighted := func(t corev1.WeightedPodAffinityTerm) bool { return among(t.PodAffinityTerm) }
	if a := spec.Affinity.PodAffinity; a != nil {
		a.RequiredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.RequiredDuringSchedulingIgnoredDuringExecution, among)
		a.PreferredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.PreferredDuringSchedulingIgnoredDuringExecution, amongWeighted)
	}
	if a := spec.Affinity.PodAntiAffinity; a != nil {
		a.RequiredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.RequiredDuringSchedulingIgnoredDuringExecution, among)
		a.PreferredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.PreferredDuringSchedulingIgnoredDuringExecution, amongWeighted)
	}
}

func matchesSome(s *metav1.LabelSelector, pods []labels.Set) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(pods, func(set labels.Set) bool { return selector.Matches(set) })
}
