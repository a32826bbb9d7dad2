// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// ProgramsEnv names a folder that already holds the cluster's programs; nothing
// is built then.
const ProgramsEnv = "SIDETRACK_CLUSTER_PROGRAMS"

// module is one of the modules below programs/ that pin what is built.
type module struct {
	name     string
	require  string   // the module whose version is the programs' version
	packages []string // below require, or whole paths
	args     []string
	ldflags  func(version string) string
}

// Those who only want a control plane wait for the first two modules only.
var modules = []module{
	{
		name:     "etcd",
		require:  "go.etcd.io/etcd/server/v3",
		packages: []string{"go.etcd.io/etcd/server/v3"},
	},
	{
		name:    "kubernetes",
		require: "k8s.io/kubernetes",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kubectl",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kube-proxy",
		},
		// Without its version a server says it is 0.0.0, and clients believe it.
		ldflags: func(version string) string {
			parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
			flags := []string{"-s -w"}
			for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
				flags = append(flags, "-X "+pkg+".gitVersion="+version, "-X "+pkg+".gitTreeState=clean",
					"-X "+pkg+".gitMajor="+parts[0], "-X "+pkg+".gitMinor="+parts[1])
			}
			return strings.Join(flags, " ")
		},
	},
	{
		name:    "runtime",
		require: "github.com/containerd/containerd/v2",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
			"github.com/containernetworking/plugins/plugins/ipam/host-local",
			"github.com/containernetworking/plugins/plugins/main/ptp",
			"github.com/containernetworking/plugins/plugins/main/loopback",
		},
		args: []string{"-tags", "no_btrfs,no_zfs,no_devmapper"},
	},
}

// planePrograms are what a control plane without nodes needs.
var planePrograms = []string{"etcd", "kube-apiserver", "kubectl"}

// program is the file name of a package's program.
func program(pkg string) string {
	if pkg == "go.etcd.io/etcd/server/v3" {
		return "etcd"
	}
	return filepath.Base(pkg)
}

// Programs returns the folder of the cluster's programs. What the cache lacks is
// built first, which takes a quarter of an hour of CPU time: names limits it to
// the programs that are needed, and none means all of them. Other processes that
// want the same wait for it.
func Programs(ctx context.Context, names ...string) (string, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		for _, m := range modules {
			for _, pkg := range m.packages {
				if name := program(pkg); len(names) == 0 || slices.Contains(names, name) {
					if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
						return "", fmt.Errorf("find the programs in $%s: %w", ProgramsEnv, err)
					}
				}
			}
		}
		return dir, nil
	}
	checkout, err := programs.Checkout(ctx)
	if err != nil {
		return "", err
	}
	built := make([]programs.Module, len(modules))
	key := ""
	for i, m := range modules {
		built[i] = programs.Module{Dir: filepath.Join(checkout, "test", "cluster", "programs", m.name), Args: m.args}
		version, err := built[i].Required(m.require)
		if err != nil {
			return "", err
		}
		if m.ldflags != nil {
			built[i].Ldflags = m.ldflags(version)
		}
		key += m.name + "-" + version + "_"
	}
	cache, err := programs.Cache("cluster")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, key+runtime.GOARCH)
	for i, m := range modules {
		for _, pkg := range m.packages {
			name := program(pkg)
			if len(names) > 0 && !slices.Contains(names, name) {
				continue
			}
			if _, err := built[i].Build(ctx, dir, name, pkg); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

// output is programs.Output.
func output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) { return programs.Output(ctx, cmd) }
