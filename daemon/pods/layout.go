// SPDX-License-Identifier: Apache-2.0

package pods

import "strings"

// How the kubelet names cgroups, by its two drivers:
//
//	kubepods/burstable/pod<uid>/<container>                                 cgroupfs
//	kubepods.slice/kubepods-burstable.slice/
//	    kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope    systemd
//
// Guaranteed pods are directly below the first. With the kubelet's --cgroup-root,
// as kind has it, there is more above, and systemd's names begin with it:
// kubelet.slice/kubelet-kubepods.slice/….

// isPodsRoot reports whether a directory of this name is the one that holds all
// pods.
func isPodsRoot(name string) bool {
	return name == "kubepods" || name == "kubepods.slice" || strings.HasSuffix(name, "-kubepods.slice")
}

// isQoSClass reports whether a directory of this name, below the root, holds the
// pods of one class.
func isQoSClass(name string) bool {
	switch name {
	case "burstable", "besteffort":
		return true
	}
	return strings.HasSuffix(name, "kubepods-burstable.slice") || strings.HasSuffix(name, "kubepods-besteffort.slice")
}

// podUID returns the UID of the pod that a directory of this name, below the root
// or a class, belongs to.
func podUID(name string) (string, bool) {
	uid, ok := strings.CutPrefix(name, "pod")
	if slice, isSlice := strings.CutSuffix(name, ".slice"); isSlice {
		i := strings.LastIndex(slice, "-pod")
		if i < 0 {
			return "", false
		}
		// A dash means something to systemd.
		uid, ok = strings.ReplaceAll(slice[i+len("-pod"):], "_", "-"), true
	}
	return uid, ok && uid != ""
}

// isContainer reports whether a directory of this name, below a pod's, holds a
// container's processes, and not those of the runtime that looks after it.
func isContainer(name string) bool { return !strings.HasPrefix(name, "crio-conmon-") }
